"""Partitions: disjoint, complete, reproducible, skewed as asked, and one line where they are impossible."""

import inspect

import numpy as np
import pytest
from conftest import one_line
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedjax_sim import InputError
from fedjax_sim.data import PARTITIONS, dirichlet, iid

LABELS = st.builds(
    lambda classes, size, seed: np.random.default_rng(seed).integers(0, classes, size),
    st.integers(1, 12),
    st.integers(40, 400),
    st.integers(0, 2**31),
)


@given(LABELS, st.integers(1, 30), st.floats(0.05, 100), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_every_partition_is_disjoint_complete_and_reproducible(
    labels: np.ndarray, clients: int, alpha: float, seed: int
) -> None:
    for name, partition in PARTITIONS.items():
        given_options = {"alpha": alpha, "min_examples": 0}
        known = inspect.signature(partition).parameters
        options = {option: value for option, value in given_options.items() if option in known}
        parts = partition(labels, clients, seed=seed, **options)
        assert len(parts) == clients, name
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
        for part, again in zip(parts, partition(labels, clients, seed=seed, **options), strict=True):
            np.testing.assert_array_equal(part, again)


@given(LABELS, st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_every_client_gets_the_minimum(labels: np.ndarray, clients: int, least: int, seed: int) -> None:
    assume(clients * least <= len(labels) / 3)
    assert min(len(p) for p in iid(labels, clients, min_examples=least, seed=seed)) >= least
    assert min(len(p) for p in dirichlet(labels, clients, alpha=1.0, min_examples=least, seed=seed)) >= least


def test_iid_parts_are_even_and_alike() -> None:
    labels = np.repeat(np.arange(10), 1000)
    parts = iid(labels, 10, seed=0)
    assert {len(part) for part in parts} == {1000}
    counts = np.stack([np.bincount(labels[part], minlength=10) for part in parts])
    assert np.abs(counts - 100).max() < 5 * np.sqrt(100 * 0.9 * 0.9)  # five standard deviations


def test_alpha_sets_the_label_skew() -> None:
    labels = np.repeat(np.arange(10), 600)

    def largest_share(alpha: float) -> float:
        parts = dirichlet(labels, 20, alpha=alpha, min_examples=1, seed=0)
        return float(np.mean([np.bincount(labels[part]).max() / len(part) for part in parts]))

    shares = [largest_share(alpha) for alpha in (0.05, 0.5, 5.0, 500.0)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.6
    assert shares[-1] < 0.13


def test_a_full_client_gets_no_more() -> None:
    """No client exceeds its quota by more than the class that took it over, however small alpha is."""
    labels = np.repeat(np.arange(10), 100)
    for seed in range(20):
        parts = dirichlet(labels, 5, alpha=1e-3, min_examples=0, seed=seed)
        assert max(len(part) for part in parts) < 1000 / 5 + 100


def test_impossible_partitions_say_why() -> None:
    labels = np.zeros(100, np.int64)
    with pytest.raises(InputError) as error:
        iid(labels, 30, min_examples=5)
    one_line(error, "clients: 30", "5 of 100")
    with pytest.raises(InputError) as error:
        dirichlet(labels, 10, alpha=0.01, min_examples=9, seed=0)
    one_line(error, "min_examples: 9", "alpha 0.01", "lower min_examples")
    for alpha in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match=r"^alpha: "):
            dirichlet(labels, 2, alpha=alpha)
