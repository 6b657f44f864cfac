"""Data sets that scikit-learn brings along: the embedded defaults."""

import numpy as np

from fedjax_sim._validate import InputError
from fedjax_sim.data.federated import Dataset
from fedjax_sim.data.sources.prepare import STANDARDISED, standardise


def digits(*, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """1,797 handwritten digits of 8x8 pixels (Alpaydin and Kaynak 1998), as scikit-learn bundles them; 10 classes.

    The 17 grey levels 0 to 16 are stored as uint8 `round(level * 255 / 16)`, so that black is 0 and white 255 as in
    other images. The split is stratified and drawn from `seed`.
    """
    from sklearn.datasets import load_digits

    images, labels = (np.asarray(array) for array in load_digits(return_X_y=True))
    inputs = np.rint(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    return _split(inputs, labels, 10, test_fraction, seed, "scikit-learn digits")


def breast_cancer(*, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """569 tumours with 30 features (Street et al. 1993), as scikit-learn bundles them; class 0 malignant, 1 benign.

    Features are float32, standardised with the training set's mean and standard deviation. The split is stratified and
    drawn from `seed`.
    """
    from sklearn.datasets import load_breast_cancer

    features, labels = (np.asarray(array) for array in load_breast_cancer(return_X_y=True))
    split = _split(features, labels, 2, test_fraction, seed, "scikit-learn breast_cancer")
    train, test = standardise(split.train["inputs"], split.test["inputs"])
    train, test = {**split.train, "inputs": train}, {**split.test, "inputs": test}
    return split._replace(train=train, test=test, pooled=STANDARDISED)


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
