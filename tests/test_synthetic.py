"""Synthetic federations against the laws they are defined by."""

import numpy as np
import pytest
from conftest import one_line

from fedjax_sim import InputError
from fedjax_sim.data.deal import by_column
from fedjax_sim.data.synthetic import _parameters, _size, fcube, synthetic


def sizes_of(data) -> np.ndarray:
    return np.unique(np.concatenate([data.columns["client"], data.test_columns["client"]]), return_counts=True)[1]


def test_what_synthetic_returns() -> None:
    data = synthetic(seed=3)
    assert data.train["inputs"].dtype == np.float32
    assert data.train["labels"].dtype == np.int32
    assert (data.classes, data.input_shape, data.source) == (10, (60,), "Synthetic(1, 1)")
    names, counts = np.unique(data.columns["client"], return_counts=True)
    assert names.tolist() == [f"client_{k:02}" for k in range(30)]
    sizes = sizes_of(data)
    assert sizes.tolist() == [_size(3, k) for k in range(30)]
    np.testing.assert_array_equal(counts, 9 * sizes // 10)
    federation = by_column(data)
    assert federation.local_test is not None
    np.testing.assert_array_equal(np.diff(federation.local_test.offsets), sizes - counts)
    np.testing.assert_array_equal(
        federation.client(7)["labels"], data.train["labels"][data.columns["client"] == names[7]]
    )


def test_synthetic_depends_on_seed_and_client_alone() -> None:
    first, again, other, longer = synthetic(clients=3), synthetic(clients=3), synthetic(clients=3, seed=1), synthetic()
    np.testing.assert_array_equal(first.train["inputs"], again.train["inputs"])
    assert not np.array_equal(first.train["inputs"][:50], other.train["inputs"][:50])
    np.testing.assert_array_equal(first.train["inputs"], longer.train["inputs"][: len(first.train["inputs"])])


def test_sizes_are_lognormal_and_fifty() -> None:
    beyond = np.array([_size(1, k) for k in range(1500)]) - 50.0
    assert beyond.min() >= 0
    # of log sizes: mean 4 and deviation 2; rounding down to whole numbers hardly moves the quartiles
    low, middle, high = np.quantile(np.log(np.maximum(beyond, 0.1)), [0.25, 0.5, 0.75])
    assert abs(middle - 4) < 5 * 1.2533 * 2 / np.sqrt(1500)
    assert abs((high - low) / (2 * 0.67449) - 2) < 0.3


@pytest.mark.parametrize("iid", [False, True])
def test_labels_are_those_of_the_generating_models(iid: bool) -> None:
    data = synthetic(alpha=0.5, beta=2.0, clients=6, iid=iid, seed=5)
    for k in range(6):
        model = _parameters(0.5, 2.0, iid, 5, k)
        for examples, columns in ((data.train, data.columns), (data.test, data.test_columns)):
            mine = columns["client"] == f"client_{k}"
            scores = examples["inputs"][mine].astype(np.float64) @ model.W + model.b
            np.testing.assert_array_equal(examples["labels"][mine], scores.argmax(1))


def test_inputs_have_the_given_mean_and_variances() -> None:
    data = synthetic(clients=20, seed=2)
    names, counts = np.unique(data.columns["client"], return_counts=True)
    k = int(counts.argmax())
    inputs = data.train["inputs"][data.columns["client"] == names[k]].astype(np.float64)
    n, variances = len(inputs), np.arange(1, 61) ** -1.2
    assert n > 500
    assert (np.abs(inputs.mean(0) - _parameters(1.0, 1.0, False, 2, k).v) < 5 * np.sqrt(variances / n)).all()
    assert (np.abs(inputs.var(0) / variances - 1) < 5 * np.sqrt(2 / n)).all()


def test_alpha_and_beta_are_deviations() -> None:
    drawn = [_parameters(2.0, 3.0, False, 0, k) for k in range(3000)]
    tolerance = 5 / np.sqrt(2 * len(drawn))
    assert abs(np.std([p.u for p in drawn]) / 2 - 1) < tolerance
    assert abs(np.std([p.B for p in drawn]) / 3 - 1) < tolerance
    for entries in ([p.W[3, 4] - p.u for p in drawn], [p.b[2] - p.u for p in drawn], [p.v[5] - p.B for p in drawn]):
        assert abs(np.mean(entries)) < 5 / np.sqrt(len(drawn))
        assert abs(np.std(entries) - 1) < tolerance


def test_variances_are_squared_deviations() -> None:
    deviations = synthetic(alpha=0.5, beta=2.0, clients=3)
    variances = synthetic(alpha=0.25, beta=4.0, clients=3, variances=True)
    np.testing.assert_array_equal(deviations.train["inputs"], variances.train["inputs"])
    np.testing.assert_array_equal(deviations.train["labels"], variances.train["labels"])
    assert variances.source == "Synthetic(0.25, 4 as variances)"


def test_without_alpha_and_beta_models_still_differ_but_not_in_the_iid_variant() -> None:
    zero = [_parameters(0.0, 0.0, False, 0, k) for k in range(2)]
    assert zero[0].u == zero[0].B == 0
    assert not np.array_equal(zero[0].W, zero[1].W)
    one = [_parameters(1.0, 1.0, True, 0, k) for k in range(2)]
    np.testing.assert_array_equal(one[0].W, one[1].W)
    np.testing.assert_array_equal(one[0].b, one[1].b)
    np.testing.assert_array_equal(one[1].v, 0)
    data = synthetic(iid=True, alpha=0.0, beta=0.0)
    inputs = data.train["inputs"]
    assert (np.abs(inputs.mean(0)) < 5 * np.arange(1, 61) ** -0.6 / np.sqrt(len(inputs))).all()
    assert data.source == "Synthetic iid"


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"alpha": -1.0}, ["alpha: -1.0", "at least 0"]),
        ({"beta": float("nan")}, ["beta: nan"]),
        ({"beta": 1e300}, ["beta: 1e+300 is over 1e+06", "give less"]),
        ({"clients": 0}, ["clients: 0"]),
        ({"clients": 10**12}, ["clients: 1000000000000 have 50000000000000 examples or more", "lower clients"]),
        ({"seed": -1}, ["seed: -1"]),
    ],
)
def test_what_synthetic_refuses(options: dict, parts: list[str]) -> None:
    with pytest.raises(InputError) as error:
        synthetic(**options)
    one_line(error, *parts)


def test_fcube_is_four_pairs_of_octants() -> None:
    data = fcube(seed=1)
    inputs, labels, owners = data.train["inputs"], data.train["labels"], data.columns["client"]
    assert (inputs.shape, inputs.dtype, labels.dtype) == ((4000, 3), np.float32, np.int32)
    assert (data.classes, data.input_shape, data.test_columns) == (2, (3,), {})
    names, counts = np.unique(owners, return_counts=True)
    assert names.tolist() == [f"client_{i}" for i in range(4)]
    assert counts.tolist() == [1000] * 4
    seen = set()
    for name in names:
        mine, its = inputs[owners == name], labels[owners == name]
        assert np.bincount(its).tolist() == [500, 500]
        octants = [{tuple(signs) for signs in np.sign(mine[its == label]).astype(int).tolist()} for label in (0, 1)]
        (octant,), (mirror,) = octants
        assert octant[0] == 1
        assert mirror == tuple(-sign for sign in octant)
        seen |= {octant, mirror}
    assert len(seen) == 8


def test_fcube_is_uniform_and_labelled_by_the_first_sign() -> None:
    data = fcube(train=40_000, test=10_000, seed=2)
    for examples in (data.train, data.test):
        x = examples["inputs"]
        np.testing.assert_array_equal(examples["labels"], x[:, 0] < 0)
        assert 0 < np.abs(x).min() < np.abs(x).max() <= 1
        cells = np.histogramdd(x.astype(np.float64), bins=4, range=[(-1, 1)] * 3)[0]
        expected = len(x) / 64
        assert (np.abs(cells - expected) < 5 * np.sqrt(expected)).all()
    np.testing.assert_array_equal(data.test["inputs"], fcube(train=40_000, test=10_000, seed=2).test["inputs"])
    assert not np.array_equal(data.test["inputs"], fcube(train=40_000, test=10_000, seed=3).test["inputs"])


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"clients": 5}, ["clients: 5", "give 4"]),
        ({"clients": True}, ["clients: True", "give 4"]),
        ({"train": 7}, ["train: 7", "at least 8"]),
        ({"test": 0}, ["test: 0", "at least 1"]),
        ({"train": 10**12}, ["train: 1000000000000", "give fewer"]),
        ({"seed": 0.5}, ["seed: 0.5"]),
    ],
)
def test_what_fcube_refuses(options: dict, parts: list[str]) -> None:
    with pytest.raises(InputError) as error:
        fcube(**options)
    one_line(error, *parts)
