"""Who reads labels otherwise than the others do, where the truth is not known.

A reader is trained on the other clients' examples and reads each client's: by groups of clients, so that nobody's own
reading enters. Of a client whose labels it contradicts far more often than it errs on the test set, the reader's labels
are taken instead.
"""

import warnings
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.data import FederatedData

FOLDS, MOST, LOOKED, TESTED = 5, 5_000, 300, 2_000  # groups of clients; examples to learn from, of a client, of a test
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
    if data.test is None or len(holders) < 2 or data.classes is None:
        return None
    rng = np.random.default_rng([seed, 6])
    inputs, labels = np.asarray(data.examples["inputs"]), np.asarray(data.examples["labels"]).astype(np.int64)
    owner = np.repeat(np.arange(data.num_clients), data.sizes)
    fold = np.zeros(data.num_clients, np.int64)
    fold[holders] = rng.permutation(np.arange(len(holders)) % min(FOLDS, len(holders)))
    tested = rng.permutation(len(data.test["labels"]))[:TESTED]
    test_inputs, test_labels = _flat(data.test["inputs"][tested]), np.asarray(data.test["labels"])[tested]
    readers, wrong, contradicted = {}, [], np.zeros(data.num_clients)
    for number in np.unique(fold[holders]).tolist():
        learnt = np.flatnonzero(fold[owner] != number)
        learnt = rng.choice(learnt, MOST, replace=False) if len(learnt) > MOST else learnt
        if len(np.unique(labels[learnt])) < 2:
            return None
        reader = readers[number] = _reader(_flat(inputs[learnt]), labels[learnt])
        wrong.append((reader.predict(test_inputs) != test_labels).mean())
        for client in holders[fold[holders] == number]:
            rows = int(data.offsets[client]) + rng.permutation(int(data.sizes[client]))[:LOOKED]
            contradicted[client] = (reader.predict(_flat(inputs[rows])) != labels[rows]).mean()
    expected = float(np.mean(wrong))
    error = np.sqrt(max(expected * (1 - expected), 0.01) / np.clip(data.sizes, 1, LOOKED))
    over = contradicted - expected
    suspects = np.flatnonzero((over > GAP) & (over > SIGMAS * error))
    for client in suspects:
        rows = slice(int(data.offsets[client]), int(data.offsets[client + 1]))
        labels[rows] = readers[int(fold[client])].predict(_flat(inputs[rows]))
    return Reading(labels, contradicted, expected, suspects)


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
