"""Partitions: disjoint, complete, reproducible, skewed by the law each follows, and one line where impossible."""

from collections.abc import Callable

import numpy as np
import pytest
from conftest import one_line
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedjax_sim import InputError
from fedjax_sim.data.partition import (
    PARTITIONS,
    dirichlet,
    dirichlet_clients,
    iid,
    labels_per_client,
    shards,
)
from fedjax_sim.data.quantity import long_tail, quantity_dirichlet, quantity_lognormal, quantity_zipf

LABELS = st.builds(
    lambda classes, size, seed: np.random.default_rng(seed).integers(0, classes, size),
    st.integers(1, 12),
    st.integers(80, 400),
    st.integers(0, 2**31),
)
BALANCED = np.repeat(np.arange(10), 600)
RANDOM = [name for name in PARTITIONS if name != "list"]

# settings that have to hold for any labels, by a number from 0 to 1
DRAWN: dict[str, Callable[[float], dict]] = {
    "iid": lambda u: {},
    "dirichlet": lambda u: {"alpha": 0.05 * 2000**u},
    "dirichlet_clients": lambda u: {"alpha": 1e-3 * 1e6**u},
    "shards": lambda u: {"shards_per_client": 1 + round(3 * u)},
    "labels_per_client": lambda u: {"labels_per_client": 1 + round(3 * u)},
    "quantity_lognormal": lambda u: {"sigma": 5 * u},
    "quantity_zipf": lambda u: {"exponent": 5 * u},
    "quantity_dirichlet": lambda u: {"alpha": 0.05 * 2000**u},
}


def counts_of(parts: list[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """Examples of each label that each client holds, int[N, K]."""
    return np.stack([np.bincount(labels[part], minlength=labels.max() + 1) for part in parts])


def largest_share(parts: list[np.ndarray], labels: np.ndarray) -> float:
    counts = counts_of(parts, labels)
    return float((counts.max(1) / counts.sum(1)).mean())


def sizes_of(parts: list[np.ndarray]) -> np.ndarray:
    return np.array([len(part) for part in parts])


# --- what holds for all ----------------------------------------------------------------------------------------------


def test_every_random_partition_is_tested() -> None:
    assert set(DRAWN) == set(RANDOM)


@pytest.mark.parametrize("name", RANDOM)
@given(LABELS, st.integers(1, 20), st.floats(0, 1), st.integers(0, 3), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_every_partition_is_disjoint_complete_and_reproducible(
    name: str, labels: np.ndarray, clients: int, u: float, least: int, seed: int
) -> None:
    split, options = PARTITIONS[name], DRAWN[name](u)
    if name == "labels_per_client":
        options["labels_per_client"] = min(options["labels_per_client"], len(np.unique(labels)))
        assume(clients >= len(np.unique(labels)))
    if name in ("dirichlet", "labels_per_client", "quantity_dirichlet"):  # there the minimum may be out of reach
        least = 0
    before = labels.copy()
    labels.setflags(write=False)
    parts = split(labels, clients, seed=seed, min_examples=least, **options)
    np.testing.assert_array_equal(labels, before)
    assert len(parts) == clients
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    assert sizes_of(parts).min() >= least
    for part, again in zip(parts, split(labels, clients, seed=seed, min_examples=least, **options), strict=True):
        np.testing.assert_array_equal(part, again)


@pytest.mark.parametrize("name", RANDOM)
def test_another_seed_is_another_partition(name: str) -> None:
    first, second = (PARTITIONS[name](BALANCED, 10, seed=seed) for seed in (0, 1))
    assert any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", RANDOM)
@given(LABELS, st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_every_client_gets_the_minimum(name: str, labels: np.ndarray, clients: int, least: int, seed: int) -> None:
    assume(clients * least <= len(labels) / 3)
    assume(name != "labels_per_client" or len(np.unique(labels)) <= clients)
    options: dict = {"alpha": 1.0} if "dirichlet" in name else {}
    if name == "labels_per_client":  # with all labels everyone can have the minimum
        options["labels_per_client"] = len(np.unique(labels))
        assume(np.bincount(labels)[np.unique(labels)].min() >= clients)
        least = min(least, options["labels_per_client"])
    parts = PARTITIONS[name](labels, clients, min_examples=least, seed=seed, **options)
    assert sizes_of(parts).min() >= least


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize(
    ("labels", "clients", "options", "parts"),
    [
        (BALANCED, 0, {}, ["clients: 0"]),
        (BALANCED, 10, {"min_examples": -1}, ["min_examples: -1"]),
        (BALANCED, 10, {"seed": -1}, ["seed: -1"]),
        (BALANCED, 10, {"min_examples": 601}, ["clients: 10", "601 of 6000", "lower clients or min_examples"]),
        (BALANCED[:5], 6, {}, ["clients: 6", "1 of 5", "lower clients"]),
        (BALANCED.astype(float), 3, {}, ["labels: float64[6000]", "one integer per example"]),
        (BALANCED.reshape(10, -1), 3, {}, ["labels: int64[10, 600]"]),
        (BALANCED[:0], 3, {}, ["labels: int64[0]"]),
    ],
)
def test_what_no_partition_takes(name: str, labels: np.ndarray, clients: int, options: dict, parts: list[str]) -> None:
    with pytest.raises(InputError) as error:
        PARTITIONS[name](labels, clients, **options)
    one_line(error, *parts)


@pytest.mark.parametrize(
    ("split", "clients", "options", "parts"),
    [
        (dirichlet, 7, {"alpha": 0.01, "min_examples": 850}, ["min_examples: 850", "alpha 0.01", "lower"]),
        (quantity_dirichlet, 9, {"alpha": 0.01, "min_examples": 400}, ["min_examples: 400", "best draw", "raise"]),
        (shards, 7, {"shards_per_client": 858}, ["shards_per_client: 858", "6006 shards of 6000", "lower"]),
        (labels_per_client, 3, {}, ["labels_per_client: 2", "3 clients", "at least 10 clients, or more labels"]),
        (labels_per_client, 20, {"labels_per_client": 11}, ["labels_per_client: 11 of 10 labels", "lower it"]),
        (labels_per_client, 11, {"min_examples": 545}, ["min_examples: 545", "1000 draws", "raise labels"]),
        *((split, 5, {"alpha": alpha}, [f"alpha: {alpha}"])
          for split in (dirichlet, dirichlet_clients, quantity_dirichlet)
          for alpha in (0.0, -1.0, float("nan"), float("inf"))),
        (quantity_lognormal, 5, {"sigma": -0.1}, ["sigma: -0.1", "at least 0"]),
        (quantity_zipf, 5, {"exponent": float("inf")}, ["exponent: inf"]),
        (shards, 5, {"shards_per_client": 0}, ["shards_per_client: 0"]),
        (labels_per_client, 5, {"labels_per_client": 1.5}, ["labels_per_client: 1.5"]),
    ],
)  # fmt: skip
def test_impossible_partitions_say_why(split: Callable, clients: int, options: dict, parts: list[str]) -> None:
    with pytest.raises(InputError) as error:
        split(BALANCED, clients, **options)
    one_line(error, *parts)


# --- label skew ------------------------------------------------------------------------------------------------------


def test_iid_parts_are_even_and_alike() -> None:
    parts = iid(BALANCED, 10, seed=0)
    assert set(sizes_of(parts)) == {600}
    counts = counts_of(parts, BALANCED)
    assert np.abs(counts - 60).max() < 5 * np.sqrt(60 * 0.9 * 0.9)  # five standard deviations


def test_alpha_sets_the_label_skew() -> None:
    shares = [largest_share(dirichlet(BALANCED, 20, alpha=a), BALANCED) for a in (0.05, 0.5, 5.0, 500.0)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.6
    assert shares[-1] < 0.13


def test_a_full_client_gets_no_more() -> None:
    """No client exceeds its quota by more than the class that took it over, however small alpha is."""
    labels = np.repeat(np.arange(10), 100)
    for alpha in (1e-3, 5e-324):
        for seed in range(20):
            parts = dirichlet(labels, 5, alpha=alpha, min_examples=0, seed=seed)
            assert max(len(part) for part in parts) < 1000 / 5 + 100


def plain_niid_bench(labels: np.ndarray, clients: int, alpha: float, least: int, rng: np.random.Generator) -> list:
    """The definition, one step after another."""
    while True:
        held: list[list[int]] = [[] for _ in range(clients)]
        for label in range(labels.max() + 1):
            rows = np.flatnonzero(labels == label)
            rng.shuffle(rows)
            shares = rng.dirichlet([alpha] * clients)
            for client in range(clients):
                if len(held[client]) >= len(labels) / clients:
                    shares[client] = 0
            shares = shares / shares.sum()
            first, cumulative = 0, 0.0
            for client in range(clients):
                cumulative += shares[client]
                last = len(rows) if client == clients - 1 else int(cumulative * len(rows))
                held[client].extend(rows[first:last].tolist())
                first = last
        if min(map(len, held)) >= least:
            return [np.array(rows) for rows in held]


@pytest.mark.parametrize("alpha", [0.1, 0.5, 5.0])
def test_dirichlet_has_the_law_of_niid_bench(alpha: float) -> None:
    labels = np.repeat(np.arange(10), 100)
    statistics = []
    for draw in (
        lambda seed: dirichlet(labels, 10, alpha=alpha, min_examples=10, seed=seed),
        lambda seed: plain_niid_bench(labels, 10, alpha, 10, np.random.default_rng([seed, 1])),
    ):
        drawn = [draw(seed) for seed in range(100)]
        statistics.append([(largest_share(p, labels), sizes_of(p).std(), sizes_of(p).max(), len(p[0])) for p in drawn])
    ours, theirs = np.array(statistics)
    error = np.sqrt((ours.var(0) + theirs.var(0)) / len(ours))
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 4 * error).all()


def test_dirichlet_clients_have_equal_sizes_and_skew_by_alpha() -> None:
    shares = []
    for alpha in (0.1, 1.0, 10.0, 100.0, 1e5):
        parts = dirichlet_clients(BALANCED, 23, alpha=alpha, seed=1)
        assert set(sizes_of(parts)) == {6000 // 23, 6000 // 23 + 1}
        shares.append(largest_share(parts, BALANCED))
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.8


def test_dirichlet_clients_approach_the_pooled_shares() -> None:
    labels = np.repeat(np.arange(4), [4000, 3000, 2000, 1000])
    counts = counts_of(dirichlet_clients(labels, 10, alpha=1e9, seed=2), labels)
    expected = np.array([400, 300, 200, 100])
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_the_first_client_of_dirichlet_clients_follows_dirichlet_by_the_prior() -> None:
    """Its counts follow the Dirichlet-multinomial law: no class runs out while the first client draws."""
    prior, alpha = np.array([0.5, 0.3, 0.2]), 4.0
    labels = np.repeat(np.arange(3), (prior * 6000).astype(int))
    draws = range(400)
    shares = np.array([counts_of(dirichlet_clients(labels, 20, alpha=alpha, seed=s)[:1], labels)[0] for s in draws])
    shares = shares / 300
    variance = prior * (1 - prior) * (1 / (alpha + 1) + alpha / (alpha + 1) / 300)
    assert (np.abs(shares.mean(0) - prior) < 5 * np.sqrt(variance / len(draws))).all()
    assert (np.abs(shares.var(0) / variance - 1) < 0.35).all()


def test_tiny_and_huge_alpha_are_the_limits() -> None:
    for alpha in (5e-324, 1e-12):
        counts = counts_of(dirichlet_clients(BALANCED, 100, alpha=alpha), BALANCED)
        assert (counts.max(1) == 60).all()  # ten clients of 60 use up one label exactly
    assert largest_share(dirichlet_clients(BALANCED, 10, alpha=1e308), BALANCED) < 0.16
    assert set(sizes_of(quantity_dirichlet(BALANCED, 10, alpha=1e308))) == {600}


def test_shards_of_balanced_labels() -> None:
    """The split of McMahan et al. at a tenth of its size: 100 clients, 2 shards of 30 each."""
    parts = shards(BALANCED, 100, shards_per_client=2, seed=3)
    assert set(sizes_of(parts)) == {60}
    held = (counts_of(parts, BALANCED) > 0).sum(1)
    assert held.max() <= 2
    # two of 200 shards, 20 of each label, are of one label with a chance of 19 / 199
    assert abs((held == 1).mean() - 19 / 199) < 5 * np.sqrt(19 / 199 / 100)
    assert set(np.unique(counts_of(parts, BALANCED))) == {0, 30, 60}


def test_a_shard_crosses_from_label_to_label_at_most_once() -> None:
    labels = np.repeat(np.arange(7), 100)
    parts = shards(labels, 9, shards_per_client=3, seed=0)
    assert (counts_of(parts, labels) > 0).sum(1).max() <= 6
    assert np.ptp(sizes_of(parts)) <= 3


@pytest.mark.parametrize(("clients", "each"), [(10, 1), (10, 2), (25, 3), (5, 4), (12, 10)])
def test_labels_per_client_are_as_many_as_asked(clients: int, each: int) -> None:
    rng = np.random.default_rng(clients)
    labels = rng.permutation(np.repeat(np.arange(10) * 3 - 5, rng.integers(50, 90, 10)))  # not 0 to 9
    codes = (labels + 5) // 3
    counts = counts_of(labels_per_client(labels, clients, labels_per_client=each, seed=4), codes)
    assert ((counts > 0).sum(1) == each).all()
    assert (counts[np.arange(clients), np.arange(clients) % 10] > 0).all()
    for of_label in counts.T:
        assert np.ptp(of_label[of_label > 0]) <= 1


def test_further_labels_are_uniform() -> None:
    counts = counts_of(labels_per_client(BALANCED, 1000, labels_per_client=2, min_examples=0), BALANCED)
    further = np.count_nonzero(counts, axis=0) - 100
    assert further.sum() == 1000
    assert (np.abs(further - 100) < 5 * np.sqrt(90)).all()


# --- quantity skew ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [quantity_lognormal, quantity_zipf, quantity_dirichlet])
def test_quantity_skew_leaves_labels_alike(split: Callable) -> None:
    counts = counts_of(split(BALANCED, 5, seed=1), BALANCED)
    expected = counts.sum(1, keepdims=True) / 10
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


@pytest.mark.parametrize("sigma", [0.0, 0.5, 2.0])
def test_lognormal_sizes(sigma: float) -> None:
    sizes = sizes_of(quantity_lognormal(np.zeros(2_000_000, int), 2000, sigma=sigma, seed=1)) - 1
    deviation = np.log(sizes[sizes > 0]).std()
    assert abs(deviation - sigma) <= 5 * sigma / np.sqrt(2 * 2000) + 1e-9
    assert sizes.sum() == 2_000_000 - 2000


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.5])
def test_zipf_sizes(exponent: float) -> None:
    sizes = sizes_of(quantity_zipf(np.zeros(100_000, int), 50, exponent=exponent, min_examples=10, seed=1))
    ranked = np.sort(sizes)[::-1] - 10
    weights = np.arange(1.0, 51.0) ** -exponent
    assert np.abs(ranked - weights / weights.sum() * (100_000 - 500)).max() < 1
    assert abs(ranked[0] / ranked[1] - 2**exponent) < 0.01
    if exponent:
        assert sizes.tolist() != sorted(sizes, reverse=True)  # ranks are shuffled


def test_dirichlet_sizes() -> None:
    """A share of Dirichlet(a, ..., a) over N clients has variance (1 / N)(1 - 1 / N) / (N a + 1)."""
    labels = np.zeros(10_000, int)
    shares = np.array(
        [sizes_of(quantity_dirichlet(labels, 8, alpha=2.0, min_examples=0, seed=s)) / 10_000 for s in range(300)]
    )
    assert abs(shares.var() / ((1 / 8) * (7 / 8) / 17) - 1) < 0.1


def test_absurd_settings_are_the_limits() -> None:
    for parts in (
        quantity_lognormal(BALANCED, 10, sigma=1e308, min_examples=3),
        quantity_zipf(BALANCED, 10, exponent=1e308, min_examples=3),
    ):
        assert sorted(sizes_of(parts)) == [3] * 9 + [6000 - 27]


# --- class balance ---------------------------------------------------------------------------------------------------


def test_long_tail_has_the_published_counts() -> None:
    """CIFAR-10 with an imbalance factor of 100, by class."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 5000))
    published = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    rows = long_tail(labels, 0.01, seed=3)
    assert rows.dtype == np.int64
    assert (np.diff(rows) > 0).all()
    assert np.bincount(labels[rows]).tolist() == published
    assert np.bincount(labels[long_tail(labels, 0.01, reverse=True)]).tolist() == published[::-1]
    assert not np.array_equal(rows, long_tail(labels, 0.01, seed=4))
    np.testing.assert_array_equal(rows, long_tail(labels, 0.01, seed=3))
    assert set(rows) < set(long_tail(labels, 0.1, seed=3))


@given(LABELS, st.floats(1e-300, 1), st.booleans())
@settings(max_examples=50, deadline=None)
def test_long_tail_follows_its_formula(labels: np.ndarray, ratio: float, reverse: bool) -> None:
    before = labels.copy()
    rows = long_tail(labels, ratio, reverse=reverse)
    np.testing.assert_array_equal(labels, before)
    had, kept = (np.unique(part, return_counts=True)[1] for part in (labels, labels[rows]))
    place = np.arange(len(had)) / max(1, len(had) - 1)
    allowed = np.floor(had.max() * ratio ** (place[::-1] if reverse else place) + 1e-9)
    np.testing.assert_array_equal(kept, np.minimum(had, np.maximum(allowed, 1)))
    np.testing.assert_array_equal(long_tail(labels, 1), np.arange(len(labels)))


@pytest.mark.parametrize(("ratio", "found"), [(0, "ratio: 0"), (1.5, "ratio: 1.5 is over 1"), (float("nan"), "ratio")])
def test_what_long_tail_refuses(ratio: float, found: str) -> None:
    with pytest.raises(InputError) as error:
        long_tail(BALANCED, ratio)
    one_line(error, found)
