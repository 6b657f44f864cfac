"""The registry: algorithms by name, each a factory `(loss_fn, *, client_tx, server_tx=..., ...) -> Algorithm`."""

from collections.abc import Callable

from fedjax_sim.algorithms.fedavg import fedavg
from fedjax_sim.algorithms.fedavg_topk import fedavg_topk
from fedjax_sim.algorithms.scaffold import scaffold
from fedjax_sim.core.algorithm import Algorithm

ALGORITHMS: dict[str, Callable[..., Algorithm]] = {
    "fedavg": fedavg,
    "fedavg_topk": fedavg_topk,
    "scaffold": scaffold,
}

__all__ = ["ALGORITHMS", "fedavg", "fedavg_topk", "scaffold"]
