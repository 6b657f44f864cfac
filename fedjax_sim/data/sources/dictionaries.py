"""Federations from dictionaries of arrays, as FedJAX (Ro et al. 2021) and its users keep them in memory."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedjax_sim._validate import InputError
from fedjax_sim.data.federated import Examples, FederatedData, checked, from_clients
from fedjax_sim.data.sources.prepare import too_many

RENAMED = {"x": "inputs", "y": "labels"}  # FedJAX's name -> the name here


def from_dictionary(
    clients: Mapping[str | bytes, Mapping[str, Any]],
    *,
    test: Mapping[str, Any] | None = None,
    classes: int | None = None,
) -> FederatedData:
    """A federation from a dictionary of clients, each a dictionary of arrays. They are copied.

    Args:
      clients: client id -> field -> array [examples, ...]. Ids become the clients' names, bytes as UTF-8. FedJAX's
        fields "x" and "y" become "inputs" and "labels", unless there are such fields already.
      test: the global test set, field -> array, renamed likewise.
      classes: number of classes; by default one more than the largest label, where there is one whole number or boolean
        an example.

    Returns:
      The federation, in the order of `clients`.

    Raises:
      InputError: no clients, two ids that read alike, arrays that `from_clients` refuses, or, without `classes`, so
        many different labels in so few examples that they look like a number to predict.
    """
    if not isinstance(clients, Mapping) or not clients:
        raise InputError("clients: it is empty or no dictionary; give {client id: {field: array}}")
    names = [_name(client) for client in clients]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"clients: two ids read {twice!r}; give each client an id of its own")
    examples = [
        checked(f"client {name!r}", _renamed(name, fields))
        for name, fields in zip(names, clients.values(), strict=True)
    ]
    held = None if test is None else checked("test", _renamed("test", test))
    count = _classes([*examples, *([] if held is None else [held])]) if classes is None else classes
    source = f"dictionary of {len(names)} clients"
    data = from_clients(examples, test=held, names=names, classes=count if count != 1 else None, source=source)
    return data._replace(classes=count)


def _classes(parts: list[Examples]) -> int | None:
    """One more than the largest label, where labels are single integers from 0 or booleans."""
    labels = [part["labels"] for part in parts if len(part.get("labels", ()))]
    if not labels or any(a.ndim > 2 or a.size != len(a) or a.dtype.kind not in "iub" or a.min() < 0 for a in labels):
        return None
    listed, rows = np.unique(np.concatenate([array.reshape(-1) for array in labels]), return_counts=True)
    if too_many(listed, rows):
        raise InputError(
            f"clients: {len(listed)} different labels from {listed[0]} to {listed[-1]} in {rows.sum()} examples look "
            "like a number, which cannot be predicted yet; put it into ranges, or give classes=... if they are classes"
        )
    return 1 + int(listed[-1])


def _name(client: str | bytes) -> str:
    try:
        name = client.decode() if isinstance(client, bytes) else client
    except UnicodeDecodeError:
        raise InputError(f"clients: id {client!r} is not UTF-8; give ids as text") from None
    if not isinstance(name, str):
        raise InputError(f"clients: id {name!r} is a {type(name).__name__}; give ids as text or bytes")
    return name


def _renamed(name: str, fields: Any) -> dict[str, np.ndarray]:
    if not isinstance(fields, Mapping):
        raise InputError(f"client {name!r}: {type(fields).__name__} is no dictionary; give {{field: array}}")
    return {RENAMED[f] if f in RENAMED and RENAMED[f] not in fields else f: array for f, array in fields.items()}
