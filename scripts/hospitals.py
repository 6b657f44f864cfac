"""Ten hospitals, three things wrong: `python scripts/hospitals.py [--seeds 5] [--folder hospitals]`.

Fashion-MNIST where FEDJAX_SIM_DATA holds it, scikit-learn's digits elsewhere. Every hospital sees three classes through
a scanner of its own; one is slow and misses every deadline; one has its labels the wrong way round. Which of that costs
how much, and what helps? Writes the diagnosis with its page and its picture.
"""

import argparse
import os
from pathlib import Path

from rich.console import Console

from fedjax_sim import use_cpu_devices
from fedjax_sim.diagnose import diagnose
from fedjax_sim.diagnose.watch import watching
from fedjax_sim.experiment.config import load_config
from fedjax_sim.report.diagnosis import print_diagnosis, write_diagnosis

HOSPITALS = (
    "data.clients=10", "data.partition=labels_per_client", "data.labels_per_client=3", "heterogeneity.scanner=0.6",
    "model.name=mlp", "model.hidden=[64]", "training.sampling=all", "training.rounds=80", "training.local_steps=10",
    "training.batch_size=32", "training.evaluate_every=4", "attack.name=label_flip", "attack.fraction=0.1",
    "network.profiles=constant", "network.uplink_bps=1e7", "network.downlink_bps=1e7", "network.seconds_per_step=0.1",
    "network.slow_clients=[2]", "network.slowdown=50", "network.policy=deadline", "network.deadline_seconds=10",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("hospitals"))
    args = parser.parse_args()
    use_cpu_devices()
    name = "fashion_mnist" if "FEDJAX_SIM_DATA" in os.environ else "digits"
    console = Console()
    with watching(console) as told:
        config = load_config(None, [f"data.name={name}", *HOSPITALS])
        found = diagnose(config, args.folder, seeds=args.seeds, told=told)
    write_diagnosis(found, args.folder, title=f"Ten hospitals on {name}: where accuracy goes")
    print_diagnosis(console, found, args.folder)
    console.print(f"{found.runs} runs as {found.programs} programs in {found.seconds:.0f} s")


if __name__ == "__main__":
    main()
