"""Who reads labels otherwise than the others do, where the truth is not known.

A reader is trained on other clients' examples and reads a client's: by groups of clients, so that nobody's own reading
enters. Clients whose labels it contradicts far more often than it errs on the test set are left out of what readers
learn from, the worst first, until there are no more; their labels are then read by a reader of all the others'.
"""

import warnings
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.data import FederatedData

FOLDS, MOST, LOOKED, TESTED = 5, 5_000, 300, 2_000  # groups of clients; examples to learn from, of a client, of a test
WORST = 0.7  # of the largest surplus of contradictions, from which on clients are left out together
GAP, SIGMAS = 0.1, 3.0  # by how much more it must contradict, in share and in standard errors


class Reading(NamedTuple):
    labels: np.ndarray  # int64[total], as the reader has them; those of suspects alone are read
    contradicted: np.ndarray  # f64[N], share of each client's labels
    expected: float  # share that it has wrong on the test set
    suspects: np.ndarray  # int64[], clients that it contradicts far more often


def read(data: FederatedData, seed: int = 0) -> Reading | None:
    """Reads some of every client's examples, and all of the suspects'; None where there is no test set, or too few
    clients to be read by others."""
    holders = np.flatnonzero(data.sizes > 0)
    if data.test is None or len(holders) < 3 or data.classes is None:
        return None
    rng = np.random.default_rng([seed, 6])
    tested = rng.permutation(len(data.test["labels"]))[:TESTED]
    test = _flat(data.test["inputs"][tested]), np.asarray(data.test["labels"])[tested]
    suspects = np.zeros(0, np.int64)
    while True:
        found = _contradicted(data, test, holders, suspects, rng)
        if found is None:
            return None
        contradicted, expected = found
        error = np.sqrt(max(expected * (1 - expected), 0.01) / np.clip(data.sizes, 1, LOOKED))
        over = np.where(data.sizes > 0, contradicted - expected, 0.0)
        odd = (over > GAP) & (over > SIGMAS * error)
        odd[suspects] = False
        fresh = np.flatnonzero(odd & (over >= WORST * over[odd].max(initial=0.0)))
        if len(fresh) == 0:
            break
        if 2 * (len(suspects) + len(fresh)) >= len(holders):  # who is odd where most are?
            break
        suspects = np.sort(np.concatenate([suspects, fresh]))
    labels = np.asarray(data.examples["labels"]).astype(np.int64)
    if len(suspects):
        reader = _reader(*_learnt(data, np.setdiff1d(holders, suspects), rng))
        for client in suspects:
            rows = slice(int(data.offsets[client]), int(data.offsets[client + 1]))
            labels[rows] = reader.predict(_flat(data.examples["inputs"][rows]))
    return Reading(labels, contradicted, expected, suspects)


def _contradicted(
    data: FederatedData, test: Any, holders: np.ndarray, suspects: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, float] | None:
    """Which share of each client's labels readers contradict that learnt from neither it nor suspects, f64[N], and what
    they have wrong on the test set; None where they would learn a single class."""
    fold = np.zeros(data.num_clients, np.int64)
    fold[holders] = rng.permutation(np.arange(len(holders)) % min(FOLDS, len(holders)))
    wrong, contradicted = [], np.zeros(data.num_clients)
    for number in np.unique(fold[holders]).tolist():
        inputs, labels = _learnt(data, np.setdiff1d(holders[fold[holders] != number], suspects), rng)
        if len(np.unique(labels)) < 2:
            return None
        reader = _reader(inputs, labels)
        wrong.append((reader.predict(test[0]) != test[1]).mean())
        for client in holders[fold[holders] == number]:
            rows = int(data.offsets[client]) + rng.permutation(int(data.sizes[client]))[:LOOKED]
            read = reader.predict(_flat(data.examples["inputs"][rows]))
            contradicted[client] = (read != data.examples["labels"][rows]).mean()
    return contradicted, float(np.mean(wrong))


def _learnt(data: FederatedData, clients: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Examples of these clients to learn from, and their labels."""
    rows = np.flatnonzero(np.isin(np.repeat(np.arange(data.num_clients), data.sizes), clients))
    rows = rng.choice(rows, MOST, replace=False) if len(rows) > MOST else rows
    return _flat(data.examples["inputs"][rows]), np.asarray(data.examples["labels"])[rows].astype(np.int64)


def relabelled(data: FederatedData, reading: Reading) -> FederatedData:
    """`data` with the reader's labels at the clients that it suspects."""
    labels = np.array(data.examples["labels"])
    chosen = np.isin(np.repeat(np.arange(data.num_clients), data.sizes), reading.suspects)
    labels[chosen] = reading.labels[chosen]
    return data._replace(examples={**data.examples, "labels": labels})


def _flat(inputs: np.ndarray) -> np.ndarray:
    return np.asarray(inputs).reshape(len(inputs), -1).astype(np.float32)


def _reader(inputs: np.ndarray, labels: np.ndarray) -> Any:
    from sklearn.decomposition import PCA
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    forest = ExtraTreesClassifier(100, min_samples_leaf=3, random_state=0, n_jobs=1)
    steps = [PCA(50, random_state=0)] if inputs.shape[1] > 100 else [StandardScaler()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make_pipeline(*steps, forest).fit(inputs, labels)
