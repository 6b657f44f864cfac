"""What the three article scripts share: the article's federation, with training that is real.

Three clients hold 100, 150 and 200 examples of 10 features in 2 classes; the global model is a vector of 10 parameters,
which a round's local training really moves by gradient descent on the client's own examples.
"""

import argparse
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_sim as fs

SIZES, FEATURES, ROUNDS = (100, 150, 200), 10, 10


class Federation(NamedTuple):
    """The clients' examples, and 1,000 of nobody's to test on."""

    population: fs.Population
    test: dict[str, jax.Array]


class Run(NamedTuple):
    """The global model after each round, and its accuracy on the test examples."""

    models: np.ndarray  # [rounds, 10]
    accuracies: np.ndarray  # [rounds]


def federation(*, random_labels: bool, seed: int) -> Federation:
    """Gaussian features; labels by the side of a plane, one in twenty flipped, or by coin toss as in the article."""
    rng = np.random.default_rng(seed)
    plane = rng.standard_normal(FEATURES)
    total, test = sum(SIZES), 1000
    inputs = rng.standard_normal((total + test, FEATURES)).astype(np.float32)
    labels = (inputs @ plane > 0) ^ (rng.random(total + test) < 0.05)
    if random_labels:
        labels = rng.integers(0, 2, total + test)
    examples = {"inputs": jnp.asarray(inputs), "labels": jnp.asarray(labels, jnp.int32)}
    offsets = jnp.asarray(np.concatenate([[0], np.cumsum(SIZES)]), jnp.int32)
    return Federation(
        fs.Population(jax.tree.map(lambda x: x[:total], examples), offsets),
        jax.tree.map(lambda x: x[total:], examples),
    )


def loss_fn(weights: jax.Array, batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
    """Logistic loss of each example."""
    return optax.sigmoid_binary_cross_entropy(batch["inputs"] @ weights, batch["labels"])


def accuracy(weights: np.ndarray, test: dict[str, jax.Array]) -> float:
    """Share of the test examples on the right side."""
    return float(np.mean((np.asarray(test["inputs"]) @ weights > 0) == np.asarray(test["labels"])))


def fedavg(weighting: str) -> fs.Algorithm:
    """Federated averaging with SGD 0.1."""
    return fs.fedavg(loss_fn, client_tx=optax.sgd(0.1), weighting=weighting)


def articles_update() -> fs.Algorithm:
    """What the article calls an update: a random vector, whatever the global model and the data are."""

    def run(weights, memory, data, key):
        message = fs.Message(weights - jax.random.normal(key, weights.shape))
        return message, memory, fs.Info(jnp.zeros(()), jnp.zeros(()), jnp.zeros(()))

    algorithm = fedavg("uniform")
    return algorithm._replace(client=algorithm.client._replace(run=run))


def simulate(algorithm: fs.Algorithm, data: Federation, *, seed: int, rounds: int = ROUNDS) -> Run:
    """All three clients in every round: one local epoch in batches of 10."""
    round_fn = jax.jit(fs.make_round(algorithm, batch_size=10))
    state = fs.init(algorithm, jnp.zeros(FEATURES), len(SIZES))
    cohort, key = fs.select(data.population, jnp.arange(len(SIZES))), jax.random.key(seed)
    models = []
    for _ in range(rounds):
        state, _ = round_fn(state, cohort, key)
        models.append(np.asarray(state.params))
    return Run(np.array(models), np.array([accuracy(m, data.test) for m in models]))


def show(title: str, run: Run) -> None:
    """The global model and its accuracy, round by round."""
    print(f"\n{title}")
    for i, (model, share) in enumerate(zip(run.models, run.accuracies, strict=True)):
        print(f"round {i + 1:2}  accuracy {100 * share:5.1f} %  global model [{' '.join(f'{w:6.2f}' for w in model)}]")


def arguments(description: str | None) -> argparse.Namespace:
    """`--random-labels` and `--seed`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--random-labels", action="store_true", help="coin-toss labels, as in the article: unlearnable")
    parser.add_argument("--seed", type=int, default=0, help="of data and training (default 0)")
    return parser.parse_args()
