"""Compiler options: found for the machine at hand, dropped where they are not known, and the same results with them."""

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import BATCH, SIZES, assert_close, assert_equal, make_algorithm

import fedjax_sim as fs
from fedjax_sim.core import compile as compiling

CPU_INFO = Path("/proc/cpuinfo")


def device(platform: str, version: str) -> SimpleNamespace:
    return SimpleNamespace(platform=platform, client=SimpleNamespace(platform_version=version))


@pytest.mark.skipif(not CPU_INFO.is_file(), reason="no /proc/cpuinfo to compare with")
def test_wide_vectors_are_asked_for_where_the_processor_has_them():
    has_them = {"avx512f", "avx512bw", "avx512vl"} <= set(CPU_INFO.read_text().split())
    expected = {"xla_cpu_prefer_vector_width": "512"} if has_them else {}
    assert compiling.options(jax.devices()[0]) == expected


def test_values_and_options_that_this_version_does_not_know_are_left_out():
    known = compiling._accepted("cpu", "xla_cpu_prefer_vector_width", ("wide", "256", "512"))
    assert known == (("xla_cpu_prefer_vector_width", "256"),)
    assert compiling._accepted("cpu", "xla_cpu_no_such_option", ("1",)) == ()


def test_loops_outside_graphs_are_warned_of_on_nvidia_gpus_alone():
    with pytest.warns(UserWarning, match=r"cuda 12020 .* CUDA 12\.3"):
        assert compiling.options(device("gpu", "PJRT C API\ncuda 12020")) == {}
    assert compiling.options(device("gpu", "PJRT C API\nrocm 60200")) == {}
    assert compiling.options(device("tpu", "PJRT C API\nTFRT TPU v6 lite")) == {}


def test_a_tuned_function_may_be_used_inside_others(monkeypatch):
    """Where JAX refuses options; with an option that every CPU takes."""
    monkeypatch.setattr(compiling, "options", lambda device: {"xla_cpu_prefer_vector_width": "256"})
    traces = []

    def scaled(x, factor):
        traces.append(1)
        return {"product": x * factor, "sum": x.sum()}

    function, x, factor = compiling.tuned(scaled), jnp.arange(3.0), jnp.float32(2)
    expected = {"product": jnp.asarray([0.0, 2, 4]), "sum": jnp.float32(3)}
    for _ in range(3):
        assert_equal(function(x, factor), expected)
    assert len(traces) == 1
    assert_equal(jax.jit(function)(x, factor), expected)
    assert_equal(jax.jit(lambda: function(x, factor))(), expected)  # where no argument is traced
    assert_equal(jax.vmap(function, (None, 0))(x, factor[None]), jax.tree.map(lambda leaf: leaf[None], expected))
    np.testing.assert_array_equal(jax.grad(lambda x: function(x, factor)["product"].sum())(x), [2, 2, 2])
    assert jax.eval_shape(function, x, factor)["product"].shape == (3,)
    assert_equal(function(np.arange(3.0, dtype=np.float32), factor), expected)


def test_the_options_reach_the_compiler(monkeypatch):
    monkeypatch.setattr(compiling, "options", lambda device: {"xla_cpu_no_such_option": "1"})
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_cpu_no_such_option"):
        compiling.tuned(lambda x: x)(jnp.zeros(1))


def test_simulations_may_be_part_of_a_program(federation):
    algorithm = make_algorithm("fedavg")
    simulate = fs.make_simulation(fs.make_round(algorithm, batch_size=BATCH), cohort_size=2, max_rounds=2)

    def final(key):
        return simulate(fs.init(algorithm, federation.params, len(SIZES)), federation.population, key, 2)[0].params

    key = jax.random.key(0)
    assert_close(jax.jit(final)(key), final(key))
