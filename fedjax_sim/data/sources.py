"""Data sets by name, each split into training and test examples.

A loader is `load(*, folder, test_fraction, seed) -> Dataset`. Inputs are uint8 images [n, height, width, channels] from
0 to 255, or standardised float32 features [n, features]; labels are int32[n] from 0.
"""

import gzip
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedjax_sim._validate import InputError
from fedjax_sim.data.federated import Examples

ENVIRONMENT = "FEDJAX_SIM_DATA"  # the folder that holds mnist/, fashion_mnist/, ...


class Dataset(NamedTuple):
    """A data set before it is dealt out to clients."""

    train: Examples  # {"inputs": [n, ...], "labels": int32[n]}
    test: Examples
    classes: int
    input_shape: tuple[int, ...]  # of one example
    source: str  # where it comes from, in a few words


def digits(*, folder: str = "", test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """1,797 handwritten digits of 8x8 pixels (Alpaydin and Kaynak 1998), as scikit-learn bundles them; 10 classes.

    The 17 grey levels 0 to 16 are stored as uint8 `round(level * 255 / 16)`, so that black is 0 and white 255 as in
    other images. The split is stratified and drawn from `seed`.
    """
    from sklearn.datasets import load_digits

    _bundled("digits", folder)
    images, labels = load_digits(return_X_y=True)
    inputs = np.rint(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    return _split(inputs, labels, 10, test_fraction, seed, "scikit-learn digits")


def breast_cancer(*, folder: str = "", test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """569 tumours with 30 features (Street et al. 1993), as scikit-learn bundles them; class 0 malignant, 1 benign.

    Features are float32, standardised with the training set's mean and standard deviation. The split is stratified and
    drawn from `seed`.
    """
    from sklearn.datasets import load_breast_cancer

    _bundled("breast_cancer", folder)
    features, labels = load_breast_cancer(return_X_y=True)
    split = _split(features, labels, 2, test_fraction, seed, "scikit-learn breast_cancer")
    mean, deviation = split.train["inputs"].mean(0), split.train["inputs"].std(0)
    parts = (
        {**part, "inputs": ((part["inputs"] - mean) / deviation).astype(np.float32)}
        for part in (split.train, split.test)
    )
    train, test = parts
    return split._replace(train=train, test=test)


def _bundled(name: str, folder: str) -> None:
    if folder:
        raise InputError(f"data.folder: {folder!r} is not used, for {name} comes with scikit-learn; leave it empty")


def _split(
    inputs: np.ndarray, labels: np.ndarray, classes: int, test_fraction: float, seed: int, source: str
) -> Dataset:
    from sklearn.model_selection import train_test_split

    rows = np.arange(len(labels))
    try:
        parts = train_test_split(rows, test_size=test_fraction, random_state=seed, stratify=labels)
    except ValueError:
        raise InputError(
            f"data.test_fraction: {test_fraction!r} of {len(labels)} examples leaves a side without an example of "
            f"each of {classes} classes; give a fraction such as 0.2"
        ) from None

    train, test = ({"inputs": inputs[chosen], "labels": labels[chosen].astype(np.int32)} for chosen in parts)
    return Dataset(train, test, classes, inputs.shape[1:], source)


def mnist(*, folder: str = "", test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """MNIST (LeCun et al. 1998), 60,000 + 10,000 images of 28x28 pixels, from `folder` or $FEDJAX_SIM_DATA/mnist."""
    return idx_folder(folder=folder or _default_folder("mnist"))


def fashion_mnist(*, folder: str = "", test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """Fashion-MNIST (Xiao et al. 2017), in MNIST's sizes and files, from `folder` or $FEDJAX_SIM_DATA/fashion_mnist."""
    return idx_folder(folder=folder or _default_folder("fashion_mnist"))


def _default_folder(name: str) -> str:
    root = os.environ.get(ENVIRONMENT)
    if not root:
        raise InputError(
            f"data.folder: it is empty and {name} is not bundled; give the folder with {name}'s IDX files, or set "
            f"{ENVIRONMENT} to the folder that holds {name}/"
        )
    return str(Path(root) / name)


def idx_folder(*, folder: str, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """Any data set in MNIST's four IDX files, plain or gzipped, under their original names.

    The files bring their own split, hence `test_fraction` and `seed` are not used. Labels 0 to K - 1 make K classes.

    Raises:
      InputError: a file is missing, damaged or of the wrong kind, or images and labels differ in number.
    """
    if not folder:
        raise InputError("data.folder: it is empty; give the folder with the four IDX files")
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"data.folder: {folder!r} is not a folder; give the one with train-images-idx3-ubyte(.gz)")
    train, test = (_idx_pair(path, prefix) for prefix in ("train", "t10k"))
    shapes = train["inputs"].shape[1:], test["inputs"].shape[1:]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"{path}: training images of {shapes[0][:2]} and test images of {shapes[1][:2]} pixels; give one size"
        )
    classes = 1 + int(train["labels"].max())
    if int(test["labels"].max()) >= classes:
        raise InputError(
            f"{path}: test label {test['labels'].max()} over the largest training label {classes - 1}; "
            "give files of one data set"
        )
    return Dataset(train, test, classes, shapes[0], f"IDX files in {path}")


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
    raise InputError(f"{folder / name}: no such file, nor {name}.gz; put it there or give another data.folder")


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


SOURCES: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "breast_cancer": breast_cancer,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "idx": idx_folder,
}
