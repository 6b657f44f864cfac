"""Other dealings of the same examples: functions from a federation to a federation, on the host.

`N` clients, `K` classes. What each draws depends on its seed alone, and none changes the test set.
"""

import numpy as np

from fedjax_sim.core.types import Population
from fedjax_sim.data import FederatedData
from fedjax_sim.data.federated import offsets_of


def label_counts(data: FederatedData) -> np.ndarray:
    """How many training examples of each class each client has, int64[N, K]."""
    owner = np.repeat(np.arange(data.num_clients), data.sizes)
    cells = (data.num_clients, data.classes or 1)
    return np.bincount(owner * cells[1] + _labels(data), minlength=cells[0] * cells[1]).reshape(cells)


def test_shares(data: FederatedData) -> np.ndarray | None:
    """The share of each class in what the global model is tested on, f64[K]; None where nothing is."""
    test = data.test if data.test is not None else None if data.local_test is None else data.local_test.examples
    if test is None:
        return None
    counts = np.bincount(np.asarray(test["labels"]).astype(np.int64), minlength=data.classes or 1)
    return counts / counts.sum()


def redealt(data: FederatedData, seed: int = 0) -> FederatedData:
    """All examples dealt out anew at random: the clients keep their sizes, and nothing tells them apart any more."""
    return _with_rows(data, np.random.default_rng([seed, 1]).permutation(int(data.offsets[-1])), data.sizes)


def same_labels(data: FederatedData, seed: int = 0) -> FederatedData:
    """Every client as large as it is, with the classes in the same shares everywhere, from examples of its own as far
    as it has the class, which are then drawn again and again, and from others' where it has none.

    So inputs stay where they are, and with them what tells the clients' inputs apart.
    """
    rng, counts, labels = np.random.default_rng([seed, 2]), label_counts(data), _labels(data)
    wanted = rounded_table(np.outer(data.sizes, counts.sum(0) / max(counts.sum(), 1)), rng)
    of_class = [np.flatnonzero(labels == k) for k in range(counts.shape[1])]
    rows = []
    for client in range(data.num_clients):
        own = np.arange(data.offsets[client], data.offsets[client + 1])
        for k, number in enumerate(wanted[client]):
            mine = own[labels[own] == k]
            rows.append(_again(mine if len(mine) else of_class[k], int(number), rng))
    return _with_rows(data, np.concatenate(rows), wanted.sum(1))


def same_sizes(data: FederatedData, seed: int = 0) -> FederatedData:
    """Every client with as many examples, and as nearly the shares of classes that it has as the examples allow."""
    rng, counts = np.random.default_rng([seed, 3]), label_counts(data).astype(np.float64)
    holders = counts.sum(1) > 0
    goal = np.where(holders, counts.sum() / max(holders.sum(), 1), 0)
    table = counts / np.maximum(counts.sum(1, keepdims=True), 1) * goal[:, None]
    for _ in range(200):  # iterative proportional fitting (Deming and Stephan 1940) to both margins
        table *= counts.sum(0) / np.maximum(table.sum(0), 1e-9)
        table *= (goal / np.maximum(table.sum(1), 1e-9))[:, None]
    return _dealt(data, _columns_kept(rounded_table(table, rng), counts.sum(0).astype(np.int64), rng), rng)


def without(data: FederatedData, clients: np.ndarray) -> FederatedData:
    """`clients`, numbers, have no examples."""
    sizes = data.sizes.copy()
    sizes[clients] = 0
    kept = ~np.isin(np.repeat(np.arange(data.num_clients), data.sizes), clients)
    return _with_rows(data, np.flatnonzero(kept), sizes)


def pooled(data: FederatedData) -> FederatedData:
    """One client with all examples, which keeps none for testing that the global test set does not have."""
    test = data.test if data.test is not None or data.local_test is None else data.local_test.examples
    offsets = np.array([0, int(data.offsets[-1])], np.int64)
    return data._replace(offsets=offsets, test=test, names=None, local_test=None, attributes={})


def like_shares(data: FederatedData, shares: np.ndarray, seed: int = 0) -> FederatedData:
    """Clients as large as they are, all their examples together having the classes in these shares: each client's own
    examples are drawn again with weights, so that it keeps what it is more likely to see than others."""
    rng, labels = np.random.default_rng([seed, 4]), _labels(data)
    pool = np.bincount(labels, minlength=len(shares)) / max(len(labels), 1)
    weight = np.where(pool > 0, shares / np.maximum(pool, 1e-12), 0)[labels]
    rows = []
    for client in range(data.num_clients):
        own = np.arange(data.offsets[client], data.offsets[client + 1])
        if len(own) == 0:
            continue
        mine = weight[own]
        if not mine.sum():
            rows.append(own)
            continue
        exact = len(own) * mine / mine.sum()
        copies = np.floor(exact).astype(np.int64)
        rest = len(own) - copies.sum()
        part = exact - copies
        if rest:
            copies[rng.choice(len(own), rest, replace=False, p=part / part.sum())] += 1
        rows.append(np.repeat(own, copies))
    return _with_rows(data, np.concatenate(rows), data.sizes)


def thinned(data: FederatedData, total: int, seed: int = 0) -> FederatedData:
    """`total` examples, or all where there are fewer: each client loses the same share, drawn at random."""
    rng = np.random.default_rng([seed, 5])
    if total >= int(data.offsets[-1]):
        return data
    exact = data.sizes * total / int(data.offsets[-1])
    sizes = rounded_table(exact[None], rng)[0]
    rows = [np.sort(rng.choice(size, kept, replace=False)) + first
            for size, kept, first in zip(data.sizes, sizes, data.offsets[:-1], strict=True)]  # fmt: skip
    return _with_rows(data, np.concatenate(rows), sizes)


def rounded_table(table: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`table` [N, K] in whole numbers, int64, each row with its sum rounded: the largest remainders are rounded up,
    ties at random."""
    low = np.floor(table + 1e-9).astype(np.int64)
    more = np.rint(table.sum(1)).astype(np.int64) - low.sum(1)
    order = np.argsort(-(table - low) + 1e-6 * rng.random(table.shape), axis=1)
    rank = np.argsort(order, axis=1)
    return low + (rank < more[:, None])


def _columns_kept(table: np.ndarray, totals: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`table` moved by single examples until each class is used as often as there are examples of it."""
    table = table.copy()
    surplus = table.sum(0) - totals
    while (surplus > 0).any() and (surplus < 0).any():
        k, other = int(surplus.argmax()), int(surplus.argmin())
        able = np.flatnonzero(table[:, k] > 0)
        client = able[np.argmax(table[able, k] + rng.random(len(able)))]
        table[client, k] -= 1
        table[client, other] += 1
        surplus[k], surplus[other] = surplus[k] - 1, surplus[other] + 1
    while (surplus > 0).any():  # sizes do not divide the total
        k = int(surplus.argmax())
        table[int(table[:, k].argmax()), k] -= 1
        surplus[k] -= 1
    return table


def _dealt(data: FederatedData, table: np.ndarray, rng: np.random.Generator) -> FederatedData:
    """The examples dealt by a table [N, K] of how many of each class each client gets, its own ones first."""
    labels, owner = _labels(data), np.repeat(np.arange(data.num_clients), data.sizes)
    parts: list[list[np.ndarray]] = [[] for _ in range(data.num_clients)]
    for k in range(table.shape[1]):
        spare, lacking = [], []
        for client in range(data.num_clients):
            own = rng.permutation(np.flatnonzero((labels == k) & (owner == client)))
            parts[client].append(own[: table[client, k]])
            spare.append(own[table[client, k] :])
            lacking.append(max(0, int(table[client, k]) - len(own)))
        pool = rng.permutation(np.concatenate(spare))
        for client, start in enumerate(np.concatenate([[0], np.cumsum(lacking)])[:-1]):
            parts[client].append(pool[start : start + lacking[client]])
    rows = [np.concatenate(part) for part in parts]
    return _with_rows(data, np.concatenate(rows), np.array([len(part) for part in rows]))


def _again(rows: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """`number` of the rows, each as often as any other, but for one."""
    if number == 0 or len(rows) == 0:
        return np.zeros(0, np.int64)
    whole, rest = divmod(number, len(rows))
    return np.concatenate([np.tile(rows, whole), rng.choice(rows, rest, replace=False)])


def _labels(data: FederatedData) -> np.ndarray:
    return np.asarray(data.examples["labels"]).astype(np.int64)


def _with_rows(data: FederatedData, rows: np.ndarray, sizes: np.ndarray) -> FederatedData:
    examples = {field: np.asarray(array)[rows] for field, array in data.examples.items()}
    return data._replace(examples=examples, offsets=offsets_of(sizes.tolist()))


def with_inputs(data: FederatedData, prepare, dtype: type = np.float32) -> FederatedData:
    """`data` with every client's inputs, for training and for testing, changed by `prepare(client, inputs)`; where the
    global test set is all that the clients keep for testing, it follows."""

    def changed(held: Population) -> dict[str, np.ndarray]:
        inputs = np.asarray(held.examples["inputs"])
        found = np.empty(inputs.shape, dtype)
        for client in range(data.num_clients):
            rows = slice(int(held.offsets[client]), int(held.offsets[client + 1]))
            found[rows] = prepare(client, inputs[rows])
        return {**held.examples, "inputs": found}

    local = data.local_test
    new = None if local is None else local._replace(examples=changed(local))
    follows = new is not None and data.test is not None and len(data.test["labels"]) == int(new.offsets[-1])
    test = new.examples if new is not None and follows else data.test
    return data._replace(examples=changed(Population(data.examples, data.offsets)), local_test=new, test=test)
