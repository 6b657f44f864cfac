"""FedAvg as a person writes it by hand with JAX's vmap: all clients padded to the longest of the cohort."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers.jax_loop import logits
from benchmarks.workloads import LEARNING_RATE, Workload, client_sizes, cohorts, initial_parameters, load


class Padded(NamedTuple):
    """The examples of all clients, and which of them each client takes in each step of each round."""

    images: np.ndarray  # uint8[total, 784]
    labels: np.ndarray  # int32[total]
    rows: np.ndarray  # int32[rounds, cohort, steps, batch]
    real: np.ndarray  # bool, likewise
    shares: np.ndarray  # f32[rounds, cohort], of the examples


def padded(workload: Workload, rounds: int) -> Padded:
    federation, sizes, ids = load(workload), client_sizes(workload), cohorts(workload, rounds)
    batch, steps = workload.batch_size, int(np.ceil(sizes[ids] / workload.batch_size).max())
    rng, shape = np.random.default_rng(0), (rounds, workload.cohort, steps * batch)
    rows, real = np.zeros(shape, np.int32), np.zeros(shape, bool)
    for place in np.ndindex(*ids.shape):
        client = ids[place]
        size = sizes[client]
        rows[place][:size] = federation.offsets[client] + rng.permutation(size)
        real[place][:size] = True
    shares = (sizes[ids] / sizes[ids].sum(1, keepdims=True)).astype(np.float32)
    shape = (rounds, workload.cohort, steps, batch)
    return Padded(federation.images, federation.labels, rows.reshape(shape), real.reshape(shape), shares)


def with_jax(workload: Workload, device: Any, rounds: int) -> Callable[[], Any]:
    """A call of so many rounds, compiled at its first."""
    data = padded(workload, rounds)
    images, labels, *work = jax.device_put((data.images, data.labels, data.rows, data.real, data.shares), device)
    params = jax.device_put(initial_parameters(workload), device)

    def train(params: Any, rows: jax.Array, real: jax.Array, images: jax.Array, labels: jax.Array) -> Any:
        def step(params: Any, batch: Any) -> tuple[Any, None]:
            rows, real = batch

            def loss(params: Any) -> jax.Array:
                log_p = jax.nn.log_softmax(logits(params, images[rows]))
                of_label = jnp.take_along_axis(log_p, labels[rows][:, None], 1)[:, 0]
                return -jnp.where(real, of_label, 0).sum() / jnp.maximum(real.sum(), 1)

            return jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, jax.grad(loss)(params)), None

        return jax.lax.scan(step, params, (rows, real))[0]

    @jax.jit
    def program(params: Any, images: jax.Array, labels: jax.Array, work: Any) -> Any:
        def one(params: Any, given: Any) -> tuple[Any, None]:
            rows, real, shares = given
            trained = jax.vmap(train, (None, 0, 0, None, None))(params, rows, real, images, labels)
            return jax.tree.map(lambda leaf: jnp.tensordot(shares, leaf, 1), trained), None

        return jax.lax.scan(one, params, work)[0]

    return lambda: program(params, images, labels, tuple(work))
