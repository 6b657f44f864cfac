"""IDX files: MNIST, Fashion-MNIST, EMNIST and whatever else comes in their layout."""

import gzip
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from fedjax_sim._validate import InputError
from fedjax_sim.data.federated import Dataset, Examples

ENVIRONMENT = "FEDJAX_SIM_DATA"  # the folder that holds mnist/, fashion_mnist/, ...


def mnist(*, path: str = "") -> Dataset:
    """MNIST (LeCun et al. 1998), 60,000 + 10,000 images of 28x28 pixels, from `path` or $FEDJAX_SIM_DATA/mnist."""
    return idx(path=path or _default_folder("mnist"))


def fashion_mnist(*, path: str = "") -> Dataset:
    """Fashion-MNIST (Xiao et al. 2017), in MNIST's sizes and files, from `path` or $FEDJAX_SIM_DATA/fashion_mnist."""
    return idx(path=path or _default_folder("fashion_mnist"))


def _default_folder(name: str) -> str:
    root = os.environ.get(ENVIRONMENT)
    if not root:
        raise InputError(
            f"data.path: it is empty and {name} is not bundled; give the folder with {name}'s IDX files, or set "
            f"{ENVIRONMENT} to the folder that holds {name}/"
        )
    return str(Path(root) / name)


def idx(*, path: str = "") -> Dataset:
    """Any data set in MNIST's four IDX files, plain or gzipped, under their original names.

    Args:
      path: the folder. The files bring their own split; labels 0 to K - 1 make K classes.

    Raises:
      InputError: a file is missing, damaged or of the wrong kind, or images and labels differ in number.
    """
    if not path:
        raise InputError("data.path: it is empty; give the folder with the four IDX files")
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"data.path: {path!r} is not a folder; give the one with train-images-idx3-ubyte(.gz)")
    train, test = (_idx_pair(folder, prefix) for prefix in ("train", "t10k"))
    shapes = train["inputs"].shape[1:], test["inputs"].shape[1:]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"{folder}: training images of {shapes[0][:2]} and test images of {shapes[1][:2]} pixels; give one size"
        )
    classes = 1 + int(train["labels"].max())
    if int(test["labels"].max()) >= classes:
        raise InputError(
            f"{folder}: test label {test['labels'].max()} over the largest training label {classes - 1}; "
            "give files of one data set"
        )
    return Dataset(train, test, classes, shapes[0], f"IDX files in {folder}")


def _idx_pair(folder: Path, prefix: str) -> Examples:
    images = read_idx(image_file := _idx_path(folder, f"{prefix}-images-idx3-ubyte"), dimensions=3)
    labels = read_idx(label_file := _idx_path(folder, f"{prefix}-labels-idx1-ubyte"), dimensions=1)
    if len(images) != len(labels):
        raise InputError(
            f"{label_file}: {len(labels)} labels for the {len(images)} images of {image_file.name}; "
            "fetch both files from one source again"
        )
    return {"inputs": images[..., None], "labels": labels.astype(np.int32)}


def _idx_path(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise InputError(f"{folder / name}: no such file, nor {name}.gz; put it there or give another data.path")


def read_idx(path: Path, *, dimensions: int) -> np.ndarray:
    """An IDX file of unsigned bytes, plain or gzipped (LeCun's format: 0, 0, 8, dimensions, then big-endian sizes).

    Returns:
      uint8 array with `dimensions` axes, at least one row.

    Raises:
      InputError: the file cannot be read, is of another kind, empty, truncated, or longer than its header says.
    """
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        reason = "it is truncated" if isinstance(error, EOFError) else str(error) or type(error).__name__
        raise InputError(f"{path}: it cannot be read ({' '.join(reason.split())}); fetch the file again") from None
    header, magic = 4 + 4 * dimensions, bytes([0, 0, 8, dimensions])
    if len(data) < header:
        raise InputError(f"{path}: {len(data)} bytes, less than an IDX header of {header}; fetch the file again")
    if data[:4] != magic:
        raise InputError(
            f"{path}: it begins with {data[:4].hex()}, not with {magic.hex()} as IDX bytes of {dimensions} "
            f"dimension{'s' * (dimensions > 1)} do; give the right file under this name"
        )
    shape = struct.unpack(f">{dimensions}I", data[4:header])
    expected = int(np.prod(shape, dtype=object))
    if expected == 0:
        raise InputError(f"{path}: its header says {shape}, which holds nothing; fetch the file again")
    if len(data) - header != expected:
        raise InputError(
            f"{path}: {len(data) - header} bytes after the header, but {shape} needs {expected}; fetch the file again"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
