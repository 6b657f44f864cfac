"""Loaders: real values from real files, and one line for each thing that can be wrong with a file."""

import gzip
import inspect
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import one_line

from fedjax_sim import InputError
from fedjax_sim.data import by_column
from fedjax_sim.data.sources import SOURCES, breast_cancer, cifar10, digits, idx, medmnist


def published(name: str) -> str:
    """The folder with the published files of a data set, or the test is skipped."""
    root = os.environ.get("FEDJAX_SIM_DATA")
    if not root or not (Path(root) / name).is_dir():
        pytest.skip(f"FEDJAX_SIM_DATA is not set to a folder that holds {name}/")
    return str(Path(root) / name)


@pytest.mark.parametrize("name", list(SOURCES))
def test_loaders_take_settings_as_keywords_with_defaults(name: str) -> None:
    """A configuration passes on what is in the signature, and every message begins with data.SETTING."""
    parameters = inspect.signature(SOURCES[name]).parameters.values()
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters)
    assert SOURCES[name].__doc__


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
        case "gigantic header":
            zipped.write_bytes(gzip.compress(bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 9)))
            return zipped.name
        case "gigantic content":
            zipped.write_bytes(gzip.compress(bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 5, 4) + bytes(1 << 24)))
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
        ("gigantic header", "bytes, more than"),
        ("gigantic content", "over 40 bytes after the header"),
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
    one_line(error, "data.path", "nowhere", "does not exist")
    with pytest.raises(InputError) as error:
        idx(path=str(idx_files / "t10k-images-idx3-ubyte"))
    one_line(error, "data.path", "is not a folder")
    with pytest.raises(InputError) as error:
        idx()
    one_line(error, "data.path: it is empty")
    write_idx(idx_files / "t10k-labels-idx1-ubyte", np.full(12, 9, np.uint8))
    with pytest.raises(InputError) as error:
        idx(path=str(idx_files))
    one_line(error, "test label 9")


@pytest.mark.parametrize("kind", ["test", "t10k"])
def test_emnist_files_have_a_prefix_and_may_count_from_one(idx_files: Path, kind: str) -> None:
    before = idx(path=str(idx_files))
    for file in list(idx_files.iterdir()):
        file.rename(idx_files / f"emnist-letters-{file.name.replace('t10k', kind)}")
    assert idx(path=str(idx_files)).train["labels"].max() == 2
    for part, end in (("train", ".gz"), (kind, "")):
        labels = before.train["labels"] if part == "train" else before.test["labels"]
        write_idx(idx_files / f"emnist-letters-{part}-labels-idx1-ubyte{end}", (labels + 1).astype(np.uint8))
    after = idx(path=str(idx_files))
    assert after.classes == 3
    for part, again in ((before.train, after.train), (before.test, after.test)):
        np.testing.assert_array_equal(part["labels"], again["labels"])
        np.testing.assert_array_equal(part["inputs"], again["inputs"])
    (idx_files / "emnist-digits-train-images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(InputError) as error:
        idx(path=str(idx_files))
    one_line(error, "data.path", "several data sets", "emnist-digits-train-...", "emnist-letters-train-...")


def test_a_name_without_a_folder_says_where_to_look(monkeypatch: pytest.MonkeyPatch, idx_files: Path) -> None:
    monkeypatch.delenv("FEDJAX_SIM_DATA", raising=False)
    monkeypatch.setenv("FEDJAX_SIM_CACHE", str(idx_files / "no cache"))
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
    data = SOURCES[name](path=published(name))
    assert data.train["inputs"].shape == (60000, 28, 28, 1)
    assert data.test["inputs"].shape == (10000, 28, 28, 1)
    assert data.classes == 10
    assert int(data.train["inputs"].sum(dtype=np.int64)) == pixels
    assert np.bincount(data.test["labels"]).sum() == 10000


# --- MedMNIST --------------------------------------------------------------------------------------------------------


def write_medmnist(path: Path, **changed: object) -> str:
    """Ten training, four validation and six test images; arrays given as None are left out."""
    rng = np.random.default_rng(0)
    arrays: dict[str, object] = {}
    for split, count in (("train", 10), ("val", 4), ("test", 6)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 7, 5, 3)).astype(np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 3)[:, None]
    arrays |= changed
    kept: dict[str, Any] = {name: array for name, array in arrays.items() if array is not None}
    np.savez_compressed(path, **kept)
    return str(path)


def test_medmnist_trains_on_training_and_validation_rows(tmp_path: Path) -> None:
    file = write_medmnist(tmp_path / "x.npz")
    data = medmnist(path=file)
    with np.load(file) as arrays:
        np.testing.assert_array_equal(data.train["inputs"][:10], arrays["train_images"])
        np.testing.assert_array_equal(data.train["inputs"][10:], arrays["val_images"])
        np.testing.assert_array_equal(data.test["inputs"], arrays["test_images"])
    np.testing.assert_array_equal(data.train["labels"], [*(np.arange(10) % 3), 0, 1, 2, 0])
    assert data.columns["split"].tolist() == ["train"] * 10 + ["val"] * 4
    assert (data.classes, data.input_shape) == (3, (7, 5, 3))
    assert by_column(data, "split").sizes.tolist() == [10, 4]
    gray = write_medmnist(
        tmp_path / "x.npz",
        **{f"{s}_images": np.zeros((n, 7, 5), np.uint8) for s, n in (("train", 10), ("test", 6))},
        val_images=None,
    )
    assert medmnist(path=str(tmp_path)).train["inputs"].shape == (10, 7, 5, 1)
    write_medmnist(tmp_path / "y.npz")
    with pytest.raises(InputError) as error:
        medmnist(path=str(tmp_path))
    one_line(error, "data.path", "2 .npz files")
    assert medmnist(path=gray).classes == 3


BYTES = np.zeros((10, 7, 5), np.uint8)


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"test_labels": None}, "no test_labels"),
        ({"train_images": None}, "no train_images, but train_labels"),
        ({"train_labels": np.zeros((10, 14), np.uint8)}, "14 labels an image"),
        ({"train_images": np.zeros((10, 7, 7, 7), np.uint8)}, "volumes"),
        ({"train_images": np.zeros((10, 7, 7, 7, 3), np.uint8)}, "uint8[10, 7, 7, 7, 3]"),
        ({"train_images": BYTES.astype(np.float32)}, "float32[10, 7, 5]"),
        ({"train_images": np.full((10, 7, 5), np.nan)}, "float64[10, 7, 5]"),
        ({"train_images": BYTES[:0]}, "hold nothing"),
        ({"train_images": BYTES[:9]}, "10 train_labels for 9 images"),
        ({"train_images": BYTES}, "val_images of (7, 5, 3) and train_images of (7, 5, 1)"),
        ({"train_labels": np.full(10, 0.5)}, "train_labels are float64[10]"),
        ({"train_labels": np.full(10, -1)}, "train_labels from -1"),
        ({"test_labels": np.full(6, 9)}, "test label 9"),
    ],
)
def test_wrong_medmnist_arrays_are_named(tmp_path: Path, changed: dict[str, object], found: str) -> None:
    file = write_medmnist(tmp_path / "x.npz", **changed)
    with pytest.raises(InputError) as error:
        medmnist(path=file)
    one_line(error, file, found)


# --- CIFAR-10 --------------------------------------------------------------------------------------------------------


def test_cifar_planes_become_channels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    batches = {}
    for name in ("data_batch_2", "data_batch_5", "test_batch"):
        labels, images = rng.integers(0, 10, 4), rng.integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
        records = [bytes([label]) + b"".join(image[..., c].tobytes() for c in range(3))
                   for label, image in zip(labels, images, strict=True)]  # fmt: skip
        (folder / f"{name}.bin").write_bytes(b"".join(records))
        batches[name] = labels, images
    for path in (folder, tmp_path):
        data = cifar10(path=str(path))
        np.testing.assert_array_equal(data.train["inputs"][4:], batches["data_batch_5"][1])
        np.testing.assert_array_equal(data.train["labels"][:4], batches["data_batch_2"][0])
        np.testing.assert_array_equal(data.test["inputs"], batches["test_batch"][1])
        assert (data.classes, data.train["inputs"].dtype, data.input_shape) == (10, np.uint8, (32, 32, 3))
        assert data.columns["batch"].tolist() == [2] * 4 + [5] * 4
    whole = (folder / "test_batch.bin").read_bytes()
    for content, found in (
        (whole[:-1], "12291 bytes"),
        (b"", "0 bytes"),
        (whole[:3073] + b"\x0a" + whole[3074:], "record 1 has label 10"),
    ):
        (folder / "test_batch.bin").write_bytes(content)
        with pytest.raises(InputError) as error:
            cifar10(path=str(folder))
        one_line(error, "test_batch.bin", found)
    (folder / "test_batch.bin").unlink()
    with pytest.raises(InputError) as error:
        cifar10(path=str(folder))
    one_line(error, "test_batch.bin", "no such file")
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(InputError) as error:
        cifar10(path=str(folder))
    one_line(error, str(folder), "none of data_batch_1.bin to data_batch_5.bin")


@pytest.mark.parametrize(("name", "counts"), [("pneumoniamnist", (5232, 624)), ("breastmnist", (624, 156))])
def test_the_published_medical_images(name: str, counts: tuple[int, int]) -> None:
    data = SOURCES[name](path=published(name))
    assert data.train["inputs"].shape == (counts[0], 28, 28, 1)
    assert data.test["inputs"].shape == (counts[1], 28, 28, 1)
    assert data.classes == 2
    assert (data.columns["split"] == "val").sum() == {"pneumoniamnist": 524, "breastmnist": 78}[name]
