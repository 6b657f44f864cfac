"""Runs side by side: replicates over seeds, the settings that differ, and paired differences."""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.report.facts import Facts, facts
from fedjax_sim.report.read import Run, compared, number
from fedjax_sim.report.words import value_text


class Group(NamedTuple):
    """Runs that differ in `training.seed` alone, by seed."""

    label: str
    runs: list[Run]
    facts: list[Facts]  # of each run
    settings: dict[str, Any]  # those that differ between groups


class Difference(NamedTuple):
    """Of a group's mean to the first group's, in points; paired over seeds where both have at least two in common."""

    points: float
    half_width: float | None  # of the 95 % interval by Student's t
    seeds: int  # that were paired


def group(runs: Sequence[Run]) -> tuple[list[Group], list[str]]:
    """The runs in groups, in the order of their first members, and notes on what was left out."""
    members: list[list[Run]] = []
    notes = []
    for run in runs:
        same = next((m for m in members if run.settings and compared(m[0]) == compared(run)), None)
        if same is None:
            members.append([run])
        elif (twin := next((r for r in same if seed(r) == seed(run)), None)) is None:
            same.append(run)
        else:
            kept, left = (twin, run) if len(twin.history) >= len(run.history) else (run, twin)
            same[same.index(twin)] = kept
            notes.append(f"{left.folder} is left out: {kept.folder} is the same experiment with the same seed.")
    trees = [compared(m[0]) for m in members]
    names = list(dict.fromkeys(key for tree in trees for key in tree))
    differing = [key for key in names if any(tree.get(key) != trees[0].get(key) for tree in trees)]
    groups = []
    for m, tree in zip(members, trees, strict=True):
        ordered = sorted(m, key=lambda r: seed(r) or 0)
        groups.append(Group("", ordered, [facts(run) for run in ordered], {key: tree.get(key) for key in differing}))
    return [g._replace(label=label) for g, label in zip(groups, _labels(groups), strict=True)], notes


def seed(run: Run) -> Any:
    """The seed of its training, None where it is not known."""
    return number(run.settings, "training.seed")


def _labels(groups: Sequence[Group]) -> list[str]:
    """Short names: values of what differs, without settings that only some have where that is enough."""
    if len(groups) == 1:
        runs = groups[0].runs
        return [runs[0].name if len(runs) == 1 else f"{runs[0].name} and {len(runs) - 1} more"]

    def label(g: Group, every: bool) -> str:
        keys = [key for key in g.settings if every or all(other.settings.get(key) is not None for other in groups)]
        names = [
            f"{key.partition('.')[2]}={value_text(g.settings[key])}" for key in keys if g.settings[key] is not None
        ]
        plain = [value_text(g.settings[key]) for key in keys if key in ("algorithm.name", "data.name", "model.name")]
        named = [n for n in names if not n.startswith("name=") or n[5:] not in plain]
        return ", ".join([*plain, *named])

    for every in (False, True):
        labels = [label(g, every) for g in groups]
        short = [text if len(text) <= 60 else "" for text in labels]
        if len(set(short)) == len(groups) and all(short):
            return short
    names = [g.runs[0].name for g in groups]
    return names if len(set(names)) == len(names) else [g.runs[0].folder for g in groups]


def spread(values: Sequence[float | None]) -> tuple[float, float | None] | None:
    """Mean and standard deviation (over n - 1) of the values that are there; of one value no deviation."""
    there = [v for v in values if v is not None]
    if not there:
        return None
    return float(np.mean(there)), float(np.std(there, ddof=1)) if len(there) > 1 else None


def of_group(g: Group, name: str) -> tuple[float, float | None] | None:
    """Mean and deviation of one of the facts over the runs of a group."""
    return spread([getattr(found, name) for found in g.facts])


def difference(first: Group, other: Group, name: str = "accuracy") -> Difference | None:
    """Of `other` to `first`, None where either was not measured."""
    of_each = [
        {seed(run): value for run, f in zip(g.runs, g.facts, strict=True) if (value := getattr(f, name)) is not None}
        for g in (first, other)
    ]
    if not all(of_each):
        return None
    common = [s for s in of_each[0] if s in of_each[1] and s is not None]
    if len(common) < 2:
        points = np.mean(list(of_each[1].values())) - np.mean(list(of_each[0].values()))
        return Difference(100 * float(points), None, len(common))
    from scipy.stats import t

    pairs = 100 * np.array([of_each[1][s] - of_each[0][s] for s in common])
    half = float(t.ppf(0.975, len(pairs) - 1)) * float(np.std(pairs, ddof=1)) / math.sqrt(len(pairs))
    return Difference(float(np.mean(pairs)), half, len(pairs))


def mean_curve(g: Group, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rounds, means and standard deviations over the runs, at rounds where every run of the group that has any value
    has one; a deviation of 0 for a single run."""
    curves = [_by_round(*run.history.column(name)) for run in g.runs]
    curves = [curve for curve in curves if len(curve[0])]
    if not curves:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    rounds = reduce(np.intersect1d, [rounds for rounds, _ in curves])
    values = np.stack([values[np.searchsorted(there, rounds)] for there, values in curves])
    return rounds, values.mean(0), values.std(0, ddof=1) if len(curves) > 1 else np.zeros(len(rounds))


def _by_round(rounds: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In order, each round once; of one that is there twice the last value."""
    order, last = np.unique(rounds[::-1], return_index=True)
    return order, values[::-1][last]
