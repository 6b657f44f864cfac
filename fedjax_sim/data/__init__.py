"""Real data, and how it is dealt out to clients: sources -> partition -> FederatedData. NumPy, on the host."""

from fedjax_sim.data.federated import Examples, FederatedData, from_clients
from fedjax_sim.data.partition import PARTITIONS, Partition, dirichlet, federate, iid
from fedjax_sim.data.sources import SOURCES, Dataset, breast_cancer, digits, fashion_mnist, idx_folder, mnist

__all__ = [
    "PARTITIONS",
    "SOURCES",
    "Dataset",
    "Examples",
    "FederatedData",
    "Partition",
    "breast_cancer",
    "digits",
    "dirichlet",
    "fashion_mnist",
    "federate",
    "from_clients",
    "idx_folder",
    "iid",
    "mnist",
]
