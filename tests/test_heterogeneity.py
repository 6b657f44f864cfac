"""Indices of heterogeneity: against SciPy, by hand, by least squares; unmoved by label skew; sampled where large."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import one_line
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from fedjax_sim import InputError
from fedjax_sim.data.deal import federate
from fedjax_sim.data.federated import FederatedData, from_clients
from fedjax_sim.data.heterogeneity import describe, gini, intraclass_correlation, js_divergence
from fedjax_sim.data.partition import dirichlet, iid
from fedjax_sim.data.shift import SHIFTS
from fedjax_sim.data.sources import SOURCES

DIGITS = SOURCES["digits"]()


def labelled(counts: list[list[int]]) -> FederatedData:
    """Clients with so many examples of each class, and no inputs that vary."""
    parts = [np.repeat(np.arange(len(row)), row) for row in counts]
    return from_clients([{"inputs": np.zeros((len(y), 1)), "labels": y} for y in parts])._replace(
        classes=len(counts[0])
    )


# --- sizes and labels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "expected"), [([3, 3, 3], 0), ([0, 0, 0, 8], 0.75), ([4, 1, 3, 2], 0.25), ([5], 0), ([0, 0], 0)]
)
def test_gini_of_known_sizes(sizes: list[int], expected: float) -> None:
    assert gini(np.array(sizes)) == pytest.approx(expected)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30).filter(sum))
@settings(max_examples=50, deadline=None)
def test_gini_is_the_mean_difference(sizes: list[int]) -> None:
    x = np.array(sizes)
    assert gini(x) == pytest.approx(np.abs(x[:, None] - x).mean() / (2 * x.mean()), abs=1e-12)


@given(st.lists(st.lists(st.integers(0, 20), min_size=3, max_size=3).filter(sum), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_divergence_is_scipys(counts: list[list[int]]) -> None:
    table = np.array(counts)
    expected = [jensenshannon(row, table.sum(0), base=2) ** 2 for row in table]
    np.testing.assert_allclose(js_divergence(table), np.nan_to_num(expected), atol=1e-7)


def test_label_indices_by_hand() -> None:
    found = describe(labelled([[4, 0, 0], [0, 2, 0], [0, 0, 0], [1, 1, 0]]))
    assert (found.clients, found.examples, found.empty_clients) == (4, 8, 1)
    assert (found.size_min, found.size_median, found.size_max) == (0, 2, 4)
    np.testing.assert_array_equal(found.label_counts, [[4, 0, 0], [0, 2, 0], [0, 0, 0], [1, 1, 0]])
    np.testing.assert_array_equal(found.missing_classes, [2])
    assert found.label_entropy_bits == pytest.approx(1 / 3)  # 0, 0 and 1 bit
    assert found.pooled_label_entropy_bits == pytest.approx(-(5 * np.log2(5 / 8) + 3 * np.log2(3 / 8)) / 8)
    expected = [jensenshannon(row, [5, 3, 0], base=2) ** 2 for row in ([4, 0, 0], [0, 2, 0], [1, 1, 0])]
    assert found.js_divergence == pytest.approx(np.mean(expected))
    assert found.sampled_clients is None
    assert found.feature_shift is None  # the inputs are constant
    alone = describe(labelled([[0, 3]]))
    assert (alone.js_divergence, alone.js_iid, alone.gini, alone.feature_shift) == (0, 0, 0, None)


def test_chance_is_what_an_iid_deal_shows() -> None:
    """Ten examples of ten classes look skewed by chance; the iid level says by how much."""
    labels = np.tile(np.arange(10), 200)
    parts = iid(labels, 200, seed=3)
    dealt = describe(labelled([np.bincount(labels[part], minlength=10).tolist() for part in parts]))
    assert dealt.js_divergence is not None
    assert dealt.js_iid is not None
    assert dealt.js_iid > 0.15
    assert dealt.js_divergence == pytest.approx(dealt.js_iid, rel=0.05)
    skewed = dirichlet(labels, 200, alpha=0.1, min_examples=0, seed=3)
    found = describe(labelled([np.bincount(labels[part], minlength=10).tolist() for part in skewed]))
    assert found.js_divergence is not None
    assert found.js_divergence > 2 * (found.js_iid or 1)


def test_without_classes_there_are_no_label_indices() -> None:
    data = labelled([[2, 1], [1, 2]])
    for unlabelled in (
        data._replace(classes=None),
        data._replace(examples={"inputs": data.examples["inputs"]}),
        data._replace(examples={**data.examples, "labels": np.zeros((6, 3), int)}),
    ):
        found = describe(unlabelled)
        assert found.label_counts is None
        assert found.js_divergence is None
        assert found.js_iid is None


# --- feature shift ---------------------------------------------------------------------------------------------------


def test_intraclass_correlation_by_hand() -> None:
    """Means 2 and 6, so 16 between on 1 degree of freedom, 4 within on 2: (16 - 2) / 2 = 7 of 7 + 2. Then sizes 3, 1:
    36.75 between, 8 within on 2, and (4 - 10 / 4) / 1 = 1.5 examples: 32.75 / 1.5 of that and 4.
    """
    owner = np.array([0, 0, 1, 1])
    np.testing.assert_allclose(intraclass_correlation(np.array([[1], [3], [5], [7]]), owner), 7 / 9)
    owner = np.array([0, 0, 0, 1])
    between = 32.75 / 1.5
    found = intraclass_correlation(np.array([[1], [3], [5], [10]]), owner)
    np.testing.assert_allclose(found, between / (between + 4))


@given(st.integers(2, 8), st.integers(1, 4), st.integers(20, 80), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_variance_components_are_those_of_least_squares(clients: int, classes: int, rows: int, seed: int) -> None:
    """Henderson's method with the matrices written out."""
    rng = np.random.default_rng(seed)
    owner, labels = rng.integers(0, clients, rows), rng.integers(0, classes, rows)
    values = rng.standard_normal((rows, 2)) + owner[:, None] + 3 * labels[:, None]
    of_client, of_label = np.eye(clients)[owner], np.eye(classes)[labels]
    both = np.concatenate([of_client, of_label], 1)

    def residual(design: np.ndarray) -> np.ndarray:
        return np.eye(rows) - design @ np.linalg.pinv(design)

    without, full = residual(of_label), residual(both)
    rank, rank_label = np.linalg.matrix_rank(both), np.linalg.matrix_rank(of_label)
    rest = (values * (full @ values)).sum(0) / (rows - rank)
    explained = (values * ((without - full) @ values)).sum(0)
    between = (explained - (rank - rank_label) * rest) / np.trace(of_client.T @ without @ of_client)
    np.testing.assert_allclose(intraclass_correlation(values, owner, labels), between / (between + rest), rtol=1e-6)


def test_intraclass_correlation_finds_the_truth_under_label_skew() -> None:
    """1 between, 3 within, labels far apart and unequally held, sizes from 2 to 40: a quarter."""
    found = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        owner = np.repeat(np.arange(60), rng.integers(2, 41, 60))
        chances = rng.dirichlet(np.full(4, 0.3), 60)
        labels = np.array([rng.choice(4, p=chances[i]) for i in owner])
        values = 10.0 * labels + rng.standard_normal(60)[owner] + np.sqrt(3) * rng.standard_normal(len(owner))
        found.append(intraclass_correlation(values[:, None], owner, labels)[0])
    assert abs(np.mean(found) - 0.25) < 4 * np.std(found) / np.sqrt(40)


def test_what_cannot_be_told_is_nan() -> None:
    values, twice = np.arange(4.0)[:, None], np.array([0, 0, 1, 1])
    assert np.isnan(intraclass_correlation(values, np.zeros(4, int)))
    assert np.isnan(intraclass_correlation(values, np.arange(4)))
    assert np.isnan(intraclass_correlation(values, twice, twice))  # label and client are one
    assert np.isnan(intraclass_correlation(np.full((4, 1), 0.1), twice))
    assert np.isnan(intraclass_correlation(np.zeros((0, 1)), np.zeros(0, int)))


@pytest.mark.parametrize("seed", range(4))
def test_label_skew_is_no_feature_shift(seed: int) -> None:
    for alpha in (0.05, 0.2, 1.0):
        parts = dirichlet(DIGITS.train["labels"], 20, alpha=alpha, seed=seed)
        data = federate(DIGITS, parts)
        found = describe(data)
        assert found.feature_shift is not None
        assert found.feature_shift < 0.02
        shifted = describe(SHIFTS["scanner"](data, 0.5, seed=seed)).feature_shift
        assert shifted is not None
        assert shifted > 0.3


def test_inputs_of_other_kinds() -> None:
    rng = np.random.default_rng(0)
    flat = from_clients([{"inputs": rng.integers(0, 256, (50, 784)).astype(np.uint8)} for _ in range(4)])
    assert (describe(flat).feature_shift or 0) < 0.02
    offset = from_clients([{"inputs": rng.standard_normal((50, 3, 40)) + i} for i in range(4)])
    assert (describe(offset).feature_shift or 0) > 0.2
    tokens = from_clients([{"inputs": rng.integers(0, 90, (50, 20))}] * 4)
    assert describe(tokens).feature_shift is None
    assert describe(from_clients([{"x": np.zeros((3, 2))}] * 2)).feature_shift is None
    colours = from_clients([{"inputs": rng.random((30, 4, 5, 3)) * np.array([1, 1, 1 - i / 4])} for i in range(4)])
    assert (describe(colours).feature_shift or 0) > 0.05


# --- large federations -----------------------------------------------------------------------------------------------


def mapped(folder: Path, clients: int, each: int) -> FederatedData:
    """Equal clients in files, half of them shifted by 2."""
    rng, rows = np.random.default_rng(0), clients * each
    inputs = np.lib.format.open_memmap(folder / "inputs.npy", "w+", np.float32, (rows, 4))
    labels = np.lib.format.open_memmap(folder / "labels.npy", "w+", np.int32, (rows,))
    inputs[:] = rng.standard_normal((rows, 4)) + 2 * (np.arange(rows) // each % 2)[:, None]
    labels[:] = rng.integers(0, 3, rows)
    return FederatedData({"inputs": inputs, "labels": labels}, np.arange(clients + 1) * each, None, classes=3)


def test_a_large_federation_is_sampled(tmp_path: Path) -> None:
    data = mapped(tmp_path, clients=20_000, each=10)
    found, again = (describe(data, max_clients=300, max_examples=1500, seed=1) for _ in range(2))
    assert found.clients == 20_000
    assert found.examples == 200_000
    assert found.sampled_clients is not None
    assert found.label_counts is not None
    assert len(np.unique(found.sampled_clients)) == 300
    assert (np.diff(found.sampled_clients) > 0).all()
    np.testing.assert_array_equal(found.label_counts.sum(1), 5)  # 1500 / 300
    np.testing.assert_array_equal(found.sampled_clients, again.sampled_clients)
    assert found.feature_shift == again.feature_shift
    assert found.js_iid == again.js_iid
    everything = describe(data, max_clients=20_000)
    assert everything.sampled_clients is None
    assert everything.feature_shift == pytest.approx(found.feature_shift, abs=0.05)
    # labels are counted on everybody where there are few enough, inputs on the sample
    labels_of_all = describe(data, max_clients=300, max_examples=200_000)
    assert labels_of_all.sampled_clients is None
    np.testing.assert_array_equal(labels_of_all.label_counts, everything.label_counts)
    assert labels_of_all.feature_shift == pytest.approx(everything.feature_shift, abs=0.05)


def test_a_million_clients_without_examples_but_for_one() -> None:
    offsets = np.zeros(1_000_001, np.int64)
    offsets[-1] = 3
    data = FederatedData({"inputs": np.zeros((3, 2)), "labels": np.zeros(3, int)}, offsets, None, classes=2)
    found = describe(data, max_examples=2)
    assert (found.empty_clients, found.size_max, found.feature_shift) == (999_999, 3, None)
    assert found.gini == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("name", "value"), [("max_clients", 0), ("max_examples", 0.5), ("seed", -1)])
def test_settings_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(InputError) as error:
        describe(labelled([[1, 2]]), **{name: value})
    one_line(error, f"{name}: {value}")


def test_labels_beyond_the_classes() -> None:
    with pytest.raises(InputError) as error:
        describe(labelled([[1, 2]])._replace(classes=1))
    one_line(error, "labels: from 0 to 1 with 1 classes")
