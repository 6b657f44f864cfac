"""Rounds per second of the four named workloads: `python -m benchmarks.throughput [--workloads cnn ...] [--json FILE]`.

Each workload is one compiled program of several rounds, called again and again. Compilation is timed apart; the rounds
per second are the median over the calls, with the spread between the 10th and 90th percentile. FLOPs count what the
training needs, and their share is of a matrix product's peak measured in the same run. Fashion-MNIST is used where
FEDJAX_SIM_DATA holds it, synthetic bytes elsewhere. Needs jax, optax, flax and NumPy alone.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_sim
from benchmarks.workloads import (
    CLASSES,
    LEARNING_RATE,
    PIXELS,
    WORKLOADS,
    Workload,
    client_sizes,
    cohorts,
    initial_parameters,
    load,
    needed_flops,
)
from fedjax_sim import (
    Population,
    RoundState,
    fedavg,
    init,
    make_evaluation,
    make_round,
    replicate,
    select,
    use_cpu_devices,
)
from fedjax_sim.core.compile import options
from fedjax_sim.models import Model, build_model

COMPARED_ROUNDS = 5  # after which accuracies of different programs are compared


class Prepared(NamedTuple):
    """A workload on the devices."""

    state: RoundState
    population: Population
    cohorts: jax.Array  # int32[rounds, cohort]
    model: Model
    test: dict[str, jax.Array]
    source: str


def prepare(workload: Workload, devices: list[Any], rounds: int) -> Prepared:
    """Population, initial state and cohorts, replicated over `devices`."""
    federation = load(workload)
    shape = (28, 28, 1) if workload.model == "cnn" else (PIXELS,)
    model = build_model(workload.model, shape, CLASSES, hidden=workload.hidden)
    weights = initial_parameters(workload)
    params = {f"layer{i}": {"kernel": w, "bias": b} for i, (w, b) in enumerate(weights)}
    model = model._replace(params=jax.tree.map(jnp.asarray, params))

    def batch(images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        return {"inputs": images.reshape(-1, *shape), "labels": labels}

    population = Population(batch(federation.images, federation.labels), federation.offsets.astype(np.int32))
    algorithm = fedavg(model.loss_fn, client_tx=optax.sgd(LEARNING_RATE))
    state = init(algorithm, model.params, workload.population)
    test = batch(federation.test_images, federation.test_labels)
    placed = replicate((state, population, cohorts(workload, rounds), test), devices)
    return Prepared(placed[0], placed[1], placed[2], model, placed[3], federation.source)


def make_program(workload: Workload, model: Model, devices: list[Any], lanes: int | None, rewrite: bool | None = None):
    """`program(state, population, cohorts [R, C], key) -> state`: R rounds of weighted FedAvg, compiled as one."""
    algorithm = fedavg(model.loss_fn, client_tx=optax.sgd(LEARNING_RATE))
    round_fn = make_round(algorithm, batch_size=workload.batch_size, lanes=lanes, devices=devices, rewrite=rewrite)

    @jax.jit
    def program(state: RoundState, population: Population, cohorts: jax.Array, key: jax.Array) -> RoundState:
        def one(state: RoundState, ids: jax.Array):
            return round_fn(state, select(population, ids), key)[0], None

        return jax.lax.scan(one, state, cohorts)[0]

    return program


def matrix_peak(size: int = 2048, repeats: int = 5) -> float:
    """GFLOP/s of a float32 matrix product on the default device, the best of a few."""
    x = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(lambda x: jnp.dot(x, x, precision="highest"))
    product(x).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        product(x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def measure(
    workload: Workload, *, devices: list[Any], seconds: float, lanes: int | None, key_seed: int = 0
) -> dict[str, Any]:
    """Times one workload for about `seconds` and returns a row of the table."""
    setup = prepare(workload, devices, rounds=40)
    key = replicate(jax.random.key(key_seed), devices)
    program = make_program(workload, setup.model, devices, lanes)
    peak = matrix_peak()
    start = time.perf_counter()
    lowered = program.lower(setup.state, setup.population, setup.cohorts[:COMPARED_ROUNDS], key)
    short = lowered.compile(compiler_options=options(devices[0]))
    compile_seconds = time.perf_counter() - start
    state = jax.block_until_ready(short(setup.state, setup.population, setup.cohorts[:COMPARED_ROUNDS], key))
    accuracy = make_evaluation(setup.model.metric_fn)(state.params, setup.test)["accuracy"]

    sizes = client_sizes(workload)
    drawn = cohorts(workload, 40)
    calls = [setup.cohorts[i : i + COMPARED_ROUNDS] for i in range(0, 40, COMPARED_ROUNDS)]
    examples = [sizes[drawn[i : i + COMPARED_ROUNDS]].sum() / COMPARED_ROUNDS for i in range(0, 40, COMPARED_ROUNDS)]
    round_seconds, done_examples, deadline = [], [], time.perf_counter() + seconds
    while len(round_seconds) < 3 or time.perf_counter() < deadline:
        which = len(round_seconds) % len(calls)
        start = time.perf_counter()
        state = jax.block_until_ready(short(state, setup.population, calls[which], key))
        round_seconds.append((time.perf_counter() - start) / COMPARED_ROUNDS)
        done_examples.append(examples[which])
    peak = max(peak, matrix_peak())
    rates = 1 / np.array(round_seconds)
    gflops = np.median([needed_flops(workload, n) * r / 1e9 for n, r in zip(done_examples, rates, strict=True)])
    stats = devices[0].memory_stats() or {}
    memory = stats.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return {
        "workload": workload.name,
        "rounds_per_second": float(np.median(rates)),
        "rounds_per_second_p10_p90": [float(q) for q in np.percentile(rates, [10, 90])],
        "client_examples_per_second": float(np.median(np.array(done_examples) * rates)),
        "compile_seconds": compile_seconds,
        "gflops": float(gflops),
        "peak_gflops": peak,
        "share_of_peak": float(gflops / peak),
        "peak_memory_gb": memory / 1e9,
        "accuracy_after_5_rounds": float(accuracy),
        "lanes": lanes or "default",
        "round_seconds": round_seconds,
        "data": setup.source,
    }


def context(devices: list[Any]) -> dict[str, Any]:
    """Device, versions and commit."""
    root = Path(__file__).parent
    commit = subprocess.run(["git", "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    versions = {"jax": jax.__version__, "flax": flax.__version__, "optax": optax.__version__, "numpy": np.__version__}
    return {
        "device": f"{len(devices)} x {devices[0].device_kind}",
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "versions": versions | {"fedjax_sim": fedjax_sim.__version__},
        "commit": commit.stdout.strip() or None,
    }


def choose_devices(count: int | None) -> list[Any]:
    """`count` devices of the default backend; by default one per core on a CPU, and the first GPU."""
    use_cpu_devices(count)
    found = jax.devices()
    return found if found[0].platform == "cpu" else found[: count or 1]


def write_json(target: str, rows: Any) -> None:
    """One JSON object a line on standard output for `-`, else a file."""
    if target == "-":
        for row in rows if isinstance(rows, list) else [rows]:
            print(json.dumps(row), flush=True)
    else:
        Path(target).write_text(json.dumps(rows, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--seconds", type=float, default=10.0, help="to measure each workload for, compilation apart")
    parser.add_argument("--devices", type=int, help="by default one CPU device per core, or one GPU")
    parser.add_argument(
        "--lanes", type=int, help="clients trained at once on a device; by default the library's choice"
    )
    parser.add_argument("--json", help="a file to write, or - to print one line a workload instead of the table")
    args = parser.parse_args()
    devices = choose_devices(args.devices)
    about, rows = context(devices), []
    table = sys.stderr if args.json == "-" else sys.stdout
    print(f"{about['device']}, jax {jax.__version__}, commit {about['commit']}", file=table)
    print(f"{'workload':9}{'rounds/s':>10}{'p10-p90':>16}{'examples/s':>12}{'compile s':>11}{'GFLOP/s':>9}{'share':>7}"
          f"{'GB':>6}{'accuracy':>10}", file=table)  # fmt: skip
    for name in args.workloads:
        row = measure(WORKLOADS[name], devices=devices, seconds=args.seconds, lanes=args.lanes)
        rows.append(row | about)
        low, high = row["rounds_per_second_p10_p90"]
        print(f"{name:9}{row['rounds_per_second']:10.2f}{f'{low:.2f}-{high:.2f}':>16}"
              f"{row['client_examples_per_second']:12.0f}{row['compile_seconds']:11.2f}{row['gflops']:9.1f}"
              f"{row['share_of_peak']:7.2f}{row['peak_memory_gb']:6.2f}{row['accuracy_after_5_rounds']:10.3f}",
              file=table, flush=True)  # fmt: skip
    if args.json:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
