"""Real data, and how it is dealt out to clients: sources -> partition -> FederatedData. NumPy, on the host."""

from fedjax_sim.data.deal import by_column, federate
from fedjax_sim.data.federated import Dataset, Examples, FederatedData, from_clients
from fedjax_sim.data.partition import PARTITIONS, dirichlet, iid
from fedjax_sim.data.sources import SOURCES, breast_cancer, digits, fashion_mnist, idx, mnist

__all__ = [
    "PARTITIONS",
    "SOURCES",
    "Dataset",
    "Examples",
    "FederatedData",
    "breast_cancer",
    "by_column",
    "digits",
    "dirichlet",
    "fashion_mnist",
    "federate",
    "from_clients",
    "idx",
    "iid",
    "mnist",
]
