"""What a round of each algorithm costs beside FedAvg's: `python -m benchmarks.algorithms [--only NAME ...]`.

McMahan's 2NN (199,210 parameters), or the same with layer normalisation for FedBN; 20 of 200 clients a round, ten
local steps of ten examples. Each algorithm's calls take turns with FedAvg's on the same model, and the median of the
ratios is reported, with compile seconds, the program's temporaries in messages of the whole cohort, megabytes sent by a
client, and megabytes that one client remembers. `discrete_gaussian` is FedAvg under secure aggregation with noise.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_sim as fs
from benchmarks.throughput import choose_devices
from fedjax_sim.core.compile import options
from fedjax_sim.core.host import memory_bytes
from fedjax_sim.models import Model, build_model
from fedjax_sim.privacy import secure

CLIENTS, COHORT, EXAMPLES, STEPS, BATCH, ROUNDS = 200, 20, 100, 10, 10, 2
NAMES = (*fs.ALGORITHMS, "discrete_gaussian")


class Prepared(NamedTuple):
    call: Callable[[], float]  # seconds that it took
    compiled: float  # seconds
    temporaries: float  # over cohort times message
    sent: float  # MB
    kept: int  # bytes


def make(name: str, model: Model) -> fs.Algorithm:
    if name == "discrete_gaussian":
        return secure(make("fedavg", model), model.params, clip_norm=1.0, noise_multiplier=1.0, clients=COHORT)
    return fs.ALGORITHMS[name](model.loss_fn, client_tx=optax.sgd(0.01))


def prepare(name: str, model: Model, devices: list[Any]) -> Prepared:
    """One algorithm, compiled."""
    rng = np.random.default_rng(0)
    examples = {"inputs": rng.integers(0, 256, (CLIENTS * EXAMPLES, 784)).astype(np.uint8),
                "labels": rng.integers(0, 10, CLIENTS * EXAMPLES).astype(np.int32)}  # fmt: skip
    population = fs.Population(examples, np.arange(0, CLIENTS * EXAMPLES + 1, EXAMPLES, dtype=np.int32))
    algorithm = make(name, model)
    round_fn = fs.make_round(algorithm, batch_size=BATCH, local_steps=STEPS, devices=devices)

    def rounds(state: fs.RoundState, population: fs.Population, ids: jax.Array, key: jax.Array):
        return jax.lax.scan(lambda s, i: round_fn(s, fs.select(population, i), key), state, ids)

    state, population, key = fs.replicate(
        (fs.init(algorithm, model.params, CLIENTS), population, jax.random.key(0)), devices
    )
    cohorts = fs.replicate(jnp.asarray(rng.permutation(CLIENTS)[: ROUNDS * COHORT].reshape(ROUNDS, COHORT)), devices)
    start = time.perf_counter()
    program = jax.jit(rounds, donate_argnums=0).lower(state, population, cohorts, key).compile(options(devices[0]))
    compiled = time.perf_counter() - start
    held = [state]

    def call() -> float:
        start = time.perf_counter()
        held[0], metrics = program(held[0], population, cohorts, key)
        jax.block_until_ready(metrics)
        return time.perf_counter() - start

    held[0], metrics = program(held[0], population, cohorts, key)
    sent = float(np.asarray(metrics.uplink_bits).max()) / 8e6
    message = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    memory = program.memory_analysis()
    assert memory is not None
    temporaries = memory.temp_size_in_bytes / (COHORT * message)
    return Prepared(call, compiled, temporaries, sent, memory_bytes(algorithm, model.params, CLIENTS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument("--seconds", type=float, default=6.0, help="to measure each for, compilation apart")
    parser.add_argument("--devices", type=int, help="by default one CPU device per core, or one GPU")
    args = parser.parse_args()
    devices = choose_devices(args.devices)
    print(f"{len(devices)} x {devices[0].device_kind}, jax {jax.__version__}")
    head = ("over fedavg", 13), ("p25-p75", 13), ("compile s", 11), ("temporaries", 13), ("MB sent", 9), ("MB kept", 9)
    print(f"{'algorithm':18}" + "".join(f"{name:>{width}}" for name, width in head))
    models = {kind: build_model(kind, (784,), 10) for kind in ("mlp", "mlp_norm")}
    base = {}
    for name in args.only:
        kind = "mlp_norm" if name == "fedbn" else "mlp"
        if kind not in base:
            base[kind] = prepare("fedavg", models[kind], devices).call
        made = prepare(name, models[kind], devices)
        ratios, deadline = [], time.perf_counter() + args.seconds
        while len(ratios) < 5 or time.perf_counter() < deadline:
            own, plain = made.call(), base[kind]()
            ratios.append(own / plain)
        low, high = np.percentile(ratios, [25, 75])
        print(f"{name:18}{np.median(ratios):13.2f}{f'{low:.2f}-{high:.2f}':>13}{made.compiled:11.1f}"
              f"{made.temporaries:13.2f}{made.sent:9.2f}{made.kept / 1e6:9.2f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
