"""Who means harm."""

from typing import Any

import numpy as np

from fedjax_sim import _validate
from fedjax_sim._validate import InputError


def malicious(num_clients: int, fraction: float, seed: int = 0) -> np.ndarray:
    """`round(fraction * N)` clients drawn by the seed, bool[N]; who is drawn for a fraction is for every larger one.

    Raises:
      InputError: a number out of range.
    """
    _validate.whole("num_clients", num_clients)
    _validate.whole("seed", seed, least=0)
    if not 0 <= _validate.number("fraction", fraction) <= 1:
        raise InputError(f"fraction: {_validate.shown(fraction)} is out of range; give a number from 0 to 1")
    who = np.zeros(num_clients, bool)
    who[np.random.default_rng(seed).permutation(num_clients)[: round(float(fraction) * num_clients)]] = True
    return who


def checked_who(who: Any, num_clients: int | None = None) -> np.ndarray:
    """`who` as bool[N], for a population of `num_clients` where one is given.

    Raises:
      InputError: anything else.
    """
    array = np.asarray(who)
    if array.dtype != bool or array.ndim != 1 or len(array) == 0:
        raise InputError(f"who: {array.dtype}{list(array.shape)}; give one bool per client, bool[N]")
    if num_clients is not None and len(array) != num_clients:
        raise InputError(f"who: {len(array)} bools for {num_clients} clients; give one per client")
    return array
