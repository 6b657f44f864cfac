"""Local training of one client. It is written for one; the round trains many at once."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim import _validate
from fedjax_sim.core.lanes import repeat
from fedjax_sim.core.permute import permuted
from fedjax_sim.core.types import Array, PyTree, Variables, squared_norm, trained, with_trained

LossFn = Callable[
    [PyTree, PyTree, Array], Any
]  # (model, batch, key) -> f32[B], or (f32[B], statistics) with `Variables`


# What a leaf of a message is, for attacks on messages: see `Client.roles`.
UPDATE, CLAIM, GIVEN = "update", "claim", "given"


class Message(NamedTuple):
    """What a client uploads. Aggregators and transforms take it as any pytree; the metrics look at `update`."""

    update: PyTree  # pseudo-gradient, received minus trained, shaped like the model
    extra: PyTree = ()  # whatever else the algorithm sends


def planned_steps(sizes: Array, batch_size: int, local_epochs: int, local_steps: int | None) -> Array:
    """Local steps of clients with that many examples, int32 like `sizes`: whole epochs unless `local_steps` says."""
    steps = -(-sizes // batch_size) * local_epochs if local_steps is None else local_steps
    return jnp.where(sizes > 0, steps, 0).astype(jnp.int32)


def poisson_slots(batch_size: int) -> int:
    """Rows for a batch of so many examples on average."""
    return batch_size + math.ceil(6.5 * math.sqrt(batch_size)) + 10


def binomial(key: Array, trials: Array, chance: Array, most: int) -> Array:
    """Successes in so many trials, int32[], or `most` if they are more, by inverting the distribution: its
    probabilities up to `most` as running products, which compiles and runs much faster than rejection sampling."""
    n, p = trials.astype(jnp.float32), jnp.minimum(chance.astype(jnp.float32), 1 - 1e-6)
    k = jnp.arange(most, dtype=jnp.float32)
    ratios = jnp.log(jnp.maximum(n - k, 0) / (k + 1)) + jnp.log(p) - jnp.log1p(-p)
    logs = n * jnp.log1p(-p) + jnp.concatenate([jnp.zeros(1), jnp.cumsum(ratios)])[:-1]
    below = jnp.sum(jax.random.uniform(key) > jnp.cumsum(jnp.exp(logs)))
    return jnp.where(chance >= 1, jnp.minimum(trials, most), below).astype(jnp.int32)


COUNTS, PASS = 2**31 - 1, 2**31 - 2  # no step's number: what else is drawn from a client's key


class Info(NamedTuple):
    """What local training measured."""

    loss_before: Array  # f32[], of the first local step, before its update
    loss_after: Array  # f32[], of the last local step, before its update
    drift: Array  # f32[], L2 distance of the trained model from the one received


class Client(NamedTuple):
    """The client's part of an algorithm, as pure functions of one client.

    `init(params) -> memory` makes what a client keeps between its rounds; `run(broadcast, memory, data, key) ->
    (Message, memory, Info)` trains; `like(broadcast) -> Message` has the shapes and dtypes of what `run` sends.
    `broadcast` is what the server's `broadcast` returned.

    `roles` says what the leaves of a message are, as a prefix of its structure: `UPDATE`, any numbers that move the
    model or what the server keeps beside it; `CLAIM`, what a client alone knows and may lie about, but nobody would
    believe below 0, such as a loss; `GIVEN`, what weighs or names the client (its weight, id, cluster or number of
    steps), which an attack on messages leaves alone, as it does the number of examples. Leaves that are not
    floating-point are given, whatever is said.
    """

    init: Callable[[PyTree], PyTree]
    like: Callable[[PyTree], Message]
    run: Callable[[PyTree, PyTree, "LocalData", Array], tuple[Message, PyTree, Info]]
    roles: Message = Message(UPDATE, UPDATE)


class StepsOnly(NamedTuple):
    """A client's `run` that sees its examples in its local steps alone: what it sends, in this round or through what it
    keeps in later ones, depends on them through one `batch_gradient` of `loss_fn` in each step and nothing else.

    A promise of whoever writes `run`, on which privacy of single examples rests, for its noise is in those gradients.
    What never leaves the client, such as `Info` and a personal model, is no part of it.
    """

    loss_fn: LossFn
    function: Callable[[PyTree, PyTree, "LocalData", Array], tuple[Message, PyTree, Info]]

    def __call__(self, *given: Any) -> tuple[Message, PyTree, Info]:
        return self.function(*given)


class LocalData(NamedTuple):
    """One client's examples and the local work to do on them, as batches gathered from the flat arrays.

    Every example is used exactly once per epoch, in an order drawn from `key` and the epoch. The last batch of an epoch
    may be partial: its mask says which rows count, and the others repeat the client's own examples, so that statistics
    computed over a batch see no foreign values.

    With `poisson`, every example is in the batch of a step with chance `B / size`, independently (what example-level
    privacy assumes), in `poisson_slots(B)` rows; should more be drawn, which is less likely than one in a billion, as
    many of them as there are rows, at random.
    """

    id: Array  # int32[], the client's
    examples: PyTree  # arrays [total, ...]
    start: Array  # int32[]
    size: Array  # int32[]
    steps: Array  # int32[], local steps of this client
    key: Array
    batch_size: int
    widths: tuple[int, ...]  # of the block that it is trained in, see `lanes.ladder`; (1,) for a client alone
    full_losses: bool  # report losses over all examples instead of the first and last step's
    poisson: bool = False  # batches of examples drawn independently, instead of epochs

    def epoch_steps(self) -> Array:
        """Number of batches in an epoch, int32[]."""
        return jnp.maximum(-(-self.size // self.batch_size), 1)

    def batch(self, step: Array) -> tuple[PyTree, Array]:
        """The batch of a local step, arrays [B, ...] in their stored dtype, and its mask, bool[B]."""
        return self.drawn_batch(step) if self.poisson else self.epoch_batch(step)

    def epoch_batch(self, step: Array) -> tuple[PyTree, Array]:
        """The batch of a step through one epoch after another."""
        epoch, within = step // self.epoch_steps(), step % self.epoch_steps()
        positions = within * self.batch_size + jnp.arange(self.batch_size, dtype=jnp.int32)
        mask = positions < self.size
        order = permuted(self.key, self.size, positions % jnp.maximum(self.size, 1), epoch)
        rows = self.start + order
        return jax.tree.map(lambda a: a.at[rows].get(mode="clip"), self.examples), mask

    def drawn_batch(self, step: Array) -> tuple[PyTree, Array]:
        """The batch of a step whose examples are drawn independently."""
        positions = jnp.arange(poisson_slots(self.batch_size), dtype=jnp.int32)
        size = jnp.maximum(self.size, 1)
        key = jax.random.fold_in(jax.random.fold_in(self.key, COUNTS), step)  # not the loss's
        count = binomial(key, size, self.batch_size / size, len(positions))
        rows = self.start + permuted(self.key, size, positions % size, step)
        mask = positions < jnp.minimum(count, self.size)
        return jax.tree.map(lambda a: a.at[rows].get(mode="clip"), self.examples), mask

    def fold(self, body: Callable[[Array, PyTree, PyTree, Array], PyTree], carry: PyTree) -> PyTree:
        """`carry = body(step, carry, batch, mask)` for each local step; those beyond its own change nothing."""

        def step(index: Array, carry: PyTree) -> PyTree:
            return body(index, carry, *self.batch(index))

        return repeat(step, carry, self.steps, self.widths)


def batch_loss(loss_fn: LossFn, model: PyTree, batch: PyTree, mask: Array, key: Array) -> tuple[Array, PyTree]:
    """Mean loss over the rows of a batch that count, f32[], and the model with its statistics renewed.

    Raises:
      InputError: the loss returned anything but one value per example.
    """
    losses = loss_fn(model, batch, key)
    if isinstance(model, Variables):
        if not isinstance(losses, tuple) or len(losses) != 2:
            raise _validate.InputError("loss_fn: with Variables it must return (f32[B], statistics); return both")
        losses, statistics = losses
        model = model._replace(statistics=_validate.statistics(model.statistics, statistics))
    losses = _validate.per_example("loss_fn", losses, mask.shape[0])
    return jnp.sum(jnp.where(mask, losses, 0)) / jnp.maximum(mask.sum(), 1), model


def batch_gradient(
    loss_fn: LossFn, model: PyTree, batch: PyTree, mask: Array, key: Array
) -> tuple[Array, PyTree, PyTree]:
    """Mean loss over the rows of a batch that count, f32[], `model` with its statistics renewed, and the gradient.

    A loss that has a `gradient(model, batch, mask, key)` of its own is asked for all three.
    """
    if (own := getattr(loss_fn, "gradient", None)) is not None:
        return own(model, batch, mask, key)

    def objective(params: PyTree) -> tuple[Array, PyTree]:
        return batch_loss(loss_fn, with_trained(model, params), batch, mask, key)

    (loss, model), gradient = jax.value_and_grad(objective, has_aux=True)(trained(model))
    return loss.astype(jnp.float32), model, gradient


def over_examples(value_fn: Callable[[PyTree, Array, Array], PyTree], data: LocalData, key: Array) -> PyTree:
    """Mean over all the client's examples of `value_fn(batch, mask, key)`, itself a mean over the rows that count; the
    batches are those of its first epoch, and the keys the same for every function, for values are compared."""
    key = jax.random.fold_in(key, PASS)

    def step(index: Array, total: PyTree) -> PyTree:
        batch, mask = data.epoch_batch(index)
        value = value_fn(batch, mask, jax.random.fold_in(key, index))
        return jax.tree.map(lambda t, v: t + v * mask.sum().astype(t.dtype), total, value)

    shapes = jax.eval_shape(lambda: value_fn(*data.epoch_batch(jnp.int32(0)), key))
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total = repeat(step, zero, data.epoch_steps(), data.widths)
    return jax.tree.map(lambda t: t / jnp.maximum(data.size, 1).astype(t.dtype), total)


def mean_loss(loss_fn: LossFn, model: PyTree, data: LocalData, key: Array) -> Array:
    """Mean loss over all the client's examples, f32[]."""

    def value(batch: PyTree, mask: Array, key: Array) -> Array:
        return batch_loss(loss_fn, model, batch, mask, key)[0].astype(jnp.float32)

    return over_examples(value, data, key)


def full_gradient(loss_fn: LossFn, model: PyTree, data: LocalData, key: Array) -> tuple[Array, PyTree]:
    """Mean loss over all the client's examples, f32[], and its gradient by the differentiated part of `model`."""

    def value(batch: PyTree, mask: Array, key: Array) -> tuple[Array, PyTree]:
        loss, _, gradient = batch_gradient(loss_fn, model, batch, mask, key)
        return loss, gradient

    return over_examples(value, data, key)


def distance(a: PyTree, b: PyTree) -> Array:
    """L2 distance of the differentiated parts of two models, f32[]."""
    return jnp.sqrt(squared_norm(jax.tree.map(jnp.subtract, trained(a), trained(b))))


class Training(NamedTuple):
    """What `train` returns."""

    model: PyTree
    info: Info
    mean_gradient: PyTree  # mean of the raw gradients along the path where asked for, else ()


def train(
    loss_fn: LossFn,
    client_tx: optax.GradientTransformation,
    model: PyTree,
    data: LocalData,
    key: Array,
    *,
    correct: Callable[[PyTree, PyTree], PyTree] = lambda gradient, params: gradient,
    mean_gradient: bool = False,
) -> Training:
    """Runs the client optimizer from `model`, its state started afresh, for the client's local steps.

    Args:
      correct: what the optimizer sees, `correct(gradient, params)`, instead of the gradient itself.
      mean_gradient: also return the mean of the gradients before correction; costs one more model-sized array.
    """

    def step(index: Array, carry: PyTree, batch: PyTree, mask: Array) -> PyTree:
        model, memory, total, first, _ = carry
        params = trained(model)
        loss, model, gradient = batch_gradient(loss_fn, model, batch, mask, jax.random.fold_in(key, index))
        if mean_gradient:
            total = jax.tree.map(jnp.add, total, gradient)
        updates, memory = client_tx.update(correct(gradient, params), memory, params)
        model = with_trained(model, optax.apply_updates(params, updates))
        return model, memory, total, jnp.where(index == 0, loss, first), loss

    params = trained(model)
    total = jax.tree.map(jnp.zeros_like, params) if mean_gradient else ()
    zero = jnp.zeros((), jnp.float32)
    result, _, total, first, last = data.fold(step, (model, client_tx.init(params), total, zero, zero))
    if data.full_losses:
        first, last = mean_loss(loss_fn, model, data, key), mean_loss(loss_fn, result, data, key)
    mean = jax.tree.map(lambda g: g / jnp.maximum(data.steps, 1).astype(g.dtype), total)
    return Training(result, Info(first, last, distance(model, result)), mean)


def sgd_client(loss_fn: LossFn, client_tx: optax.GradientTransformation) -> Client:
    """Receives a model, runs `client_tx` on it and sends received minus trained; keeps nothing between rounds."""

    def run(model: PyTree, memory: PyTree, data: LocalData, key: Array) -> tuple[Message, PyTree, Info]:
        result = train(loss_fn, client_tx, model, data, key)
        return Message(jax.tree.map(jnp.subtract, model, result.model)), memory, result.info

    return Client(init=lambda params: (), like=Message, run=StepsOnly(loss_fn, run))


def fine_tuning(
    loss_fn: LossFn,
    client_tx: optax.GradientTransformation,
    model_of: Callable[[PyTree], PyTree] = lambda received: received,
) -> Callable[[PyTree, PyTree, LocalData, Array], PyTree]:
    """The received model trained on the client's own examples: what `Algorithm.personal` is unless one knows better."""

    def personal(received: PyTree, memory: PyTree, data: LocalData, key: Array) -> PyTree:
        return train(loss_fn, client_tx, model_of(received), data, key).model

    return personal
