"""What privacy costs: accuracy against epsilon: `python scripts/privacy_tradeoff.py [--picture privacy.png]`.

Fashion-MNIST where FEDJAX_SIM_DATA holds it, scikit-learn's digits elsewhere, dealt to 300 clients of whom 30 train
in a round. Each client is protected: Laplace and Gaussian noise on the sum of a Poisson-sampled round, and DP-FTRL,
whose noise is correlated over rounds, with clients that take turns. All epsilons, five seeds and the three mechanisms
are one compiled program. Nothing is tuned to a mechanism but its clip norm, about the
median norm of an update on Fashion-MNIST.
"""

import argparse
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_sim as fs
from fedjax_sim.data import PARTITIONS, SOURCES, FederatedData, draw_rounds, federate
from fedjax_sim.models import Model, build_model
from fedjax_sim.plots import tradeoff
from fedjax_sim.privacy import central
from fedjax_sim.privacy.accounting import (
    Spending,
    calibrate,
    gaussian_spending,
    laplace_spending,
    matrix_spending,
    toeplitz,
)
from fedjax_sim.privacy.noise import Noise, banded, gaussian, laplace
from fedjax_sim.privacy.plan import make_sampler

EPSILONS, SEEDS, DELTA = (1.0, 2.0, 4.0, 8.0, math.inf), 5, 1e-4
CLIENTS, COHORT, STEPS, BATCH, RATE = 300, 30, 3, 20, 0.1
SEPARATION = CLIENTS // COHORT


class Mechanism(NamedTuple):
    name: str
    noise: Noise
    sampling: str
    clip_norm: float
    spending: Callable[[float], Spending]


def mechanisms(rounds: int) -> list[Mechanism]:
    """With what each spends at a noise multiplier."""
    rate, coefficients = COHORT / CLIENTS, toeplitz(rounds, min(SEPARATION, rounds))
    matrix = lambda z: matrix_spending(z, coefficients, delta=DELTA, separation=SEPARATION, rounds=rounds)  # noqa: E731
    return [
        Mechanism("Laplace", laplace(), "poisson", 14.0, lambda z: laplace_spending(z, delta=DELTA, rate=rate)),
        Mechanism("Gaussian", gaussian(), "poisson", 0.25, lambda z: gaussian_spending(z, delta=DELTA, rate=rate)),
        Mechanism("DP-FTRL", banded(coefficients), "round_robin", 0.25, matrix),
    ]


def federation() -> tuple[FederatedData, str]:
    """The same for all, and its name."""
    root = os.environ.get("FEDJAX_SIM_DATA")
    folder = Path(root) / "fashion_mnist" if root else None
    found = folder is not None and folder.is_dir()
    data = SOURCES["fashion_mnist"](path=str(folder)) if found else SOURCES["digits"]()
    clients = PARTITIONS["iid"](data.train["labels"], CLIENTS, seed=0)
    return federate(data, clients, seed=0), "Fashion-MNIST" if found else "digits"


def trained(mechanism: Mechanism, model: Model, data: FederatedData, population: Any) -> Callable[..., Any]:
    """Test accuracy of a run, as a function of the noise multiplier, the key and the cohorts."""
    algorithm = fs.fedavg(model.loss_fn, client_tx=optax.sgd(RATE), weighting="uniform")
    evaluate = fs.make_evaluation(model.metric_fn)

    def run(noise_multiplier: Any, key: Any, cohorts: Any) -> tuple[Any, Any]:
        private = central(algorithm, clip_norm=mechanism.clip_norm, noise_multiplier=noise_multiplier, clients=COHORT,
                          noise=mechanism.noise)  # fmt: skip
        round_fn = fs.make_round(private, batch_size=BATCH, local_steps=STEPS)
        state = fs.init(private, model.params, CLIENTS)

        def one(state: Any, ids: Any) -> tuple[Any, Any]:
            state, metrics = round_fn(state, fs.select(population, ids), key)
            return state, metrics.extra["clipped"]

        state, clipped = jax.lax.scan(one, state, cohorts)
        return evaluate(state.params, data.test)["accuracy"], clipped.mean()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--picture", type=Path, default=Path("privacy.png"))
    args = parser.parse_args()
    start = time.perf_counter()
    data, name_of_data = federation()
    model = build_model("logistic", data.input_shape, data.classes or 0, hidden=(), seed=0)
    population, offered = data.population(), mechanisms(args.rounds)
    multipliers = {}
    for mechanism in offered:
        needed = [0.0 if math.isinf(e) else calibrate(mechanism.spending, args.rounds, e) for e in EPSILONS]
        multipliers[mechanism.name] = np.array(needed, np.float32)
    keys = jax.vmap(jax.random.key)(jnp.arange(SEEDS))
    tables = {m.name: np.stack([draw_rounds(make_sampler(m.sampling, CLIENTS, COHORT), s, 0, args.rounds)
                                for s in range(SEEDS)]) for m in offered}  # fmt: skip
    calibrated = time.perf_counter() - start

    @jax.jit
    def program(population: Any, multipliers: Any, tables: Any) -> Any:
        results = {}
        for mechanism in offered:
            run = trained(mechanism, model, data, population)
            seeds = jax.vmap(run, in_axes=(None, 0, 0))
            results[mechanism.name] = jax.vmap(seeds, in_axes=(0, None, None))(
                multipliers[mechanism.name], keys, tables[mechanism.name]
            )
        return results

    results = jax.tree.map(np.asarray, program(population, multipliers, tables))
    print(
        f"{name_of_data}, {CLIENTS} clients, {COHORT} a round, {args.rounds} rounds, delta {DELTA:g}, {SEEDS} seeds\n"
    )
    print(
        f"| mechanism | clipped | {' | '.join('no noise' if math.isinf(e) else f'epsilon {e:g}' for e in EPSILONS)} |"
    )
    print(f"| --- | --- |{' --- |' * len(EPSILONS)}")
    for name, (accuracy, clipped) in results.items():
        cells = [f"{100 * a.mean():.1f} ± {100 * a.std(ddof=1):.1f} (z {z:.3g})"
                 for a, z in zip(accuracy, multipliers[name], strict=True)]  # fmt: skip
        print(f"| {name} | {clipped[-1].mean():.0%} | {' | '.join(cells)} |")
    print(f"\ncalibrated in {calibrated:.0f} s, all in {time.perf_counter() - start:.0f} s")
    accuracies = {name: accuracy for name, (accuracy, _) in results.items()}
    title = f"{name_of_data}: {CLIENTS} clients, {COHORT} a round, {args.rounds} rounds, delta {DELTA:g}"
    tradeoff(accuracies, EPSILONS, args.picture, chance=1 / (data.classes or 1), title=title)
    print(f"picture in {args.picture}")


if __name__ == "__main__":
    main()
