"""Real data, and how it is dealt out to clients: sources -> partition -> shift -> FederatedData -> cohorts. NumPy."""

from fedjax_sim.data.deal import by_column, federate
from fedjax_sim.data.disagreement import DISAGREEMENTS
from fedjax_sim.data.drift import DRIFTS, Phase, phase_at
from fedjax_sim.data.federated import Dataset, Examples, FederatedData, from_clients
from fedjax_sim.data.heterogeneity import Heterogeneity, describe
from fedjax_sim.data.partition import PARTITIONS, dirichlet, iid
from fedjax_sim.data.quantity import long_tail
from fedjax_sim.data.sampling import SAMPLERS, Sampler, draw_rounds, make_sampler
from fedjax_sim.data.shift import SHIFTS
from fedjax_sim.data.sources import SOURCES, from_dictionary
from fedjax_sim.data.store import ClientRecord, open_store, save, write_store
from fedjax_sim.data.stream import gather, stream

__all__ = [
    "DISAGREEMENTS",
    "DRIFTS",
    "PARTITIONS",
    "SAMPLERS",
    "SHIFTS",
    "SOURCES",
    "ClientRecord",
    "Dataset",
    "Examples",
    "FederatedData",
    "Heterogeneity",
    "Phase",
    "Sampler",
    "by_column",
    "describe",
    "dirichlet",
    "draw_rounds",
    "federate",
    "from_clients",
    "from_dictionary",
    "gather",
    "iid",
    "long_tail",
    "make_sampler",
    "open_store",
    "phase_at",
    "save",
    "stream",
    "write_store",
]
