"""IDX files: MNIST, Fashion-MNIST, EMNIST and whatever else comes in their layout."""

import gzip
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fedjax_sim._validate import InputError
from fedjax_sim.data.federated import Dataset, Examples
from fedjax_sim.data.sources.places import existing, find

IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
DEFLATE_LIMIT = 1032  # bytes that one compressed byte can stand for (RFC 1951)


def mnist(*, path: str = "") -> Dataset:
    """MNIST (LeCun et al. 1998), 60,000 + 10,000 images of 28x28 pixels, from `path` or wherever `find` finds it."""
    return idx(path=path or str(find("mnist")))


def fashion_mnist(*, path: str = "") -> Dataset:
    """Fashion-MNIST (Xiao et al. 2017), in MNIST's sizes and files, from `path` or wherever `find` finds it."""
    return idx(path=path or str(find("fashion_mnist")))


def idx(*, path: str = "") -> Dataset:
    """Any data set in MNIST's four IDX files, plain or gzipped.

    EMNIST (Cohen et al. 2017) comes in such files as well, under names such as emnist-digits-train-images-idx3-ubyte;
    its images are stored with rows and columns swapped, and stay so.

    Args:
      path: the folder with train-images-idx3-ubyte(.gz) and so on, or with one group of files whose names have a
        common prefix before train-, and before t10k- or test-. The files bring their own split; labels 0 to K - 1 make
        K classes. Labels that begin at 1, as those of EMNIST letters, are lowered by one.

    Returns:
      Inputs uint8 [n, height, width, 1].

    Raises:
      InputError: a file is missing, damaged or of the wrong kind, or images and labels differ in number.
    """
    folder = existing(path, "the folder with the four IDX files")
    if not folder.is_dir():
        raise InputError(f"data.path: {path!r} is not a folder; give the one with train-images-idx3-ubyte(.gz)")
    train_name, test_name = _group(folder)
    train, test = _idx_pair(folder, train_name), _idx_pair(folder, test_name)
    shapes = train["inputs"].shape[1:], test["inputs"].shape[1:]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"{folder}: training images of {shapes[0][:2]} and test images of {shapes[1][:2]} pixels; give one size"
        )
    if train["labels"].min() == 1 and test["labels"].min() > 0:
        train, test = ({**part, "labels": part["labels"] - 1} for part in (train, test))
    classes = 1 + int(train["labels"].max())
    if int(test["labels"].max()) >= classes:
        raise InputError(
            f"{folder}: test label {test['labels'].max()} over the largest training label {classes - 1}; "
            "give files of one data set"
        )
    return Dataset(train, test, classes, shapes[0], f"IDX files in {folder}")


def _group(folder: Path) -> tuple[str, str]:
    """What the names of the training and of the test files begin with."""
    ending = f"train-{IMAGES}"
    found = {file.name.removesuffix(".gz").removesuffix(ending) for file in folder.glob(f"*{ending}*")
             if file.name.removesuffix(".gz").endswith(ending)}  # fmt: skip
    if "" in found or not found:
        return "train-", "t10k-"
    if len(found) > 1:
        listed = ", ".join(sorted(f"{prefix}train-..." for prefix in found))
        raise InputError(f"data.path: {str(folder)!r} holds several data sets ({listed}); give a folder with one")
    prefix = found.pop()
    tests = [f"{prefix}{kind}-" for kind in ("test", "t10k")]
    there = [name for name in tests if _there(folder, name + IMAGES)]
    return f"{prefix}train-", (there or tests)[0]


def _idx_pair(folder: Path, prefix: str) -> Examples:
    images = read_idx(image_file := _idx_path(folder, prefix + IMAGES), dimensions=3)
    labels = read_idx(label_file := _idx_path(folder, prefix + LABELS), dimensions=1)
    if len(images) != len(labels):
        raise InputError(
            f"{label_file}: {len(labels)} labels for the {len(images)} images of {image_file.name}; "
            "fetch both files from one source again"
        )
    return {"inputs": images[..., None], "labels": labels.astype(np.int32)}


def _there(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _idx_path(folder: Path, name: str) -> Path:
    path = _there(folder, name)
    if path is None:
        raise InputError(f"{folder / name}: no such file, nor {name}.gz; put it there or give another data.path")
    return path


def read_idx(path: Path, *, dimensions: int) -> np.ndarray:
    """An IDX file of unsigned bytes, plain or gzipped (LeCun's format: 0, 0, 8, dimensions, then big-endian sizes).

    Returns:
      uint8 array with `dimensions` axes, at least one row.

    Raises:
      InputError: the file cannot be read, is of another kind, empty, truncated, or longer than its header says. No
        more is read than the header says and one byte, and nothing when the file is too small for it.
    """
    zipped = path.suffix == ".gz"
    try:
        with gzip.open(path, "rb") if zipped else path.open("rb") as file:
            shape = _read_shape(file, path, dimensions)
            expected = int(np.prod(shape, dtype=object))
            stored = path.stat().st_size
            if zipped and expected > stored * DEFLATE_LIMIT:
                raise InputError(f"{path}: {shape} needs {expected} bytes, more than {stored} zipped bytes hold")
            held = stored - 4 - 4 * dimensions
            if not zipped and held != expected:
                raise InputError(
                    f"{path}: {held} bytes after the header, but {shape} needs {expected}; fetch the file again"
                )
            data = _read_at_most(file, expected + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = "it is truncated" if isinstance(error, EOFError) else str(error) or type(error).__name__
        raise InputError(f"{path}: it cannot be read ({' '.join(reason.split())}); fetch the file again") from None
    if len(data) != expected:
        held = f"over {expected}" if len(data) > expected else str(len(data))
        raise InputError(f"{path}: {held} bytes after the header, but {shape} needs {expected}; fetch the file again")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _read_shape(file: BinaryIO | gzip.GzipFile, path: Path, dimensions: int) -> tuple[int, ...]:
    header, magic = file.read(length := 4 + 4 * dimensions), bytes([0, 0, 8, dimensions])
    if len(header) < length:
        raise InputError(f"{path}: {len(header)} bytes, less than an IDX header of {length}; fetch the file again")
    if header[:4] != magic:
        raise InputError(
            f"{path}: it begins with {header[:4].hex()}, not with {magic.hex()} as IDX bytes of {dimensions} "
            f"dimension{'s' * (dimensions > 1)} do; give the right file under this name"
        )
    shape = struct.unpack(f">{dimensions}I", header[4:])
    if 0 in shape:
        raise InputError(f"{path}: its header says {shape}, which holds nothing; fetch the file again")
    return shape


def _read_at_most(file: BinaryIO | gzip.GzipFile, most: int) -> bytearray:
    """Up to `most` bytes, piece by piece, so that memory grows with what is there and not with what is claimed."""
    data = bytearray()
    while block := file.read(min(1 << 20, most - len(data))):
        data += block
    return data
