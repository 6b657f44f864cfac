"""How a data set is dealt out to clients: functions from labels to one array of row numbers per client.

Every partitioner is disjoint and complete: each row goes to exactly one client. It depends on its arguments alone,
hence the same seed gives the same federation. `federate` turns any such list into
`FederatedData`.
"""

from collections.abc import Callable, Sequence

import numpy as np

from fedjax_sim import _validate
from fedjax_sim._validate import InputError

ATTEMPTS = 1000  # draws of a partition before it is called impossible


def iid(labels: np.ndarray, clients: int, *, min_examples: int = 1, seed: int = 0) -> list[np.ndarray]:
    """Shuffles the rows and cuts them evenly; sizes differ by one at most.

    Args:
      labels: int[total], of which only the length matters.
      clients: `N`.
      min_examples: examples that every client must get.
      seed: what the order is drawn from.

    Returns:
      `N` arrays of row numbers, int64, in ascending order.

    Raises:
      InputError: fewer than `min_examples` for a client, or a setting out of range.
    """
    _feasible(len(labels), clients, min_examples)
    order = np.random.default_rng(seed).permutation(len(labels))
    return [np.sort(part) for part in np.array_split(order, clients)]


def dirichlet(
    labels: np.ndarray, clients: int, *, alpha: float, min_examples: int = 1, seed: int = 0
) -> list[np.ndarray]:
    """Label skew with unequal sizes, class by class, as NIID-Bench does it (Li et al. 2022, after Yurochkin et al.
    2019).

    The examples of each class are shuffled and dealt in shares drawn from Dirichlet(alpha, ..., alpha) over the
    clients, in which a client that holds `total / N` examples already gets none. The whole is drawn again until every
    client has `min_examples`. (Hsu et al. 2019 instead draw class proportions per client, of equal size.)

    Args:
      labels: int[total].
      clients: `N`.
      alpha: concentration, over 0; at 0.1 a client has few classes, at 100 nearly the same mixture as every other.
      min_examples: examples that every client must get.
      seed: what everything is drawn from.

    Returns:
      `N` arrays of row numbers, int64, in ascending order.

    Raises:
      InputError: `min_examples` was not reached in 1,000 draws, or a setting is out of range.
    """
    _feasible(len(labels), clients, min_examples)
    _validate.number("alpha", alpha, above=0)
    rng = np.random.default_rng(seed)
    classes = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    best = 0
    for _ in range(ATTEMPTS):
        cuts = _draw(rng, [len(rows) for rows in classes], clients, alpha)
        smallest = int(np.diff(cuts, axis=1).sum(0).min())
        if smallest >= min_examples:
            dealt = [np.split(rows, cut[1:-1]) for rows, cut in zip(classes, cuts, strict=True)]
            return [np.sort(np.concatenate(parts)) for parts in zip(*dealt, strict=True)]
        best = max(best, smallest)
    raise InputError(
        f"min_examples: {min_examples} for each of {clients} clients was not reached in {ATTEMPTS} draws with alpha "
        f"{alpha} (the best draw gave {best}); lower min_examples or the number of clients, or raise alpha"
    )


def _draw(rng: np.random.Generator, class_sizes: Sequence[int], clients: int, alpha: float) -> np.ndarray:
    """Where each class is cut, int64[classes, N + 1]."""
    quota = sum(class_sizes) / clients
    held = np.zeros(clients, np.int64)
    cuts = np.zeros((len(class_sizes), clients + 1), np.int64)
    for cut, size in zip(cuts, class_sizes, strict=True):
        shares = np.where(held < quota, rng.dirichlet(np.full(clients, alpha)), 0.0)
        if shares.sum() <= 0:  # a tiny alpha puts the whole share on one client, which may be full
            shares = (held == held.min()).astype(np.float64)
        cut[1:] = np.floor(np.cumsum(shares) / shares.sum() * size + 1e-9)
        cut[-1] = size
        held += np.diff(cut)
    return cuts


def _feasible(total: int, clients: int, min_examples: int) -> None:
    _validate.whole("clients", clients)
    _validate.whole("min_examples", min_examples, least=0)
    if clients * max(min_examples, 1) > total:
        raise InputError(
            f"clients: {clients} with at least {max(min_examples, 1)} of {total} examples each are too many; "
            "lower clients or min_examples"
        )


# name -> split(labels, clients, *, seed, **options); the other keywords are the settings it knows
PARTITIONS: dict[str, Callable[..., list[np.ndarray]]] = {"iid": iid, "dirichlet": dirichlet}
