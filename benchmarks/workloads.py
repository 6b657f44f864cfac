"""The four named workloads: the same bytes, cohorts and initial parameters for every contender.

NumPy alone is imported here, so that each peer can read this file in an environment of its own.
"""

import gzip
import os
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

PIXELS, CLASSES, LEARNING_RATE = 784, 10, 0.1


class Workload(NamedTuple):
    """One local epoch of SGD 0.1 on each client of a uniformly drawn cohort, averaged by client size."""

    name: str
    model: str  # "mlp" or "cnn"
    hidden: tuple[int, ...]  # widths of the hidden layers of the MLP
    population: int
    cohort: int
    batch_size: int


class Federation(NamedTuple):
    """A flat population: client `i` owns rows `offsets[i]` to `offsets[i + 1]`."""

    images: np.ndarray  # uint8[total, 784]
    labels: np.ndarray  # int32[total]
    offsets: np.ndarray  # int64[population + 1]
    test_images: np.ndarray  # uint8[test, 784]
    test_labels: np.ndarray  # int32[test]
    source: str


WORKLOADS = {
    w.name: w
    for w in (
        Workload("logreg", "mlp", (), 1000, 100, 20),
        Workload("2nn", "mlp", (200, 200), 500, 50, 10),
        Workload("cnn", "cnn", (), 200, 20, 10),
        Workload("ragged", "mlp", (64,), 5000, 200, 20),
    )
}


def client_sizes(workload: Workload, seed: int = 0) -> np.ndarray:
    """Number of examples of each client, int64[population]."""
    rng = np.random.default_rng([seed, 1])
    n = workload.population
    if workload.name == "2nn":  # log-normal with mean 120: exp(mu + sigma^2 / 2)
        sigma = 0.8
        drawn = rng.lognormal(np.log(120) - sigma**2 / 2, sigma, n)
        return np.clip(np.rint(drawn), 10, 600).astype(np.int64)
    if workload.name == "ragged":  # heavy-tailed around a median of 20
        return np.clip(np.rint(rng.lognormal(np.log(20), 1.3, n)), 5, 2000).astype(np.int64)
    return np.full(n, {"logreg": 100, "cnn": 60}[workload.name], np.int64)


def _idx(path: Path, header: int) -> np.ndarray:
    with gzip.open(path, "rb") as file:
        return np.frombuffer(file.read(), np.uint8, offset=header)


def _pool() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, str]:
    root = os.environ.get("FEDJAX_SIM_DATA")
    folder = Path(root) / "fashion_mnist" if root else None
    if folder and folder.is_dir():
        return (
            _idx(folder / "train-images-idx3-ubyte.gz", 16).reshape(-1, PIXELS),
            _idx(folder / "train-labels-idx1-ubyte.gz", 8).astype(np.int32),
            _idx(folder / "t10k-images-idx3-ubyte.gz", 16).reshape(-1, PIXELS),
            _idx(folder / "t10k-labels-idx1-ubyte.gz", 8).astype(np.int32),
            "Fashion-MNIST",
        )
    rng = np.random.default_rng(0)
    prototypes = rng.integers(0, 256, (CLASSES, PIXELS))

    def draw(n):
        labels = rng.integers(0, CLASSES, n).astype(np.int32)
        noise = rng.integers(-160, 161, (n, PIXELS))
        return np.clip(prototypes[labels] + noise, 0, 255).astype(np.uint8), labels

    (train, train_labels), (test, test_labels) = draw(20_000), draw(2_000)
    return train, train_labels, test, test_labels, "synthetic bytes"


def load(workload: Workload, seed: int = 0) -> Federation:
    """The population: each client draws its own examples from Fashion-MNIST where FEDJAX_SIM_DATA holds it."""
    images, labels, test_images, test_labels, source = _pool()
    offsets = np.concatenate([[0], np.cumsum(client_sizes(workload, seed))])
    rows = np.random.default_rng([seed, 2]).integers(0, len(images), offsets[-1])
    return Federation(images[rows], labels[rows], offsets, test_images, test_labels, source)


def cohorts(workload: Workload, rounds: int, seed: int = 0) -> np.ndarray:
    """Client ids of each round, int32[rounds, cohort], without replacement within a round."""
    rng = np.random.default_rng([seed, 3])
    draw = [rng.choice(workload.population, workload.cohort, replace=False) for _ in range(rounds)]
    return np.stack(draw).astype(np.int32)


def layers(workload: Workload) -> list[tuple[int, ...]]:
    """Shapes of the weights: [inputs, outputs] of a dense layer, [5, 5, inputs, outputs] of a convolution."""
    if workload.model == "cnn":  # McMahan et al. 2017
        return [(5, 5, 1, 32), (5, 5, 32, 64), (3136, 512), (512, CLASSES)]
    widths = (PIXELS, *workload.hidden, CLASSES)
    return list(pairwise(widths))


def initial_parameters(workload: Workload, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """(weight, bias) of each layer, float32: He-normal weights, zero biases."""
    rng = np.random.default_rng([seed, 4])
    out = []
    for shape in layers(workload):
        scale = np.sqrt(2 / np.prod(shape[:-1])) if workload.hidden or workload.model == "cnn" else 0.0
        out.append(((scale * rng.standard_normal(shape)).astype(np.float32), np.zeros(shape[-1], np.float32)))
    return out


def needed_flops(workload: Workload, examples: int) -> float:
    """Multiply-adds counted as two, for one epoch over `examples`; the first layer needs no input gradient."""
    positions = {0: 28 * 28, 1: 14 * 14} if workload.model == "cnn" else {}
    total = 0.0
    for i, shape in enumerate(layers(workload)):
        product = 2.0 * np.prod(shape) * positions.get(i, 1)
        total += product * (2 if i == 0 else 3)
    return total * examples
