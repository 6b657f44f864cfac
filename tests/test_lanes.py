"""A block of unequal lanes narrows as they finish: fewer steps are executed, and the results stay the same."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import optax
import pytest
from conftest import BATCH, RATE, SIZES, assert_close, assert_equal, loss_fn, make_federation

import fedjax_sim as fs
from fedjax_sim.core import lanes

SORTED = [9, 7, 7, 3, 2, 1, 1, 0]
TIMES = {
    "sorted": SORTED,
    "not sorted": [1, 9, 0, 3, 7, 7, 2, 1],
    "equal": [4] * 8,
    "one": [5, *[0] * 7],
    "nothing to do": [0] * 8,
}


@pytest.mark.parametrize("count", [1, 2, 5, 16, 20, 50, 200, 256, 1000])
def test_a_ladder_begins_with_all_lanes_and_ends_where_fewer_gain_nothing(count):
    widths = lanes.ladder(count)
    assert widths[0] == count
    assert all(wide <= 3 * narrow < wide + 3 for wide, narrow in pairwise(widths))
    assert len(widths) == 1 or 6 <= widths[-1] < 18
    assert len(widths) <= 5


def test_lane_steps_are_counted():
    assert lanes.lane_steps(SORTED, (8,)) == 8 * 9
    assert lanes.lane_steps(SORTED, (8, 4, 1)) == 8 * 2 + 4 * 5 + 1 * 2
    assert lanes.lane_steps(TIMES["not sorted"], (8, 4, 1)) == 8 * 7 + 4 * 2 + 0  # the longest is second
    assert lanes.lane_steps(TIMES["equal"], (8, 4, 1)) == 8 * 4
    assert lanes.lane_steps(TIMES["nothing to do"], (8, 4, 1)) == 0


@pytest.mark.parametrize("widths", [(8,), (8, 4, 1), (8, 3)])
@pytest.mark.parametrize("times", TIMES.values(), ids=list(TIMES))
def test_as_many_lane_steps_are_executed_as_are_counted(times, widths):
    executed = []

    def one(times):
        def step(index, carry):
            jax.debug.callback(lambda index: executed.append(int(index)), index + 0 * times)  # once for each lane
            return carry + index

        return lanes.repeat(step, jnp.int32(0), times, widths)

    sums = jax.jit(jax.vmap(one))(jnp.asarray(times, jnp.int32))
    jax.effects_barrier()
    assert_equal(sums, jnp.asarray([n * (n - 1) // 2 for n in times], jnp.int32))
    assert len(executed) == lanes.lane_steps(times, widths)


@pytest.mark.parametrize("times", TIMES.values(), ids=list(TIMES))
def test_every_lane_does_its_own_steps_with_what_is_its_own(times):
    """What a step refers to is of the lane or of all, keys included, and so is what the carry starts from."""
    keys, shared = jax.random.split(jax.random.key(1), 8), jnp.arange(3.0)
    scales = jnp.linspace(0.5, 1.5, 8)

    def one(key, scale, times, widths):
        def step(index, carry):
            x, count, drawn, _ = carry
            noise = jax.random.normal(jax.random.fold_in(key, index), (3,))
            return x * scale + noise + shared, count + 1, jax.random.fold_in(drawn, index), index

        start = (shared, 0, key, jnp.int32(-1))  # of all, weakly typed, and of the lane
        x, count, drawn, last = lanes.repeat(step, start, times, widths)
        return x, count, jax.random.key_data(drawn), last

    times = jnp.asarray(times, jnp.int32)
    found = jax.jit(jax.vmap(partial(one, widths=(8, 4, 2, 1))))(keys, scales, times)
    alone = jax.jit(partial(one, widths=(1,)))
    looped = [alone(keys[i], scales[i], times[i]) for i in range(8)]
    assert_close(found, jax.tree.map(lambda *lane: jnp.stack(lane), *looped))
    assert_equal(found[1], times)


def test_runs_that_are_mapped_over_leave_a_width_together():
    """Else a run whose lanes are equal would make those of another wait at full width for nothing."""
    times, executed = jnp.asarray([SORTED, [4] * 8, [8, 8, 8, 8, 0, 0, 0, 0]], jnp.int32), []

    def one(start, times):
        def step(index, carry):
            jax.debug.callback(lambda _: executed.append(1), index + 0 * times)
            return carry + index

        return lanes.repeat(step, start, times, (8, 4, 1))

    sums = jax.jit(jax.vmap(jax.vmap(one)))(jnp.zeros((3, 8), jnp.int32), times)
    jax.effects_barrier()
    assert_equal(sums, times * (times - 1) // 2)
    assert len(executed) == 3 * (8 * 4 + 4 * 4 + 1 * 1)  # widths are left after steps 4, 8 and 9


@pytest.fixture
def narrowing(monkeypatch):
    monkeypatch.setattr(lanes, "FACTOR", 2)
    monkeypatch.setattr(lanes, "NARROWEST", 1)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("mime", {}),  # a survey, the gradient over all examples
        pytest.param("scaffold", {"client_losses": "examples"}, marks=pytest.mark.slow),  # memory, the mean gradient
        pytest.param("fedavg", {"local_sampling": "poisson"}, marks=pytest.mark.slow),
        pytest.param("ifca", {}, marks=pytest.mark.slow),  # losses of several models within a lane
    ],
    ids=["survey", "full losses", "poisson", "clusters"],
)
def test_a_round_does_not_depend_on_it(narrowing, name, how):
    federation = make_federation()
    algorithm = fs.ALGORITHMS[name](loss_fn, client_tx=optax.sgd(RATE))
    cohort = fs.select(federation.population, jnp.asarray([3, 1, 4, -1, 0, 2], jnp.int32))
    state = fs.init(algorithm, federation.params, len(SIZES))

    def after(count):
        round_fn = fs.make_round(algorithm, batch_size=BATCH, local_epochs=2, lanes=count, **how)
        return jax.jit(round_fn)(state, cohort, jax.random.key(3))

    assert_close(after(4), after(1), atol=1e-5)


@pytest.mark.parametrize("given", [{"local_epochs": 1}, {"local_steps": 3}], ids=["epochs", "steps"])
def test_clients_of_equally_many_steps_stay_side_by_side(narrowing, given):
    federation, seen = make_federation(), []
    algorithm = fs.fedavg(loss_fn, client_tx=optax.sgd(RATE))

    def run(broadcast, memory, data, key):
        seen.append(data.widths)
        return algorithm.client.run(broadcast, memory, data, key)

    watched = algorithm._replace(client=algorithm.client._replace(run=run))
    state = fs.init(watched, federation.params, len(SIZES))
    whole = fs.select(federation.population, jnp.arange(4))
    for cohort, equal in ((whole, "local_steps" in given), (whole._replace(most_steps=jnp.full(4, 9)), False)):
        seen.clear()
        jax.eval_shape(fs.make_round(watched, batch_size=BATCH, lanes=4, **given), state, cohort, jax.random.key(0))
        assert set(seen) == {(4,) if equal else (4, 2, 1)}
