"""Data sets by name. A loader takes keywords and returns a `Dataset`; its parameters are the settings it knows.

Inputs are uint8 images [n, height, width, channels] from 0 to 255, uint8 codes of characters [n, length] with the size
of their vocabulary, or float32 features [n, features]; labels are int32[n] from 0. The column "client" says whose each
row is, where the data say so.
"""

from collections.abc import Callable

from fedjax_sim.data.federated import Dataset
from fedjax_sim.data.sources.bundled import breast_cancer, digits
from fedjax_sim.data.sources.cifar import cifar10
from fedjax_sim.data.sources.dictionaries import from_dictionary
from fedjax_sim.data.sources.fetch import FILES, fetch
from fedjax_sim.data.sources.heart import heart_disease
from fedjax_sim.data.sources.hub import huggingface
from fedjax_sim.data.sources.idx import fashion_mnist, idx, mnist
from fedjax_sim.data.sources.leaf import leaf
from fedjax_sim.data.sources.medmnist import breastmnist, medmnist, pneumoniamnist
from fedjax_sim.data.sources.places import cache_folder, find
from fedjax_sim.data.sources.table import csv, parquet
from fedjax_sim.data.sources.text import shakespeare
from fedjax_sim.data.synthetic import fcube, synthetic

SOURCES: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "breast_cancer": breast_cancer,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "idx": idx,
    "medmnist": medmnist,
    "pneumoniamnist": pneumoniamnist,
    "breastmnist": breastmnist,
    "cifar10": cifar10,
    "leaf": leaf,
    "csv": csv,
    "parquet": parquet,
    "huggingface": huggingface,
    "heart_disease": heart_disease,
    "shakespeare": shakespeare,
    "synthetic": synthetic,
    "fcube": fcube,
}

__all__ = [
    "FILES",
    "SOURCES",
    "breast_cancer",
    "breastmnist",
    "cache_folder",
    "cifar10",
    "csv",
    "digits",
    "fashion_mnist",
    "fetch",
    "find",
    "from_dictionary",
    "heart_disease",
    "huggingface",
    "idx",
    "leaf",
    "medmnist",
    "mnist",
    "parquet",
    "pneumoniamnist",
    "shakespeare",
]
