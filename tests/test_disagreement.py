"""Label disagreement and drift: the rates asked for, nested in severity, reversible, and reference labels kept."""

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from conftest import assert_equal, one_line
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_sim import InputError, Population
from fedjax_sim.data.disagreement import DISAGREEMENTS, confusion_matrix, flip, read_with, swap
from fedjax_sim.data.drift import DRIFTS, Phase, concept, phase_at, prior
from fedjax_sim.data.federated import FederatedData, from_clients

DIALS = {**DISAGREEMENTS, **DRIFTS}
GRID = (0.0, 0.2, 0.5, 0.8, 1.0)


def federation(sizes: Any = (400, 0, 1, 900, 250), classes: int = 4, seed: int = 0) -> FederatedData:
    """Labelled clients, a global test set, and a quarter of each client's examples kept for testing."""
    rng = np.random.default_rng(seed)

    def part(size: int) -> dict[str, np.ndarray]:
        return {"inputs": rng.random((size, 2)), "labels": rng.integers(0, classes, size).astype(np.int32)}

    data = from_clients([part(n) for n in sizes], test=part(50))
    kept = from_clients([part(n // 4 + 1) for n in sizes])
    return data._replace(classes=classes, local_test=Population(kept.examples, kept.offsets))


def labels(data: FederatedData) -> np.ndarray:
    return data.examples["labels"]


def test_labels_are_flipped_at_the_rate_asked_for_and_to_all_others_alike() -> None:
    data = federation((40_000, 20_000))
    for severity in (0.1, 0.5, 1.0):
        changed = labels(flip(data, severity, seed=1)) != labels(data)
        assert abs(changed.mean() - severity) <= 5 * math.sqrt(severity * (1 - severity) / len(changed))
        moves = (labels(flip(data, severity, seed=1)) - labels(data))[changed] % 4
        assert abs(np.bincount(moves)[1:] - len(moves) / 3).max() < 5 * math.sqrt(len(moves) * 2 / 9)


def test_flips_at_a_rate_for_each_client() -> None:
    data = federation((3000, 3000, 3000))
    rates = np.array([0.0, 0.3, 1.0])
    flipped = flip(data, rates)
    for i, rate in enumerate(rates):
        changed = flipped.client(i)["labels"] != data.client(i)["labels"]
        assert abs(changed.mean() - rate) <= 5 * math.sqrt(rate * (1 - rate) / 3000)
    np.testing.assert_array_equal(labels(flip(data, np.full(3, 0.3))), labels(flip(data, 0.3)))
    assert flip(data, np.zeros(3)) is data


@pytest.mark.parametrize("name", DISAGREEMENTS)
def test_labels_changed_at_one_severity_change_at_every_higher_one(name: str) -> None:
    data = federation((300,) * 12)
    changed = [labels(DISAGREEMENTS[name](data, s, seed=2)) != labels(data) for s in GRID]
    assert not changed[0].any()
    for low, high in pairwise(changed):
        assert low.sum() < high.sum()
        assert (low <= high).all()


def empirical(before: np.ndarray, after: np.ndarray, classes: int) -> np.ndarray:
    counts = np.zeros((classes, classes))
    np.add.at(counts, (before, after), 1)
    return counts / counts.sum(1, keepdims=True)


def test_readings_follow_each_clients_matrix() -> None:
    data = federation((30_000, 30_000), classes=3)
    matrices = np.array([[[0.8, 0.1, 0.1], [0, 1, 0], [0.5, 0.5, 0]], [[0, 0, 1], [0.2, 0.3, 0.5], [0, 0, 1]]])
    given_, drawn = read_with(data, matrices, seed=1), DISAGREEMENTS["confusion"](data, 0.7, seed=1)
    for i in range(2):
        before, tolerance = data.client(i)["labels"], 5 * 0.5 / math.sqrt(9000)
        found = empirical(before, given_.client(i)["labels"], 3)
        np.testing.assert_allclose(found, matrices[i], atol=tolerance)
        assert (found[matrices[i] == 0] == 0).all()
        asked = confusion_matrix(i, 3, 0.7, seed=1)
        np.testing.assert_allclose(empirical(before, drawn.client(i)["labels"], 3), asked, atol=tolerance)
    assert not np.allclose(confusion_matrix(0, 3, 0.7), confusion_matrix(1, 3, 0.7))
    np.testing.assert_allclose(confusion_matrix(5, 4, 0.7).sum(1), 1)
    np.testing.assert_array_equal(confusion_matrix(5, 4, 0), np.eye(4))


def test_swapping_twice_is_nothing() -> None:
    data = federation((50,) * 10)
    for severity, affected in ((0.04, 0), (0.05, 1), (0.34, 3), (1.0, 10)):
        once = swap(data, severity, seed=7)
        np.testing.assert_array_equal(labels(swap(once, severity, seed=7)), labels(data))
        changed = [(once.client(i)["labels"] != data.client(i)["labels"]).any() for i in range(10)]
        assert sum(changed) == affected
        for i in np.flatnonzero(changed).tolist():
            before, after = data.client(i)["labels"], once.client(i)["labels"]
            a, b = np.unique(before[before != after])
            np.testing.assert_array_equal(after[before == a], b)
            np.testing.assert_array_equal(after[before == b], a)
    pairs = {tuple(np.unique(c["labels"][c["labels"] != o["labels"]])) for c, o in
             ((data.client(i), swap(data, 1).client(i)) for i in range(10))}  # fmt: skip
    assert len(pairs) > 1
    given_ = swap(data, 1, pair=(3, 0))
    np.testing.assert_array_equal(labels(given_), np.array([3, 1, 2, 0])[labels(data)])


@given(
    sizes=st.lists(st.integers(0, 6), min_size=1, max_size=6).filter(sum),
    classes=st.integers(2, 5),
    one_label=st.booleans(),
    severity=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=50, deadline=None)
def test_every_dial_on_any_federation(
    sizes: list[int], classes: int, one_label: bool, severity: float, seed: int
) -> None:
    data = federation(sizes, classes, seed)
    if one_label:
        labels(data)[:] = 1
    before = labels(data).copy()
    for name, dial in DIALS.items():
        changed, again = dial(data, severity, seed=seed), dial(data, severity, seed=seed)
        assert dial(data, 0, seed=seed) is data
        assert_equal(changed.examples, again.examples)
        np.testing.assert_array_equal(labels(data), before)
        assert labels(changed).dtype == before.dtype
        assert len(labels(changed)) == len(before)
        assert 0 <= labels(changed).min() <= labels(changed).max() < classes
        if name in DISAGREEMENTS:
            assert changed.examples["inputs"] is data.examples["inputs"]
            assert changed.test is data.test
            assert changed.local_test is data.local_test


@pytest.mark.parametrize("name", ["flip", "confusion"])
def test_clients_do_not_depend_on_those_after_them(name: str) -> None:
    data = federation((30, 20, 50))
    few = data._replace(examples={f: a[:50] for f, a in data.examples.items()}, offsets=data.offsets[:3])
    full = labels(DISAGREEMENTS[name](data, 0.6))
    np.testing.assert_array_equal(labels(DISAGREEMENTS[name](few, 0.6)), full[:50])


def test_one_class_leaves_nothing_to_disagree_about() -> None:
    data = federation((3, 2), classes=1)
    for dial in (flip, swap, concept):
        with pytest.raises(InputError) as error:
            dial(data, 0.5)
        one_line(error, dial.__name__, "classes is 1")
    np.testing.assert_array_equal(labels(DISAGREEMENTS["confusion"](data, 1)), labels(data))


@pytest.mark.parametrize("name", [*DISAGREEMENTS, "concept"])
def test_labels_that_are_no_classes(name: str) -> None:
    data, dial = federation((3, 2)), DIALS[name]
    text = np.zeros((5, 7), np.int32)
    for broken, part in (
        (data._replace(classes=None), "classes"),
        (data._replace(classes=2, examples={**data.examples, "labels": labels(data) * 0 + 5}), "labels from 5 to 5"),
        (data._replace(examples={"inputs": data.examples["inputs"]}), "labels"),
        (data._replace(examples={**data.examples, "labels": labels(data) + 0.5}), "integer per example"),
        (data._replace(examples={**data.examples, "labels": text}), "integer per example"),
    ):
        with pytest.raises(InputError) as error:
            dial(broken, 0.5)
        one_line(error, name, part)


@pytest.mark.parametrize("name", DIALS)
@pytest.mark.parametrize("severity", [-0.1, 1.5, float("nan"), "much", None])
def test_severities_out_of_range(name: str, severity: Any) -> None:
    with pytest.raises(InputError) as error:
        DIALS[name](federation(), severity)
    one_line(error, "severity", str(severity))
    with pytest.raises(InputError) as error:
        DIALS[name](federation(), 0.5, seed=-1)
    one_line(error, "seed: -1")


def test_rates_matrices_and_pairs_that_do_not_fit() -> None:
    data = federation((3, 2), classes=2)
    for rates, parts in (
        (np.array([0.1]), ("float64[1]", "each of 2")),
        (np.array([0.1, 1.2]), ("1.2 of client 1",)),
        (np.array([np.nan, 0]), ("nan of client 0",)),
        (np.array(["a", "b"]), ("<U1[2]",)),
    ):
        with pytest.raises(InputError) as error:
            flip(data, rates)
        one_line(error, "severity", *parts)
    for matrices, parts in (
        (np.eye(2), ("[2, 2]", "[2, 2, 2]")),
        (np.array([np.eye(2), [[1, 0], [0.5, 0.4]]]), ("row 1 of client 1", "[0.5, 0.4]", "sum to 1")),
        (np.array([[[1.5, -0.5], [0, 1]], np.eye(2)]), ("row 0 of client 0", "[1.5, -0.5]")),
        (np.array([[[1, 0], [0, np.nan]], np.eye(2)]), ("row 1 of client 0", "nan")),
    ):
        with pytest.raises(InputError) as error:
            read_with(data, matrices)
        one_line(error, "matrices", *parts)
    for pair in ((0, 0), (0, 2), (-1, 0), (0,), (0.0, 1.0), "01", ((0, 1), (1, 0))):
        with pytest.raises(InputError) as error:
            swap(data, 0.5, pair=pair)  # pyright: ignore[reportArgumentType]
        one_line(error, "pair", "from 0 to 1")


# --- drift -----------------------------------------------------------------------------------------------------------


def test_concept_drift_renames_every_class_of_some_clients() -> None:
    data = federation((60,) * 10)
    changed_before: set[int] = set()
    for severity, affected in ((0.1, 1), (0.55, 6), (1.0, 10)):
        drifted = concept(data, severity, seed=3)
        changed = {i for i in range(10) if (drifted.client(i)["labels"] != data.client(i)["labels"]).any()}
        assert len(changed) == affected
        assert changed_before <= changed
        changed_before = changed
        pairs = {
            (int(a), int(b))
            for i in changed
            for part in ("client", "client_test")
            for a, b in zip(
                getattr(data, part)(i)["labels"], getattr(drifted, part)(i)["labels"], strict=True
            )
        }  # fmt: skip
        assert len(pairs) == 4  # one renaming, which is a permutation
        assert len({b for _, b in pairs}) == 4
        assert all(a != b for a, b in pairs)
        assert data.test is not None
        assert drifted.test is not None
        if affected < 10:
            assert drifted.test is data.test
        else:
            np.testing.assert_array_equal([dict(pairs)[y] for y in data.test["labels"]], drifted.test["labels"])
            assert drifted.test["labels"].dtype == np.int32


def test_prior_drift_moves_whole_clients() -> None:
    data = federation((5, 0, 9, 1, 3, 7))
    originals = [data.client(i)["inputs"].tobytes() for i in range(6)]
    for severity, affected in ((0.2, 0), (0.34, 2), (1.0, 6)):
        drifted = prior(data, severity, seed=1)
        assert (drifted is data) == (affected == 0)
        found = [drifted.client(i)["inputs"].tobytes() for i in range(6)]
        assert Counter(found) == Counter(originals)
        assert sum(a != b for a, b in zip(found, originals, strict=True)) == affected
        for i in range(6):
            source = originals.index(found[i])
            assert_equal(drifted.client(i), data.client(source))
            assert_equal(drifted.client_test(i), data.client_test(source))
        assert drifted.test is data.test
    assert prior(federation((4,)), 1).num_clients == 1


def test_phases() -> None:
    data = federation()
    phases = [Phase(0, data), Phase(3, data), Phase(10, data)]
    assert [phase_at(phases, r).start for r in (0, 2, 3, 9, 10, 10**9)] == [0, 0, 3, 3, 10, 10]
    for broken, parts in (
        ([], ("phases: there are none",)),
        ([Phase(1, data)], ("phases[0].start: 1",)),
        ([Phase(0, data), Phase(4, data), Phase(4, data)], ("phases[2].start: 4", "after 4")),
        ([Phase(0, data), Phase(-1, data)], ("phases[1].start: -1",)),
    ):
        with pytest.raises(InputError) as error:
            phase_at(broken, 0)
        one_line(error, *parts)
    with pytest.raises(InputError) as error:
        phase_at(phases, -1)
    one_line(error, "round: -1")
