"""Bad input: an `InputError` of one line that names the field and the value."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import SIZES, loss_fn, make_algorithm

import fedjax_sim as fs
from fedjax_sim.core.simulate import sample_uniform
from fedjax_sim.core.tune import tune_lanes
from fedjax_sim.experiment.config import parse_config
from fedjax_sim.messages import add_laplace, clip, top_k
from fedjax_sim.models import build_model
from fedjax_sim.privacy import bare_laplace, laplace

KEY = jax.random.key(0)
N = len(SIZES)


def refuses(function, *parts):
    """Calling `function` raises an InputError of one line that holds all `parts`."""
    with pytest.raises(fs.InputError) as caught:
        function()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["batch_size", "local_epochs", "local_steps", "lanes"])
@pytest.mark.parametrize("value", [0, -3, 2.5, True, "4", [1]])
def test_counts_of_make_round(name, value):
    settings: dict[str, Any] = {"batch_size": 4} | {name: value}
    refuses(lambda: fs.make_round(make_algorithm("fedavg"), **settings), f"{name}: {value!r}", "whole number")


def test_numpy_integers_are_counts():
    fs.make_round(make_algorithm("fedavg"), batch_size=np.int64(4))  # type: ignore[arg-type]


def test_other_settings_of_make_round():
    def make(**settings: Any):
        return lambda: fs.make_round(make_algorithm("fedavg"), **{"batch_size": 4, **settings})

    refuses(make(client_losses="all"), "client_losses: 'all'", "steps, examples")
    refuses(make(devices=[]), "devices: []")
    refuses(make(batch_size=None), "batch_size: None")


WEIGHTED = [name for name, make in fs.ALGORITHMS.items() if "weighting" in inspect.signature(make).parameters]


@pytest.mark.parametrize("name", WEIGHTED)
def test_weighting_of_the_algorithms(name):
    refuses(lambda: make_algorithm(name, weighting="size"), "weighting: 'size'", "examples, uniform")


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5, float("nan"), True, "0.1", None])
def test_fraction_of_top_k(fraction):
    refuses(lambda: top_k(fraction), f"fraction: {fraction!r}")
    refuses(lambda: make_algorithm("fedavg_topk", fraction=fraction), f"fraction: {fraction!r}")


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), None, "much", 1j])
def test_positive_numbers_of_transforms(value):
    refuses(lambda: clip(value), f"clip_norm: {value!r}", "finite number over 0")
    refuses(lambda: add_laplace(value), f"scale: {value!r}", "finite number over 0")
    refuses(lambda: laplace(epsilon=value, clip_norm=1.0), f"epsilon: {value!r}", "finite number over 0")
    refuses(lambda: laplace(epsilon=1.0, clip_norm=value), f"clip_norm: {value!r}", "finite number over 0")
    refuses(lambda: bare_laplace(value), f"epsilon: {value!r}", "finite number over 0")  # and it warns of nothing


def test_order_of_a_norm():
    refuses(lambda: clip(1.0, order=3), "order: 3", "1, 2")
    refuses(lambda: clip(1.0, order="2"), "order: '2'")  # type: ignore[arg-type]


# --- the initial model -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("leaf", "dtype"),
    [
        (jnp.arange(3), "int32"),
        (jnp.ones(2, bool), "bool"),
        (jnp.ones(2, jnp.complex64), "complex64"),
        (KEY, "key<fry>"),
        (1.5, "float"),
        ("a", "str"),
    ],
)
def test_parameters_that_cannot_be_trained(leaf, dtype):
    algorithm = make_algorithm("fedavg")
    params = {"deep": [jnp.ones(2), {"leaf": leaf}]}
    refuses(lambda: fs.init(algorithm, params, 3), f"params['deep'][1]['leaf']: {dtype}")
    variables = fs.Variables({"w": jnp.ones(2)}, {"leaf": leaf})
    refuses(lambda: fs.init(algorithm, variables, 3), f"params.statistics['leaf']: {dtype}")


@pytest.mark.parametrize("params", [{}, None, [], {"a": ()}])
def test_parameters_that_hold_nothing(params):
    refuses(lambda: fs.init(make_algorithm("fedavg"), params, 3), "params: it holds no arrays")


@pytest.mark.parametrize("value", [0, -1, 2.0, "6", None])
def test_counts_of_init(federation, value):
    algorithm = make_algorithm("fedavg")
    refuses(lambda: fs.init(algorithm, federation.params, value), f"num_clients: {value!r}")
    if value is not None:
        refuses(lambda: fs.init(algorithm, federation.params, N, memory_rows=value), f"memory_rows: {value!r}")


# --- what a round is given -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def given(federation):
    """A round that is never compiled, its state, and a cohort."""
    algorithm = make_algorithm("fedavg")
    round_fn = fs.make_round(algorithm, batch_size=4)
    state = fs.init(algorithm, federation.params, N)
    return lambda cohort: jax.eval_shape(round_fn, state, cohort, KEY), fs.select(federation.population, jnp.arange(3))


@pytest.mark.parametrize("name", ["ids", "starts", "sizes", "rows"])
def test_cohorts_of_the_wrong_shape_or_dtype(given, name):
    run, cohort = given
    values = getattr(cohort, name)
    run(cohort)
    refuses(lambda: run(cohort._replace(**{name: values[:2]})), "cohort: shapes", f"'{name}': (2,)")
    refuses(lambda: run(cohort._replace(**{name: values[None]})), "cohort: shapes", f"'{name}': (1, 3)")
    refuses(lambda: run(cohort._replace(**{name: values.astype(float)})), f"cohort.{name}: dtype float32")
    refuses(lambda: run(cohort._replace(**{name: values > 0})), f"cohort.{name}: dtype bool")


def test_a_cohort_of_no_slots(given, federation):
    run, _ = given
    refuses(lambda: run(fs.select(federation.population, jnp.zeros(0, jnp.int32))), "cohort: shapes", "(0,)", "C >= 1")


@pytest.mark.parametrize(("extra", "named"), [(jnp.ones(5), "(5,)"), (jnp.ones(()), "()"), (jnp.ones((0, 3)), "(0,)")])
def test_examples_of_different_lengths(given, extra, named):
    run, cohort = given
    refuses(lambda: run(cohort._replace(examples=cohort.examples | {"extra": extra})), "cohort.examples", named)


def test_no_examples(given):
    run, cohort = given
    refuses(lambda: run(cohort._replace(examples={})), "cohort.examples: leading axes []")
    refuses(lambda: run(cohort._replace(examples={"inputs": jnp.ones((0, 5))})), "cohort.examples", "(0,)")


LOSSES = {
    "a mean over the batch": (lambda losses: losses.mean(), "float32[]"),
    "a column": (lambda losses: losses[:, None], "float32[4, 1]"),
    "another length": (lambda losses: losses[:3], "float32[3]"),
    "integers": (lambda losses: losses.astype(jnp.int32), "int32[4]"),
    "nothing": (lambda losses: None, "None"),
    "a pair": (lambda losses: (losses, {}), "tuple"),
    "a number": (lambda losses: 1.0, "float"),
}


@pytest.mark.parametrize("kind", list(LOSSES))
@pytest.mark.parametrize("name", ["fedavg", "scaffold", "mime", "perfedavg"])
def test_losses_that_are_not_one_per_example(federation, name, kind):
    change, given = LOSSES[kind]
    loss = lambda params, batch, key: change(loss_fn(params, batch, key))  # noqa: E731
    algorithm = fs.ALGORITHMS[name](loss, client_tx=optax.sgd(0.1))
    state = fs.init(algorithm, federation.params, N)
    cohort = fs.select(federation.population, jnp.arange(3))
    round_fn = fs.make_round(algorithm, batch_size=4)
    refuses(lambda: jax.eval_shape(round_fn, state, cohort, KEY), "loss_fn", given, "float[4]", "one loss per example")


# --- runs, evaluation, lanes and devices -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3", []])
def test_counts_of_runs_and_evaluation(federation, value: Any):
    round_fn = fs.make_round(make_algorithm("fedavg"), batch_size=4)
    refuses(lambda: fs.make_simulation(round_fn, cohort_size=value, max_rounds=1), f"cohort_size: {value!r}")
    refuses(lambda: fs.make_simulation(round_fn, cohort_size=1, max_rounds=value), f"max_rounds: {value!r}")
    refuses(lambda: fs.make_evaluation(lambda params, batch: {}, batch_size=value), f"batch_size: {value!r}")
    refuses(lambda: sample_uniform(KEY, 6, value), f"cohort_size: {value!r}")


def test_more_clients_per_round_than_there_are(federation):
    algorithm = make_algorithm("fedavg")
    simulate = fs.make_simulation(fs.make_round(algorithm, batch_size=4), cohort_size=N + 1, max_rounds=1)
    state = fs.init(algorithm, federation.params, N)
    refuses(lambda: simulate(state, federation.population, KEY, 1), f"cohort_size: {N + 1}", f"{N} clients")


def test_lane_widths_to_try():
    def tune(widths):
        return lambda: tune_lanes(lambda lanes: None, None, None, KEY, widths)  # type: ignore[arg-type, return-value]

    refuses(tune([]), "widths: []")
    refuses(tune([0]), "widths: 0")


@pytest.mark.parametrize("value", [-1, 1.5, "2", True])
def test_number_of_cpu_devices(value):
    refuses(lambda: fs.use_cpu_devices(value), f"count: {value!r}")


def test_cpu_devices_asked_for_after_jax_has_started():
    assert len(jax.devices()) == 2
    with pytest.raises(RuntimeError, match="before") as caught:
        fs.use_cpu_devices(3)
    assert "\n" not in str(caught.value)
    assert len(jax.devices()) == 2


# --- models ----------------------------------------------------------------------------------------------------------


def test_arguments_of_build_model():
    def build(name="mlp", shape=(8, 8, 1), classes: Any = 3, **options: Any):
        return lambda: build_model(name, shape, classes, **options)

    refuses(build("alexnet"), "model: 'alexnet'", "logistic, mlp, mlp_norm, cnn, cnn_small")
    for value in (1, 0, 2.5, "3"):
        refuses(build(classes=value), f"classes: {value!r}", "at least 2")
    for value in (-1, 0.5, None):
        refuses(build(seed=value), f"seed: {value!r}", "at least 0")
    for value in (0, -2, 8.0, "8"):
        refuses(build(hidden=(4, value)), f"hidden: {value!r}")
    for shape in ((64,), (8, 8), (3, 8, 1), (8, 3, 1)):
        refuses(build("cnn", shape), "model.name: cnn", str(list(shape)), "take logistic, mlp")
        refuses(build("cnn_small", shape), "model.name: cnn_small", str(list(shape)))


@pytest.mark.parametrize("function", [clip, add_laplace, bare_laplace])
def test_digits_in_a_string_are_no_number(function):
    refuses(lambda: function("1"), "'1'")


def test_a_matrix_is_shown_on_one_line():
    refuses(lambda: clip(np.ones((2, 2))), "clip_norm")


def test_a_clip_norm_beyond_floats():
    refuses(lambda: clip(10**400), "clip_norm")


def test_no_cpu_devices_at_all():
    refuses(lambda: fs.use_cpu_devices(0), "count: 0")


@pytest.mark.parametrize("shape", [(0,), (-3,), (3.5,), 3])
def test_input_shapes_that_are_none(shape):
    refuses(lambda: build_model("mlp", shape, 3), "input_shape")


def test_images_without_channels():
    refuses(lambda: build_model("cnn_small", (8, 8, 0), 3), "input_shape")


def test_a_model_name_that_is_no_string():
    refuses(lambda: build_model(["mlp"], (3,), 3), "model: ['mlp']")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "examples",
    [{}, {"x": np.ones((0, 2), np.float32)}, {"x": np.ones((5, 2), np.float32), "y": np.ones(4, np.float32)}],
)
def test_examples_of_an_evaluation(examples):
    evaluate = fs.make_evaluation(lambda params, batch: {name: jnp.ones(len(v)) for name, v in batch.items()})
    refuses(lambda: evaluate({}, examples), "examples")


def test_a_metric_that_is_not_one_per_example():
    evaluate = fs.make_evaluation(lambda params, batch: {"loss": batch["x"].mean()})
    refuses(lambda: evaluate({}, {"x": jnp.ones((5, 2))}), "loss", "float32[]")


# --- numbers that float32 makes others of -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"algorithm": {"learning_rate": 1e-50}}, ("algorithm.learning_rate: 1e-50", "0 in float32")),
        ({"algorithm": {"server_learning_rate": 1e-40}}, ("algorithm.server_learning_rate: 1e-40", "0 in float32")),
        ({"algorithm": {"momentum": 1 - 1e-12}}, ("algorithm.momentum: 0.999", "1 in float32")),
        ({"algorithm": {"name": "fedadam", "beta2": 1 - 1e-12}}, ("algorithm.beta2: 0.999", "1 in float32")),
        ({"algorithm": {"mu": 1e-300}}, ("algorithm.mu: 1e-300", "0 in float32")),
        ({"privacy": {"clip_norm": 1e-39}}, ("privacy.clip_norm: 1e-39", "0 in float32")),
        ({"attack": {"scale": 1e-60}}, ("attack.scale: 1e-60", "0 in float32")),
    ],
)
def test_settings_that_float32_makes_others_of(settings, words):
    refuses(lambda: parse_config(settings), *words)


def test_numbers_that_float32_makes_others_of():
    refuses(lambda: clip(1e-50), "clip_norm: 1e-50", "0 in float32")
    refuses(lambda: clip(1e50), "clip_norm: 1e+50", "infinite in float32")
    refuses(lambda: make_algorithm("fedprox", mu=1e-46), "mu: 1e-46", "0 in float32")
    refuses(lambda: make_algorithm("fedavgm", server_momentum=1 - 1e-9), "server_momentum: 0.999999999", "1 in float32")
    clip(np.finfo(np.float32).tiny)
    clip(np.float32(3.4e38))
    make_algorithm("fedavgm", server_momentum=0.9999999)
    assert parse_config({"algorithm": {"learning_rate": 1e-30, "mu": 0.0}}).algorithm.learning_rate == 1e-30
    assert parse_config({"heterogeneity": {"flip": 1 - 1e-12}}).heterogeneity.flip < 1  # which may be 1
