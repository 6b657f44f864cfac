"""What is registered by name lowers for GPUs and TPUs, which takes none. Whole rounds of algorithms do in
`test_contract`, where they are traced anyway."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any, get_type_hints

import jax
import jax.numpy as jnp
import optax
import pytest
from conftest import ACCELERATORS, BATCH, loss_fn

import fedjax_sim as fs
from fedjax_sim import aggregators, messages
from fedjax_sim.attacks import MESSAGE_ATTACKS
from fedjax_sim.core.aggregate import Aggregator, mean
from fedjax_sim.core.buffered import Turn, init_buffered, make_buffered_round
from fedjax_sim.core.calibrate import make_calibration
from fedjax_sim.core.client import Message
from fedjax_sim.core.evaluate import make_evaluation
from fedjax_sim.core.message import Transform
from fedjax_sim.core.rewrite import quick
from fedjax_sim.messages import COMPRESSORS, compressed_broadcast, compressed_messages
from fedjax_sim.models import MODELS, build_model, from_logits
from fedjax_sim.models.classifiers import INPUTS
from fedjax_sim.privacy import MECHANISMS, GuaranteeWarning, privatize, privatize_examples

CLIENTS, COHORT = 4, 3
FEATURES, CLASSES = 12, 8  # a matrix that a low rank makes smaller


def shaped(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


PARAMS = {"kernel": shaped(FEATURES, CLASSES), "bias": shaped(CLASSES)}
EXAMPLES = {"inputs": shaped(20, FEATURES), "labels": shaped(20, dtype=jnp.int32)}
PEOPLE = fs.Population(EXAMPLES, shaped(CLIENTS + 1, dtype=jnp.int32))
IDS = shaped(COHORT, dtype=jnp.int32)
KEY = jax.eval_shape(lambda: jax.random.key(0))


@pytest.fixture(autouse=True)
def _on_a_gpu(monkeypatch):
    """Layers have a form for CPUs, which they choose by this when they are traced."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def lower(function: Callable[..., Any], *arguments: Any) -> None:
    """For all accelerators at once: tracing is most of it."""
    jax.jit(function).trace(*arguments).lower(lowering_platforms=ACCELERATORS)


def rows(tree: Any, count: int = COHORT) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), tree)


def made(factory: Callable[..., Any]) -> Any:
    """With a plain value for whatever has no default."""
    values = {Transform: messages.top_k(0.5), Aggregator: mean()}
    hints, needed = get_type_hints(factory), inspect.signature(factory).parameters.values()
    missing = [parameter.name for parameter in needed if parameter.default is parameter.empty]
    return factory(*[values.get(hints[name], 0.5) for name in missing])


def of_kind(package: Any, kind: Any) -> dict[str, Callable[..., Any]]:
    """All of its factories of that kind."""
    functions = {name: getattr(package, name) for name in package.__all__ if inspect.isfunction(getattr(package, name))}
    return {name: function for name, function in functions.items() if get_type_hints(function).get("return") is kind}


def test_what_has_no_form_there_is_found():
    with pytest.raises(NotImplementedError, match="schur"):
        lower(jax.lax.linalg.schur, jax.ShapeDtypeStruct((3, 3), jnp.float32))


@pytest.mark.parametrize("name", MODELS)
def test_models_lower_as_they_are_written_and_rewritten(name):
    """The gradients of clients with parameters of their own, and the metrics."""
    shape = {"numbers": (5,), "images": (8, 8, 1), "codes": (4,)}[INPUTS[name]]
    batch = {"inputs": shaped(2, *shape, dtype=jnp.uint8), "labels": shaped(2, dtype=jnp.int32)}
    model, kinds = build_model(name, shape, CLASSES, hidden=(3, 3)), {}

    def gradient(params, batch, key):
        return jax.grad(lambda params, batch: model.loss_fn(params, batch, key).sum())(params, batch)

    def step(params, batch, key):
        return jax.vmap(gradient, (0, 0, None))(params, batch, key)

    for train in (step, quick(step, arranged=False)):

        def both(params, batch, key, train=train):
            return train(params, batch, key), jax.vmap(model.metric_fn)(params, batch)

        params = jax.eval_shape(lambda: model.params)
        with jax.default_matmul_precision("float32"):
            traced = jax.jit(both).trace(rows(params), rows(batch), KEY)
        kinds[str(traced.jaxpr)] = traced
    for traced in kinds.values():  # one, where there are no convolutions
        text = traced.lower(lowering_platforms=ACCELERATORS).as_text()
        products = [line for line in text.splitlines() if "stablehlo.dot" in line or "stablehlo.convolution" in line]
        assert products
        assert all("HIGHEST" in line for line in products)  # none but takes the precision that is asked for
        assert "scatter" not in text


TRANSFORMS = COMPRESSORS | of_kind(messages, Transform)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_of_messages_lower(name):
    transform = made(TRANSFORMS[name])
    memory = jax.eval_shape(transform.init, PARAMS)
    lower(jax.vmap(transform.update, (0, 0, None)), rows(PARAMS), rows(memory), KEY)


AGGREGATORS = of_kind(aggregators, Aggregator)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_aggregators_lower(name):
    rule = made(AGGREGATORS[name])

    def whole(sent, ids, sizes, key):
        received, weights = rule.receive(sent, ids, sizes, key)
        start = rule.init(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:]), sent))
        return rule.finish(rule.add(start, received, weights))

    lower(whole, rows(Message(PARAMS)), IDS, shaped(COHORT), KEY)


@pytest.mark.parametrize("name", MESSAGE_ATTACKS)
def test_attacks_on_messages_lower(name):
    there = shaped(COHORT, dtype=jnp.bool_)
    lower(made(MESSAGE_ATTACKS[name]).forge, rows(PARAMS), IDS, there, there, KEY)


def lower_round(algorithm: fs.Algorithm, **options: Any) -> None:
    round_fn = fs.make_round(algorithm, batch_size=BATCH, local_steps=1, lanes=2, **options)
    state = jax.eval_shape(lambda: fs.init(algorithm, zeros(PARAMS), CLIENTS))
    lower(lambda state, people, ids, key: round_fn(state, fs.select(people, ids), key), state, PEOPLE, IDS, KEY)


def zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


@pytest.mark.parametrize("name", MECHANISMS)
def test_private_rounds_lower(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GuaranteeWarning)
        private = privatize(AVERAGING, num_clients=CLIENTS, cohort_size=COHORT, clip_norm=1.0, mechanism=name,
                            sampling="all", noise_multiplier=1.0, epsilon=9.0, rounds=4, params=zeros(PARAMS),
                            guarantee="none")  # fmt: skip
    lower_round(private.algorithm)


AVERAGING = fs.fedavg(loss_fn, client_tx=optax.sgd(0.1))


def test_a_round_of_private_steps_lowers():
    private = privatize_examples(fs.fedavg, loss_fn, client_tx=optax.sgd(0.1), sizes=[5] * CLIENTS, cohort_size=COHORT,
                                 batch_size=BATCH, local_steps=1, clip_norm=1.0, noise_multiplier=1.0)  # fmt: skip
    lower_round(private.algorithm, local_sampling=private.local_sampling)


def test_the_compressed_round_of_a_server_that_waits_for_nobody_lowers():
    algorithm = compressed_broadcast(compressed_messages(AVERAGING, messages.qsgd()), messages.top_k(0.5))
    round_fn = make_buffered_round(algorithm, batch_size=BATCH, local_steps=1, lanes=2)
    state = jax.eval_shape(lambda: init_buffered(algorithm, zeros(PARAMS), CLIENTS, places=COHORT, versions=2))
    turn = Turn(*[shaped(COHORT, dtype=jnp.int32)] * len(Turn._fields))
    lower(lambda state, people, ids, turn, key: round_fn(state, fs.select(people, ids), turn, key),
          state, PEOPLE, IDS, turn, KEY)  # fmt: skip


def test_evaluations_lower():
    def logits(params, inputs):
        return inputs @ params["kernel"] + params["bias"]

    evaluate, calibrate = (
        make_evaluation(from_logits(PARAMS, logits).metric_fn, classes=CLASSES),
        make_calibration(logits),
    )
    of_clients = fs.make_client_evaluation(AVERAGING, from_logits(PARAMS, logits).metric_fn, batch_size=BATCH, lanes=2)
    state = jax.eval_shape(lambda: fs.init(AVERAGING, zeros(PARAMS), CLIENTS))

    def all_of_them(state, people, ids, key):
        cohort = fs.select(people, ids)
        return (evaluate(state.params, people.examples), calibrate(state.params, people.examples),
                of_clients(state, cohort, cohort, key))  # fmt: skip

    lower(all_of_them, state, PEOPLE, IDS, KEY)
