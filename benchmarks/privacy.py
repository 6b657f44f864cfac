"""What privacy costs in a round: `python -m benchmarks.privacy [--seconds 5]`.

Logistic regression (7,850 parameters) and McMahan's 2NN (199,210); 20 clients a round, ten local steps of ten
examples. Each mechanism's calls take turns with those of the same rounds without; the median of the ratios is reported,
with compile seconds.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_sim as fs
from benchmarks.throughput import choose_devices
from fedjax_sim.core.compile import options
from fedjax_sim.models import build_model
from fedjax_sim.privacy import Adaptive, PrivateLoss, central, local, secure
from fedjax_sim.privacy.noise import banded, gaussian, laplace

COHORT, EXAMPLES, STEPS, BATCH, ROUNDS = 20, 100, 10, 10, 3
BANDS = [1.0, 0.5, 0.375, 0.3125, 0.2734, 0.2461, 0.2256, 0.2095]  # of (1 - x)^(-1/2)


def variants(loss_fn: Any, params: Any) -> dict[str, tuple[fs.Algorithm, str]]:
    """FedAvg with each mechanism, and how its batches are drawn."""
    plain = fs.fedavg(loss_fn, client_tx=optax.sgd(0.01), weighting="uniform")
    some: dict[str, Any] = {"clip_norm": 1.0, "noise_multiplier": 1.0}
    made = {
        "none": plain,
        "gaussian": central(plain, **some, clients=COHORT),
        "gaussian, adaptive": central(plain, **some, clients=COHORT, adaptive=Adaptive()),
        "laplace": central(plain, **some, clients=COHORT, noise=laplace()),
        "matrix, 8 bands": central(plain, **some, clients=COHORT, noise=banded(BANDS)),
        "local_gaussian": local(plain, **some, noise=gaussian()),
        "discrete_gaussian": secure(plain, params, **some, clients=COHORT),
    }
    private = PrivateLoss(loss_fn, 1.0, 1.0, BATCH)
    examples = fs.fedavg(private, client_tx=optax.sgd(0.01), weighting="uniform")
    return {name: (algorithm, "epochs") for name, algorithm in made.items()} | {"dp_sgd": (examples, "poisson")}


def prepare(
    algorithm: fs.Algorithm, sampling: str, params: Any, devices: list[Any]
) -> tuple[Callable[[], float], float]:
    """A function that times a call, and the seconds that compiling took."""
    rng = np.random.default_rng(0)
    examples = {"inputs": rng.integers(0, 256, (COHORT * EXAMPLES, 784)).astype(np.uint8),
                "labels": rng.integers(0, 10, COHORT * EXAMPLES).astype(np.int32)}  # fmt: skip
    population = fs.Population(examples, np.arange(0, COHORT * EXAMPLES + 1, EXAMPLES, dtype=np.int32))
    round_fn = fs.make_round(algorithm, batch_size=BATCH, local_steps=STEPS, devices=devices, local_sampling=sampling)

    def rounds(state: fs.RoundState, population: fs.Population, key: jax.Array):
        cohort = fs.select(population, jnp.arange(COHORT))
        return jax.lax.scan(lambda s, _: round_fn(s, cohort, key), state, None, length=ROUNDS)

    state, population, key = fs.replicate((fs.init(algorithm, params, COHORT), population, jax.random.key(0)), devices)
    start = time.perf_counter()
    program = jax.jit(rounds).lower(state, population, key).compile(options(devices[0]))
    compiled = time.perf_counter() - start

    def call() -> float:
        start = time.perf_counter()
        jax.block_until_ready(program(state, population, key))
        return time.perf_counter() - start

    call()
    return call, compiled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing, for each mechanism")
    args = parser.parse_args()
    devices = choose_devices(None)
    print(f"{len(devices)} x {devices[0].device_kind}, JAX {jax.__version__}\n")
    print("| model | mechanism | time over none | compile seconds |")
    print("| --- | --- | --- | --- |")
    for name, hidden in (("logistic", ()), ("mlp", (200, 200))):
        model = build_model(name, (28, 28), 10, hidden=hidden, seed=0)
        made = variants(model.loss_fn, model.params)
        base, _ = prepare(*made["none"], model.params, devices)
        for mechanism, (algorithm, sampling) in made.items():
            call, compiled = prepare(algorithm, sampling, model.params, devices)
            ratios, end = [], time.perf_counter() + args.seconds
            while time.perf_counter() < end or len(ratios) < 3:
                ratios.append(call() / base())
            print(f"| {name} | {mechanism} | {np.median(ratios):.2f} | {compiled:.1f} |", flush=True)


if __name__ == "__main__":
    main()
