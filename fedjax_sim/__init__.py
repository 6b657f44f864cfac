"""Federated learning simulated as array programs: fast, reproducible, and able to say why training stalls.

algorithm = fedavg(loss_fn, client_tx=optax.sgd(0.1))
state = init(algorithm, params, num_clients)
round_fn = jax.jit(make_round(algorithm, batch_size=10))
state, metrics = round_fn(state, select(population, ids), key)
"""

from fedjax_sim._validate import InputError
from fedjax_sim.algorithms import (
    ALGORITHMS,
    afl,
    apfl,
    bulyan,
    centered_clipping,
    ditto,
    fedadagrad,
    fedadam,
    fedavg,
    fedavg_topk,
    fedavgm,
    fedbn,
    fedcm,
    feddc,
    feddyn,
    fedexp,
    fednova,
    fedper,
    fedprox,
    fedrep,
    fedsgd,
    fedyogi,
    ifca,
    krum,
    median,
    mime,
    mimelite,
    multi_krum,
    norm_bounding,
    perfedavg,
    pfedme,
    qffl,
    rfa,
    scaffold,
    signsgd,
    trimmed_mean,
)
from fedjax_sim.core.aggregate import Aggregator
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import Client, Info, LocalData, Message, train
from fedjax_sim.core.cohort import select
from fedjax_sim.core.devices import replicate, use_cpu_devices
from fedjax_sim.core.evaluate import ClientScores, make_client_evaluation, make_evaluation
from fedjax_sim.core.message import Transform, chain
from fedjax_sim.core.round import init, make_round
from fedjax_sim.core.server import Server
from fedjax_sim.core.simulate import make_simulation
from fedjax_sim.core.types import Cohort, Population, Procedural, RoundMetrics, RoundState, Variables

__version__ = "0.1.0"

__all__ = [
    "ALGORITHMS",
    "Aggregator",
    "Algorithm",
    "Client",
    "ClientScores",
    "Cohort",
    "Info",
    "InputError",
    "LocalData",
    "Message",
    "Population",
    "Procedural",
    "RoundMetrics",
    "RoundState",
    "Server",
    "Transform",
    "Variables",
    "afl",
    "apfl",
    "bulyan",
    "centered_clipping",
    "chain",
    "ditto",
    "fedadagrad",
    "fedadam",
    "fedavg",
    "fedavg_topk",
    "fedavgm",
    "fedbn",
    "fedcm",
    "feddc",
    "feddyn",
    "fedexp",
    "fednova",
    "fedper",
    "fedprox",
    "fedrep",
    "fedsgd",
    "fedyogi",
    "ifca",
    "init",
    "krum",
    "make_client_evaluation",
    "make_evaluation",
    "make_round",
    "make_simulation",
    "median",
    "mime",
    "mimelite",
    "multi_krum",
    "norm_bounding",
    "perfedavg",
    "pfedme",
    "qffl",
    "replicate",
    "rfa",
    "scaffold",
    "select",
    "signsgd",
    "train",
    "trimmed_mean",
    "use_cpu_devices",
]
