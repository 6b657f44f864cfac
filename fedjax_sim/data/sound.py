"""Federations that come from files or from a caller are looked at before anything is read by what they say."""

from typing import Any

import numpy as np

from fedjax_sim._validate import InputError, shown
from fedjax_sim.core.types import Population
from fedjax_sim.data.federated import Examples, FederatedData

MOST = 2**31 - 1  # labels and codes are int32 on devices


def check_federation(where: str, data: FederatedData) -> None:
    """What a federation says of itself fits together. Reads the offsets, 8 bytes a client, and no example.

    Args:
      where: what errors begin with: the file, or what it was given as.
      data: the federation.

    Raises:
      InputError: offsets that do not lead through the rows one client after another, test sets with other fields or of
        another shape, names or attributes not one for each client, or a number of classes that is none.
    """
    if not isinstance(data, FederatedData):
        raise InputError(f"{where}: {shown(type(data).__name__)} is no FederatedData; make one with from_clients(...)")
    check_clients(f"{where}, train", Population(data.examples, data.offsets))
    if data.local_test is not None:
        check_clients(f"{where}, local_test", data.local_test)
    check_around(where, data)


def check_around(where: str, data: FederatedData) -> None:
    """`check_federation` without the offsets."""
    if data.local_test is not None:
        _check_alike(f"{where}, local_test", data.local_test.examples, data.examples)
        if len(data.local_test.offsets) != len(data.offsets):
            own = len(data.local_test.offsets) - 1
            raise InputError(f"{where}, local_test: it is of {own} clients, not {data.num_clients}; give each client's")
    if data.test is not None:
        _lengths(f"{where}, test", data.test)
        _check_alike(f"{where}, test", data.test, data.examples)
    per_client = {"names": data.names, **data.attributes}
    for name, values in per_client.items():
        if values is not None and np.shape(values) != (data.num_clients,):
            raise InputError(
                f"{where}, {name}: {list(np.shape(values))} for {data.num_clients} clients; give one for each"
            )
    counts: dict[str, Any] = {"classes": data.classes, "vocabulary": data.vocabulary}
    for name, count in counts.items():
        whole = isinstance(count, (int, np.integer)) and not isinstance(count, bool)
        if count is not None and not (whole and 2 <= count <= MOST):
            raise InputError(f"{where}, {name}: {shown(count)} is no number of them; give 2 to {MOST:,}")


def check_clients(where: str, held: Population) -> None:
    """Offsets begin at 0, never fall, and end at the number of rows.

    Raises:
      InputError: others; the message begins with `where`.
    """
    offsets, rows = np.asarray(held.offsets), _lengths(where, held.examples)
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or len(offsets) < 2:
        given = f"{offsets.dtype}{list(offsets.shape)}"
        raise InputError(f"{where}: offsets {given} are no whole numbers [N + 1]; write the federation again")
    if offsets[0] != 0 or offsets[-1] != rows or (offsets[1:] < offsets[:-1]).any():
        falls = np.flatnonzero(offsets[1:] < offsets[:-1])
        how = f"fall after client {falls[0]}" if len(falls) else f"go from {offsets[0]} to {offsets[-1]}"
        raise InputError(f"{where}: offsets {how}, but there are rows 0 to {rows}; write the federation again")


def _lengths(where: str, examples: Examples) -> int:
    """The number of rows, which all fields share."""
    lengths = {field: array.shape[0] if np.ndim(array) else None for field, array in examples.items()}
    if len(set(lengths.values())) != 1 or None in lengths.values():
        raise InputError(f"{where}: fields of lengths {shown(lengths)}; give one row per example in every field")
    wrong = next((field for field, array in examples.items() if array.dtype.kind not in "buif"), None)
    if wrong is not None:
        raise InputError(
            f"{where}, field {wrong!r}: dtype {examples[wrong].dtype} is not trained on; give booleans, integers or "
            "floats"
        )
    return int(next(iter(lengths.values())) or 0)


def _check_alike(where: str, examples: Examples, model: Examples) -> None:
    if examples.keys() != model.keys():
        raise InputError(f"{where}: fields {sorted(examples)}, but train has {sorted(model)}; give the same fields")
    for field, array in examples.items():
        if array.shape[1:] != model[field].shape[1:]:
            raise InputError(
                f"{where}, field {field!r}: {list(array.shape[1:])} per example, but train has "
                f"{list(model[field].shape[1:])}; give one shape everywhere"
            )
