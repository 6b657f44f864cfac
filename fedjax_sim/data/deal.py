"""From a data set to a federation: by lists of row numbers, or by a column that says whose each row is."""

from collections.abc import Sequence

import numpy as np

from fedjax_sim import _validate
from fedjax_sim._validate import InputError
from fedjax_sim.core.types import Population
from fedjax_sim.data.convert import told_apart
from fedjax_sim.data.federated import (
    Columns,
    Dataset,
    Examples,
    FederatedData,
    check_values,
    checked,
    client_names,
    offsets_of,
    with_bytes,
    with_classes,
)


def federate(
    dataset: Dataset,
    parts: Sequence[np.ndarray],
    names: Sequence[str] | None = None,
    *,
    local_test_fraction: float = 0.0,
    seed: int = 0,
) -> FederatedData:
    """The federation in which client `i` holds the training rows `parts[i]`; the test set stays global.

    Args:
      dataset: where the rows come from; they are copied.
      parts: one array of row numbers per client, without overlap; rows in none of them are left out.
      names: one name per client.
      local_test_fraction: share of each client's rows that it keeps for testing, from 0 to under 1, rounded down.
      seed: what those rows are drawn from.

    Raises:
      InputError: no clients, a row number out of range or used twice, or NaN and the like in the data.
    """
    train, test = _trained_on(dataset)
    total = len(next(iter(train.values())))
    for i, part in enumerate(parts):
        if np.ndim(part) != 1 or (len(part) and np.asarray(part).dtype.kind not in "iu"):
            shape = f"{np.asarray(part).dtype}{list(np.shape(part))}"
            raise InputError(f"parts[{i}]: {shape}; give row numbers, whole numbers [rows], and no mask")
    rows = np.concatenate([np.asarray(part, np.int64) for part in parts]) if len(parts) else np.zeros(0, np.int64)
    if len(rows) == 0:
        raise InputError("parts: no client has an example; give at least one row number")
    if rows.min() < 0 or rows.max() >= total:
        raise InputError(f"parts: rows {rows.min()} to {rows.max()}; give row numbers from 0 to {total - 1}")
    counts = np.bincount(rows, minlength=total)
    if counts.max() > 1:
        raise InputError(f"parts: row {int(counts.argmax())} is dealt {counts.max()} times; deal each row once at most")
    if not 0 <= _validate.real("local_test_fraction", local_test_fraction) < 1:
        raise InputError(f"local_test_fraction: {local_test_fraction} is not from 0 to under 1; give 0.2, say")
    _check_columns("columns", dataset.columns, train)
    kept, held = _hold_out(parts, local_test_fraction, seed)
    local_test = _laid_out(train, held) if local_test_fraction else None
    examples, offsets = _laid_out(train, kept)
    attributes = _constant_columns(dataset.columns, parts)
    listed = client_names(len(parts), names)
    return FederatedData(examples, offsets, test, listed, local_test, attributes, *_about(dataset))


def by_column(dataset: Dataset, column: str = "client") -> FederatedData:
    """The federation whose clients are the values of a column, in ascending order and named after them.

    Where the test rows have that column too, each client keeps its own for testing, and the global test set is all of
    them. Columns that are constant within every client become attributes.

    Raises:
      InputError: there is no such column, or NaN and the like in the data.
    """
    if column not in dataset.columns:
        raise InputError(f"column: {column!r} is not in {dataset.source}; it has {sorted(dataset.columns) or 'none'}")
    train, test = _trained_on(dataset)
    _check_columns("columns", dataset.columns, train)
    _check_columns("test_columns", dataset.test_columns, test)
    names, owner = np.unique(_stripped(dataset.columns[column]), return_inverse=True)
    if names.dtype.kind == "U":
        told_apart("clients", names.tolist())
    parts = _grouped(owner, len(names))
    local_test = None
    if column in dataset.test_columns:
        values = _stripped(dataset.test_columns[column])
        place = np.minimum(np.searchsorted(names, values), len(names) - 1)
        strangers = names[place] != values
        if strangers.any():
            raise InputError(
                f"column {column!r}: {values[strangers][0]!s} has test rows and no training rows; drop them"
            )
        local_test = _laid_out(test, _grouped(place, len(names)))
    examples, offsets = _laid_out(train, parts)
    columns = {name: values for name, values in dataset.columns.items() if name != column}
    attributes = _constant_columns(columns, parts)
    listed = client_names(len(names), [str(name) for name in names])
    return FederatedData(examples, offsets, test, listed, local_test, attributes, *_about(dataset))


def _trained_on(dataset: Dataset) -> tuple[Examples, Examples]:
    """Training and test examples, with labels as classes and images of whole numbers from 0 to 255 as uint8."""
    train, test = (
        with_classes(where, checked(where, part), dataset.classes)
        for where, part in (("train", dataset.train), ("test", dataset.test))
    )
    for where, part in (("train", train), ("test", test)):
        check_values(where, part, None, dataset.vocabulary)
    scaled = with_bytes(train, test) if dataset.vocabulary is None else (train, test)
    return scaled[0], scaled[1] or test


def _about(dataset: Dataset) -> tuple[int, str, int | None, tuple[str, ...]]:
    """What federations know of their data: `classes`, `source`, `vocabulary` and `pooled`."""
    return dataset.classes, dataset.source, dataset.vocabulary, dataset.pooled


def _stripped(values: np.ndarray) -> np.ndarray:
    return np.char.strip(values) if values.dtype.kind == "U" else values


def _check_columns(where: str, columns: Columns, examples: Examples) -> None:
    total = len(next(iter(examples.values())))
    for name, values in columns.items():
        if np.shape(values) != (total,) or values.dtype.kind not in "biufU":
            given = f"{values.dtype}{list(values.shape)}"
            raise InputError(f"{where}[{name!r}]: {given}; give numbers or strings, one for each of {total} rows")
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            row = int(np.argmin(np.isfinite(values)))
            raise InputError(f"{where}[{name!r}]: {values[row]} in row {row}; fill it in first")


def _grouped(owner: np.ndarray, clients: int) -> list[np.ndarray]:
    """Rows of each client, in their order."""
    order = np.argsort(owner, kind="stable")
    return np.split(order, np.cumsum(np.bincount(owner, minlength=clients))[:-1])


def _laid_out(examples: Examples, parts: Sequence[np.ndarray]) -> Population:
    rows = np.concatenate([np.asarray(part, np.int64) for part in parts])
    return Population({field: array[rows] for field, array in examples.items()}, offsets_of([len(p) for p in parts]))


def _hold_out(parts: Sequence[np.ndarray], fraction: float, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Training rows and test rows of each client; both keep the order of `parts`."""
    kept, held = [], []
    for i, part in enumerate(parts):
        part = np.asarray(part, np.int64)
        chosen = np.zeros(len(part), bool)
        if fraction:
            chosen[np.random.default_rng([seed, i]).permutation(len(part))[: int(fraction * len(part) + 1e-9)]] = True
        kept.append(part[~chosen])
        held.append(part[chosen])
    return kept, held


def _constant_columns(columns: Columns, parts: Sequence[np.ndarray]) -> Columns:
    """The columns that have one value per client, as arrays [N]; none where some client has no row."""
    if not columns or any(len(part) == 0 for part in parts):
        return {}
    rows = np.concatenate([np.asarray(part, np.int64) for part in parts])
    firsts = rows[offsets_of([len(part) for part in parts])[:-1]]
    repeated = np.repeat(firsts, [len(part) for part in parts])
    return {name: v[firsts] for name, v in columns.items() if np.array_equal(v[repeated], v[rows])}
