"""The registry: algorithms by name, each a factory `(loss_fn, *, client_tx, server_tx=..., ...) -> Algorithm`."""

from collections.abc import Callable

from fedjax_sim.algorithms.afl import afl
from fedjax_sim.algorithms.apfl import apfl
from fedjax_sim.algorithms.bulyan import bulyan
from fedjax_sim.algorithms.centered_clipping import centered_clipping
from fedjax_sim.algorithms.ditto import ditto
from fedjax_sim.algorithms.fedadagrad import fedadagrad
from fedjax_sim.algorithms.fedadam import fedadam
from fedjax_sim.algorithms.fedavg import fedavg
from fedjax_sim.algorithms.fedavg_topk import fedavg_topk
from fedjax_sim.algorithms.fedavgm import fedavgm
from fedjax_sim.algorithms.fedbn import fedbn
from fedjax_sim.algorithms.fedcm import fedcm
from fedjax_sim.algorithms.feddc import feddc
from fedjax_sim.algorithms.feddyn import feddyn
from fedjax_sim.algorithms.fedexp import fedexp
from fedjax_sim.algorithms.fednova import fednova
from fedjax_sim.algorithms.fedper import fedper
from fedjax_sim.algorithms.fedprox import fedprox
from fedjax_sim.algorithms.fedrep import fedrep
from fedjax_sim.algorithms.fedsgd import fedsgd
from fedjax_sim.algorithms.fedyogi import fedyogi
from fedjax_sim.algorithms.ifca import ifca
from fedjax_sim.algorithms.krum import krum
from fedjax_sim.algorithms.median import median
from fedjax_sim.algorithms.mime import mime
from fedjax_sim.algorithms.mimelite import mimelite
from fedjax_sim.algorithms.multi_krum import multi_krum
from fedjax_sim.algorithms.norm_bounding import norm_bounding
from fedjax_sim.algorithms.perfedavg import perfedavg
from fedjax_sim.algorithms.pfedme import pfedme
from fedjax_sim.algorithms.qffl import qffl
from fedjax_sim.algorithms.rfa import rfa
from fedjax_sim.algorithms.scaffold import scaffold
from fedjax_sim.algorithms.signsgd import signsgd
from fedjax_sim.algorithms.trimmed_mean import trimmed_mean
from fedjax_sim.core.algorithm import Algorithm

ALGORITHMS: dict[str, Callable[..., Algorithm]] = {
    "afl": afl,
    "apfl": apfl,
    "bulyan": bulyan,
    "centered_clipping": centered_clipping,
    "ditto": ditto,
    "fedadagrad": fedadagrad,
    "fedadam": fedadam,
    "fedavg": fedavg,
    "fedavg_topk": fedavg_topk,
    "fedavgm": fedavgm,
    "fedbn": fedbn,
    "fedcm": fedcm,
    "feddc": feddc,
    "feddyn": feddyn,
    "fedexp": fedexp,
    "fednova": fednova,
    "fedper": fedper,
    "fedprox": fedprox,
    "fedrep": fedrep,
    "fedsgd": fedsgd,
    "fedyogi": fedyogi,
    "ifca": ifca,
    "krum": krum,
    "median": median,
    "mime": mime,
    "mimelite": mimelite,
    "multi_krum": multi_krum,
    "norm_bounding": norm_bounding,
    "perfedavg": perfedavg,
    "pfedme": pfedme,
    "qffl": qffl,
    "rfa": rfa,
    "scaffold": scaffold,
    "signsgd": signsgd,
    "trimmed_mean": trimmed_mean,
}

__all__ = [
    "ALGORITHMS",
    "afl",
    "apfl",
    "bulyan",
    "centered_clipping",
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
    "krum",
    "median",
    "mime",
    "mimelite",
    "multi_krum",
    "norm_bounding",
    "perfedavg",
    "pfedme",
    "qffl",
    "rfa",
    "scaffold",
    "signsgd",
    "trimmed_mean",
]
