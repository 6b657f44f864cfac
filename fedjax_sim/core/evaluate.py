"""How good models are: one on a test set, and each client's own on its own examples, before and after adapting."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_sim import _validate
from fedjax_sim.core import execute
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import planned_steps
from fedjax_sim.core.collect import Item, Work, local_data, only
from fedjax_sim.core.devices import split_rows
from fedjax_sim.core.rewrite import suited
from fedjax_sim.core.round import ADAPT, as_key, default_lanes, make_items, stage_key, wrapper
from fedjax_sim.core.types import Array, Cohort, PyTree, RoundState

MetricFn = Callable[[PyTree, PyTree], dict[str, Array]]  # (model, batch) -> {name: f32[B]}


def _values(metric_fn: MetricFn, model: PyTree, batch: PyTree, counts: Array) -> dict[str, Array]:
    """Each metric of a batch, 0 in the rows that do not count."""
    values = metric_fn(model, batch)
    for name, value in values.items():
        _validate.per_example(f"metric_fn: {name}", value, counts.shape[0], what="value")
    return {name: jnp.where(counts, value, 0) for name, value in values.items()}


def _rows(examples: PyTree, rows: Array) -> PyTree:
    return jax.tree.map(lambda x: x.at[rows].get(mode="clip"), examples)


def make_evaluation(
    metric_fn: MetricFn, *, batch_size: int = 256, classes: int | None = None, devices: Sequence[Any] = ()
) -> Callable[[PyTree, PyTree], dict[str, Array]]:
    """Means of per-example metrics over a data set, in batches, jitted.

    Args:
      metric_fn: `(params, batch) -> {name: f32[B]}`.
      batch_size: examples at once; the last batch may hold fewer.
      classes: number of classes of the field "labels"; given, each metric is also averaged class by class.
      devices: that share each batch, where this is part of a program that runs on several.

    Returns:
      `evaluate(params, examples [total, ...]) -> {name: f32[]}`, and with `classes` also `{"class_" + name:
      f32[classes]}`, NaN for a class without examples.

    Raises:
      InputError: from `evaluate`, examples of no or of different length, or a metric that is not one value per example.
    """
    _validate.whole("batch_size", batch_size)

    @jax.jit
    def evaluate(params: PyTree, examples: PyTree) -> dict[str, Array]:
        total = _validate.leading("examples", examples)
        size = min(batch_size, total)
        parts = max(1, len(devices))
        parts = parts if size % parts == 0 else 1  # each device adds up its own, and all once at the end

        def added(values: Array) -> Array:
            return split_rows(values.reshape((*values.shape[:-1], parts, -1)).sum(-1).T, devices if parts > 1 else ())

        def sums(first: Array) -> tuple[dict[str, Array], dict[str, Array], Array]:
            rows = split_rows(first + jnp.arange(size), devices)
            batch = _rows(examples, rows)
            values = _values(metric_fn, params, batch, rows < total)
            plain = jax.tree.map(added, values)
            if classes is None:
                return plain, {}, jnp.zeros(1)
            of_class = jnp.where(rows < total, jax.nn.one_hot(batch["labels"], classes, axis=0), 0)
            return plain, {name: added(of_class * value) for name, value in values.items()}, added(of_class)

        quick_sums = suited(sums, jax.local_devices())
        found = lax.map(quick_sums, jnp.arange(0, total, size))
        plain, by_class, count = jax.tree.map(lambda x: x.sum((0, 1)), found)
        means = {name: value / total for name, value in plain.items()}
        return means | {f"class_{name}": value / count for name, value in by_class.items()}

    return evaluate


class ClientScores(NamedTuple):
    """Each client's means over its own test examples; arrays [C] in the cohort's order, 0 where it has none."""

    examples: Array  # int32[C], own test examples
    before: dict[str, Array]  # of the global model
    after: dict[str, Array]  # of the client's own model, adapted to its own training examples


def make_client_evaluation(
    algorithm: Algorithm,
    metric_fn: MetricFn,
    *,
    batch_size: int,
    local_epochs: int = 1,
    local_steps: int | None = None,
    lanes: int | None = None,
    devices: Sequence[Any] | None = None,
) -> Callable[[RoundState, Cohort, Cohort, Array], ClientScores]:
    """What the federation is worth to each of its clients: the global model and the personal one on its own test rows.

    Args:
      algorithm: whose `personal` says what a client predicts with.
      metric_fn: `(model, batch) -> {name: f32[B]}`.
      batch_size: `B`, of adapting as of testing.
      local_epochs: passes over its own examples that a client adapts for.
      local_steps: steps of adapting, instead of epochs.
      lanes: clients at once on a device, as in `make_round`.
      devices: as in `make_round`.

    Returns:
      `evaluate(state, cohort, tests, key) -> ClientScores`, not jitted yet. `tests` is the cohort of the same clients
      in the population of test examples: `select(data.local_test, ids)`. Nothing in the state changes.

    Raises:
      InputError: a setting out of range, or an algorithm that does not say what is personal.
    """
    _validate.local_work(batch_size, local_epochs, local_steps)
    _validate.hardware(lanes, devices)
    personal = algorithm.personal
    if personal is None:
        raise _validate.InputError("algorithm: it has no `personal`; say what a client predicts with after adapting")
    plan = partial(planned_steps, batch_size=batch_size, local_epochs=local_epochs, local_steps=local_steps)

    def evaluate(state: RoundState, cohort: Cohort, tests: Cohort, key: Array) -> ClientScores:
        cohort, tests = jax.tree.map(jnp.asarray, (cohort, tests))
        if tests.ids.shape != cohort.ids.shape:
            shapes = f"{cohort.ids.shape[0]} clients and test rows of {tests.ids.shape[0]}"
            raise _validate.InputError(f"tests: {shapes}; select the same ids from both populations")
        where, key = list(devices) if devices is not None else jax.local_devices()[:1], as_key(key)
        adapt_key = stage_key(key, state.round, ADAPT)
        items = make_items(cohort, plan, adapt_key, adapt_key)
        work = Work(cohort.examples, batch_size, False, lanes or default_lanes(cohort.ids.shape[0], where), where,
                    wrapper(key), equal=local_steps is not None)  # fmt: skip
        sizes = jnp.where(cohort.ids >= 0, tests.sizes, 0)
        shared = (algorithm.server.broadcast(state.params, state.server), state.params, state.clients, cohort.examples,
                  tests.examples)  # fmt: skip

        def test(model: PyTree, examples: PyTree, start: Array, size: Array) -> dict[str, Array]:
            def batch(index: Array, sums: dict[str, Array]) -> dict[str, Array]:
                place = index * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
                counts = place < size
                values = _values(metric_fn, model, _rows(examples, start + jnp.where(counts, place, 0)), counts)
                return {name: sums[name] + value.sum() for name, value in values.items()}

            rows = jnp.zeros(batch_size, jnp.int32)
            shapes = jax.eval_shape(lambda: _values(metric_fn, model, _rows(examples, rows), rows > 0))
            zero = {name: jnp.zeros((), value.dtype) for name, value in shapes.items()}
            sums = lax.fori_loop(0, -(-size // batch_size), batch, zero)
            return {name: value / jnp.maximum(size, 1) for name, value in sums.items()}

        def block(acc: PyTree, shared: PyTree, lanes: Any, own: PyTree, filled: Array) -> tuple[PyTree, PyTree, PyTree]:
            broadcast, params, clients, examples, test_examples = shared
            lanes = (only(filled, lanes[0]), *lanes[1:])

            def one(lane: tuple[Item, Array, Array]) -> tuple[PyTree, PyTree]:
                item, start, size = lane
                own = execute.rows_of(clients, item.rows)
                data = local_data(item, examples, filled.shape[0], work)
                model = personal(broadcast, own, data, data.key)
                return test(params, test_examples, start, size), test(model, test_examples, start, size)

            return acc, own, suited(partial(execute.over_lanes, one), where)(lanes)

        costs = items.steps + -(-sizes // batch_size)
        lanes_of = (items, tests.starts, sizes)
        _, _, (before, after) = execute.fold(
            block, (), (), shared, lanes_of, items.rows, costs, lanes=work.lanes, devices=where
        )
        return ClientScores(sizes, before, after)

    return evaluate
