"""Federations from dictionaries of arrays, as FedJAX (Ro et al. 2021) and its users keep them in memory."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedjax_sim._validate import InputError
from fedjax_sim.data.federated import FederatedData, checked, from_clients

RENAMED = {"x": "inputs", "y": "labels"}  # FedJAX's name -> the name here


def from_dictionary(
    clients: Mapping[str | bytes, Mapping[str, Any]], *, test: Mapping[str, Any] | None = None
) -> FederatedData:
    """A federation from a dictionary of clients, each a dictionary of arrays. They are copied.

    Args:
      clients: client id -> field -> array [examples, ...]. Ids become the clients' names, bytes as UTF-8. FedJAX's
        fields "x" and "y" become "inputs" and "labels", unless there are such fields already.
      test: the global test set, field -> array, renamed likewise.

    Returns:
      The federation, in the order of `clients`; `classes` is one more than the largest label where labels are integers.

    Raises:
      InputError: no clients, two ids that read alike, or arrays that `from_clients` refuses.
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
    held = None if test is None else _renamed("test", test)
    data = from_clients(examples, test=held, names=names)
    source = f"dictionary of {len(names)} clients"
    return data._replace(classes=_classes(data), source=source)


def _classes(data: FederatedData) -> int | None:
    """One more than the largest label, where labels are single integers from 0."""
    parts = [part["labels"] for part in (data.examples, data.test or {}) if len(part.get("labels", ()))]
    if not parts or any(labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.min() < 0 for labels in parts):
        return None
    return 1 + max(int(labels.max()) for labels in parts)


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
