"""Calibration and ROC curves: by hand and against scikit-learn; groups of clients."""

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import one_line
from sklearn.metrics import roc_auc_score

from fedjax_sim import InputError
from fedjax_sim.core.calibrate import auc, ece, make_calibration
from fedjax_sim.data import from_clients
from fedjax_sim.experiment.clients import by_group
from fedjax_sim.experiment.config import explained, load_config, settings


def test_calibration_error_by_hand():
    """Confidences 0.9, 0.9, 0.6 and 0.6, of which the first, second and third are right: |1.8 - 2| and |1.2 - 1|."""
    sure, unsure = np.log([0.9, 0.1]), np.log([0.6, 0.4])
    logits, labels = jnp.asarray([sure, sure, unsure, unsure]), jnp.asarray([0, 0, 0, 1])
    assert float(ece(logits, labels)) == pytest.approx((0.2 + 0.2) / 4, abs=1e-6)
    exact = jnp.asarray([[50.0, 0.0], [0.0, 50.0]])
    assert float(ece(exact, jnp.asarray([0, 1]))) == pytest.approx(0, abs=1e-6)
    assert float(ece(exact, jnp.asarray([1, 0]))) == pytest.approx(1, abs=1e-6)


def test_calibration_error_of_many_is_that_of_their_bins():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(500, 4)).astype(np.float32) * 2, rng.integers(0, 4, 500)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    bins = np.digitize(shares.max(1), np.linspace(0, 1, 16)[1:-1], right=True)
    gap = np.bincount(bins, (shares.argmax(1) == labels) - shares.max(1), minlength=15)
    assert float(ece(jnp.asarray(logits), jnp.asarray(labels))) == pytest.approx(np.abs(gap).sum() / 500, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_the_area_under_the_curve_is_scikit_learns_ties_included(seed):
    rng = np.random.default_rng(seed)
    scores = np.round(rng.normal(size=301), 1).astype(np.float32)
    positive = rng.random(301) < 1 / (1 + np.exp(-scores))
    assert float(auc(jnp.asarray(scores), jnp.asarray(positive))) == pytest.approx(roc_auc_score(positive, scores))
    assert np.isnan(auc(jnp.asarray(scores), jnp.zeros(301, bool)))


def test_batches_change_nothing_and_two_classes_have_a_curve():
    rng = np.random.default_rng(0)
    examples = {"inputs": rng.normal(size=(23, 4)).astype(np.float32), "labels": rng.integers(0, 2, 23)}
    weights = jnp.asarray(rng.normal(size=(4, 2)), jnp.float32)
    logits = lambda params, inputs: inputs @ params  # noqa: E731
    at_once, in_parts = (make_calibration(logits, batch_size=size)(weights, examples) for size in (64, 5))
    assert at_once.keys() == {"ece", "auc"}
    for name, value in at_once.items():
        assert float(in_parts[name]) == pytest.approx(float(value))
    expected = roc_auc_score(examples["labels"], np.asarray(examples["inputs"] @ weights)[:, 1] - np.asarray(
        examples["inputs"] @ weights)[:, 0])  # fmt: skip
    assert float(at_once["auc"]) == pytest.approx(expected)
    with pytest.raises(InputError) as error:
        make_calibration(logits)(weights, {"inputs": examples["inputs"][:0], "labels": examples["labels"][:0]})
    one_line(error, "examples")


def test_clients_are_grouped_by_their_attributes():
    clients = [{"inputs": np.zeros((2, 3), np.float32), "labels": np.array([0, 1])} for _ in range(4)]
    data = from_clients(clients, classes=2)._replace(attributes={"site": np.array(["a", "b", "a", "b"])})
    rows = [{"client": i, "global_accuracy": i / 4, "personal_accuracy": 1.0} for i in (0, 1, 2)]
    assert by_group(rows, data) == {
        "site": {
            "a": {"clients": 2, "global_accuracy": 0.25, "personal_accuracy": 1.0},
            "b": {"clients": 1, "global_accuracy": 0.25, "personal_accuracy": 1.0},
        }
    }


def test_every_setting_is_explained_with_value_default_and_limits():
    config = load_config(None, ["training.rounds=7", 'network.profiles="lognormal"'])
    lines = explained(config).splitlines()
    assert len(lines) == 2 * len(settings(type(config)))
    place = lines.index("training.rounds = 7 (default 100)")
    assert lines[place + 1].strip().startswith("a whole number of at least 1 and of at most 1000000000")
    assert "algorithm.mu = not set" in lines
