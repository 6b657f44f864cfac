"""Label disagreement: clients that read the same inputs differently.

A dial is `dial(data, severity, *, seed=0) -> FederatedData`, from severity 0 (the same arrays come back) to 1. Only the
labels of training examples change: test labels, global and local, stay the reference reading. What a client draws
depends on (seed, dial, client) and never on the severity, so labels that change at one severity change at every higher
one. `N` clients, `K = data.classes` classes.
"""

import zlib
from collections.abc import Callable

import numpy as np

from fedjax_sim import _memory, _validate
from fedjax_sim._validate import InputError, shown
from fedjax_sim.data.federated import FederatedData

Reader = Callable[[int, np.ndarray], np.ndarray]  # (client, its labels int64[n]) -> the labels it gives


def flip(data: FederatedData, severity: float | np.ndarray, *, seed: int = 0) -> FederatedData:
    """Symmetric noise: a label becomes, with probability `severity`, one of the `K - 1` others, all alike (Natarajan et
    al. 2013).

    Args:
      data: labelled with classes.
      severity: from 0 to 1, or such a rate for each client, [N].
      seed: what is drawn from.

    Raises:
      InputError: labels that are no classes, a single class, a rate out of range, or not one for each client.
    """
    classes = _classes(data, "flip", least=2)
    if np.ndim(severity):
        rates = _rates(np.asarray(severity), data.num_clients)
    else:
        rates = np.full(data.num_clients, _validate.severity(severity))
    _validate.whole("seed", seed, least=0)

    def read(client: int, labels: np.ndarray) -> np.ndarray:
        rng = _draws(seed, "flip", client)
        changed = rng.random(len(labels)) < rates[client]
        return np.where(changed, (labels + rng.integers(1, classes, len(labels))) % classes, labels)

    return _relabelled(data, read, np.flatnonzero(rates))


def confusion(data: FederatedData, severity: float, *, seed: int = 0) -> FederatedData:
    """Each client reads with a `confusion_matrix` of its own, like the annotators of Dawid and Skene 1979.

    Args:
      data: labelled with classes.
      severity: from 0 to 1; at 1 the reading tells next to nothing of the label.
      seed: what matrices and readings are drawn from.

    Raises:
      InputError: labels that are no classes, or a setting out of range.
    """
    classes = _classes(data, "confusion")
    _validate.whole("seed", seed, least=0)
    if _validate.severity(severity) == 0:
        return data

    def read(client: int, labels: np.ndarray) -> np.ndarray:
        return _read(labels, confusion_matrix(client, classes, severity, seed=seed), _draws(seed, "read", client))

    return _relabelled(data, read, np.arange(data.num_clients))


def confusion_matrix(client: int, classes: int, severity: float, *, seed: int = 0) -> np.ndarray:
    """The chances [K, K] with which a client reads class a (row) as class b (column): `(1 - s) I + s R`.

    The rows of R are drawn from the uniform Dirichlet distribution over the classes, from (seed, client).
    """
    _validate.whole("client", client, least=0)
    _validate.whole("classes", classes)
    severity = _validate.severity(severity)
    _memory.require(f"classes: a confusion matrix of {classes:,} classes needs", 24 * classes**2, "leave it out")
    drawn = _draws(seed, "confusion", client).dirichlet(np.ones(classes), classes)
    return (1 - severity) * np.eye(classes) + severity * drawn


def read_with(data: FederatedData, matrices: np.ndarray, *, seed: int = 0) -> FederatedData:
    """Labels read with given confusion matrices.

    Args:
      data: labelled with classes.
      matrices: [N, K, K]; row a of matrix i has the chances with which client i reads class a as each class.
      seed: what readings are drawn from, one number per example.

    Raises:
      InputError: labels that are no classes, matrices of another shape, or a row that is no distribution.
    """
    classes = _classes(data, "read_with")
    _validate.whole("seed", seed, least=0)
    matrices = np.asarray(matrices)
    expected = (data.num_clients, classes, classes)
    if matrices.shape != expected or matrices.dtype.kind not in "fiu":
        raise InputError(f"matrices: {matrices.dtype}{list(matrices.shape)}; give chances [N, K, K] = {list(expected)}")
    with np.errstate(invalid="ignore"):
        wrong = ~((matrices >= 0).all(2) & (np.abs(matrices.sum(2) - 1) <= 1e-6))
    if wrong.any():
        client, row = (int(i) for i in np.argwhere(wrong)[0])
        raise InputError(
            f"matrices: row {row} of client {client} is {shown(matrices[client, row].tolist())}; give chances of at "
            "least 0 that sum to 1"
        )
    return _relabelled(
        data,
        lambda client, labels: _read(labels, matrices[client], _draws(seed, "read", client)),
        np.arange(data.num_clients),
    )


def _read(labels: np.ndarray, matrix: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One reading of each label, int64[n]. The label itself takes the lowest numbers, which keeps severities nested."""
    classes = len(matrix)
    order = (np.arange(classes)[:, None] + np.arange(classes)) % classes  # row a: a, a + 1, ...
    bounds = np.cumsum(np.take_along_axis(matrix, order, 1), 1)
    bounds /= bounds[:, -1:]
    chance, reading = rng.random(len(labels)), np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        rows = labels == label
        reading[rows] = order[label, np.searchsorted(bounds[label, :-1], chance[rows], side="right")]
    return reading


def swap(data: FederatedData, severity: float, *, pair: tuple[int, int] | None = None, seed: int = 0) -> FederatedData:
    """A share `severity` of the clients reads two classes the wrong way round. Twice is nothing.

    Args:
      data: labelled with classes.
      severity: from 0 to 1; times `N`, rounded, it is how many clients, taken from an order that the seed gives.
      pair: the two classes; by default two drawn for each client.
      seed: what is drawn from.

    Raises:
      InputError: labels that are no classes, a single class, no such pair, or a setting out of range.
    """
    classes = _classes(data, "swap", least=2)
    _validate.whole("seed", seed, least=0)
    if pair is not None and not (
        np.shape(pair) == (2,) and np.asarray(pair).dtype.kind in "iu" and 0 <= min(pair) < max(pair) < classes
    ):
        raise InputError(f"pair: {shown(pair)}; give two different classes from 0 to {classes - 1}")
    affected = int(_validate.severity(severity) * data.num_clients + 0.5)
    order = np.random.default_rng([seed, zlib.crc32(b"swap order")]).permutation(data.num_clients)

    def read(client: int, labels: np.ndarray) -> np.ndarray:
        a, b = pair or _draws(seed, "swap", client).choice(classes, 2, replace=False)
        return np.where(labels == a, b, np.where(labels == b, a, labels))

    return _relabelled(data, read, np.sort(order[:affected]))


def _classes(data: FederatedData, dial: str, *, least: int = 1) -> int:
    """`K`, when the training labels are classes from 0 to `K - 1`."""
    labels = data.examples.get("labels")
    if data.classes is None or labels is None:
        found = "no classes are set" if labels is not None else f"no field 'labels' among {sorted(data.examples)}"
        raise InputError(f"{dial}: {found}; give labels 0 to K - 1, and data._replace(classes=K)")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(f"{dial}: labels of {labels.dtype}{list(labels.shape[1:])}; give one integer per example")
    if data.classes < least:
        raise InputError(f"{dial}: classes is {data.classes}, which leaves no other; give at least {least}")
    if len(labels) and (labels.min() < 0 or labels.max() >= data.classes):
        found = f"{labels.min()} to {labels.max()}"
        raise InputError(f"{dial}: labels from {found} with {data.classes} classes; give labels 0 to K - 1")
    return data.classes


def _rates(rates: np.ndarray, clients: int) -> np.ndarray:
    if rates.shape != (clients,) or rates.dtype.kind not in "fiu":
        raise InputError(f"severity: {rates.dtype}{list(rates.shape)}; give one number, or one for each of {clients}")
    wrong = ~((rates >= 0) & (rates <= 1))
    if wrong.any():
        client = int(wrong.argmax())
        raise InputError(f"severity: {rates[client]} of client {client} is out of range; give rates from 0 to 1")
    return rates


def _draws(seed: int, dial: str, client: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(dial.encode()), client])


def _relabelled(data: FederatedData, read: Reader, clients: np.ndarray) -> FederatedData:
    """`data` with the training labels that `read` gives at `clients`; the same arrays where there are none."""
    if len(clients) == 0:
        return data
    labels = np.array(data.examples["labels"])
    for client in clients:
        rows = slice(int(data.offsets[client]), int(data.offsets[client + 1]))
        if rows.start < rows.stop:
            labels[rows] = read(int(client), labels[rows].astype(np.int64))
    return data._replace(examples={**data.examples, "labels": labels})


# name -> dial(data, severity, *, seed)
DISAGREEMENTS: dict[str, Callable[..., FederatedData]] = {"flip": flip, "confusion": confusion, "swap": swap}
