"""Data sets by name. A loader takes keywords and returns a `Dataset`; its parameters are the settings it knows.

Inputs are uint8 images [n, height, width, channels] from 0 to 255, or float32 features [n, features]; labels are
int32[n] from 0.
"""

from collections.abc import Callable

from fedjax_sim.data.federated import Dataset
from fedjax_sim.data.sources.bundled import breast_cancer, digits
from fedjax_sim.data.sources.idx import fashion_mnist, idx, mnist

SOURCES: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "breast_cancer": breast_cancer,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "idx": idx,
}

__all__ = ["SOURCES", "breast_cancer", "digits", "fashion_mnist", "idx", "mnist"]
