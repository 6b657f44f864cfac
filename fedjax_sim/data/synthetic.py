"""Synthetic federations whose heterogeneity is known, because it was put in."""

import math
from typing import NamedTuple

import numpy as np

from fedjax_sim import _validate
from fedjax_sim._validate import InputError
from fedjax_sim.data.federated import Dataset

FEATURES, CLASSES = 60, 10  # of `synthetic`
LARGEST = 1e6  # alpha and beta
SMALLEST = 50  # examples that each of its clients has at least
DEVIATIONS = (
    np.arange(1, FEATURES + 1) ** -0.6
)  # of its inputs about their mean: the variance of feature j is j ** -1.2
MOST_ROWS = 20_000_000  # 5 GB of inputs; beyond it one would wait long for a machine without memory

OCTANTS = np.array([[1, 1, 1], [1, 1, -1], [1, -1, 1], [1, -1, -1]], np.float32)  # signs of label 0 of `fcube`, [4, 3]


def synthetic(
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    clients: int = 30,
    iid: bool = False,
    variances: bool = False,
    seed: int = 0,
) -> Dataset:
    """Synthetic(alpha, beta) of Li et al. 2020 ("Federated optimization in heterogeneous networks", FedProx), each
    client with a logistic model and inputs of its own.

    For client k with n_k = floor(exp(z_k)) + 50 examples, z_k ~ N(4, 2^2):

        u_k ~ N(0, alpha^2),  W_k ~ N(u_k, 1) [60, 10],  b_k ~ N(u_k, 1) [10]
        B_k ~ N(0, beta^2),   v_k ~ N(B_k, 1) [60],      x ~ N(v_k, diag(j^-1.2)), j = 1, ..., 60
        y = argmax(x W_k + b_k)

    so alpha says how much the models differ, and beta how much the inputs do. A client's draws depend on the seed and
    its number alone. The first nine tenths of its examples, rounded down, are for training.

    Args:
      alpha: standard deviation of u_k, at least 0. The paper calls it a variance, but its code uses it as a deviation;
        of the published settings 0, 0.5 and 1 only 0.5 differs.
      beta: standard deviation of B_k, at least 0; the same holds.
      clients: `N`.
      iid: one W and b for all clients, each entry from N(0, 1), and v_k = 0; alpha and beta are not used.
      variances: take alpha and beta as variances, as the paper writes.
      seed: what everything is drawn from.

    Returns:
      Inputs float32 [n, 60], 10 classes, and the column "client" with names such as "client_00", of training and test
      rows, which lie client by client.

    Raises:
      InputError: a setting is out of range, or too many examples for memory.
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if _validate.real(name, value, least=0) > LARGEST:
            raise InputError(f"{name}: {value} is over {LARGEST:g}, too much for float32; give less, such as 1")
    _validate.whole("clients", clients)
    _validate.whole("seed", seed, least=0)
    _refuse_too_many(clients, SMALLEST * clients)
    u_deviation, b_deviation = (math.sqrt(alpha), math.sqrt(beta)) if variances else (float(alpha), float(beta))
    sizes = np.array([_size(seed, k) for k in range(clients)])
    _refuse_too_many(clients, int(sizes.sum()))
    examples = [
        _examples(_parameters(u_deviation, b_deviation, iid, seed, k), size, seed, k) for k, size in enumerate(sizes)
    ]
    inputs, labels = (np.concatenate(arrays) for arrays in zip(*examples, strict=True))
    owners = np.repeat(np.arange(clients), sizes)
    within = np.arange(len(owners)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    held = within >= np.repeat(9 * sizes // 10, sizes)
    names = _names(clients)[owners]
    source = "Synthetic iid" if iid else f"Synthetic({alpha:g}, {beta:g}{' as variances' if variances else ''})"
    return Dataset(
        {"inputs": inputs[~held], "labels": labels[~held]},
        {"inputs": inputs[held], "labels": labels[held]},
        CLASSES,
        (FEATURES,),
        source,
        {"client": names[~held]},
        {"client": names[held]},
    )


class _Parameters(NamedTuple):
    """What one client's examples are drawn from, by the paper's names."""

    u: float
    B: float
    W: np.ndarray  # [60, 10]
    b: np.ndarray  # [10]
    v: np.ndarray  # [60]


# what is drawn, each from random numbers of its own
_SIZE, _MODEL, _INPUTS, _GLOBAL, _CUBE = range(1, 6)


def _size(seed: int, client: int) -> int:
    return int(np.random.default_rng([seed, _SIZE, client]).lognormal(4.0, 2.0)) + SMALLEST


def _parameters(u_deviation: float, b_deviation: float, iid: bool, seed: int, client: int) -> _Parameters:
    if iid:
        rng = np.random.default_rng([seed, _GLOBAL])
        weights, biases = rng.standard_normal((FEATURES, CLASSES)), rng.standard_normal(CLASSES)
        return _Parameters(0.0, 0.0, weights, biases, np.zeros(FEATURES))
    rng = np.random.default_rng([seed, _MODEL, client])
    u, mean = u_deviation * rng.standard_normal(), b_deviation * rng.standard_normal()
    weights, biases = rng.normal(u, 1.0, (FEATURES, CLASSES)), rng.normal(u, 1.0, CLASSES)
    return _Parameters(u, mean, weights, biases, rng.normal(mean, 1.0, FEATURES))


def _examples(client_parameters: _Parameters, size: int, seed: int, client: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs float32 [size, 60], and the labels of exactly these, int32 [size]."""
    x = np.random.default_rng([seed, _INPUTS, client]).standard_normal((size, FEATURES))
    inputs = (client_parameters.v + DEVIATIONS * x).astype(np.float32)
    scores = inputs.astype(np.float64) @ client_parameters.W + client_parameters.b
    return inputs, scores.argmax(1).astype(np.int32)


def _refuse_too_many(clients: int, rows: int) -> None:
    if rows > MOST_ROWS:
        raise InputError(f"clients: {clients} have {rows} examples or more, over {MOST_ROWS}; lower clients")


def fcube(*, clients: int = 4, train: int = 4000, test: int = 1000, seed: int = 0) -> Dataset:
    """FCUBE of NIID-Bench (Li et al. 2022, "Federated learning on non-IID data silos"): feature skew where the labels
    are even.

    Points are uniform in the cube [-1, 1]^3; those with x1 > 0 have label 0, the others label 1. Each of 4 clients has
    the points of one octant of label 0 and of its mirror image about the origin, of each nearly as many; clients'
    sizes differ by one at most. The test points are uniform in the whole cube and belong to no client.

    Args:
      clients: 4, for which alone it is defined.
      train: training points, at least 8.
      test: test points, at least 1.
      seed: what the points are drawn from.

    Returns:
      Inputs float32 [n, 3], 2 classes, and the column "client" of the training rows, "client_0" to "client_3".

    Raises:
      InputError: other than 4 clients, or a setting out of range.
    """
    if isinstance(clients, bool) or clients != len(OCTANTS):
        raise InputError(f"clients: {_validate.shown(clients)}, but FCUBE is defined for 4 alone; give 4")
    for name, value, least in (("train", train, 8), ("test", test, 1)):
        if _validate.whole(name, value, least=least) > MOST_ROWS:
            raise InputError(f"{name}: {value} points are over {MOST_ROWS}; give fewer")
    _validate.whole("seed", seed, least=0)
    rng = np.random.default_rng([seed, _CUBE])
    owners = np.arange(train) % len(OCTANTS)
    labels = (np.arange(train) // len(OCTANTS) % 2).astype(np.int32)
    inputs = _open_unit(rng, (train, 3)) * OCTANTS[owners] * np.where(labels, -1, 1).astype(np.float32)[:, None]
    held = _open_unit(rng, (test, 3)) * rng.choice(np.array([-1, 1], np.float32), (test, 3))
    return Dataset(
        {"inputs": inputs, "labels": labels},
        {"inputs": held, "labels": (held[:, 0] < 0).astype(np.int32)},
        2,
        (3,),
        "FCUBE",
        {"client": _names(len(OCTANTS))[owners]},
    )


def _open_unit(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform in (0, 1], float32: no coordinate is 0, which has no sign."""
    return 1 - rng.random(shape, np.float32)


def _names(clients: int) -> np.ndarray:
    """Names whose alphabetical order is that of the numbers."""
    width = len(str(clients - 1))
    return np.array([f"client_{k:0{width}}" for k in range(clients)])
