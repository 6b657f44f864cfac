"""Compiled for a GPU, a run is one CUDA graph. Needs no GPU, but JAX's plugin for them: `pip install jax[cuda13]`."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from fedjax_sim.core.compile import GRAPHS

TARGET = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84929347584 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64 device_vendor: "NVIDIA Corporation"
  device_address_bits: 64 ecc_enabled: true name: "H100" platform_version: "Compute Capability 9.0a"
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.12.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
device_description_str: "H100"
"""

# Prints what the host launches, as a list of kinds, with loops in graphs and without. Compiling needs no driver.
PROGRAM = """
import glob, json, os, re, shutil, sys
import jax, optax
import jax.numpy as jnp
from jax.experimental import topologies
import fedjax_sim as fs
from conftest import loss_fn, make_federation

target, dump, *graphs = sys.argv[1:]
topology = topologies.get_topology_desc(platform="cuda", target_config=target, topology="1x1x1")
everywhere = jax.sharding.NamedSharding(topologies.make_mesh(topology, (1,), ("d",)), jax.sharding.PartitionSpec())
federation = make_federation()
algorithm = fs.scaffold(loss_fn, client_tx=optax.sgd(0.1))
round_fn = fs.make_round(algorithm, batch_size=4, devices=list(topology.devices))
simulate = fs.make_simulation(round_fn, cohort_size=3, max_rounds=5)
given = fs.init(algorithm, federation.params, 6), federation.population, jax.random.key(0), jnp.int32(5)
shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), given)
lowered = jax.jit(simulate).lower(*shapes)
for options in ({}, {"xla_gpu_enable_command_buffer": graphs[0]}):
    shutil.rmtree(dump, ignore_errors=True)
    lowered.compile(compiler_options=options)
    lines = open(next(f for f in glob.glob(dump + "/*after_thunk_passes.txt") if "simulate" in f)).read().splitlines()
    outermost = (re.match(r"\\s*\\d+: (k\\w+)", line) for line in lines if not line.startswith("    "))
    print(json.dumps([found[1] for found in outermost if found]))
"""


@pytest.mark.skipif(find_spec("jax_plugins") is None or find_spec("jax_plugins.xla_cuda13") is None,
                    reason="needs jax[cuda13], 4.5 GB")  # fmt: skip
def test_a_run_is_one_graph(tmp_path):
    dump, here = tmp_path / "dump", Path(__file__).parent
    flags = f"--xla_gpu_autotune_level=0 --xla_dump_to={dump} --xla_dump_hlo_as_text"
    variables = {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "CUDA_VISIBLE_DEVICES": "-1", "XLA_FLAGS": flags,
                 "PYTHONPATH": os.pathsep.join([str(here.parent), str(here)])}  # fmt: skip
    command = [sys.executable, "-c", PROGRAM, TARGET, str(dump), GRAPHS[0]]
    unset = ("JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_COMPILATION_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in unset} | variables
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    by_default, with_loops = (json.loads(line) for line in done.stdout.splitlines()[-2:])
    assert "kWhile" in by_default
    assert with_loops == ["kCommandBuffer"]
