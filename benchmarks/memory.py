"""What per-client memory costs on disk: `python -m benchmarks.memory [--clients 100000] [--rounds 50]`.

SCAFFOLD on McMahan's 2NN (199,210 parameters), a control variate for every client of a population whose examples are
computed. Each figure comes from a process of its own, whose peak of resident memory is read at the end.
"""

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_sim import Procedural, init, make_round, scaffold, select
from fedjax_sim.core.host import HostMemory, with_host_memory
from fedjax_sim.models import build_model

PIXELS, CLASSES, EXAMPLES, BATCH, COHORT = 784, 10, 100, 20, 100


def population(clients: int) -> Procedural:
    """Each client holds noisy pictures of the classes' prototypes."""
    prototypes = jax.random.normal(jax.random.key(0), (CLASSES, PIXELS))

    def make(key: jax.Array, client: jax.Array):
        labels = jax.random.randint(jax.random.fold_in(key, 0), (EXAMPLES,), 0, CLASSES)
        noise = jax.random.normal(jax.random.fold_in(key, 1), (EXAMPLES, PIXELS))
        return {"inputs": prototypes[labels] + 2 * noise, "labels": labels}, jnp.int32(EXAMPLES)

    return Procedural(make, clients, jax.random.key(1))


def measure(clients: int, rounds: int, where: str, folder: str | None) -> None:
    """Prints one row for memory on disk ("disk"), or on the device for as many clients ("device")."""
    model = build_model("mlp", (PIXELS,), CLASSES)
    algorithm = scaffold(model.loss_fn, client_tx=optax.sgd(0.05))
    round_fn, people, key = make_round(algorithm, batch_size=BATCH), population(clients), jax.random.key(0)
    rng = np.random.default_rng(0)
    cohorts = [rng.choice(clients, COHORT, replace=False).astype(np.int32) for _ in range(rounds)]
    drawn = jax.jit(select)
    place = Path(tempfile.mkdtemp(dir=folder))
    start = time.perf_counter()
    if where == "disk":
        memory = HostMemory(algorithm, model.params, clients, place / "memory")
        state, run = init(algorithm, model.params, clients, memory_rows=COHORT), with_host_memory(round_fn, memory)
        row = memory.row_bytes
    else:
        state, run, row = init(algorithm, model.params, clients), jax.jit(round_fn, donate_argnums=0), 0
    made, seconds = time.perf_counter() - start, []
    for ids in cohorts:
        start = time.perf_counter()
        state, _ = run(state, drawn(people, jnp.asarray(ids)), key)
        jax.block_until_ready(state.params)
        seconds.append(time.perf_counter() - start)
    used = sum(f.stat().st_blocks * 512 for f in place.rglob("*.bin"))
    shutil.rmtree(place)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rest = np.array(seconds[3:])
    print(f"{where:7}{clients:9,}{clients * row / 1e9:10.1f}{used / 1e9:10.2f}{made:8.2f}{1 / np.median(rest):10.2f}"
          f"{1 / np.percentile(rest, 90):8.2f}{peak / 1e9:9.2f}", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100_000)
    parser.add_argument("--few", type=int, default=1000, help="clients for the comparison with memory on the device")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--folder", help="where the files lie while it runs")
    parser.add_argument("--one", nargs=2, metavar=("WHERE", "CLIENTS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        measure(int(args.one[1]), args.rounds, args.one[0], args.folder)
        return
    print(
        f"{'where':7}{'clients':>9}{'file GB':>10}{'disk GB':>10}{'made s':>8}{'rounds/s':>10}{'p90':>8}{'peak GB':>9}"
    )
    for where, clients in (("device", args.few), ("disk", args.few), ("disk", args.clients)):
        more = ["--folder", args.folder] if args.folder else []
        command = [sys.executable, "-m", "benchmarks.memory", "--rounds", str(args.rounds), *more]
        subprocess.run([*command, "--one", where, str(clients)], check=True)


if __name__ == "__main__":
    main()
