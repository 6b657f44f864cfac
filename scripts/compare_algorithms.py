"""Every algorithm on one heterogeneous federation: `python scripts/compare_algorithms.py [--rounds 100] [--only ...]`.

Fashion-MNIST where FEDJAX_SIM_DATA holds it, scikit-learn's digits elsewhere, dealt to 100 clients by Dirichlet(0.3) of
whom 10 train in a round; five seeds of model, cohorts and batches run together as one vmapped program. Nothing is tuned
to the algorithm: one client rate for all, every other option at its default. Prints a table in Markdown: accuracy of
the global model on the test set, and of what clients predict with on their own test examples, with the spread over
seeds; and of the latter the worst tenth of the clients.
"""

import argparse
import os
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_sim as fs
from fedjax_sim.data import PARTITIONS, SOURCES, FederatedData, federate
from fedjax_sim.models import Model, build_model

SEEDS, CLIENTS, COHORT, STEPS, BATCH, RATE, ALPHA = 5, 100, 10, 10, 32, 0.05, 0.3


class Scores(NamedTuple):
    """Of one algorithm; arrays [SEEDS]."""

    accuracy: np.ndarray
    personal: np.ndarray  # mean over clients
    worst_tenth: np.ndarray  # mean of the lowest tenth of the clients
    seconds: float


def federation() -> FederatedData:
    """The same for all algorithms and seeds."""
    root = os.environ.get("FEDJAX_SIM_DATA")
    folder = Path(root) / "fashion_mnist" if root else None
    found = folder is not None and folder.is_dir()
    data = SOURCES["fashion_mnist"](path=str(folder)) if found else SOURCES["digits"]()
    parts = PARTITIONS["dirichlet"](data.train["labels"], CLIENTS, alpha=ALPHA, seed=0, min_examples=5)
    return federate(data, parts, local_test_fraction=0.2, seed=0)


def run(name: str, data: FederatedData, models: list[Model], rounds: int) -> Scores:
    """Trains with five seeds at once and tests."""
    model, start = models[0], time.perf_counter()
    algorithm = fs.ALGORITHMS[name](model.loss_fn, client_tx=optax.sgd(RATE))
    round_fn = fs.make_round(algorithm, batch_size=BATCH, local_steps=STEPS)
    simulate = fs.make_simulation(round_fn, cohort_size=COHORT, max_rounds=rounds)
    population, tests = data.population(), data.local_test
    assert tests is not None
    tests = jax.tree.map(jnp.asarray, tests)
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[m.params for m in models])
    states = jax.vmap(lambda p: fs.init(algorithm, p, CLIENTS))(params)
    keys = jax.vmap(jax.random.key)(jnp.arange(SEEDS))
    states, _ = jax.vmap(simulate, in_axes=(0, None, 0, None))(states, population, keys, rounds)
    accuracy = jax.vmap(fs.make_evaluation(model.metric_fn), in_axes=(0, None))(states.params, data.test)["accuracy"]
    evaluate = fs.make_client_evaluation(algorithm, model.metric_fn, batch_size=BATCH, local_steps=STEPS)
    everyone = jnp.arange(CLIENTS)
    cohorts = fs.select(population, everyone), fs.select(tests, everyone)
    scores = jax.jit(jax.vmap(lambda s, k: evaluate(s, *cohorts, k)))(states, keys)
    own = np.asarray(scores.after["accuracy"])[:, np.asarray(scores.examples[0]) > 0]
    lowest = np.sort(own, axis=1)[:, : max(1, own.shape[1] // 10)]
    return Scores(np.asarray(accuracy), own.mean(1), lowest.mean(1), time.perf_counter() - start)


def spread(values: np.ndarray) -> str:
    """Mean and standard deviation over seeds, in percent."""
    return f"{100 * values.mean():.1f} ± {100 * values.std(ddof=1):.1f}" if np.isfinite(values).all() else "diverged"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--only", nargs="+", choices=list(fs.ALGORITHMS), default=list(fs.ALGORITHMS), metavar="NAME")
    args = parser.parse_args()
    data = federation()
    models = [build_model("mlp_norm", data.input_shape, data.classes or 0, hidden=(64,), seed=s) for s in range(SEEDS)]
    print(f"{data.source}, {CLIENTS} clients by Dirichlet({ALPHA}), {COHORT} a round, {STEPS} steps of {BATCH}, "
          f"SGD {RATE}, {args.rounds} rounds, {SEEDS} seeds\n")  # fmt: skip
    print("| algorithm | global model | personal models | their worst tenth | seconds in all |")
    print("| --- | --- | --- | --- | --- |")
    for name in args.only:
        scores = run(name, data, models, args.rounds)
        cells = (spread(scores.accuracy), spread(scores.personal), spread(scores.worst_tenth))
        print(f"| {name} | {' | '.join(cells)} | {scores.seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
