"""What a trained federation is worth to its clients: the global and the personal model on each one's own test rows."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_sim.core.cohort import select
from fedjax_sim.core.devices import for_every_host, replicate, span_processes
from fedjax_sim.core.evaluate import make_client_evaluation
from fedjax_sim.core.host import HostMemory
from fedjax_sim.core.types import Cohort, RoundState
from fedjax_sim.data import FederatedData, gather
from fedjax_sim.data.convert import narrowed
from fedjax_sim.experiment.build import Experiment
from fedjax_sim.experiment.folder import write_whole

AT_ONCE = 100  # clients in one call
GROUPS = 50  # values of an attribute up to which they are groups
WORST = 0.1  # the share of clients that fairness looks at


class ClientSummary(NamedTuple):
    """Accuracies over clients, each counting once. The worst tenth is the mean of the lowest tenth."""

    clients: int
    global_accuracy: float
    global_worst_tenth: float
    personal_accuracy: float
    personal_worst_tenth: float
    groups: dict[str, dict[str, dict[str, float]]]  # by attribute and its value: clients and mean accuracies


def worst(values: Any, share: float = WORST) -> float:
    """Mean of the lowest `share` of the values, of one at least."""
    values = np.sort(np.asarray(values, np.float64))
    return float(values[: math.ceil(share * len(values))].mean())


def evaluate_clients(
    experiment: Experiment,
    data: FederatedData,
    state: RoundState,
    memory: HostMemory | None,
    key: jax.Array,
    devices: list[Any],
    file: Path | None,
) -> ClientSummary | None:
    """Tests the clients that have test rows, as many as the configuration asks for, and writes a line of JSON for each
    if there is a file.

    Which they are, where not all are asked for, the seed of the data says. None where there is nobody to test.
    """
    training, tests = experiment.config.training, data.local_test
    if tests is None or training.evaluate_clients == 0:
        return None
    offsets = np.asarray(tests.offsets, np.int64)
    able = np.flatnonzero(offsets[1:] > offsets[:-1])
    order = np.random.default_rng(experiment.config.data.seed).permutation(len(able))
    ids = np.sort(able[order[: training.evaluate_clients]]).astype(np.int32)
    if len(ids) == 0:
        return None
    at_once = min(AT_ONCE, len(ids))
    evaluation = make_client_evaluation(
        experiment.algorithm,
        experiment.model.metric_fn,
        batch_size=training.batch_size,
        local_epochs=training.local_epochs,
        local_steps=training.local_steps,
        devices=devices,
    )
    evaluate = jax.jit(lambda *given: for_every_host(evaluation(*given), devices))
    slots = np.concatenate([ids, np.full(-len(ids) % at_once, -1, np.int32)]).reshape(-1, at_once)
    longest = max(int(data.sizes[np.maximum(s, 0)].sum()) for s in slots)
    tests = tests._replace(examples={field: narrowed(field, array) for field, array in tests.examples.items()})
    held = replicate(tests, devices) if len(devices) == 1 or span_processes(devices) else tests
    rows = []
    for chosen in slots:
        train: Cohort = gather(data, chosen, rows=max(longest, 1))
        if memory is not None:
            state = state._replace(clients=memory.rows(chosen)[0])
            train = train._replace(rows=np.arange(at_once, dtype=np.int32))
        placed = replicate(chosen, devices) if span_processes(devices) else chosen
        scores = jax.tree.map(np.asarray, evaluate(state, train, select(held, placed), key))
        for slot in np.flatnonzero(scores.examples > 0):
            row = {"client": int(chosen[slot]), "name": data.name(int(chosen[slot])),
                   "test_examples": int(scores.examples[slot])}  # fmt: skip
            for kind, metrics in (("global", scores.before), ("personal", scores.after)):
                row |= {f"{kind}_{name}": _number(values[slot]) for name, values in metrics.items()}
            rows.append(row)
    if file is not None:
        write_whole(file, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
    of_global, of_personal = ([row[f"{kind}_accuracy"] for row in rows] for kind in ("global", "personal"))
    return ClientSummary(
        len(rows),
        float(np.mean(of_global)),
        worst(of_global),
        float(np.mean(of_personal)),
        worst(of_personal),
        by_group(rows, data),
    )


def by_group(rows: list[dict[str, Any]], data: FederatedData) -> dict[str, dict[str, dict[str, float]]]:
    """Mean accuracies, each client counting once, over the values of every attribute that has few of them."""
    groups: dict[str, dict[str, dict[str, float]]] = {}
    for attribute, values in data.attributes.items():
        of_value: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            of_value.setdefault(str(values[row["client"]]), []).append(row)
        if len(of_value) <= GROUPS:
            groups[attribute] = {
                value: {"clients": len(mine)}
                | {
                    name: float(np.mean([row[name] for row in mine]))
                    for name in ("global_accuracy", "personal_accuracy")
                }
                for value, mine in sorted(of_value.items())
            }
    return groups


def _number(value: Any) -> float | None:
    return float(f"{float(value):.7g}") if math.isfinite(value) else None
