"""Whom to wait for, and what to send: `python scripts/communication.py [--hours 1] [--picture communication.png]`.

Twenty hospitals on thin links, one of which is twenty times slower than it would be; ten take part in a round.
Fashion-MNIST where FEDJAX_SIM_DATA holds it, scikit-learn's digits elsewhere, Dirichlet(0.3) label skew. The server
waits for all, until a deadline, for the first ten of thirteen, or for nobody (FedBuff with ten at work and a buffer of
five); each with messages as they are, and compressed: one bit for each parameter on the way up (DRIVE), 16 on the way
down. Every run has the same simulated hours, hence as many rounds as fit.
"""

import argparse
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim import use_cpu_devices
from fedjax_sim.experiment.build import build
from fedjax_sim.experiment.config import load_config
from fedjax_sim.experiment.history import Row, read_history
from fedjax_sim.experiment.run import run
from fedjax_sim.plots import costs

SLOW = 0
COMMON = (
    "model.name=mlp", "model.hidden=[64]", "data.clients=20", "data.alpha=0.3", "data.partition=dirichlet",
    "training.clients_per_round=10", "training.batch_size=32", "training.local_steps=20",
    "algorithm.learning_rate=0.05", "network.profiles=lognormal", "network.downlink_bps=1e6", "network.uplink_bps=2e5",
    "network.seconds_per_step=0.5", f"network.slow_clients=[{SLOW}]", "network.slowdown=20", "output.per_client=true",
)  # fmt: skip
POLICIES = {
    "wait for all": ("network.policy=wait",),
    "deadline": ("network.policy=deadline", "network.deadline_seconds=60"),
    "over-selection": ("network.policy=over_select", "network.extra=3"),
    "asynchronous (FedBuff)": ("network.policy=asynchronous", "network.concurrency=10", "network.buffer=5"),
}
COMPRESSED = ("compression.uplink=drive", "compression.downlink=half")


def data() -> tuple[tuple[str, ...], str]:
    root = os.environ.get("FEDJAX_SIM_DATA")
    folder = Path(root) / "fashion_mnist" if root else None
    if folder is not None and folder.is_dir():
        return ("data.name=fashion_mnist", f"data.path={folder}"), "Fashion-MNIST"
    return ("data.name=digits",), "digits"


def rounds_within(overrides: list[str], seconds: float) -> int:
    """How many rounds the schedule has in so many simulated seconds; nothing is trained for that."""
    simulation = build(load_config(None, overrides)).simulation
    assert simulation is not None
    for done, step in enumerate(simulation.schedule(None)):
        if step.seconds > seconds:
            return max(done, 1)
    raise AssertionError("a schedule does not end")


def trained(overrides: list[str], seconds: float, folder: str) -> tuple[list[Row], Any]:
    rounds = rounds_within(overrides, seconds)
    more = (f"training.rounds={rounds}", f"training.evaluate_every={max(1, rounds // 60)}", f"output.folder={folder}")
    config = load_config(None, [*overrides, *more])
    done = Path(run(config).folder)
    return read_history(done / "history.jsonl"), np.load(done / "per_client.npy", mmap_mode="r")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=1.0, help="simulated, of each run")
    parser.add_argument("--picture", type=Path, default=Path("communication.png"))
    args = parser.parse_args()
    use_cpu_devices()
    warnings.simplefilter("ignore")  # that the slow hospital never makes the deadline is the point
    source, name_of_data = data()
    histories, start = {}, time.perf_counter()
    print(f"{name_of_data}, 20 hospitals, number {SLOW} slow, {args.hours:g} simulated hours each\n")
    print("| server | compressed | rounds | accuracy | gigabytes | messages of the slow hospital |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for policy, settings in POLICIES.items():
            for compression in ((), COMPRESSED):
                overrides = [*source, *COMMON, *settings, *compression]
                rows, clients = trained(overrides, 3600 * args.hours, folder)
                histories[policy, bool(compression)] = rows
                last = [row["test_accuracy"] for row in rows if row["test_accuracy"] is not None][-5:]
                sent = sum(row["uplink_bits"] + row["downlink_bits"] for row in rows) / 8e9
                slow = int(clients["counted"][clients["client"] == SLOW].sum())
                cells = (policy, "yes" if compression else "no", f"{len(rows):,}", f"{sum(last) / len(last):.1%}",
                         f"{sent:.2f}", f"{slow:,}")  # fmt: skip
                print(f"| {' | '.join(cells)} |", flush=True)
    title = f"{name_of_data}: 20 hospitals on thin links, one of them 20 times slower"
    costs(histories, args.picture, title=title)
    print(f"\nDrawn in {args.picture}, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
