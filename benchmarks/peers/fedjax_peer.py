"""FedJAX: its federated averaging with the default backend, one jitted call per batch.

Its own shuffled batches fill up a last partial batch with repeated examples; here that batch is padded and masked, as
FedJAX does for evaluation, so that every example counts once.
"""

import fedjax
import jax
import numpy as np
from fedjax.algorithms import fed_avg

from benchmarks.peers.common import Parameters, Stopwatch, Task, run
from benchmarks.peers.jax_loop import logits
from benchmarks.workloads import LEARNING_RATE


class EachExampleOnce(fedjax.ClientDataset):
    """One epoch in a new order, of padded and masked batches; pixels stay bytes until they reach the model."""

    def __init__(self, task: Task, client_id: int, rng: np.random.Generator):
        super().__init__(dict(zip("xy", task.client(client_id), strict=True)))
        self.task, self.rng = task, rng

    def shuffle_repeat_batch(self, hparams: fedjax.ShuffleRepeatBatchHParams):
        order = self.task.order(len(self), self.rng.permutation)
        shuffled = fedjax.ClientDataset({name: values[order] for name, values in self.raw_examples.items()})
        return shuffled.padded_batch(batch_size=hparams.batch_size)


def per_example_loss(params: Parameters, batch: dict[str, jax.Array], _: jax.Array) -> jax.Array:
    return fedjax.metrics.unreduced_cross_entropy_loss(batch["y"], logits(params, batch["x"]))


def jit(task: Task, stopwatch: Stopwatch) -> None:
    rng = np.random.default_rng(task.seed)
    algorithm = fed_avg.federated_averaging(
        fedjax.grad(per_example_loss),
        fedjax.optimizers.sgd(LEARNING_RATE),
        fedjax.optimizers.sgd(1.0),
        fedjax.ShuffleRepeatBatchHParams(batch_size=task.workload.batch_size),
    )
    clients = [EachExampleOnce(task, i, rng) for i in range(task.workload.population)]
    state = algorithm.init(jax.device_put(task.parameters))
    while stopwatch.running:
        keys = np.asarray(jax.random.split(jax.random.PRNGKey(stopwatch.finished), task.workload.cohort))
        cohort = [(int(i), clients[i], key) for i, key in zip(stopwatch.cohort, keys, strict=True)]
        state, _ = algorithm.apply(state, cohort)
        jax.block_until_ready(state.params)
        stopwatch.lap(jax.device_get, state.params)


if __name__ == "__main__":
    run("fedjax_peer", {"jit": jit}, ("fedjax", "jax", "jaxlib", "numpy"))
