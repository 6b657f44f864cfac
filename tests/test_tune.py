"""The lane trial tries what it says, and what it finds is remembered."""

import jax
import jax.numpy as jnp
import pytest
from conftest import BATCH, SIZES, make_algorithm

import fedjax_sim as fs
from fedjax_sim._validate import InputError
from fedjax_sim.core.tune import candidates, recall, remember, signature, tune_lanes


def test_candidates_rise_to_the_devices_share():
    cpu = jax.devices()
    assert candidates(100, cpu[:1]) == [1, 2, 4, 8]
    assert candidates(5, cpu[:2]) == [1, 2, 3]
    assert candidates(1, cpu[:1]) == [1]


def test_the_trial_measures_rounds_and_changes_nothing(federation):
    made = []

    def make(lanes):
        made.append(lanes)
        return fs.make_round(make_algorithm("fedavg"), batch_size=BATCH, lanes=lanes)

    state = fs.init(make_algorithm("fedavg"), federation.params, len(SIZES))
    cohort = fs.select(federation.population, jnp.arange(4))
    seconds = tune_lanes(make, state, cohort, jax.random.key(0), [1, 4])
    assert made == list(seconds) == [1, 4]
    assert all(s > 0 for s in seconds.values())
    assert int(state.round) == 0
    with pytest.raises(InputError, match=r"widths: \[\] is empty"):
        tune_lanes(make, state, cohort, jax.random.key(0), [])


def test_widths_are_remembered_by_model_device_and_settings(tmp_path, federation):
    file = tmp_path / "cache" / "lanes.json"
    mine = signature(federation.params, jax.devices()[:1], batch_size=4)
    others = [
        signature(federation.params, jax.devices()[:2], batch_size=4),
        signature(federation.params, jax.devices()[:1], batch_size=5),
        signature(federation.params["bias"], jax.devices()[:1], batch_size=4),
    ]
    assert recall(mine, file) is None
    remember(mine, 8, file)
    remember(others[0], 2, file)
    assert [recall(s, file) for s in (mine, *others)] == [8, 2, None, None]


@pytest.mark.parametrize("torn", ["", "{", "[1, 2]", '{"x": "many"}'])
def test_a_torn_memory_is_made_anew(tmp_path, torn):
    file = tmp_path / "lanes.json"
    file.write_text(torn)
    assert recall("x", file) is None
    remember("x", 3, file)
    assert recall("x", file) == 3
