"""Loaders, partitions and federations: real values, disjoint and complete parts, and one-line errors."""

import gzip
import os
import struct
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedjax_sim import InputError
from fedjax_sim.data import (
    PARTITIONS,
    SOURCES,
    Dataset,
    FederatedData,
    breast_cancer,
    digits,
    dirichlet,
    federate,
    from_clients,
    idx_folder,
    iid,
)


def one_line(error: pytest.ExceptionInfo[InputError], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# --- sources ---------------------------------------------------------------------------------------------------------


def test_digits_are_the_real_images() -> None:
    data = digits(test_fraction=0.2, seed=3)
    assert data.train["inputs"].shape == (1437, 8, 8, 1)
    assert data.test["inputs"].shape == (360, 8, 8, 1)
    assert data.train["inputs"].dtype == np.uint8
    assert data.train["labels"].dtype == np.int32
    assert (data.classes, data.input_shape) == (10, (8, 8, 1))
    inputs = np.concatenate([data.train["inputs"], data.test["inputs"]])
    levels = np.unique(inputs)
    np.testing.assert_array_equal(levels, np.rint(np.arange(17) * 255 / 16))
    assert np.rint(inputs * (16 / 255)).sum() == 561718  # the sum of all pixels in the published file
    labels = np.concatenate([data.train["labels"], data.test["labels"]])
    np.testing.assert_array_equal(np.bincount(labels), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])


def test_splits_are_stratified_and_reproducible() -> None:
    first, again, other = digits(seed=1), digits(seed=1), digits(seed=2)
    np.testing.assert_array_equal(first.train["inputs"], again.train["inputs"])
    assert not np.array_equal(first.train["inputs"], other.train["inputs"])
    counts = np.bincount(first.test["labels"])
    assert counts.min() >= 34
    assert counts.max() <= 37


def test_breast_cancer_is_standardised_with_training_statistics() -> None:
    data = breast_cancer(seed=0)
    train, test = data.train["inputs"], data.test["inputs"]
    assert train.shape == (455, 30)
    assert test.shape == (114, 30)
    assert train.dtype == np.float32
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(train.std(0), 1, atol=1e-5)
    assert np.abs(test.mean(0)).max() > 1e-3  # the test set does not enter the statistics
    assert data.train["labels"].sum() + data.test["labels"].sum() == 357


def test_bundled_data_take_no_folder_and_no_impossible_split() -> None:
    with pytest.raises(InputError) as error:
        digits(folder="somewhere")
    one_line(error, "data.folder", "'somewhere'", "leave it empty")
    with pytest.raises(InputError) as error:
        digits(test_fraction=0.0001)
    one_line(error, "data.test_fraction", "0.0001")


def write_idx(path: Path, array: np.ndarray) -> None:
    data = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def idx_files(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 30), ("t10k", 12)):
        suffix = ".gz" if prefix == "train" else ""  # gzipped and plain files, mixed
        images = rng.integers(0, 256, (count, 5, 4)).astype(np.uint8)
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte{suffix}", images)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte{suffix}", (np.arange(count) % 3).astype(np.uint8))
    return tmp_path


def test_idx_files_are_read_byte_for_byte(idx_files: Path) -> None:
    data = idx_folder(folder=str(idx_files))
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(data.train["inputs"][..., 0], rng.integers(0, 256, (30, 5, 4)))
    np.testing.assert_array_equal(data.test["inputs"][..., 0], rng.integers(0, 256, (12, 5, 4)))
    np.testing.assert_array_equal(data.test["labels"], np.arange(12) % 3)
    assert (data.classes, data.input_shape, data.train["labels"].dtype) == (3, (5, 4, 1), np.int32)


def damage(folder: Path, kind: str) -> str:
    """Damages one file and returns its name."""
    images, labels = folder / "t10k-images-idx3-ubyte", folder / "t10k-labels-idx1-ubyte"
    zipped = folder / "train-images-idx3-ubyte.gz"
    match kind:
        case "truncated":
            images.write_bytes(images.read_bytes()[:-7])
        case "too long":
            images.write_bytes(images.read_bytes() + b"x")
        case "only a header":
            images.write_bytes(images.read_bytes()[:10])
        case "empty":
            images.write_bytes(b"")
        case "no examples":
            write_idx(images, np.zeros((0, 5, 4), np.uint8))
        case "wrong magic":
            images.write_bytes(labels.read_bytes())
        case "missing":
            images.unlink()
        case "truncated gzip":
            zipped.write_bytes(zipped.read_bytes()[:-20])
            return zipped.name
        case "no gzip":
            zipped.write_bytes(b"not a gzip file at all")
            return zipped.name
        case "fewer labels":
            write_idx(labels, np.zeros(11, np.uint8))
            return labels.name
    return images.name


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("truncated", "233 bytes after the header, but (12, 5, 4) needs 240"),
        ("too long", "241 bytes after the header"),
        ("only a header", "10 bytes"),
        ("empty", "0 bytes"),
        ("no examples", "(0, 5, 4)"),
        ("wrong magic", "begins with 00000801, not with 00000803"),
        ("missing", "no such file"),
        ("truncated gzip", "truncated"),
        ("no gzip", "cannot be read"),
        ("fewer labels", "11 labels for the 12 images"),
    ],
)
def test_damaged_idx_files_are_named(idx_files: Path, kind: str, found: str) -> None:
    name = damage(idx_files, kind)
    with pytest.raises(InputError) as error:
        idx_folder(folder=str(idx_files))
    one_line(error, name, found)


def test_idx_folders_that_do_not_exist_or_do_not_match(idx_files: Path) -> None:
    with pytest.raises(InputError) as error:
        idx_folder(folder=str(idx_files / "nowhere"))
    one_line(error, "data.folder", "nowhere", "is not a folder")
    write_idx(idx_files / "t10k-labels-idx1-ubyte", np.full(12, 9, np.uint8))
    with pytest.raises(InputError) as error:
        idx_folder(folder=str(idx_files))
    one_line(error, "test label 9")


def test_a_name_without_a_folder_says_where_to_look(monkeypatch: pytest.MonkeyPatch, idx_files: Path) -> None:
    monkeypatch.delenv("FEDJAX_SIM_DATA", raising=False)
    with pytest.raises(InputError) as error:
        SOURCES["mnist"]()
    one_line(error, "data.folder", "FEDJAX_SIM_DATA")
    monkeypatch.setenv("FEDJAX_SIM_DATA", str(idx_files.parent))
    with pytest.raises(InputError) as error:
        SOURCES["fashion_mnist"]()
    one_line(error, "fashion_mnist")
    (idx_files / "mnist").symlink_to(idx_files)
    monkeypatch.setenv("FEDJAX_SIM_DATA", str(idx_files))
    assert SOURCES["mnist"]().input_shape == (5, 4, 1)


@pytest.mark.parametrize(("name", "pixels"), [("mnist", 1567298545), ("fashion_mnist", 3431114169)])
def test_the_published_files(name: str, pixels: int) -> None:
    root = os.environ.get("FEDJAX_SIM_DATA")
    if not root or not (Path(root) / name).is_dir():
        pytest.skip(f"FEDJAX_SIM_DATA is not set to a folder that holds {name}/")
    data = SOURCES[name]()
    assert data.train["inputs"].shape == (60000, 28, 28, 1)
    assert data.test["inputs"].shape == (10000, 28, 28, 1)
    assert data.classes == 10
    assert int(data.train["inputs"].sum(dtype=np.int64)) == pixels
    assert np.bincount(data.test["labels"]).sum() == 10000


# --- partitions ------------------------------------------------------------------------------------------------------

LABELS = st.builds(
    lambda classes, size, seed: np.random.default_rng(seed).integers(0, classes, size),
    st.integers(1, 12),
    st.integers(40, 400),
    st.integers(0, 2**31),
)


@given(LABELS, st.integers(1, 30), st.floats(0.05, 100), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_every_partition_is_disjoint_complete_and_reproducible(
    labels: np.ndarray, clients: int, alpha: float, seed: int
) -> None:
    for name, partition in PARTITIONS.items():
        given_options = {"alpha": alpha, "min_examples": 0}
        options = {option: given_options[option] for option in partition.options}
        parts = partition.split(labels, clients, seed=seed, **options)
        assert len(parts) == clients, name
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
        for part, again in zip(parts, partition.split(labels, clients, seed=seed, **options), strict=True):
            np.testing.assert_array_equal(part, again)


@given(LABELS, st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_every_client_gets_the_minimum(labels: np.ndarray, clients: int, least: int, seed: int) -> None:
    assume(clients * least <= len(labels) / 3)
    assert min(len(p) for p in iid(labels, clients, min_examples=least, seed=seed)) >= least
    assert min(len(p) for p in dirichlet(labels, clients, alpha=1.0, min_examples=least, seed=seed)) >= least


def test_iid_parts_are_even_and_alike() -> None:
    labels = np.repeat(np.arange(10), 1000)
    parts = iid(labels, 10, seed=0)
    assert {len(part) for part in parts} == {1000}
    counts = np.stack([np.bincount(labels[part], minlength=10) for part in parts])
    assert np.abs(counts - 100).max() < 5 * np.sqrt(100 * 0.9 * 0.9)  # five standard deviations


def test_alpha_sets_the_label_skew() -> None:
    labels = np.repeat(np.arange(10), 600)

    def largest_share(alpha: float) -> float:
        parts = dirichlet(labels, 20, alpha=alpha, min_examples=1, seed=0)
        return float(np.mean([np.bincount(labels[part]).max() / len(part) for part in parts]))

    shares = [largest_share(alpha) for alpha in (0.05, 0.5, 5.0, 500.0)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.6
    assert shares[-1] < 0.13


def test_a_full_client_gets_no_more() -> None:
    """No client exceeds its quota by more than the class that took it over, however small alpha is."""
    labels = np.repeat(np.arange(10), 100)
    for seed in range(20):
        parts = dirichlet(labels, 5, alpha=1e-3, min_examples=0, seed=seed)
        assert max(len(part) for part in parts) < 1000 / 5 + 100


def test_impossible_partitions_say_why() -> None:
    labels = np.zeros(100, np.int64)
    with pytest.raises(InputError) as error:
        iid(labels, 30, min_examples=5)
    one_line(error, "clients: 30", "5 of 100")
    with pytest.raises(InputError) as error:
        dirichlet(labels, 10, alpha=0.01, min_examples=9, seed=0)
    one_line(error, "min_examples: 9", "alpha 0.01", "lower min_examples")
    for alpha in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match=r"^alpha: "):
            dirichlet(labels, 2, alpha=alpha)


# --- federations -----------------------------------------------------------------------------------------------------


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
    assert data.names == ("client_0", "client_1")
    assert data.offsets.dtype == np.int64


@pytest.mark.parametrize(
    ("parts", "found"),
    [
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
        FederatedData(huge, np.array([0, rows]), None, ("a",)).population()
    with pytest.raises(InputError, match=r"field 'y': values from 0 to 4294967296 exceed int32"):
        from_clients([{"y": np.array([0, 2**32])}]).population()
