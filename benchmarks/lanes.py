"""The lane width swept, and how speed depends on cohort and model size: `python -m benchmarks.lanes`.

Prints rounds per second for each lane width, the width that the library's own trial chooses marked with `*`. With
`--picture FILE` it draws rounds per second against cohort size (10 to 10,000 clients) and against model size, and with
`--convolution` it times a small Flax NNX model of one's own with convolutions and max-pooling, with and without
`make_round(rewrite=True)`.
"""

import argparse
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.throughput import choose_devices, context, prepare, write_json
from benchmarks.workloads import CLASSES, LEARNING_RATE, PIXELS, WORKLOADS
from fedjax_sim import Population, fedavg, init, make_round, replicate, select
from fedjax_sim.core.tune import candidates, tune_lanes
from fedjax_sim.models import build_model


def sweep(name: str, widths: list[int], devices: list[Any]) -> dict[str, Any]:
    """Rounds per second of a workload for each width, and the one that a trial over the library's candidates takes."""
    workload = WORKLOADS[name]
    setup = prepare(workload, devices, rounds=1)
    algorithm = fedavg(setup.model.loss_fn, client_tx=optax.sgd(LEARNING_RATE))
    make = partial(make_round, algorithm, batch_size=workload.batch_size, devices=devices)
    cohort, key = select(setup.population, setup.cohorts[0]), replicate(jax.random.key(0), devices)

    def seconds(width: int) -> float:
        return tune_lanes(lambda lanes: make(lanes=lanes), setup.state, cohort, key, [width])[width]

    rates = {width: 1 / seconds(width) for width in widths}
    trial = tune_lanes(lambda lanes: make(lanes=lanes), setup.state, cohort, key, candidates(workload.cohort, devices))
    chosen = min(trial, key=lambda width: trial[width])
    return {"workload": name, "rounds_per_second": rates, "chosen": chosen}


def speed(cohort_size: int, hidden: tuple[int, ...], devices: list[Any], examples: int = 20) -> dict[str, Any]:
    """Rounds per second of an MLP on synthetic bytes, each client holding `examples` of them, batch 10."""
    rng = np.random.default_rng(0)
    shared = 2_000  # clients beyond this many share rows, so that memory does not grow with the cohort
    rows = min(cohort_size, shared) * examples
    images = {"inputs": rng.integers(0, 256, (rows, PIXELS), np.uint8), "labels": rng.integers(0, CLASSES, rows)}
    starts = np.arange(cohort_size, dtype=np.int32) % shared * examples
    offsets = np.arange(min(cohort_size, shared) + 1, dtype=np.int32) * examples
    model = build_model("mlp", (PIXELS,), CLASSES, hidden=hidden)
    algorithm = fedavg(model.loss_fn, client_tx=optax.sgd(LEARNING_RATE))
    round_fn = jax.jit(make_round(algorithm, batch_size=10, devices=devices))
    population = Population({"inputs": images["inputs"], "labels": images["labels"].astype(np.int32)}, offsets)
    state, population = replicate((init(algorithm, model.params, cohort_size), population), devices)
    ids = jnp.arange(cohort_size, dtype=jnp.int32)
    cohort = select(population, ids % shared)._replace(ids=ids, rows=ids, starts=jnp.asarray(starts))
    cohort, key = replicate((cohort, jax.random.key(0)), devices)
    state, _ = jax.block_until_ready(round_fn(state, cohort, key))
    seconds, deadline = [], time.perf_counter() + 2
    while len(seconds) < 3 or time.perf_counter() < deadline:
        start = time.perf_counter()
        state, _ = jax.block_until_ready(round_fn(state, cohort, key))
        seconds.append(time.perf_counter() - start)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    return {"cohort": cohort_size, "parameters": parameters, "rounds_per_second": 1 / float(np.median(seconds))}


class Convolving(nnx.Module):
    """Two convolutions 3 x 3 of 16 and 32 with ReLU and 2 x 2 max-pooling, and the output, as Flax has them."""

    def __init__(self, rngs: nnx.Rngs):
        self.first, self.second = nnx.Conv(1, 16, (3, 3), rngs=rngs), nnx.Conv(16, 32, (3, 3), rngs=rngs)
        self.out = nnx.Linear(7 * 7 * 32, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in (self.first, self.second):
            x = nnx.max_pool(nnx.relu(layer(x)), (2, 2), (2, 2))
        return self.out(x.reshape(x.shape[0], -1))


def convolving(devices: list[Any], turns: int = 5) -> dict[str, float]:
    """Milliseconds of a local step of such a model, batch 10, by what `rewrite` is, measured in turns."""
    graph, params = nnx.split(Convolving(nnx.Rngs(0)))

    def loss(params: Any, batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        logits = nnx.merge(graph, params)(batch["inputs"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])

    rng, clients, examples = np.random.default_rng(0), 4 * len(devices), 60
    inputs = rng.standard_normal((clients * examples, 28, 28, 1), np.float32)
    labels = rng.integers(0, CLASSES, clients * examples, np.int32)
    population = Population({"inputs": inputs, "labels": labels}, np.arange(clients + 1, dtype=np.int32) * examples)
    algorithm = fedavg(loss, client_tx=optax.sgd(LEARNING_RATE))
    state, population = replicate((init(algorithm, params, clients), population), devices)
    cohort, key = replicate((select(population, jnp.arange(clients)), jax.random.key(0)), devices)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    rounds = {
        rewrite: jax.jit(make_round(algorithm, batch_size=10, devices=devices, rewrite=rewrite)) for rewrite in seconds
    }
    for turn in range(turns + 1):
        for rewrite, round_fn in rounds.items():
            start = time.perf_counter()
            jax.block_until_ready(round_fn(state, cohort, key))
            if turn:  # the first compiles
                seconds[rewrite].append(time.perf_counter() - start)
    steps = clients * (examples // 10)
    return {str(rewrite): 1e3 * float(np.median(found)) / steps for rewrite, found in seconds.items()}


def draw(by_cohort: list[dict[str, Any]], by_model: list[dict[str, Any]], about: dict[str, Any], path: str) -> None:
    """Two panels: rounds per second against clients per round, and against parameters."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, rows, field, label in (
        (panels[0], by_cohort, "cohort", "clients per round"),
        (panels[1], by_model, "parameters", "parameters of the model"),
    ):
        x, y = [row[field] for row in rows], [row["rounds_per_second"] for row in rows]
        axes.loglog(x, y, "o-", color="tab:blue")
        for a, b in zip(x, y, strict=True):
            axes.annotate(f"{b:.3g}", (a, b), textcoords="offset points", xytext=(5, 5), fontsize=8)
        axes.set_xlabel(label)
        axes.set_ylabel("rounds per second")
        axes.grid(alpha=0.3, which="both")
        axes.margins(x=0.12, y=0.15)
    panels[0].set_title("784-64-10, 20 examples a client", fontsize=10)
    panels[1].set_title("100 clients a round", fontsize=10)
    figure.suptitle(f"One local epoch, batch 10, {about['device']}, jax {about['versions']['jax']}", fontsize=10)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="*", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--widths", nargs="+", type=int, help="by default 1 to 16 on a CPU, 4 to 1024 elsewhere")
    parser.add_argument("--devices", type=int, help="by default one CPU device per core, or one GPU")
    parser.add_argument("--convolution", action="store_true", help="time a user's convolutions in the round")
    parser.add_argument("--picture", help="a PNG or SVG file to draw speed against cohort and model size into")
    parser.add_argument("--json", help="a file to write, or - for standard output")
    args = parser.parse_args()
    devices = choose_devices(args.devices)
    about = context(devices)
    cpu = devices[0].platform == "cpu"
    widths = args.widths or ([1, 2, 4, 8, 16] if cpu else [4, 16, 64, 256, 1024])
    print(f"{about['device']}, jax {jax.__version__}; rounds/s by lanes, * chosen by the trial")
    rows = []
    for name in args.workloads:
        row = sweep(name, [w for w in widths if w <= WORKLOADS[name].cohort], devices)
        rows.append(row)
        cells = (f"{w}{'*' if w == row['chosen'] else ''}: {r:.3g}" for w, r in row["rounds_per_second"].items())
        print(f"{name:8}", "   ".join(cells), flush=True)
    if args.convolution:
        milliseconds = convolving(devices)
        print("convolutions:", ", ".join(f"rewrite={name} {t:.1f} ms a step" for name, t in milliseconds.items()))
        rows.append({"convolution": milliseconds})
    if args.picture:
        by_cohort = [speed(size, (64,), devices) for size in (10, 30, 100, 300, 1000, 3000, 10_000)]
        by_model = [speed(100, (width,), devices) for width in (1, 8, 32, 128, 512, 2048)]
        draw(by_cohort, by_model, about, args.picture)
        rows += [*by_cohort, *by_model]
        print(f"drawn: {args.picture}")
    if args.json:
        write_json(args.json, [row | about for row in rows])


if __name__ == "__main__":
    main()
