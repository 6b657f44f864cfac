"""Devices, blocks and lanes: every item runs once, the work is spread evenly, and no result depends on it."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_close, assert_equal
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.core import Tracer

from fedjax_sim.core import execute


@cache
def scheduler(lanes, devices):
    return jax.jit(partial(execute.schedule, lanes=lanes, devices=devices))


def schedule(costs, lanes, devices):
    slots = scheduler(lanes, devices)(jnp.asarray(costs, jnp.int32))
    assert slots.dtype == jnp.int32
    return np.asarray(slots)


def block_costs(slots, costs):
    """Cost of each block, [devices, blocks]: what its dearest item costs."""
    return np.append(costs, 0)[slots].max(-1)


def check(costs, lanes, devices):
    costs = np.asarray(costs)
    slots = schedule(costs, lanes, devices)
    blocks = -(-len(costs) // (lanes * devices))
    assert slots.shape == (devices, blocks, lanes)
    filled = slots[slots < len(costs)]
    np.testing.assert_array_equal(np.sort(filled), np.arange(len(costs)))  # each item once
    assert (slots[slots >= len(costs)] == len(costs)).all()
    dearest = block_costs(slots, costs)
    loads = dearest.sum(1)
    assert loads.max() - loads.min() <= dearest.max()
    # sorted items: what a block wastes telescopes over the blocks, however many they are
    wasted = lanes * dearest.sum() - costs.sum()
    assert wasted <= (lanes - 1) * costs.max()
    return dearest


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=9),
    st.integers(1, 3),
    st.integers(1, 4),
)
def test_every_item_is_in_exactly_one_slot_and_loads_are_even(costs, lanes, devices):
    check(costs, lanes, devices)


@pytest.mark.parametrize(("items", "lanes", "devices"), [(1, 1, 4), (2, 4, 3), (3, 2, 8), (1, 8, 1)])
def test_more_places_than_items(items, lanes, devices):
    check(np.arange(items) + 1, lanes, devices)


@pytest.mark.parametrize(("lanes", "devices"), [(1, 2), (4, 2), (1, 8), (16, 3)])
def test_heavy_tailed_costs_are_balanced(lanes, devices):
    rng = np.random.default_rng(0)
    for _ in range(5):
        costs = np.clip(np.rint(rng.lognormal(np.log(20), 1.3, 200)), 5, 2000).astype(int)
        dearest = check(costs, lanes, devices)
        assert (np.diff(dearest, axis=1) <= 0).all()  # a device runs its blocks from the dearest to the cheapest
        unsorted = np.append(costs, np.zeros(-len(costs) % lanes, int)).reshape(-1, lanes)
        if lanes > 1:  # the order they come in would waste far more
            assert dearest.sum() * lanes - costs.sum() < 0.5 * (unsorted.max(1).sum() * lanes - costs.sum())


ITEMS, FEATURES = 7, 3
COSTS = jnp.asarray([2, 9, 1, 0, 4, 9, 3], jnp.int32)


@pytest.fixture(scope="module")
def work():
    rng = np.random.default_rng(1)
    values = rng.standard_normal((ITEMS, FEATURES)).astype(np.float32)
    return {"values": values, "ids": np.arange(ITEMS, dtype=np.int32)}, rng.standard_normal(FEATURES).astype(np.float32)


def block(acc, shared, items, own, present):
    """Adds up what is present, and counts in each item's own row; what empty slots return must be thrown away."""

    def one(item):
        return {"scaled": item["values"] * shared, "id": item["ids"]}

    outputs = execute.over_lanes(one, items)
    total, count = acc
    weights = present.astype(jnp.float32)
    return (total + weights @ outputs["scaled"], count + present.sum()), own + 1 + items["ids"][:, None], outputs


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_fold_equals_a_loop_over_the_items(work, lanes, devices):
    items, shared = work
    run = partial(execute.fold, block, lanes=lanes, devices=jax.devices()[:devices])
    zero = jnp.zeros(FEATURES), jnp.zeros((), jnp.int32)
    items = jax.tree.map(jnp.asarray, items)
    memory, rows = jnp.arange(18).reshape(9, 2), jnp.asarray([3, 0, 8, 9, 6, 1, 2])  # the fourth's row is not kept
    (total, count), kept, outputs = jax.jit(run)(zero, memory, shared, items, rows, COSTS)

    looped = np.zeros(FEATURES)
    for value in items["values"]:
        looped += value * shared
    assert count == ITEMS
    assert_close(total, looped.astype(np.float32))
    assert_equal(outputs["id"], jnp.asarray(items["ids"]))  # in the order of the items, whatever order they ran in
    assert_close(outputs["scaled"], items["values"] * shared)
    expected = np.arange(18).reshape(9, 2)
    for item, row in enumerate([3, 0, 8, None, 6, 1, 2]):
        if row is not None:
            expected[row] += 1 + item
    np.testing.assert_array_equal(kept, expected)


def test_one_lane_runs_without_a_batch_axis_and_several_with_one(work):
    items, _ = work
    seen = []

    def one(item):
        seen.append(isinstance(item["values"], Tracer))
        return item["values"].sum()

    for lanes in (1, 3):
        some = jax.tree.map(lambda x, lanes=lanes: jnp.asarray(x[:lanes]), items)
        assert_close(execute.over_lanes(one, some), some["values"].sum(1))
    assert seen == [False, True]


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("lanes", [1, 2])
def test_memory_is_renewed_in_place(lanes, devices):
    """Neither a copy of all rows is made nor a stack of the items' new ones."""
    count, rows, width = 24, 40, 1000

    def add(acc, shared, items, own, present):
        return acc + (own.sum(1) * present).sum(), jnp.cos(own) + items[:, None], items

    def run(memory, items):
        given = (jnp.float32(0), memory, (), items, jnp.arange(count) + 10, jnp.ones(count, jnp.int32))
        return execute.fold(add, *given, lanes=lanes, devices=jax.devices()[:devices])

    given = jnp.zeros((rows, width)), jnp.arange(float(count))
    compiled = jax.jit(run, donate_argnums=0).lower(*given).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes < count / 2 * 4 * width
