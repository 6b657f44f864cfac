"""Concept drift: federations that change between rounds, as phases that begin at given rounds.

`concept` and `prior` give the world after a sudden drift (Gama et al. 2014, "A survey on concept drift adaptation"):
    phases = [Phase(0, data), Phase(100, concept(data, 0.5))]
"""

import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from fedjax_sim import _validate
from fedjax_sim._validate import InputError
from fedjax_sim.core.types import Population
from fedjax_sim.data.federated import Examples, FederatedData, offsets_of


class Phase(NamedTuple):
    """A federation, from one round until the next phase begins."""

    start: int  # first round, from 0
    data: FederatedData


def phase_at(phases: Sequence[Phase], round: int) -> Phase:
    """The phase that a round lies in.

    Raises:
      InputError: no phases, the first does not start at round 0, starts that do not increase, or a negative round.
    """
    if len(phases) == 0:
        raise InputError("phases: there are none; give at least Phase(0, data)")
    starts = [_validate.whole(f"phases[{i}].start", phase.start, least=0) for i, phase in enumerate(phases)]
    if starts[0] != 0:
        raise InputError(f"phases[0].start: {starts[0]} leaves the rounds before it without data; let it be 0")
    for i in range(1, len(starts)):
        if starts[i] <= starts[i - 1]:
            raise InputError(
                f"phases[{i}].start: {starts[i]} does not come after {starts[i - 1]}; give starts that increase"
            )
    return phases[int(np.searchsorted(starts, _validate.whole("round", round, least=0), side="right")) - 1]


def concept(data: FederatedData, severity: float, *, seed: int = 0) -> FederatedData:
    """P(y | x) changes: for a share `severity` of the clients the classes are renamed, and none keeps its name.

    One renaming, a random cycle through all the classes, holds for all affected clients, for what they train on and
    what they keep for testing. The global test set has the new names only where all clients have them; where some
    keep the old ones, so does it.

    Args:
      data: labelled with classes.
      severity: from 0 to 1; times `N`, rounded, it is how many clients, taken from an order that the seed gives.
      seed: what is drawn from.

    Raises:
      InputError: labels that are no classes, a single class, or a setting out of range.
    """
    classes = _classes(data)
    affected = _affected(data.num_clients, severity, seed, "concept")
    if len(affected) == 0:
        return data
    cycle = np.random.default_rng([seed, zlib.crc32(b"concept names")]).permutation(classes)
    renamed = np.empty(classes, np.int64)
    renamed[cycle] = np.roll(cycle, 1)

    def part(held: Population) -> Examples:
        labels = np.array(held.examples["labels"])
        rows = np.repeat(np.isin(np.arange(data.num_clients), affected), np.diff(held.offsets))
        labels[rows] = renamed[labels[rows]]
        return {**held.examples, "labels": labels}

    local, test = data.local_test, data.test
    if local is not None:
        local = Population(part(local), local.offsets)
    if test is not None and len(affected) == data.num_clients:
        test = {**test, "labels": renamed[test["labels"]].astype(test["labels"].dtype)}
    return data._replace(examples=part(Population(data.examples, data.offsets)), local_test=local, test=test)


def prior(data: FederatedData, severity: float, *, seed: int = 0) -> FederatedData:
    """P(y) changes, and P(x) with it: a share `severity` of the clients pass all their examples on in a ring.

    Each affected client gets the examples of another, those it keeps for testing too, and with them that one's size:
    all examples of the federation stay, in other places. Names and attributes stay with the client. Clients that are
    alike show no drift; fewer than two affected clients have nobody to exchange with. The result lies in memory.

    Args:
      data: any federation.
      severity: from 0 to 1; times `N`, rounded, it is how many clients, taken from an order that the seed gives.
      seed: what is drawn from.

    Raises:
      InputError: a setting is out of range.
    """
    affected = _affected(data.num_clients, severity, seed, "prior")
    if len(affected) < 2:
        return data
    source = np.arange(data.num_clients)
    source[affected] = np.roll(affected, 1)

    def part(held: Population) -> Population:
        sizes = np.diff(held.offsets)[source]
        offsets = offsets_of(sizes)
        rows = np.arange(offsets[-1]) + np.repeat(np.asarray(held.offsets, np.int64)[source] - offsets[:-1], sizes)
        return Population({field: array[rows] for field, array in held.examples.items()}, offsets)

    local = None if data.local_test is None else part(data.local_test)
    moved = part(Population(data.examples, data.offsets))
    return data._replace(examples=moved.examples, offsets=moved.offsets, local_test=local)


def _affected(clients: int, severity: float, seed: int, dial: str) -> np.ndarray:
    """The clients a drift affects, int64; those of a lower severity are the first of a higher one."""
    _validate.whole("seed", seed, least=0)
    _validate.severity(severity)
    order = np.random.default_rng([seed, zlib.crc32(dial.encode())]).permutation(clients)
    return order[: int(severity * clients + 0.5)]


def _classes(data: FederatedData) -> int:
    """`K`, when all labels are classes from 0 to `K - 1` and there are two at least."""
    if data.classes is None or data.classes < 2:
        raise InputError(f"concept: classes is {data.classes}; give labels 0 to K - 1, and data._replace(classes=K)")
    parts = {"examples": data.examples, "test": data.test, "local_test": data.local_test and data.local_test.examples}
    for name, examples in parts.items():
        if examples is None:
            continue
        labels = examples.get("labels")
        if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise InputError(f"concept: {name} has no labels that are one integer per example; give them")
        if len(labels) and (labels.min() < 0 or labels.max() >= data.classes):
            raise InputError(
                f"concept: {name} has labels from {labels.min()} to {labels.max()} with {data.classes} classes; "
                "give labels 0 to K - 1"
            )
    return data.classes


# name -> change(data, severity, *, seed)
DRIFTS: dict[str, Callable[..., FederatedData]] = {"concept": concept, "prior": prior}
