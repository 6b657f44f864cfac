"""Many rounds as one compiled program, and evaluation."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_sim import _validate
from fedjax_sim.core.permute import permuted
from fedjax_sim.core.round import SAMPLE, RoundFn, select, stage_key
from fedjax_sim.core.types import Array, Population, PyTree, RoundMetrics, RoundState


def sample_uniform(key: Array, num_clients: int, cohort_size: int) -> Array:
    """`cohort_size` distinct client ids drawn uniformly, int32[cohort_size]; costs nothing that grows with the
    population.

    Raises:
      InputError: more clients are asked for than there are.
    """
    _validate.whole("cohort_size", cohort_size)
    if cohort_size > num_clients:
        raise _validate.InputError(f"cohort_size: {cohort_size} is more than the {num_clients} clients; ask for fewer")
    return permuted(key, jnp.int32(num_clients), jnp.arange(cohort_size, dtype=jnp.int32), unroll=False)


def make_simulation(
    round_fn: RoundFn, *, cohort_size: int, max_rounds: int
) -> Callable[[RoundState, Population, Array, Array | int], tuple[RoundState, RoundMetrics]]:
    """A run of up to `max_rounds` rounds as one jitted program: cohorts are drawn on the device, nothing returns
    between.

    Returns:
      `simulate(state, population, key, rounds) -> (state, metrics)`: `rounds <= max_rounds` more rounds; `metrics` have
      a leading axis of `max_rounds`, of which the first `rounds` are valid. The state is donated. Cohorts are uniform
      without replacement, drawn from `key` and the round's number, so a run may be cut into calls anywhere.
    """
    _validate.whole("cohort_size", cohort_size)
    _validate.whole("max_rounds", max_rounds)

    @jax.jit  # so that asking for its shapes and looping over it trace it once
    def one_round(state: RoundState, population: Population, key: Array) -> tuple[RoundState, RoundMetrics]:
        num_clients = population.offsets.shape[0] - 1
        ids = sample_uniform(stage_key(key, state.round, SAMPLE), num_clients, cohort_size)
        return round_fn(state, select(population, ids), key)

    @partial(jax.jit, donate_argnums=0)
    def program(
        state: RoundState, population: Population, key: Array, rounds: Array | int
    ) -> tuple[RoundState, RoundMetrics]:
        shapes = jax.eval_shape(one_round, state, population, key)[1]
        history = jax.tree.map(lambda s: jnp.zeros((max_rounds, *s.shape), s.dtype), shapes)

        def body(i: Array, carry: tuple[RoundState, RoundMetrics]) -> tuple[RoundState, RoundMetrics]:
            state, history = carry
            state, metrics = one_round(state, population, key)
            return state, jax.tree.map(lambda h, m: h.at[i].set(m), history, metrics)

        return lax.fori_loop(0, rounds, body, (state, history))

    def simulate(
        state: RoundState, population: Population, key: Array, rounds: Array | int
    ) -> tuple[RoundState, RoundMetrics]:
        if isinstance(rounds, int) and not 0 <= rounds <= max_rounds:
            raise _validate.InputError(f"rounds: {rounds} is not in 0 to max_rounds, {max_rounds}; do fewer at once")
        return program(state, population, key, rounds)

    return simulate


def make_evaluation(
    metric_fn: Callable[[PyTree, PyTree], dict[str, Array]], *, batch_size: int = 256
) -> Callable[[PyTree, PyTree], dict[str, Array]]:
    """Means of per-example metrics over a data set, in batches, jitted.

    Args:
      metric_fn: `(params, batch) -> {name: f32[B]}`.
      batch_size: examples at once; the last batch may hold fewer.

    Returns:
      `evaluate(params, examples [total, ...]) -> {name: f32[]}`.

    Raises:
      InputError: from `evaluate`, examples of no or of different length, or a metric that is not one value per example.
    """
    _validate.whole("batch_size", batch_size)

    @jax.jit
    def evaluate(params: PyTree, examples: PyTree) -> dict[str, Array]:
        total = _validate.leading("examples", examples)
        size = min(batch_size, total)

        def batch(first: Array) -> dict[str, Array]:
            rows = first + jnp.arange(size)
            values = metric_fn(params, jax.tree.map(lambda x: x.at[rows].get(mode="clip"), examples))
            for name, value in values.items():
                _validate.per_example(f"metric_fn: {name}", value, size, what="value")
            return {name: jnp.sum(jnp.where(rows < total, value, 0)) for name, value in values.items()}

        sums = lax.map(batch, jnp.arange(0, total, size))
        return {name: value.sum() / total for name, value in sums.items()}

    return evaluate
