"""Rounds per second and peak memory as the population grows: `python -m benchmarks.population [--clients 1000 ...]`.

Clients of 1 to 200 examples, 20 on average, of 784 uint8 features and a label of 10 classes: 16 GB for a million. Each
population is written to disk by streaming, opened, and trained on (multinomial logistic regression, FedAvg, cohorts of
100, batch 20, one epoch) with cohorts streamed from the files. Populations that are functions of the client id (1 to 39
examples, 20 on average) need no disk. Every measurement is a process of its own; its peak of resident memory (VmHWM)
is reported.

The limit: a round computes 94 MFLOP, about 5 ms on two cores, and reads 100 places of 16 KB. From the page cache that
is 1 ms, beside the computing; from a disk it is as many rounds/s as the disk has random reads/s, over 100, which is
measured in the same run.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

FEATURES, CLASSES, COHORT, BATCH, CHUNK, EACH = 784, 10, 100, 20, 1000, 10


def sizes_of(rng: np.random.Generator, clients: int) -> np.ndarray:
    """Examples of each client: log-normal with sigma 1, 20 on average."""
    return np.clip(np.rint(rng.lognormal(np.log(20) - 0.5, 1.0, clients)), 1, 200).astype(np.int64)


def make_clients(clients: int, seed: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Each client's examples in turn: a prototype of the class, plus noise."""
    prototypes = np.random.default_rng(seed).integers(0, 128, (CLASSES, FEATURES), np.uint8)
    for first in range(0, clients, CHUNK):
        rng = np.random.default_rng([seed, first])
        sizes = sizes_of(rng, min(CHUNK, clients - first))
        labels = rng.integers(0, CLASSES, sizes.sum()).astype(np.int32)
        inputs = prototypes[labels] + rng.integers(0, 128, (len(labels), FEATURES), np.uint8)
        for stop, size in zip(np.cumsum(sizes).tolist(), sizes.tolist(), strict=True):
            yield {"inputs": inputs[stop - size : stop], "labels": labels[stop - size : stop]}


def peak_memory() -> float:
    """This process's highest resident memory so far, GB."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9
    except (OSError, IndexError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def write(folder: str, clients: int) -> dict[str, Any]:
    """Writes the population and says how long that took."""
    from fedjax_sim.data import write_store

    start = time.perf_counter()
    write_store(folder, make_clients(clients), classes=CLASSES, source="prototypes and noise")
    size = sum(file.stat().st_size for file in Path(folder).iterdir())
    return {"seconds": time.perf_counter() - start, "gb": size / 1e9, "peak_memory_gb": peak_memory()}


def train(folder: str | None, clients: int, seconds: float, resident: bool) -> dict[str, Any]:
    """Opens the population at `folder`, or computes it, and trains on it."""
    import jax
    import jax.numpy as jnp
    import optax

    from fedjax_sim import Procedural, fedavg, init, make_round, make_simulation, replicate, use_cpu_devices
    from fedjax_sim.data import draw_rounds, open_store, stream
    from fedjax_sim.data.sampling import uniform
    from fedjax_sim.models import build_model

    use_cpu_devices()
    found = jax.devices()
    devices = found if found[0].platform == "cpu" else found[:1]
    model = build_model("logistic", (FEATURES,), CLASSES)
    algorithm = fedavg(model.loss_fn, client_tx=optax.sgd(0.01))
    round_fn = make_round(algorithm, batch_size=BATCH, devices=devices)
    state = replicate(init(algorithm, model.params, clients), devices)
    key = replicate(jax.random.key(0), devices)
    row: dict[str, Any] = {"clients": clients}

    if folder is None or resident:
        if folder is None:
            prototypes = jax.random.randint(jax.random.key(1), (CLASSES, FEATURES), 0, 128).astype(jnp.uint8)
            table = jax.random.randint(jax.random.key(2), (4096, FEATURES), 0, 128).astype(jnp.uint8)

            def make(key: jax.Array, client: jax.Array):  # noise from a table: drawing it would cost more than training
                size, label_bits, row_bits = jnp.split(jax.random.bits(key, (1 + 2 * 39,)), [1, 40])
                labels = (label_bits % CLASSES).astype(jnp.int32)
                inputs = prototypes[labels] + table[row_bits % 4096]
                return {"inputs": inputs, "labels": labels}, (1 + size[0] % 39).astype(jnp.int32)

            population = replicate(Procedural(make, clients, jax.random.key(3)), devices)
        else:
            population = open_store(folder).population(lambda tree: replicate(tree, devices))
        simulate = make_simulation(round_fn, cohort_size=COHORT, max_rounds=EACH)

        def block() -> Any:
            nonlocal state
            state, metrics = simulate(state, population, key, EACH)
            return metrics.loss_before[-1].mean()

    else:
        start = time.perf_counter()
        data = open_store(folder)
        row["open_seconds"] = time.perf_counter() - start
        sampler = uniform(clients, COHORT)
        tables = (draw_rounds(sampler, 0, first, EACH) for first in range(0, 10**9, EACH))
        slices = stream(data, tables, place=lambda tree: replicate(tree, devices))
        simulate = make_simulation(round_fn, max_rounds=EACH)

        def block() -> Any:
            nonlocal state
            state, metrics = simulate(state, next(slices), key, EACH)
            return metrics.loss_before[-1].mean()

    first = float(block())
    rates, last, deadline = [], first, time.perf_counter() + seconds
    while len(rates) < 3 or time.perf_counter() < deadline:
        start = time.perf_counter()
        last = float(block())
        rates.append(EACH / (time.perf_counter() - start))
    low, median, high = np.percentile(rates, [10, 50, 90])
    return row | {
        "rounds_per_second": median,
        "p10_p90": [low, high],
        "rounds": EACH * (len(rates) + 1),
        "loss": [first, last],
        "peak_memory_gb": peak_memory(),
        "device": f"{len(devices)} x {devices[0].device_kind}",
    }


def random_reads(folder: str, seconds: float = 4.0, threads: int = 32) -> float:
    """Random reads of 16 KB a second that the disk serves, past the page cache where the system lets one."""
    path = Path(folder) / "train.inputs.npy"
    size, file = path.stat().st_size, os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    done, end = [0] * threads, time.perf_counter() + seconds

    def work(i: int) -> None:
        rng = random.Random(i)
        while time.perf_counter() < end:
            os.pread(file, 16_384, rng.randrange(max(1, size - 16_384)))
            done[i] += 1

    readers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    os.close(file)
    return sum(done) / seconds


def apart(**job: Any) -> dict[str, Any]:
    """Does one job in a process of its own, so that its memory is its own."""
    command = [sys.executable, "-m", "benchmarks.population", "--job", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{job} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--computed", type=int, nargs="*", default=[1000, 1_000_000, 1_000_000_000])
    parser.add_argument("--seconds", type=float, default=10.0, help="of training, for each population")
    parser.add_argument("--folder", help="where populations are written and kept; by default a temporary folder")
    parser.add_argument("--resident", type=int, default=10_000, help="populations up to this are also held in memory")
    parser.add_argument("--json", help="a file to write all figures to")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        job = json.loads(args.job)
        print(json.dumps({"write": write, "train": train}[job.pop("do")](**job)))
        return
    folder, rows = Path(args.folder or tempfile.mkdtemp()), []
    free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
    print(f"{'clients':>13} {'kept':>9}{'GB':>7}{'write s':>9}{'open s':>8}{'rounds/s':>10}{'p10-p90':>14}"
          f"{'peak GB':>9}{'loss':>14}")  # fmt: skip

    def report(clients: int, kept: str, row: dict[str, Any]) -> None:
        rows.append({"kept": kept, **row})
        low, high = row["p10_p90"]
        print(f"{clients:13,} {kept:>9}{row.get('gb', 0):7.2f}{row.get('write_seconds', 0):9.1f}"
              f"{row.get('open_seconds', 0):8.3f}{row['rounds_per_second']:10.1f}{f'{low:.0f}-{high:.0f}':>14}"
              f"{row['peak_memory_gb']:9.2f}{row['loss'][0]:7.2f}{row['loss'][1]:7.2f}", flush=True)  # fmt: skip

    for clients in args.clients:
        path = folder / f"clients_{clients}"
        if clients * 20 * (FEATURES + 4) * 1.1 > free:
            print(f"{clients:13,} {'on disk':>9}: left out, the disk has {free / 1e9:.0f} GB free")
            continue
        written = {} if path.exists() else apart(do="write", folder=str(path), clients=clients)
        about = {"gb": written["gb"], "write_seconds": written["seconds"]} if written else {}
        job = {"do": "train", "folder": str(path), "clients": clients, "seconds": args.seconds}
        report(clients, "on disk", apart(**job, resident=False) | about)
        if clients == max(args.clients) and hasattr(os, "posix_fadvise"):
            reads = random_reads(str(path))
            print(
                f"{'':13} the disk serves {reads:.0f} random reads/s, enough for {reads / COHORT:.0f} rounds/s uncached"
            )
        if clients <= args.resident:
            report(clients, "resident", apart(**job, resident=True))
        if not args.folder:
            shutil.rmtree(path)
    for clients in args.computed:
        job = {"do": "train", "folder": None, "clients": clients, "seconds": args.seconds, "resident": True}
        report(clients, "computed", apart(**job))
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
