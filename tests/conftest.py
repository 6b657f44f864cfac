"""A small ragged federation that most tests train on, with two CPU devices."""

import atexit
import gc
import os
import shutil
import tempfile
from importlib.metadata import version
from typing import NamedTuple

# Nearly all the time of these tests is compiling small programs; what is optimised is tested where the command runs.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
if version("jaxlib").startswith("0.10."):  # less than half the compile time; later ones neither need nor know it
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] += " --xla_cpu_parallel_codegen_split_count=1"  # workers have a core each
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # many runs are of one program, in several processes
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="fedjax_sim_tests_")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs

gc.freeze()  # looking through what tracing allocates, again and again, takes a tenth of the time
gc.set_threshold(200_000, 20, 100)
fs.use_cpu_devices(2)  # before JAX starts

SIZES = (9, 1, 4, 16, 7, 2)
FEATURES, CLASSES, BATCH, RATE = 5, 3, 4, 0.3
ACCELERATORS = ("cuda", "tpu")  # which programs are lowered for, and not run on


class Federation(NamedTuple):
    """A population on the device, its NumPy arrays, and a logistic-regression model."""

    population: fs.Population
    inputs: np.ndarray
    labels: np.ndarray
    offsets: np.ndarray
    params: dict[str, jax.Array]


def loss_fn(params, batch, key):
    logits = batch["inputs"] @ params["kernel"] + params["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])


def make_federation(sizes=SIZES, seed=0) -> Federation:
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    inputs = rng.standard_normal((offsets[-1], FEATURES)).astype(np.float32)
    labels = rng.integers(0, CLASSES, offsets[-1]).astype(np.int32)
    params = {"kernel": jnp.asarray(rng.standard_normal((FEATURES, CLASSES)), jnp.float32), "bias": jnp.zeros(CLASSES)}
    examples = {"inputs": jnp.asarray(inputs), "labels": jnp.asarray(labels)}
    return Federation(fs.Population(examples, jnp.asarray(offsets)), inputs, labels, offsets, params)


def make_algorithm(name: str, **options) -> fs.Algorithm:
    return fs.ALGORITHMS[name](loss_fn, client_tx=optax.sgd(RATE), **options)


def assert_close(a, b, atol=1e-6, rtol=1e-5):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), atol=atol, rtol=rtol)


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture(scope="session")
def federation() -> Federation:
    return make_federation()


@pytest.fixture(scope="module", autouse=True)
def keeping(request):
    """Programs are kept for other tests where whole runs are trained. Elsewhere few are found again, and to write one
    takes a fifteenth of the time that compiling it took."""
    runs = any(getattr(value, "__module__", None) == "runs" for value in vars(request.module).values())
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0 if runs else 1e6)


@pytest.fixture(scope="module")
def optimized():
    """With all of the compiler's optimizations, for modules that run for longer than they compile."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def one_line(error: pytest.ExceptionInfo[fs.InputError], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
