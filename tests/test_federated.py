"""Federations on the host: values kept, views, and one-line errors."""

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import one_line

from fedjax_sim import InputError
from fedjax_sim.data import Dataset, FederatedData, by_column, federate, from_clients


def small_dataset() -> Dataset:
    x = np.arange(20, dtype=np.float32).reshape(10, 2)
    examples = {"inputs": x, "labels": np.arange(10, dtype=np.int32) % 2}
    return Dataset(examples, {field: array[:4] for field, array in examples.items()}, 2, (2,), "test")


def test_federate_keeps_rows_and_order() -> None:
    data = federate(small_dataset(), [np.array([7, 1]), np.array([0, 2, 9])])
    assert data.num_clients == 2
    np.testing.assert_array_equal(data.sizes, [2, 3])
    np.testing.assert_array_equal(data.client(0)["inputs"], [[14, 15], [2, 3]])
    np.testing.assert_array_equal(data.client(1)["labels"], [0, 0, 1])
    assert data.client(1)["inputs"].base is not None  # a view
    assert (data.name(0), data.name(1)) == ("client_0", "client_1")
    assert data.offsets.dtype == np.int64


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        ([np.array([0.5])], "parts[0]: float64[1]; give row numbers"),
        ([np.array([2]), np.ones(10, bool)], "parts[1]: bool[10]; give row numbers"),
        ([], "no client has an example"),
        ([np.array([], int)], "no client has an example"),
        ([np.array([10])], "rows 10 to 10; give row numbers from 0 to 9"),
        ([np.array([-1])], "rows -1"),
        ([np.array([3]), np.array([1, 3])], "row 3 is dealt 2 times"),
    ],
)
def test_parts_that_do_not_fit(parts: list[np.ndarray], found: str) -> None:
    with pytest.raises(InputError) as error:
        federate(small_dataset(), parts)
    one_line(error, "parts", found)


def test_a_federation_of_ones_own_arrays() -> None:
    clients = [{"inputs": np.full((n, 3), n, np.uint8), "labels": np.full(n, n)} for n in (2, 0, 5)]
    data = from_clients(clients, test=clients[2], names=["a", "b", "c"])
    np.testing.assert_array_equal(data.offsets, [0, 2, 2, 7])
    np.testing.assert_array_equal(data.client(2)["labels"], [5] * 5)
    assert len(data.client(1)["labels"]) == 0
    assert data.examples["inputs"].dtype == np.uint8
    population = data.population()
    assert population.offsets.dtype == jnp.int32
    assert population.examples["inputs"].dtype == jnp.uint8
    assert population.examples["labels"].dtype == jnp.int32  # int64 on the host
    np.testing.assert_array_equal(population.examples["labels"], [2, 2, 5, 5, 5, 5, 5])
    with pytest.raises(InputError, match=r"client: 3 does not exist"):
        data.client(3)
    with pytest.raises(InputError, match=r"client: -1 does not exist"):
        data.client(-1)


X, Y = np.ones((3, 2), np.float32), np.zeros(3, np.int32)
NAN = np.array([[1, 2], [3, np.nan], [5, 6]], np.float32)


@pytest.mark.parametrize(
    ("clients", "parts"),
    [
        ([], ["clients", "empty"]),
        ([{}], ["client 0", "empty"]),
        ([(X, Y)], ["client 0", "tuple", "dict"]),
        ([{"x": X[:0], "y": Y[:0]}], ["none of the 1 has an example"]),
        ([{"x": X, "y": Y}, {"x": X}], ["client 1", "['x']", "['x', 'y']"]),
        ([{"x": X, "y": Y}, {"x": X[:2], "y": Y}], ["client 1", "'x': 2", "'y': 3"]),
        ([{"x": X}, {"x": X.astype(np.float64)}], ["client 1", "'x'", "float64", "float32"]),
        ([{"x": X}, {"x": X[:, :1]}], ["client 1", "'x'", "[1]", "[2]"]),
        ([{"x": X}, {"x": NAN}], ["client 1", "'x'", "nan at [1, 1]"]),
        ([{"x": np.array([1.0, -np.inf])}], ["client 0", "-inf at [1]"]),
        ([{"x": np.array([object()])}], ["client 0", "'x'", "object"]),
        ([{"x": np.array(["a"])}], ["client 0", "'x'", "<U1"]),
        ([{"x": [[1, 2], [3]]}], ["client 0", "'x'", "different shapes"]),
        ([{"x": np.float32(1)}], ["client 0", "'x'", "single number"]),
    ],
)
def test_bad_clients_are_named(clients: list, parts: list[str]) -> None:
    with pytest.raises(InputError) as error:
        from_clients(clients)
    one_line(error, *parts)


def test_test_sets_and_names_must_match() -> None:
    with pytest.raises(InputError, match=r"test, field 'x': int32"):
        from_clients([{"x": X}], test={"x": Y})
    with pytest.raises(InputError, match=r"names: 2 for 1 clients"):
        from_clients([{"x": X}], names=["a", "b"])
    with pytest.raises(InputError, match=r"train, field 'inputs': nan"):
        federate(small_dataset()._replace(train={"inputs": NAN, "labels": Y}), [np.array([0])])


def test_what_a_device_cannot_hold_is_refused() -> None:
    rows = 2**31  # without memory: one byte, repeated
    huge = {"x": np.broadcast_to(np.uint8(0), (rows,))}
    with pytest.raises(InputError, match=r"examples: 2147483648 rows"):
        FederatedData(huge, np.array([0, rows]), None).population()
    with pytest.raises(InputError, match=r"field 'y': values from 0 to 4294967296 exceed int32"):
        from_clients([{"y": np.array([0, 2**32])}]).population()


@pytest.mark.parametrize(
    ("column", "found"),
    [
        (np.zeros(5), "columns['client']: float64[5]; give numbers or strings, one for each of 10 rows"),
        (np.array([1, "a", None, *range(7)], object), "columns['client']: object[10]"),
        (np.where(np.arange(10) == 3, np.nan, 1.0), "columns['client']: nan in row 3"),
    ],
)
def test_columns_that_say_nothing(column: np.ndarray, found: str) -> None:
    with pytest.raises(InputError) as error:
        by_column(small_dataset()._replace(columns={"client": column}))
    one_line(error, found)


def test_clients_by_a_column() -> None:
    dataset = small_dataset()
    who, wing = np.array(list("bcabcabcab")), np.array(list("nssnssnssn"))
    data = by_column(dataset._replace(columns={"client": who, "wing": wing, "bed": np.arange(10)},
                                      test_columns={"client": np.array(list("caac"))}))  # fmt: skip
    assert [data.name(i) for i in range(3)] == ["a", "b", "c"]
    np.testing.assert_array_equal(data.client(1)["inputs"], dataset.train["inputs"][[0, 3, 6, 9]])
    np.testing.assert_array_equal(data.client_test(0)["inputs"], dataset.test["inputs"][[1, 2]])
    assert len(data.client_test(1)["inputs"]) == 0
    assert {name: values.tolist() for name, values in data.attributes.items()} == {"wing": ["s", "n", "s"]}
    strange = dataset._replace(columns={"client": who}, test_columns={"client": np.array(list("cadc"))})
    with pytest.raises(InputError, match=r"^column 'client': d has test rows and no training rows"):
        by_column(strange)


def test_clients_keep_a_share_for_testing() -> None:
    parts = [np.arange(7), np.array([7]), np.array([8, 9])]
    data = federate(small_dataset(), parts, local_test_fraction=0.5, seed=1)
    assert data.local_test is not None
    np.testing.assert_array_equal(data.sizes, [4, 1, 1])
    for i, part in enumerate(parts):
        both = np.concatenate([data.client(i)["inputs"], data.client_test(i)["inputs"]])
        np.testing.assert_array_equal(np.sort(both[:, 0]), small_dataset().train["inputs"][part, 0])
    again = federate(small_dataset(), parts, local_test_fraction=0.5, seed=1)
    np.testing.assert_array_equal(again.examples["inputs"], data.examples["inputs"])
    with pytest.raises(InputError, match=r"^local_test_fraction: 1.0 is not from 0 to under 1"):
        federate(small_dataset(), parts, local_test_fraction=1.0)


def test_foreign_byte_order_is_turned() -> None:
    data = from_clients([{"x": np.arange(3, dtype=">f4"), "y": np.arange(3, dtype=">u2")}])
    population = data._replace(examples={k: v.astype(v.dtype.newbyteorder(">")) for k, v in data.examples.items()})
    np.testing.assert_array_equal(population.population().examples["y"], [0, 1, 2])
    np.testing.assert_array_equal(population.population().examples["x"], [0, 1, 2])
