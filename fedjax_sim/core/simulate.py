"""Many rounds as one compiled program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_sim import _validate
from fedjax_sim.core.cohort import clients_in, select
from fedjax_sim.core.compile import tuned
from fedjax_sim.core.permute import enough_passes, permuted
from fedjax_sim.core.round import SAMPLE, stage_key
from fedjax_sim.core.types import Array, Cohort, Population, Procedural, PyTree, RoundMetrics

Source = Population | Procedural | Cohort
_Tables = tuple[Any, Any, Any]  # cohorts, most steps, turns: arrays [R, ...], or None


def sample_uniform(key: Array, num_clients: int, cohort_size: int) -> Array:
    """`cohort_size` distinct client ids drawn uniformly, int32[cohort_size]; costs nothing that grows with the
    population.

    Raises:
      InputError: more clients are asked for than there are.
    """
    _validate.whole("cohort_size", cohort_size)
    if cohort_size > num_clients:
        raise _validate.InputError(f"cohort_size: {cohort_size} is more than the {num_clients} clients; ask for fewer")
    positions, passes = jnp.arange(cohort_size, dtype=jnp.int32), enough_passes(num_clients)
    return permuted(key, jnp.int32(num_clients), positions, passes=passes, unroll=False)


def make_rounds(
    round_fn: Callable[..., tuple[Any, RoundMetrics]],
    *,
    cohort_size: int | None = None,
    max_rounds: int,
    watch: Callable[..., tuple[PyTree, PyTree]] | None = None,
    proceed: Callable[[PyTree], Array] | None = None,
) -> Callable[..., tuple[Any, RoundMetrics, PyTree, PyTree]]:
    """Up to `max_rounds` rounds as one function, not jitted yet.

    Args:
      round_fn: as in `make_simulation`, like the rest.
      cohort_size: `C`.
      max_rounds: `R`.
      watch: `(state, metrics, kept, examined, due bool[]) -> (kept, seen)`, called after each round.
      proceed: `kept -> bool[]`; False ends the call after this round, and the rows of those that follow stay zeros.

    Returns:
      `rounds_fn(state, kept, source, key, rounds, (cohorts, most_steps, turns), first, examined, due) -> (state, kept,
      metrics, seen)`. `kept` and `examined` are what `watch` carries and looks at, `due` bool[R] says when, and `seen`
      is what it returned, arrays [R, ...]; all () without it. The other arguments are those of `simulate`.
    """

    @jax.jit  # so that asking for its shapes and looping over it trace it once
    def one_round(state: Any, population: Source, key: Array, tables: _Tables, row: Array) -> tuple[Any, RoundMetrics]:
        cohorts, most_steps, turn = jax.tree.map(lambda table: table[row], tables)
        if isinstance(population, Cohort):
            indices, examples = population._replace(examples=()), population.examples
            cohort = jax.tree.map(lambda index: index[row], indices)._replace(examples=examples)
        elif cohorts is not None:
            cohort = select(population, cohorts)._replace(most_steps=most_steps)
        else:
            drawing = stage_key(key, state.round, SAMPLE)
            cohort = select(population, sample_uniform(drawing, clients_in(population), cohort_size or 0))
        return round_fn(state, cohort, key) if turn is None else round_fn(state, cohort, turn, key)

    @jax.jit
    def look(*given: Any) -> tuple[PyTree, PyTree]:
        return ((), ()) if watch is None else watch(*given)

    def program(
        state: Any,
        kept: PyTree,
        population: Source,
        key: Array,
        rounds: Array | int,
        tables: _Tables,
        first: Array | int,
        examined: PyTree,
        due: Any,
    ) -> tuple[Any, PyTree, RoundMetrics, PyTree]:
        def one(state: Any, kept: PyTree, i: Array) -> tuple[Any, PyTree, tuple[RoundMetrics, PyTree]]:
            state, metrics = one_round(state, population, key, tables, i + first)
            kept, seen = look(state, metrics, kept, examined, due[i] if watch is not None else ())
            return state, kept, (metrics, seen)

        shapes = jax.eval_shape(one, state, kept, jnp.int32(0))[2]
        history = jax.tree.map(lambda s: jnp.zeros((max_rounds, *s.shape), s.dtype), shapes)

        def body(i: Array, carry: tuple[Any, PyTree, PyTree]) -> tuple[Any, PyTree, PyTree]:
            state, kept, history = carry
            state, kept, found = one(state, kept, i)
            return state, kept, jax.tree.map(lambda h, m: h.at[i].set(m), history, found)

        def goes_on(carry: tuple[Array, tuple[Any, PyTree, PyTree]]) -> Array:
            i, (_, kept, _) = carry
            return (i < rounds) & (proceed is None or proceed(kept))

        start = (jnp.int32(0), (state, kept, history))
        _, (state, kept, (metrics, seen)) = lax.while_loop(goes_on, lambda c: (c[0] + 1, body(*c)), start)
        return state, kept, metrics, seen

    return program


def make_simulation(
    round_fn: Callable[..., tuple[Any, RoundMetrics]], *, cohort_size: int | None = None, max_rounds: int
) -> Callable[..., tuple[Any, RoundMetrics]]:
    """A run of up to `max_rounds` rounds as one jitted program: nothing returns to the host between them.

    Args:
      round_fn: from `make_round`, or `make_buffered_round`.
      cohort_size: `C`, clients drawn for a round on the device, uniformly without replacement, from `key` and the
        round's number, so that a run may be cut into calls anywhere. None where `simulate` is given the cohorts.
      max_rounds: rounds of a call at most.

    Returns:
      `simulate(state, population, key, rounds, cohorts=None, first=0, most_steps=None, turns=None) -> (state,
      metrics)`: `rounds <= max_rounds` more rounds; `metrics` have a leading axis of `max_rounds`, of which the first
      `rounds` are valid. `cohorts` int32[R, C] are the clients of rounds, -1 for an empty slot, of which row `first` is
      taken first, and `most_steps` int32[R, C] what each does at most. In place of the population a `Cohort` may be
      given whose index arrays are [R, C]: R cohorts in one slice of examples. A round from `make_buffered_round` takes
      `turns`, too, arrays [R, ...]. The state is donated.
    """
    _validate.whole("max_rounds", max_rounds)
    if cohort_size is not None:
        _validate.whole("cohort_size", cohort_size)
    program = tuned(make_rounds(round_fn, cohort_size=cohort_size, max_rounds=max_rounds), donate_argnums=0)

    def simulate(
        state: Any,
        population: Source,
        key: Array,
        rounds: Array | int,
        cohorts: Array | None = None,
        first: Array | int = 0,
        most_steps: Array | None = None,
        turns: Any = None,
    ) -> tuple[Any, RoundMetrics]:
        if isinstance(rounds, int) and not 0 <= rounds <= max_rounds:
            raise _validate.InputError(f"rounds: {rounds} is not in 0 to max_rounds, {max_rounds}; do fewer at once")
        table = population.ids if isinstance(population, Cohort) else cohorts
        if [cohort_size is not None, isinstance(population, Cohort), cohorts is not None].count(True) != 1:
            raise _validate.InputError(
                "cohorts: give either cohort_size to make_simulation, or cohorts or a Cohort to simulate, and one alone"
            )
        if table is not None:
            shape = jnp.shape(table)
            last = first + rounds if isinstance(first, int) and isinstance(rounds, int) else 0
            if len(shape) != 2 or last > shape[0]:
                raise _validate.InputError(
                    f"cohorts: shape {shape} for rows {first} to {last}; give client ids int32[R, C], one row a round"
                )
        state, _, metrics, _ = program(state, (), population, key, rounds, (cohorts, most_steps, turns), first, (), ())
        return state, metrics

    return simulate
