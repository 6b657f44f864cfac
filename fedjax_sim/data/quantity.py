"""How many examples: of each client, whatever their labels (quantity skew), and of each class (a long tail).

`N` clients. In the partitions here every example is as likely as any other to go to a given client, so labels differ
between clients by chance alone.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from fedjax_sim import _validate
from fedjax_sim._validate import InputError

ATTEMPTS = 1000  # draws of a partition before it is called impossible

Drawn = TypeVar("Drawn")


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
    labels, rng = prepared(labels, clients, min_examples, seed)
    return _cut(rng, even_sizes(len(labels), clients))


def quantity_lognormal(
    labels: np.ndarray, clients: int, *, sigma: float = 1.0, min_examples: int = 1, seed: int = 0
) -> list[np.ndarray]:
    """Log-normal sizes: each client gets `min_examples`, and the rest is dealt in proportion to exp(sigma * z) with
    z ~ N(0, 1).

    A constant plus a log-normal number is also how Li et al. 2020 ("Federated optimization in heterogeneous networks")
    draw the sizes of their synthetic clients.

    Args:
      labels: int[total], of which only the length matters.
      clients: `N`.
      sigma: standard deviation of the logarithm of what is dealt beyond `min_examples`, at least 0, where all are even.
      min_examples: examples that every client must get.
      seed: what everything is drawn from.

    Returns:
      `N` arrays of row numbers, int64, in ascending order. Sizes are rounded by the largest remainder.

    Raises:
      InputError: fewer than `min_examples` for a client, or a setting out of range.
    """
    labels, rng = prepared(labels, clients, min_examples, seed)
    _validate.real("sigma", sigma, least=0)
    z = rng.standard_normal(clients)
    with np.errstate(over="ignore"):  # of an absurd sigma, for which the largest client gets it all
        weights = np.exp(float(sigma) * (z - z.max()))
    return _cut(rng, in_proportion(len(labels), weights, min_examples))


def quantity_zipf(
    labels: np.ndarray, clients: int, *, exponent: float = 1.0, min_examples: int = 1, seed: int = 0
) -> list[np.ndarray]:
    """Zipf's law: each client gets `min_examples`, the rest is dealt in proportion to rank ** -exponent (Zipf 1949).

    Which client has which rank is random. Li et al. 2020 ("Federated optimization in heterogeneous networks") let
    MNIST's clients follow a power law.

    Args:
      labels: int[total], of which only the length matters.
      clients: `N`.
      exponent: at least 0, where all are even; at 1 the largest gets twice as much as the second.
      min_examples: examples that every client must get.
      seed: what everything is drawn from.

    Returns:
      `N` arrays of row numbers, int64, in ascending order. Sizes are rounded by the largest remainder.

    Raises:
      InputError: fewer than `min_examples` for a client, or a setting out of range.
    """
    labels, rng = prepared(labels, clients, min_examples, seed)
    _validate.real("exponent", exponent, least=0)
    weights = rng.permutation(np.arange(1.0, clients + 1) ** -float(exponent))
    return _cut(rng, in_proportion(len(labels), weights, min_examples))


def quantity_dirichlet(
    labels: np.ndarray, clients: int, *, alpha: float = 0.3, min_examples: int = 1, seed: int = 0
) -> list[np.ndarray]:
    """Sizes in shares from Dirichlet(alpha, ..., alpha), drawn again until every client has `min_examples`.

    The quantity skew of NIID-Bench (Li et al. 2022, "Federated learning on non-IID data silos"), which asks for 10.

    Args:
      labels: int[total], of which only the length matters.
      clients: `N`.
      alpha: concentration, over 0; smaller is more skew.
      min_examples: examples that every client must get.
      seed: what everything is drawn from.

    Returns:
      `N` arrays of row numbers, int64, in ascending order. Sizes are rounded by the largest remainder.

    Raises:
      InputError: `min_examples` was not reached in 1,000 draws, or a setting is out of range.
    """
    labels, rng = prepared(labels, clients, min_examples, seed)
    _validate.real("alpha", alpha, above=0)
    sizes = until_enough(
        lambda: in_proportion(len(labels), dirichlet_shares(rng, np.full(clients, float(alpha)))),
        lambda sizes: sizes,
        min_examples,
        f"alpha {alpha}",
        "lower min_examples or the number of clients, or raise alpha",
    )
    return _cut(rng, sizes)


def long_tail(labels: np.ndarray, ratio: float, *, seed: int = 0, reverse: bool = False) -> np.ndarray:
    """Rows of an unbalanced data set: class sizes fall exponentially, to `ratio` times the largest.

    Of K classes in the order of their labels, class c keeps `n_max * ratio ** (c / (K - 1))` rows, rounded down, where
    n_max is the size of the largest class (Cui et al. 2019, "Class-balanced loss based on effective number of
    samples", whose imbalance factor is 1 / ratio). A class that has fewer keeps all, and each keeps at least one.

    Args:
      labels: int[total].
      ratio: over 0 and at most 1, where every row is kept.
      seed: which rows are kept; those of a smaller ratio are among those of a larger one.
      reverse: the first class is the rarest instead of the last.

    Returns:
      Row numbers, int64, in ascending order.

    Raises:
      InputError: the ratio is out of range.
    """
    if _validate.real("ratio", ratio, above=0) > 1:
        raise InputError(f"ratio: {ratio} is over 1; give the rarest class's size over the largest's, such as 0.01")
    codes, sizes = classes_of(checked_labels(labels))
    place = np.linspace(0.0, 1.0, len(sizes))
    allowed = np.floor(sizes.max() * float(ratio) ** (place[::-1] if reverse else place) + 1e-9)
    order = by_class(generator(seed, *b"long_tail"), codes)
    within = np.arange(len(codes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[within < np.repeat(np.maximum(allowed, 1), sizes)])


# --- what partitions share -------------------------------------------------------------------------------------------


def prepared(labels: Any, clients: int, min_examples: int, seed: int) -> tuple[np.ndarray, np.random.Generator]:
    """The labels as an array and a generator, where `clients` of `min_examples` are possible at all."""
    labels = checked_labels(labels)
    _validate.whole("clients", clients)
    _validate.whole("min_examples", min_examples, least=0)
    if clients * max(min_examples, 1) > len(labels):
        raise InputError(
            f"clients: {clients} with at least {max(min_examples, 1)} of {len(labels)} examples each are too many; "
            "lower clients or min_examples"
        )
    return labels, generator(seed)


def checked_labels(labels: Any) -> np.ndarray:
    """`labels` as an array of integers [total], at least one."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or len(labels) == 0 or labels.dtype.kind not in "iu":
        raise InputError(f"labels: {labels.dtype}{list(labels.shape)}; give one integer per example")
    return labels


def generator(seed: int, *more: int) -> np.random.Generator:
    """Random numbers of `seed`, and of numbers that say what for."""
    _validate.whole("seed", seed, least=0)
    return np.random.default_rng([seed, *more] if more else seed)


def classes_of(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row's class, int64[total] from 0 in the order of the labels that occur, and the classes' sizes, int64[K]."""
    _, codes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    return codes, sizes


def by_class(rng: np.random.Generator, codes: np.ndarray) -> np.ndarray:
    """All rows, class by class, in random order within each."""
    return np.lexsort((rng.permutation(len(codes)), codes))


def dirichlet_shares(rng: np.random.Generator, concentrations: np.ndarray) -> np.ndarray:
    """Shares [n] from Dirichlet(concentrations); beyond these limits floats overflow, and the law no longer changes."""
    return rng.dirichlet(np.clip(concentrations, 1e-300, 1e100))


def even_sizes(total: int, count: int) -> np.ndarray:
    """`total` in `count` whole parts that differ by one at most, the larger ones first, int64[count]."""
    return total // count + (np.arange(count) < total % count)


def in_proportion(total: int, weights: np.ndarray, least: int = 0) -> np.ndarray:
    """`total` in whole numbers: `least` each, the rest in proportion to `weights` by the largest remainder."""
    rest = total - least * len(weights)
    exact = weights / weights.sum() * rest
    sizes = np.floor(exact).astype(np.int64)
    sizes[np.argsort(sizes - exact, kind="stable")[: rest - sizes.sum()]] += 1
    return least + sizes


def until_enough(
    draw: Callable[[], Drawn], sizes: Callable[[Drawn], np.ndarray], min_examples: int, setting: str, advice: str
) -> Drawn:
    """The first draw in which the smallest client has `min_examples`.

    Raises:
      InputError: there was none in `ATTEMPTS` draws.
    """
    best, clients = 0, 0
    for _ in range(ATTEMPTS):
        drawn = draw()
        found = sizes(drawn)
        if found.min() >= min_examples:
            return drawn
        best, clients = max(best, int(found.min())), len(found)
    raise InputError(
        f"min_examples: {min_examples} for each of {clients} clients was not reached in {ATTEMPTS} draws with "
        f"{setting} (the best draw gave {best}); {advice}"
    )


def _cut(rng: np.random.Generator, sizes: np.ndarray) -> list[np.ndarray]:
    """Shuffled rows, cut into parts of these sizes."""
    return [np.sort(part) for part in np.split(rng.permutation(sizes.sum()), np.cumsum(sizes)[:-1])]
