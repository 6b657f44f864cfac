"""The parts of a diagnosis: what causes answer for, other dealings of the data, aligned inputs, odd annotators."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedjax_sim.data import FederatedData, dirichlet, federate, iid
from fedjax_sim.data.disagreement import swap
from fedjax_sim.data.sources import SOURCES
from fedjax_sim.diagnose import exchange, game
from fedjax_sim.diagnose.align import aligned, client_effects
from fedjax_sim.diagnose.annotators import read, relabelled
from fedjax_sim.diagnose.attribution import helpful
from fedjax_sim.diagnose.worlds import Change, World
from fedjax_sim.experiment.config import load_config

# --- what causes answer for ------------------------------------------------------------------------------------------


def shapley_by_orders(worth: dict[frozenset[str], float], players: str) -> dict[str, float]:
    """The definition: the mean over all orders of what each adds to those before it."""
    found = dict.fromkeys(players, 0.0)
    orders = list(itertools.permutations(players))
    for order in orders:
        for place, player in enumerate(order):
            before = frozenset(order[:place])
            found[player] += (worth[before | {player}] - worth[before]) / len(orders)
    return found


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(0, 2**31))
def test_shares_are_shapley_values_where_ranks_are_equal_and_sum_to_the_worth_of_all(players, seed):
    names = "abcd"[:players]
    rng = np.random.default_rng(seed)
    worth = {coalition: float(rng.normal()) for coalition in game.coalitions(names)}
    found = game.shares(worth, lambda player: 0)
    expected = shapley_by_orders(worth, names)
    assert found == pytest.approx(expected)
    for ranks in ({}, {"a": 1}, {"a": 2, "b": 1}):
        ranked = game.shares(worth, lambda player, ranks=ranks: ranks.get(player, 0))
        assert sum(ranked.values()) == pytest.approx(worth[frozenset(names)] - worth[frozenset()])


def test_a_cause_whose_removal_does_harm_where_the_others_are_gone_answers_for_nothing():
    accuracies = {"": 0.70, "a": 0.75, "b": 0.72, "c": 0.73, "ab": 0.80, "ac": 0.68, "bc": 0.70, "abc": 0.72}
    without = {frozenset(gone): [value, value + 0.001] for gone, value in accuracies.items()}
    kept = helpful(without, {"a": 0, "b": 0, "c": 0}.__getitem__)
    assert kept == {gone: values for gone, values in without.items() if "c" not in gone}
    assert helpful(kept, {"a": 0, "b": 0}.__getitem__) == kept
    noisy = {gone: [values[0], values[0] + 0.5 * ("c" in gone)] for gone, values in without.items()}
    assert helpful(noisy, {"a": 0, "b": 0, "c": 0}.__getitem__) == noisy  # which may be chance
    nothing = {frozenset[str](): [0.7, 0.8]}
    assert helpful(nothing, {}.__getitem__) == nothing


def test_what_causes_cost_only_together_is_the_highest_ranks():
    worth = {frozenset(): 0.0, frozenset("a"): 1.0, frozenset("b"): 0.0, frozenset("ab"): 5.0}
    assert game.shares(worth, {"a": 0, "b": 1}.__getitem__) == {"a": 1.0, "b": 4.0}
    assert game.shares(worth, {"a": 1, "b": 1}.__getitem__) == {"a": 3.0, "b": 2.0}
    assert game.dividends(worth)[frozenset("ab")] == 4.0


def test_estimates_are_students_intervals():
    values = [0.1, 0.14, 0.12, 0.2]
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert game.estimate(values) == pytest.approx((np.mean(values), low, high))
    assert game.estimate([0.3]) == (0.3, -math.inf, math.inf)


def test_moderated_intervals_hold_as_often_as_they_say_and_none_is_a_point():
    rng = np.random.default_rng(0)
    held = []
    for _ in range(400):
        measured = {str(i): rng.normal(1.0, 0.5, 3).tolist() for i in range(7)}
        held += [low <= 1.0 <= high for _, low, high in game.moderated(measured).values()]
    assert 0.93 < np.mean(held) < 0.98
    found = game.moderated({"a": [0.1, 0.1], "b": [0.0, 0.2], "c": [0.3, 0.1]})
    assert found["a"].low < 0.1 < found["a"].high
    assert found["a"].mean == pytest.approx(0.1)
    assert game.moderated({}) == {}


# --- other dealings --------------------------------------------------------------------------------------------------


def skewed(clients: int = 8, alpha: float = 0.2, seed: int = 0) -> FederatedData:
    dataset = SOURCES["digits"]()
    return federate(dataset, dirichlet(dataset.train["labels"], clients, alpha=alpha, seed=seed))


def rows(data: FederatedData) -> np.ndarray:
    """All training examples, in an order of their own."""
    flat = np.concatenate([data.examples["inputs"].reshape(int(data.offsets[-1]), -1).astype(int),
                           data.examples["labels"][:, None]], 1)  # fmt: skip
    return flat[np.lexsort(flat.T)]


def test_redealt_examples_are_the_same_at_the_same_sizes_without_skew():
    data = skewed()
    found = exchange.redealt(data, seed=3)
    np.testing.assert_array_equal(rows(found), rows(data))
    np.testing.assert_array_equal(found.sizes, data.sizes)
    large = data.sizes > 100
    shares = exchange.label_counts(found)[large] / found.sizes[large, None]
    assert np.abs(shares - exchange.label_counts(data).sum(0) / data.sizes.sum()).max() < 0.1
    np.testing.assert_array_equal(exchange.redealt(data, seed=3).examples["labels"], found.examples["labels"])


def test_same_label_shares_from_own_examples_where_a_client_has_the_class():
    data = skewed(alpha=1.0)
    found = exchange.same_labels(data)
    np.testing.assert_array_equal(found.sizes, data.sizes)
    counts = exchange.label_counts(found)
    expected = np.outer(data.sizes, exchange.label_counts(data).sum(0) / data.sizes.sum())
    assert np.abs(counts - expected).max() <= 1
    had = exchange.label_counts(data)
    for client in range(data.num_clients):
        own = {row.tobytes() for row in data.client(client)["inputs"]}
        for inputs, label in zip(*(found.client(client)[name] for name in ("inputs", "labels")), strict=True):
            if had[client, label]:
                assert inputs.tobytes() in own


def test_same_sizes_keep_every_example_and_the_skew():
    data = skewed(alpha=0.3)
    found = exchange.same_sizes(data)
    np.testing.assert_array_equal(rows(found), rows(data))
    assert np.ptp(found.sizes) <= 2 < np.ptp(data.sizes)

    def divergence(data):
        counts = exchange.label_counts(data)
        shares = counts / counts.sum(1, keepdims=True)
        return np.abs(shares - counts.sum(0) / counts.sum()).sum(1).mean()

    assert divergence(found) > 0.6 * divergence(data)


def test_pooled_without_thinned_and_reweighted():
    data = skewed()
    one = exchange.pooled(data)
    assert one.num_clients == 1
    np.testing.assert_array_equal(rows(one), rows(data))
    less = exchange.without(data, np.array([2, 5]))
    assert less.sizes[[2, 5]].tolist() == [0, 0]
    np.testing.assert_array_equal(less.client(3)["labels"], data.client(3)["labels"])
    thin = exchange.thinned(data, 500)
    assert int(thin.offsets[-1]) == 500
    assert np.abs(thin.sizes - data.sizes * 500 / data.sizes.sum()).max() <= 1
    shares = np.array([0.5, *[0.5 / 9] * 9])
    again = exchange.like_shares(skewed(alpha=100.0), shares)
    assert abs((again.examples["labels"] == 0).mean() - 0.5) < 0.02


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31))
def test_rounded_tables_keep_their_rows(seed):
    rng = np.random.default_rng(seed)
    table = rng.random((4, 5)) * 10
    table *= np.rint(table.sum(1, keepdims=True)) / table.sum(1, keepdims=True)
    found = exchange.rounded_table(table, rng)
    np.testing.assert_array_equal(found.sum(1), np.rint(table.sum(1)))
    assert np.abs(found - table).max() < 1


# --- inputs and annotators -------------------------------------------------------------------------------------------


def table(seed: int = 0) -> tuple[FederatedData, np.ndarray]:
    """Five clients with skewed labels whose features have offsets and scales of their own."""
    rng = np.random.default_rng(seed)
    offsets, scales = rng.normal(0, 2, (5, 3)), np.exp(rng.normal(0, 0.5, (5, 3)))
    labels = np.concatenate([rng.choice(2, 400, p=[p, 1 - p]) for p in (0.1, 0.3, 0.5, 0.7, 0.9)])
    owner = np.repeat(np.arange(5), 400)
    plain = rng.normal(0, 1, (2000, 3)) + labels[:, None] * np.array([2.0, 0.0, -1.0])
    inputs = (plain * scales[owner] + offsets[owner]).astype(np.float32)
    examples = {"inputs": inputs, "labels": labels.astype(np.int32)}
    return FederatedData(examples, np.arange(0, 2001, 400), None, classes=2), offsets


def test_alignment_takes_out_offsets_and_scales_but_not_label_skew():
    data, offsets = table()
    found, *_ = client_effects(data)
    centred = offsets - offsets.mean(0)
    assert np.corrcoef((found - found.mean(0)).ravel(), centred.ravel())[0, 1] > 0.97
    inputs, labels = aligned(data).examples["inputs"], data.examples["labels"]
    first = [inputs[labels == k, 0] for k in (0, 1)]
    apart = (first[1].mean() - first[0].mean()) / np.mean([part.std() for part in first])
    assert apart == pytest.approx(2.0, rel=0.1)  # in deviations within a class, as it was before
    means = np.array([[inputs[400 * c : 400 * c + 400][labels[400 * c : 400 * c + 400] == k].mean(0) for k in (0, 1)]
                      for c in range(5)])  # fmt: skip
    before = np.array([[data.client(c)["inputs"][data.client(c)["labels"] == k].mean(0) for k in (0, 1)]
                       for c in range(5)])  # fmt: skip
    assert means.std(0).max() < 0.35 * before.std(0).max()


def test_alignment_leaves_clients_alone_that_do_not_differ():
    dataset = SOURCES["breast_cancer"]()
    data = federate(dataset, iid(dataset.train["labels"], 10, seed=0))
    changed = aligned(data).examples["inputs"] - data.examples["inputs"]
    assert np.abs(changed).mean() < 0.12


def test_a_client_that_reads_wrongly_is_found_and_read_anew():
    dataset = SOURCES["digits"]()
    clean = federate(dataset, iid(dataset.train["labels"], 8, seed=1))
    reading = read(clean)
    assert reading is not None
    assert len(reading.suspects) == 0
    wrong = swap(clean, 1 / 8, pair=(3, 8))
    labels = np.array(wrong.examples["labels"])
    odd = int(np.flatnonzero([(wrong.client(i)["labels"] != clean.client(i)["labels"]).any() for i in range(8)])[0])
    start, stop = clean.offsets[odd], clean.offsets[odd + 1]
    labels[start:stop] = (labels[start:stop] + 1) % 10  # and everything else, too
    bad = clean._replace(examples={**clean.examples, "labels": labels})
    reading = read(bad)
    assert reading is not None
    assert reading.suspects.tolist() == [odd]
    mended = relabelled(bad, reading)
    truth = clean.examples["labels"]
    assert (mended.examples["labels"][start:stop] == truth[start:stop]).mean() > 0.8
    np.testing.assert_array_equal(np.delete(mended.examples["labels"], slice(start, stop)),
                                  np.delete(truth, slice(start, stop)))  # fmt: skip


# --- worlds ----------------------------------------------------------------------------------------------------------


def test_a_world_is_told_by_what_happens_in_it():
    world = World(load_config(None, ["model.name=logistic"]))
    change = Change("redealt", exchange.redealt, order=1)
    first = Change("thinned", lambda data: exchange.thinned(data, 100), order=0)
    assert world.key() != world.change(change).key() != world.change(change, first).key()
    assert world.change(change, first).key() == world.change(first).change(change).change(change).key()
    assert world.set({"training.seed": 5}).key() == world.key() == world.set({"output.name": "x"}).key()
    assert world.set({"algorithm.learning_rate": 0.2}).key() != world.key()
    assert world.set({"data.alpha": 0.1}).set({"data.alpha": None}).key() == world.key()
    assert int(world.change(change, first).build().data.offsets[-1]) == 100
