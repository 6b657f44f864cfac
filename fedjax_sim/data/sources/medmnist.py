"""MedMNIST's .npz files (Yang et al. 2023): small medical images with training, validation and test rows."""

from pathlib import Path

import numpy as np

from fedjax_sim._arrays import read_npz
from fedjax_sim._validate import InputError
from fedjax_sim.data.federated import Dataset
from fedjax_sim.data.sources.places import existing, find


def pneumoniamnist(*, path: str = "") -> Dataset:
    """PneumoniaMNIST, 4,708 + 524 + 624 chest X-rays of 28x28 pixels; class 0 normal, 1 pneumonia. As `medmnist`.

    Args:
      path: the file or its folder; by default $FEDJAX_SIM_DATA/pneumoniamnist, or the cache.
    """
    return medmnist(path=path or str(find("pneumoniamnist") / "pneumoniamnist.npz"))


def breastmnist(*, path: str = "") -> Dataset:
    """BreastMNIST, 546 + 78 + 156 ultrasound images of 28x28 pixels; class 0 malignant, 1 not. As `medmnist`.

    Args:
      path: the file or its folder; by default $FEDJAX_SIM_DATA/breastmnist, or the cache.
    """
    return medmnist(path=path or str(find("breastmnist") / "breastmnist.npz"))


def medmnist(*, path: str = "") -> Dataset:
    """A data set in MedMNIST's layout: train_images, train_labels, and likewise val_ and test_.

    Training and validation rows together are the training set; the column "split" holds "train" or "val" for each.

    Args:
      path: the .npz file, or a folder that holds just one. Images are uint8 [n, height, width] or [..., 3], labels are
        integers [n] or [n, 1] from 0. A file without val_ arrays is taken too.

    Returns:
      Inputs uint8 [n, height, width, channels]; as many classes as the largest training label says.

    Raises:
      InputError: a file that is missing or damaged, volumes, several labels an image, or arrays that do not match.
    """
    file = _file(existing(path, "an .npz file in MedMNIST's layout"))
    arrays = read_npz(file)
    splits = ["train", *(["val"] if "val_images" in arrays else []), "test"]
    images = {split: _images(file, arrays, split) for split in splits}
    labels = {split: _labels(file, arrays, split, len(images[split])) for split in splits}
    for split in splits[1:]:
        if images[split].shape[1:] != images["train"].shape[1:]:
            raise InputError(
                f"{file}: {split}_images of {images[split].shape[1:]} and train_images of {images['train'].shape[1:]}; "
                "give one size"
            )
    training = splits[:-1]
    train = {
        "inputs": np.concatenate([images[split] for split in training]),
        "labels": np.concatenate([labels[split] for split in training]),
    }
    classes = 1 + int(train["labels"].max())
    if int(labels["test"].max()) >= classes:
        raise InputError(f"{file}: test label {labels['test'].max()} over the largest training label {classes - 1}")
    column = np.repeat(training, [len(images[split]) for split in training])
    test = {"inputs": images["test"], "labels": labels["test"]}
    return Dataset(train, test, classes, train["inputs"].shape[1:], f"MedMNIST file {file}", {"split": column})


def _file(place: Path) -> Path:
    if not place.is_dir():
        return place
    files = sorted(place.glob("*.npz"))
    if len(files) != 1:
        raise InputError(f"data.path: {str(place)!r} holds {len(files)} .npz files; give the file itself")
    return files[0]


def _images(file: Path, arrays: dict[str, np.ndarray], split: str) -> np.ndarray:
    """uint8 [n, height, width, channels]."""
    name = f"{split}_images"
    if name not in arrays:
        raise InputError(f"{file}: there is no {name}, but {', '.join(arrays) or 'nothing'}; give MedMNIST's layout")
    images = arrays[name]
    if images.ndim >= 4 and images.shape[-1] not in (1, 3):
        raise InputError(f"{file}: {name} {list(images.shape)} are volumes; give a set of flat images")
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise InputError(
            f"{file}: {name} are {images.dtype}{list(images.shape)}; give uint8 [n, height, width] or [..., 3]"
        )
    if 0 in images.shape:
        raise InputError(f"{file}: {name} {list(images.shape)} hold nothing; give at least one image")
    return images[..., None] if images.ndim == 3 else images


def _labels(file: Path, arrays: dict[str, np.ndarray], split: str, rows: int) -> np.ndarray:
    """int32[rows]."""
    name = f"{split}_labels"
    if name not in arrays:
        raise InputError(f"{file}: there is no {name}; give MedMNIST's layout")
    labels = arrays[name]
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise InputError(f"{file}: {name} have {labels.shape[1]} labels an image; give a set with one class an image")
    if labels.dtype.kind not in "iu" or labels.ndim not in (1, 2):
        raise InputError(f"{file}: {name} are {labels.dtype}{list(labels.shape)}; give integers [n] or [n, 1]")
    if labels.size != rows:
        raise InputError(f"{file}: {labels.size} {name} for {rows} images; fetch the file again")
    if int(labels.min()) < 0 or int(labels.max()) >= 2**31:
        raise InputError(f"{file}: {name} from {labels.min()} to {labels.max()}; give classes from 0")
    return labels.reshape(-1).astype(np.int32)
