"""Who reads labels otherwise than the others do, where the truth is not known.

A reader is trained on the other clients' examples and reads each client's: by groups of clients, so that nobody's own
reading enters. Of a client whose labels it contradicts far more often than it errs on the test set, the reader's labels
are taken instead.
"""

import warnings
from typing import NamedTuple

import numpy as np

from fedjax_sim.data import FederatedData

FOLDS, MOST = 5, 20_000  # groups of clients, and examples that a reader learns from
GAP, SIGMAS = 0.1, 3.0  # by how much more it must contradict, in share and in standard errors


class Reading(NamedTuple):
    labels: np.ndarray  # int64[total], as the reader has them
    contradicted: np.ndarray  # f64[N], share of each client's labels
    expected: float  # share that it has wrong on the test set
    suspects: np.ndarray  # int64[], clients that it contradicts far more often


def read(data: FederatedData, seed: int = 0) -> Reading | None:
    """Reads every client's examples; None where there is no test set, or too few clients to read by others."""
    holders = np.flatnonzero(data.sizes > 0)
    if data.test is None or len(holders) < 2 or "labels" not in data.examples:
        return None
    rng = np.random.default_rng([seed, 6])
    inputs, labels = _flat(data.examples["inputs"]), np.asarray(data.examples["labels"]).astype(np.int64)
    owner = np.repeat(np.arange(data.num_clients), data.sizes)
    fold = np.zeros(data.num_clients, np.int64)
    fold[holders] = rng.permutation(np.arange(len(holders)) % min(FOLDS, len(holders)))
    found, wrong, tested = np.empty_like(labels), 0, _flat(data.test["inputs"])
    for number in np.unique(fold[holders]):
        out = fold[owner] == number
        learnt = np.flatnonzero(~out)
        learnt = rng.choice(learnt, MOST, replace=False) if len(learnt) > MOST else learnt
        if len(np.unique(labels[learnt])) < 2:
            return None
        reader = _reader(inputs[learnt], labels[learnt])
        found[out] = reader.predict(inputs[out])
        wrong += int((reader.predict(tested) != data.test["labels"]).sum())
    expected = wrong / (len(np.unique(fold[holders])) * len(tested))
    sizes = np.maximum(data.sizes, 1)
    contradicted = np.bincount(owner, found != labels, data.num_clients) / sizes
    error = np.sqrt(max(expected * (1 - expected), 0.01) / sizes)
    over = contradicted - expected
    return Reading(found, contradicted, expected, np.flatnonzero((over > GAP) & (over > SIGMAS * error)))


def relabelled(data: FederatedData, reading: Reading) -> FederatedData:
    """`data` with the reader's labels at the clients that it suspects."""
    labels = np.array(data.examples["labels"])
    chosen = np.isin(np.repeat(np.arange(data.num_clients), data.sizes), reading.suspects)
    labels[chosen] = reading.labels[chosen]
    return data._replace(examples={**data.examples, "labels": labels})


def _flat(inputs: np.ndarray) -> np.ndarray:
    return np.asarray(inputs).reshape(len(inputs), -1).astype(np.float32)


def _reader(inputs: np.ndarray, labels: np.ndarray):
    from sklearn.decomposition import PCA
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    forest = ExtraTreesClassifier(100, min_samples_leaf=3, random_state=0, n_jobs=1)
    steps = [PCA(50, random_state=0)] if inputs.shape[1] > 100 else [StandardScaler()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make_pipeline(*steps, forest).fit(inputs, labels)
