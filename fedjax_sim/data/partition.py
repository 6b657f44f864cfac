"""How a data set is dealt out to clients: functions from labels to one array of row numbers per client.

Every partitioner is disjoint and complete: each row goes to exactly one client (in a list, `by_list`, to one at most).
It depends on its arguments alone, hence the same seed gives the same federation. `federate` turns any such list into
`FederatedData`. Here are those that skew the labels, and the table of all.

`N` clients, `K` labels that occur.
"""

from collections.abc import Callable, Sequence

import numpy as np

from fedjax_sim import _validate
from fedjax_sim._validate import InputError
from fedjax_sim.data.owners import by_list, rows_of
from fedjax_sim.data.quantity import (
    ATTEMPTS,
    by_class,
    classes_of,
    dirichlet_shares,
    even_sizes,
    iid,
    prepared,
    quantity_dirichlet,
    quantity_lognormal,
    quantity_zipf,
    until_enough,
)


def dirichlet(
    labels: np.ndarray, clients: int, *, alpha: float = 0.3, min_examples: int = 1, seed: int = 0
) -> list[np.ndarray]:
    """Label skew with unequal sizes, class by class, as NIID-Bench does it (Li et al. 2022, after Yurochkin et al.
    2019).

    The examples of each class are shuffled and dealt in shares drawn from Dirichlet(alpha, ..., alpha) over the
    clients, in which a client that holds `total / N` examples already gets none. The whole is drawn again until every
    client has `min_examples`.

    Args:
      labels: int[total].
      clients: `N`.
      alpha: concentration, over 0; at 0.1 a client has few classes, at 100 nearly the same mixture as every other.
      min_examples: examples that every client must get; NIID-Bench asks for 10.
      seed: what everything is drawn from.

    Returns:
      `N` arrays of row numbers, int64, in ascending order.

    Raises:
      InputError: `min_examples` was not reached in 1,000 draws, or a setting is out of range.
    """
    labels, rng = prepared(labels, clients, min_examples, seed)
    _validate.real("alpha", alpha, above=0)
    classes = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    cuts = until_enough(
        lambda: _class_cuts(rng, [len(rows) for rows in classes], clients, float(alpha)),
        lambda cuts: np.diff(cuts).sum(0),
        min_examples,
        f"alpha {alpha}",
        "lower min_examples or the number of clients, or raise alpha",
    )
    return _dealt(np.concatenate(classes), np.tile(np.arange(clients), len(cuts)), np.diff(cuts).ravel(), clients)


def _class_cuts(rng: np.random.Generator, class_sizes: Sequence[int], clients: int, alpha: float) -> np.ndarray:
    """Where each class is cut, int64[K, N + 1]."""
    quota = sum(class_sizes) / clients
    held = np.zeros(clients, np.int64)
    cuts = np.zeros((len(class_sizes), clients + 1), np.int64)
    for cut, size in zip(cuts, class_sizes, strict=True):
        shares = np.where(held < quota, dirichlet_shares(rng, np.full(clients, alpha)), 0.0)
        if shares.sum() <= 0:  # a tiny alpha puts the whole share on one client, which may be full
            shares = (held == held.min()).astype(np.float64)
        cut[1:] = np.floor(np.cumsum(shares) / shares.sum() * size + 1e-9)
        cut[-1] = size
        held += np.diff(cut)
    return cuts


def dirichlet_clients(
    labels: np.ndarray, clients: int, *, alpha: float = 0.3, min_examples: int = 1, seed: int = 0
) -> list[np.ndarray]:
    """Label skew at equal sizes, client by client (Hsu, Qi and Brown 2019, "Measuring the effects of non-identical data
    distribution for federated visual classification").

    Each client draws the chances of its classes from Dirichlet(alpha * prior), where the prior is the classes' shares
    of all examples, and then its examples by these chances, without replacement. A class that runs out is dropped from
    the chances of this and all later clients, which are renormalised; so the last clients get what is left.

    `dirichlet` instead splits each class over the clients, in shares from Dirichlet(alpha, ..., alpha). There sizes
    differ, and the concentration of a class is alpha; here it is alpha times its prior, so that 10 even classes need
    ten times the alpha for as much skew.

    Args:
      labels: int[total].
      clients: `N`.
      alpha: concentration, over 0; towards 0 a client has one class, towards infinity the classes' shares of all.
      min_examples: examples that every client must get.
      seed: what everything is drawn from.

    Returns:
      `N` arrays of row numbers, int64, in ascending order; sizes differ by one at most.

    Raises:
      InputError: fewer than `min_examples` for a client, or a setting out of range.
    """
    labels, rng = prepared(labels, clients, min_examples, seed)
    _validate.real("alpha", alpha, above=0)
    codes, class_sizes = classes_of(labels)
    counts = _client_counts(rng, class_sizes, even_sizes(len(labels), clients), float(alpha))
    return _dealt(by_class(rng, codes), np.tile(np.arange(clients), len(class_sizes)), counts.T.ravel(), clients)


def _client_counts(rng: np.random.Generator, class_sizes: np.ndarray, sizes: np.ndarray, alpha: float) -> np.ndarray:
    """Examples of each class that each client draws, int64[N, K]."""
    concentrations = np.minimum(alpha, 1e100) * (class_sizes / class_sizes.sum())
    left = class_sizes.copy()
    counts = np.zeros((len(sizes), len(class_sizes)), np.int64)
    for count, size in zip(counts, sizes, strict=True):
        chances = np.zeros(len(left))
        while (wanted := size - count.sum()) > 0:
            chances = np.where(left > 0, chances, 0.0)
            if chances.sum() <= 0:  # at the start, or when the client's only classes have run out
                there = np.flatnonzero(left)  # a part of a Dirichlet vector, renormalised, is Dirichlet again
                chances[there] = dirichlet_shares(rng, concentrations[there])
            drawable = np.flatnonzero(chances)
            drawn = rng.multinomial(wanted, chances[drawable] / chances.sum())
            taken = np.minimum(drawn, left[drawable])  # what a class lacks is drawn again from the others
            count[drawable] += taken
            left[drawable] -= taken
    return counts


def shards(
    labels: np.ndarray, clients: int, *, shards_per_client: int = 2, min_examples: int = 1, seed: int = 0
) -> list[np.ndarray]:
    """Shards of the examples sorted by label (McMahan et al. 2017, "Communication-efficient learning of deep networks
    from decentralized data").

    The rows are sorted by label, in random order within a label, and cut into `N * shards_per_client` shards, whose
    sizes differ by one at most; each client gets `shards_per_client` of them at random. The paper's split has 100
    clients with 2 shards of 300 examples.

    Args:
      labels: int[total].
      clients: `N`.
      shards_per_client: at least 1.
      min_examples: examples that every client must get; shards are dealt again until they do.
      seed: what everything is drawn from.

    Returns:
      `N` arrays of row numbers, int64, in ascending order.

    Raises:
      InputError: more shards than examples, `min_examples` was not reached, or a setting is out of range.
    """
    labels, rng = prepared(labels, clients, min_examples, seed)
    count = clients * _validate.whole("shards_per_client", shards_per_client)
    if count > len(labels):
        raise InputError(
            f"shards_per_client: {shards_per_client} for each of {clients} clients make {count} shards of "
            f"{len(labels)} examples; lower shards_per_client or clients"
        )
    codes, _ = classes_of(labels)
    order, sizes = by_class(rng, codes), even_sizes(len(labels), count)
    holders = until_enough(
        lambda: rng.permutation(count) % clients,
        lambda holders: np.bincount(holders, sizes, clients),
        min_examples,
        f"shards_per_client {shards_per_client}",
        "lower min_examples or shards_per_client",
    )
    return _dealt(order, holders, sizes, clients)


def labels_per_client(
    labels: np.ndarray, clients: int, *, labels_per_client: int = 2, min_examples: int = 1, seed: int = 0
) -> list[np.ndarray]:
    """A fixed number of labels per client, as NIID-Bench does it (Li et al. 2022, "Federated learning on non-IID data
    silos").

    Client `i` has label `i mod K` and further ones at random; the shuffled examples of each label are split evenly
    among the clients that have it. A label with fewer examples than clients leaves some of them without it. Where
    there are fewer clients than labels, the further ones are drawn again until every label has a client.

    Args:
      labels: int[total].
      clients: `N`.
      labels_per_client: from 1 to `K`.
      min_examples: examples that every client must get; the labels are drawn again until they do.
      seed: what everything is drawn from.

    Returns:
      `N` arrays of row numbers, int64, in ascending order.

    Raises:
      InputError: more labels than there are, a label without a client, `min_examples` was not reached in 1,000 draws,
        or a setting is out of range.
    """
    labels, rng = prepared(labels, clients, min_examples, seed)
    _validate.whole("labels_per_client", labels_per_client)
    codes, class_sizes = classes_of(labels)
    if labels_per_client > len(class_sizes):
        raise InputError(f"labels_per_client: {labels_per_client} of {len(class_sizes)} labels; lower it")
    counts = until_enough(
        lambda: _even_counts(_label_holders(rng, clients, len(class_sizes), labels_per_client), class_sizes),
        lambda counts: counts.sum(1),
        min_examples,
        f"labels_per_client {labels_per_client}",
        "lower min_examples or the number of clients, or raise labels_per_client",
    )
    return _dealt(by_class(rng, codes), np.tile(np.arange(clients), len(class_sizes)), counts.T.ravel(), clients)


def _label_holders(rng: np.random.Generator, clients: int, classes: int, each: int) -> np.ndarray:
    """Which client has which label, bool[N, K], each label with at least one client."""
    own = np.arange(clients) % classes
    for _ in range(ATTEMPTS if clients * each >= classes else 0):
        order = rng.random((clients, classes))
        order[np.arange(clients), own] = -1.0  # comes first
        holders = np.zeros((clients, classes), bool)
        np.put_along_axis(holders, np.argpartition(order, each - 1, axis=1)[:, :each], True, axis=1)
        if holders.any(0).all():
            return holders
    raise InputError(
        f"labels_per_client: {each} for each of {clients} clients leave some of {classes} labels without a client; "
        f"give at least {classes} clients, or more labels per client"
    )


def _even_counts(holders: np.ndarray, class_sizes: np.ndarray) -> np.ndarray:
    """Each label's examples split evenly among its clients, the first of them one more, int64[N, K]."""
    each, over = np.divmod(class_sizes, holders.sum(0))
    return np.where(holders, each + (np.cumsum(holders, axis=0) <= over), 0)


def _dealt(order: np.ndarray, holders: np.ndarray, sizes: np.ndarray, clients: int) -> list[np.ndarray]:
    """`order`, all rows, cut into stretches of these sizes, each for the client that `holders` names."""
    owners = np.empty(len(order), np.int64)
    owners[order] = np.repeat(holders, sizes)
    return rows_of(owners, clients)


# name -> split(labels, clients, *, seed, min_examples, **options); the other keywords are the settings it knows
PARTITIONS: dict[str, Callable[..., list[np.ndarray]]] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "dirichlet_clients": dirichlet_clients,
    "shards": shards,
    "labels_per_client": labels_per_client,
    "quantity_lognormal": quantity_lognormal,
    "quantity_zipf": quantity_zipf,
    "quantity_dirichlet": quantity_dirichlet,
    "list": by_list,
}
