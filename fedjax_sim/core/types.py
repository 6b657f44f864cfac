"""What flows through a round: the population, a cohort, the state and the metrics.

`N` clients in the population, `C` in a cohort, `P` a pytree shaped like the model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PyTree = Any
Array = jax.Array
Scalar = float | jax.Array  # a hyper-parameter that may be traced


class Variables(NamedTuple):
    """A model whose forward pass updates statistics (batch normalisation, say).

    Only `params` is differentiated. `statistics` is replaced by what the loss returns, averaged by the server like the
    parameters, and never touched by an optimizer. The loss is then `loss_fn(variables, batch, key) -> (f32[B],
    statistics)`.
    """

    params: PyTree
    statistics: PyTree


class Population(NamedTuple):
    """Examples of all clients, flat: client `i` owns rows `offsets[i]` up to `offsets[i + 1]`."""

    examples: PyTree  # arrays [total, ...], in their stored dtype
    offsets: Any  # int32[N + 1], of JAX or NumPy


@partial(jax.tree_util.register_dataclass, data_fields=["key"], meta_fields=["make", "num_clients"])
@dataclass(frozen=True)
class Procedural:
    """A population that is computed instead of stored: each client's examples are a function of its id.

    `make(key, id) -> (examples, size)` is traced for one client: `key` is `key` folded with the id, `examples` are
    arrays [K, ...] of which the first `size` (int32[], at most K) count. Only a cohort's examples ever exist, on the
    device, `C * K` rows; hence `num_clients` costs nothing, up to 2^31 - 1.
    """

    make: Callable[[Array, Array], tuple[PyTree, Array]]
    num_clients: int
    key: Array


class Cohort(NamedTuple):
    """The clients of one round, and the arrays their examples lie in: the population's, or a slice of it.

    Only `rows` depends on where per-client memory is kept: the client ids where the state holds all `N` rows, 0 to `C -
    1` where it holds the cohort's slice alone. Results do not depend on it, nor on the order of the clients.
    """

    ids: Array  # int32[C], folded into the keys; -1 marks an empty slot
    starts: Array  # int32[C], first row of the client in `examples`
    sizes: Array  # int32[C], number of examples
    rows: Array  # int32[C], the client's row in the state's per-client memory
    examples: PyTree  # arrays [total, ...]
    most_steps: Any = None  # int32[C], what a client does at most of its planned local steps; 0: it takes no part
    homes: Any = None  # int32[C], the device that alone holds a client's examples, of which none holds more than C / D
    # clients; where that is given, examples are arrays [D, total, ...], a part for each device


class RoundState(NamedTuple):
    """All that a federation remembers between rounds; saving it is checkpointing."""

    round: Array  # int32[], rounds done
    params: PyTree  # the global model, P or `Variables`
    server: PyTree  # the server's memory
    clients: PyTree  # the clients' memory, arrays [N, ...]
    messages: PyTree  # memory of the transform on messages, arrays [N, ...]
    release: PyTree  # memory of the transform on the aggregate


class RoundMetrics(NamedTuple):
    """What one round measured. Per-client arrays follow the cohort's order and are 0 where no client took part.

    Losses are of the first and of the last local step, each before its update, which costs nothing; with
    `client_losses="examples"` they are means over all the client's examples, under the received and the trained model.
    """

    ids: Array  # int32[C], -1 where no client took part
    examples: Array  # int32[C], examples held
    steps: Array  # int32[C], local steps done
    loss_before: Array  # f32[C]
    loss_after: Array  # f32[C]
    drift: Array  # f32[C], L2 distance of the trained model from the one received
    update_norm: Array  # f32[C], L2 norm of the update as the server received it
    cosine: Array  # f32[C], of update and aggregate; +- 0.022 over 2,039 parameters if no message is stored (`measure`)
    weight: Array  # f32[C], share in the aggregate that the aggregator gave, summing to 1
    rejected: Array  # bool[C], the message was not finite and the aggregator left it out
    aggregate_norm: Array  # f32[], L2 norm of the aggregate, as the server takes it
    gradient_diversity: Array  # f32[], mean squared norm of the updates over that of the aggregate; >= 1 for a mean
    effective_clients: Array  # f32[], (sum of weights)^2 / sum of squared weights: as many equal clients
    uplink_bits: Array  # uint32[C], size of the message as it is sent
    downlink_bits: Array  # uint32[C], size of what the server broadcast
    extra: dict[str, Array]  # f32[] each, what else the algorithm reports


def trained(model: PyTree) -> PyTree:
    """The part of a model that is differentiated."""
    return model.params if isinstance(model, Variables) else model


def with_trained(model: PyTree, params: PyTree) -> PyTree:
    """`model` with its differentiated part replaced."""
    return model._replace(params=params) if isinstance(model, Variables) else params


def squared_norm(tree: PyTree) -> Array:
    """Squared L2 norm over all leaves together, f32[]."""
    return inner(tree, tree)


def inner(one: PyTree, other: PyTree) -> Array:
    """Inner product over all leaves together, f32[].

    As dot products, for a batched sum over a large leaf runs many times slower on a CPU; at the highest precision, for
    GPUs would otherwise round the operands; over all axes at once, so that a leaf may be split along any of them.
    """

    def product(x: Array, y: Array) -> Array:
        axes, x, y = tuple(range(x.ndim)), x.astype(jnp.float32), y.astype(jnp.float32)
        return jax.lax.dot_general(x, y, ((axes, axes), ((), ())), precision=jax.lax.Precision.HIGHEST)

    return jnp.stack(jax.tree.leaves(jax.tree.map(product, one, other))).sum()
