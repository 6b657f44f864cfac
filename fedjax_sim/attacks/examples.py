"""Attacks on data: what malicious clients make of their own training examples.

Each is `attack(data, who, ...) -> FederatedData`. Only training examples of the clients in `who`, bool[N], change: how
many there are stays, and so do all test examples.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fedjax_sim import _validate
from fedjax_sim._validate import InputError, shown
from fedjax_sim.attacks.clients import checked_who
from fedjax_sim.data.federated import Examples, FederatedData

TABLE_FEATURES, TABLE_VALUE = 3, 3.0  # the pattern in a table: so many features, so far out if they have unit variance


def label_flip(data: FederatedData, who: Any) -> FederatedData:
    """Label k of `K` classes becomes `K - 1 - k` (as in Fang et al. 2020). Twice is nothing.

    Args:
      data: labelled with classes.
      who: the malicious clients, bool[N].

    Raises:
      InputError: labels that are no classes, or `who` is not one bool per client.
    """
    rows, classes = _rows(data, who), _classes(data)
    labels = np.array(data.examples["labels"])
    labels[rows] = classes - 1 - labels[rows]
    return data._replace(examples={**data.examples, "labels": labels})


def backdoor(
    data: FederatedData,
    who: Any,
    target: int = 0,
    share: float = 0.5,
    *,
    size: int | None = None,
    value: float | None = None,
    seed: int = 0,
) -> FederatedData:
    """A share of each malicious client's examples carries a trigger and the label `target` (Gu et al. 2017, BadNets).

    Args:
      data: labelled with classes, images [n, height, width, channels] or tables [n, features].
      who: the malicious clients, bool[N].
      target: the label that the trigger is to mean.
      share: of a client's examples, from 0 to 1, rounded; drawn by (seed, client), nested over shares.
      size: of the trigger, see `triggered`.
      value: of the trigger, see `triggered`.
      seed: what is drawn from.

    Raises:
      InputError: labels that are no classes, `who` is not one bool per client, or a setting out of range.
    """
    of_client, classes = _rows(data, who), _classes(data)
    if _validate.whole("target", target, least=0) >= classes:
        raise InputError(f"target: {target} with {classes} classes; give a label from 0 to {classes - 1}")
    if not 0 <= _validate.number("share", share) <= 1:
        raise InputError(f"share: {shown(share)} is out of range; give a number from 0 to 1")
    _validate.whole("seed", seed, least=0)
    changed = np.zeros(len(of_client), bool)
    for client in np.flatnonzero(checked_who(who)).tolist():
        start, stop = int(data.offsets[client]), int(data.offsets[client + 1])
        order = np.random.default_rng([seed, zlib.crc32(b"backdoor"), client]).permutation(stop - start)
        changed[start + order[: round(float(share) * (stop - start))]] = True
    labels, inputs = np.array(data.examples["labels"]), np.array(data.examples["inputs"])
    labels[changed] = target
    inputs[changed] = _stamped(inputs[changed], size, value)
    return data._replace(examples={**data.examples, "inputs": inputs, "labels": labels})


def triggered(
    examples: Mapping[str, np.ndarray],
    *,
    target: int | None = None,
    size: int | None = None,
    value: float | None = None,
) -> Examples:
    """`examples` with the trigger of `backdoor` on every one, to measure what a model has learnt of it.

    In images it is a square in the lower right corner, in tables the last features at `value` and `-value` in turn.

    Args:
      examples: "inputs" and "labels", a test set for example.
      target: leave out examples of this label and label the others with it: the accuracy is then the attack's success.
      size: pixels along the square's side, by default an eighth of the shorter side and at least 2; or how many
        features, by default 3.
      value: by default the brightest of an integer dtype, 1 in images of floats, and 3 in tables.

    Raises:
      InputError: inputs that are neither images nor tables, or a setting out of range.
    """
    if not {"inputs", "labels"} <= examples.keys():
        raise InputError(f"examples: fields {sorted(examples)}; give 'inputs' and 'labels'")
    if target is not None:
        kept = np.asarray(examples["labels"]) != _validate.whole("target", target, least=0)
        examples = {field: array[kept] for field, array in examples.items()}
    result = {**examples, "inputs": _stamped(np.array(examples["inputs"]), size, value)}
    if target is not None:
        result["labels"] = np.full_like(examples["labels"], target)
    return result


def _stamped(inputs: np.ndarray, size: int | None, value: float | None) -> np.ndarray:
    """`inputs`, written to."""
    if inputs.ndim not in (2, 4) or inputs.dtype.kind not in "uif":
        found = f"{inputs.dtype}{list(inputs.shape[1:])} per example"
        raise InputError(f"inputs: {found}; give images [n, height, width, channels] or tables [n, features]")
    image, room = inputs.ndim == 4, min(inputs.shape[1:3])
    side = min(room, max(2, room // 8) if image else TABLE_FEATURES) if size is None else _validate.whole("size", size)
    if side > room:
        raise InputError(f"size: {side} of {room} {'pixels' if image else 'features'}; give at most {room}")
    if value is None:
        value = TABLE_VALUE if not image else 1.0 if inputs.dtype.kind == "f" else float(np.iinfo(inputs.dtype).max)
    value = float(_validate.number("value", value))
    pattern = np.full(side, value) if image else value * (-1.0) ** np.arange(side)
    if inputs.dtype.kind != "f":
        allowed = np.iinfo(inputs.dtype)
        pattern = np.clip(pattern, allowed.min, allowed.max)
    pattern = pattern.astype(inputs.dtype)
    if image:
        inputs[:, -side:, -side:] = pattern[0]
    else:
        inputs[:, -side:] = pattern
    return inputs


def _rows(data: FederatedData, who: Any) -> np.ndarray:
    """Which rows belong to malicious clients, bool[total]."""
    return np.repeat(checked_who(who, data.num_clients), data.sizes)


def _classes(data: FederatedData) -> int:
    """`K`, when the training labels are classes from 0 to `K - 1`."""
    labels = data.examples.get("labels")
    if data.classes is None or labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
        found = f"classes {data.classes}, fields {sorted(data.examples)}"
        raise InputError(f"attack: {found}; give integer labels 0 to K - 1, and data._replace(classes=K)")
    if len(labels) and (labels.min() < 0 or labels.max() >= data.classes):
        raise InputError(f"attack: labels from {labels.min()} to {labels.max()}; give 0 to {data.classes - 1}")
    return data.classes


# name -> attack(data, who, ...)
DATA_ATTACKS: dict[str, Callable[..., FederatedData]] = {"label_flip": label_flip, "backdoor": backdoor}
