"""Clients by a list: the rows that the list says, and one line for each thing that can be wrong with it."""

from pathlib import Path

import numpy as np
import pytest
from conftest import one_line
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedjax_sim import InputError
from fedjax_sim.data.owners import by_list, owned
from fedjax_sim.data.partition import PARTITIONS


@given(st.integers(1, 9), st.lists(st.integers(-1, 8), min_size=1, max_size=60))
@settings(max_examples=50, deadline=None)
def test_owned_rows_are_those_of_the_list(clients: int, listed: list[int]) -> None:
    owners = np.minimum(listed, clients - 1)
    assume(owners.max() >= 0)
    parts = owned(owners, clients)
    assert len(parts) == clients
    for client, part in enumerate(parts):
        np.testing.assert_array_equal(part, np.flatnonzero(owners == client))
        assert part.dtype == np.int64


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int64])
@pytest.mark.parametrize("form", ["npy", "text"])
def test_a_list_in_a_file(tmp_path: Path, form: str, dtype: type) -> None:
    owners = np.random.default_rng(0).integers(0, 4, 50).astype(dtype)
    if owners.dtype.kind == "i":
        owners[7] = -1
    path = tmp_path / ("owners.npy" if form == "npy" else "owners.txt")
    if form == "npy":
        np.save(path, owners)
    else:
        path.write_text("\n".join(map(str, owners)) + "\n")
    parts = by_list(np.zeros(50, int), owners=str(path))
    assert len(parts) == 4
    for part, expected in zip(parts, owned(owners), strict=True):
        np.testing.assert_array_equal(part, expected)
    assert PARTITIONS["list"](np.zeros(50, int), 4, owners=path)[3].tolist() == np.flatnonzero(owners == 3).tolist()


@pytest.mark.parametrize(
    ("owners", "clients", "parts"),
    [
        ([0, 1, -2], None, ["owners: row 2 has client -2", "or -1 for a row"]),
        ([0, 3, 1], 3, ["owners: row 1 has client 3", "from 0 to 2"]),
        ([0, 10**12], None, ["owners: row 1 has client 1000000000000", "from 0 to 1"]),
        (np.array([0, 2**64 - 1], np.uint64), None, ["owners: row 1 has client 18446744073709551615"]),
        ([-1, -1], None, ["owners: none of its 2 rows has a client"]),
        (np.zeros(0, int), None, ["owners: none of its 0 rows"]),
        ([0.0, 1.0], None, ["owners: 'float64[2]'", "one integer for each row"]),
        ([[0], [1]], None, ["owners: 'int64[2, 1]'"]),
        ([0, 1], 0, ["clients: 0"]),
    ],
)
def test_lists_that_cannot_be(owners, clients: int | None, parts: list[str]) -> None:
    with pytest.raises(InputError) as error:
        owned(owners, clients)
    one_line(error, *parts)


@pytest.mark.parametrize(
    ("content", "options", "parts"),
    [
        ("0\n1\n", {}, ["owners.txt: 2 numbers for 3 training examples", "one for each"]),
        ("0\nclient_1\n1\n", {}, ["owners.txt, line 2: 'client_1' is no client number"]),
        ("0\n\n1\n", {}, ["owners.txt, line 2: ''"]),
        ("0\n1.5\n1\n", {}, ["owners.txt, line 2: '1.5'"]),
        ("0\n" + "9" * 5000 + "\n1\n", {}, ["owners.txt, line 2: '999"]),
        ("0\n7\n1\n", {}, ["owners.txt: row 1 has client 7", "from 0 to 2"]),
        ("0\n2\n2\n", {}, ["min_examples: client 1 has 0 rows in", "not 1", "change the list"]),
        ("0\n1\n1\n", {"min_examples": 2}, ["min_examples: client 0 has 1 rows in", "not 2"]),
        ("0\n1\n1\n", {"clients": 20}, ["clients: 20, but", "0 to 1; give 2 or none"]),
        (b"\xff\xfe0\n", {}, ["owners.txt: it is no text"]),
        (None, {}, ["owners.txt: it cannot be read", "No such file"]),
    ],
)
def test_files_that_are_no_lists(tmp_path: Path, content: str | bytes | None, options: dict, parts: list[str]) -> None:
    path = tmp_path / "owners.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as error:
        by_list(np.zeros(3, int), owners=str(path), **options)
    one_line(error, *parts)


@pytest.mark.parametrize(
    ("array", "parts"),
    [
        (np.array([0.0, 1.0, 1.0]), ["owners.npy: 'float64[3]'", "one integer for each row"]),
        (np.array([0, 1]), ["owners.npy: 2 numbers for 3"]),
        (np.array([[0], [1], [1]]), ["owners.npy: 'int64[3, 1]'"]),
        (np.array([0, None, 1], object), ["owners.npy", "objects"]),
    ],
)
def test_arrays_that_are_no_lists(tmp_path: Path, array: np.ndarray, parts: list[str]) -> None:
    np.save(tmp_path / "owners.npy", array, allow_pickle=True)
    with pytest.raises(InputError) as error:
        by_list(np.zeros(3, int), owners=str(tmp_path / "owners.npy"))
    one_line(error, *parts)


def test_a_list_has_to_be_given() -> None:
    with pytest.raises(InputError) as error:
        PARTITIONS["list"](np.zeros(3, int))
    one_line(error, "owners: ''", "is no file")
