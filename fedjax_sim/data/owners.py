"""Clients by a list: one number per row says whose it is, in an array or in a file."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim import _validate
from fedjax_sim._arrays import open_npy
from fedjax_sim._validate import InputError, shown

NOBODY = -1


def owned(owners: Any, clients: int | None = None) -> list[np.ndarray]:
    """The rows of each client, where `owners` says whose each row is.

    Args:
      owners: int[total], client numbers from 0 to N - 1, or -1 for a row that nobody gets.
      clients: `N`; by default one more than the largest number. A client may have no rows.

    Returns:
      `N` arrays of row numbers, int64, in ascending order; rows of nobody are in none of them.

    Raises:
      InputError: no integers, a number out of range, or rows of nobody alone. The message names the row.
    """
    return rows_of(*_checked("owners", owners, clients))


def by_list(
    labels: np.ndarray, clients: int | None = None, *, owners: str = "", min_examples: int = 1, seed: int = 0
) -> list[np.ndarray]:
    """Deals the rows out as a file says. Nothing is random.

    Args:
      labels: int[total], of which only the length matters.
      clients: `N`; by default one more than the largest number in the file.
      owners: the file: .npy with integers [total], or text with one number on each line. Number `i` is the client of
        row `i`, from 0 to N - 1, or -1 for a row that is left out.
      min_examples: examples that every client must have.
      seed: not used.

    Returns:
      `N` arrays of row numbers, int64, in ascending order; together all rows but those with -1.

    Raises:
      InputError: the file cannot be read, has not one number per row, or one out of range; or a client has too few.
    """
    _validate.whole("min_examples", min_examples, least=0)
    if not isinstance(owners, (str, os.PathLike)) or not str(owners):
        raise InputError(f"owners: {shown(owners)} is no file; give one with a client number for each training example")
    path = Path(owners)
    numbers = open_npy(path) if path.suffix == ".npy" else _read_text(path)
    if numbers.ndim == 1 and len(numbers) != len(labels):
        raise InputError(f"{path}: {len(numbers)} numbers for {len(labels)} training examples; give one for each")
    checked, found = _checked(str(path), numbers, None)
    if clients is not None and clients != found:
        raise InputError(
            f"clients: {shown(clients)}, but {path} has the numbers 0 to {found - 1}; give {found} or none"
        )
    parts = rows_of(checked, found)
    few = next((i for i, part in enumerate(parts) if len(part) < min_examples), None)
    if few is not None:
        raise InputError(
            f"min_examples: client {few} has {len(parts[few])} rows in {path}, not {min_examples}; lower min_examples, "
            "or change the list"
        )
    return parts


def rows_of(owners: np.ndarray, clients: int) -> list[np.ndarray]:
    """The rows of each of the clients 0 to N - 1, ascending; `owners` is int64[total], -1 for nobody's."""
    order = np.argsort(owners, kind="stable")
    return np.split(order, np.searchsorted(owners[order], np.arange(clients + 1)))[1:-1]


def _checked(where: str, owners: Any, clients: int | None) -> tuple[np.ndarray, int]:
    """`owners` as int64[total], and `N`."""
    numbers = np.asarray(owners)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        given = f"{numbers.dtype}{list(numbers.shape)}"
        raise InputError(f"{where}: {shown(given)} are no client numbers; give one integer for each row")
    if len(numbers) == 0 or numbers.max() == NOBODY:
        raise InputError(f"{where}: none of its {len(numbers)} rows has a client; give at least one number from 0")
    # without `clients` a number beyond the rows is a slip, and would make as many empty clients
    limit = len(numbers) if clients is None else _validate.whole("clients", clients)
    wrong = np.flatnonzero((numbers < NOBODY) | (numbers >= limit))
    if len(wrong):
        raise InputError(
            f"{where}: row {wrong[0]} has client {numbers[wrong[0]]}; give numbers from 0 to {limit - 1}, or -1 for a "
            "row that nobody gets"
        )
    return numbers.astype(np.int64), int(numbers.max()) + 1 if clients is None else clients


def _read_text(path: Path) -> np.ndarray:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError as error:
        raise InputError(f"{path}: it cannot be read ({error.strerror}); give a readable file of owners") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: it is no text; give one number on each line, or a .npy file") from None
    for number, line in enumerate(lines, 1):
        if not re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", line):
            raise InputError(f"{path}, line {number}: {shown(line)} is no client number; give one on each line")
    return np.array([int(line) for line in lines], np.int64)
