"""Loaders: real values from real files, and one line for each thing that can be wrong with a file."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from conftest import one_line

from fedjax_sim import InputError
from fedjax_sim.data import SOURCES, breast_cancer, digits, idx


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


def test_bundled_data_take_no_impossible_split() -> None:
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
    data = idx(path=str(idx_files))
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
        idx(path=str(idx_files))
    one_line(error, name, found)


def test_idx_folders_that_do_not_exist_or_do_not_match(idx_files: Path) -> None:
    with pytest.raises(InputError) as error:
        idx(path=str(idx_files / "nowhere"))
    one_line(error, "data.path", "nowhere", "is not a folder")
    write_idx(idx_files / "t10k-labels-idx1-ubyte", np.full(12, 9, np.uint8))
    with pytest.raises(InputError) as error:
        idx(path=str(idx_files))
    one_line(error, "test label 9")


def test_a_name_without_a_folder_says_where_to_look(monkeypatch: pytest.MonkeyPatch, idx_files: Path) -> None:
    monkeypatch.delenv("FEDJAX_SIM_DATA", raising=False)
    with pytest.raises(InputError) as error:
        SOURCES["mnist"]()
    one_line(error, "data.path", "FEDJAX_SIM_DATA")
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
