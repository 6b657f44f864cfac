"""FedAvg as a competent person writes it in JAX without vmap: a Python loop over clients, or over batches.

`client` makes one call per client, which loops over its batches inside and adds to the average; `batch` makes one call
per batch, outside any loop, where XLA's CPU convolutions are at their best.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers.common import Parameters, Stopwatch, Task, run
from benchmarks.workloads import LEARNING_RATE


def logits(params: Parameters, pixels: jax.Array) -> jax.Array:
    x = pixels.astype(jnp.float32) / 255
    for i, (weight, bias) in enumerate(params):
        if weight.ndim == 4:
            x = x.reshape(-1, 28, 28, 1) if i == 0 else x
            x = jax.lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            n, height, width, channels = x.shape
            x = jax.nn.relu(x + bias).reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))
        else:
            x = x.reshape(len(x), -1) @ weight + bias
            x = jax.nn.relu(x) if i + 1 < len(params) else x
    return x


def sgd_step(params: Parameters, pixels: jax.Array, labels: jax.Array, real: jax.Array) -> Parameters:
    """One step on the first `real` examples of a batch; none leaves the parameters as they are."""

    def loss(params: Parameters) -> jax.Array:
        log_p = jax.nn.log_softmax(logits(params, pixels))
        of_label = jnp.take_along_axis(log_p, labels[:, None], 1)[:, 0]
        return -jnp.where(jnp.arange(len(labels)) < real, of_label, 0).sum() / jnp.maximum(real, 1)

    return jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, jax.grad(loss)(params))


@partial(jax.jit, donate_argnums=0)
def add(total: Parameters, params: Parameters, share: float) -> Parameters:
    return jax.tree.map(lambda t, p: t + share * p, total, params)


@partial(jax.jit, donate_argnums=0)
def train_client(total, params, pixels, labels, size, share):
    def step(params, batch):
        i, pixels, labels = batch
        return sgd_step(params, pixels, labels, jnp.clip(size - i * len(labels), 0, len(labels))), None

    trained, _ = jax.lax.scan(step, params, (jnp.arange(len(labels)), pixels, labels))
    return jax.tree.map(lambda t, p: t + share * p, total, trained)


train_batch = jax.jit(sgd_step, donate_argnums=0)


def shuffled(task: Task, client_id: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one client in a new order, padded to whole batches: [steps, batch size, ...]."""
    images, labels = task.client(client_id)
    steps, size = -(-len(labels) // task.workload.batch_size), task.workload.batch_size
    order = np.zeros(steps * size, np.int64)
    order[: len(labels)] = task.order(len(labels), rng.permutation)
    return images[order].reshape(steps, size, -1), labels[order].reshape(steps, size)


def loop_over_clients(task: Task, stopwatch: Stopwatch) -> None:
    """The steps are padded to the next of 1, 2, 3, 4, 6, 8, 12, ... so that few lengths are compiled."""
    rng = np.random.default_rng(task.seed)
    params = jax.device_put(task.parameters)
    sizes = np.diff(task.federation.offsets)
    lengths = sorted({n for k in range(12) for n in (2**k, 3 * 2**k)})
    while stopwatch.running:
        total, examples = jax.tree.map(jnp.zeros_like, params), sizes[stopwatch.cohort].sum()
        for client_id in stopwatch.cohort:
            pixels, labels = shuffled(task, client_id, rng)
            padding = next(n for n in lengths if n >= len(labels)) - len(labels)
            pixels, labels = np.pad(pixels, ((0, padding), (0, 0), (0, 0))), np.pad(labels, ((0, padding), (0, 0)))
            total = train_client(total, params, pixels, labels, sizes[client_id], sizes[client_id] / examples)
        params = jax.block_until_ready(total)
        stopwatch.lap(jax.device_get, params)


def loop_over_batches(task: Task, stopwatch: Stopwatch) -> None:
    rng = np.random.default_rng(task.seed)
    params = jax.device_put(task.parameters)
    sizes = np.diff(task.federation.offsets)
    copy = jax.jit(lambda params: jax.tree.map(jnp.copy, params))
    while stopwatch.running:
        total, examples = jax.tree.map(jnp.zeros_like, params), sizes[stopwatch.cohort].sum()
        for client_id in stopwatch.cohort:
            local, left = copy(params), sizes[client_id]
            for pixels, labels in zip(*shuffled(task, client_id, rng), strict=True):
                local = train_batch(local, pixels, labels, min(left, len(labels)))
                left -= len(labels)
            total = add(total, local, sizes[client_id] / examples)
        params = jax.block_until_ready(total)
        stopwatch.lap(jax.device_get, params)


if __name__ == "__main__":
    run("jax_loop", {"client": loop_over_clients, "batch": loop_over_batches}, ("jax", "jaxlib", "numpy"))
