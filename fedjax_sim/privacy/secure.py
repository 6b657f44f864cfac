"""The distributed discrete Gaussian under secure aggregation: nobody but the clients sees anything but one modular sum.

Kairouz, Liu and Steinke 2021, "The distributed discrete Gaussian mechanism for federated learning with secure
aggregation", without its random rotation: what that saves is bits on the wire.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim import _validate
from fedjax_sim._validate import InputError
from fedjax_sim.aggregators.finite import finite_only
from fedjax_sim.core.aggregate import Aggregator
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import Message
from fedjax_sim.core.message import Transform
from fedjax_sim.core.types import Array, PyTree
from fedjax_sim.messages import clipped
from fedjax_sim.messages.clip import norm
from fedjax_sim.privacy.carried import carrying_aggregator, carrying_client, carrying_transform, opened
from fedjax_sim.privacy.central import needs_a_mean
from fedjax_sim.privacy.discrete import TAIL, draw, table

EXACT = 2**24  # integers up to here are float32 numbers


class FixedPoint(NamedTuple):
    """How real numbers become integers modulo a power of two."""

    step: float  # a power of two, so that scaling by it is exact
    bits: int  # of the modulus

    def bound(self, clip_norm: float, entries: int) -> float:
        """The L2 norm, at most, of a message of norm `clip_norm` rounded up or down, entry by entry."""
        return clip_norm + self.step * math.sqrt(entries)


class Sum(NamedTuple):
    total: PyTree  # int32, modulo 2^32
    count: Array


def fixed_point(clip_norm: float, entries: int, clients: int, sigma: float, bits: int = 32) -> FixedPoint:
    """The largest step that adds at most a hundredth to the clip norm.

    Args:
      clip_norm: L2 bound on a message.
      entries: of a message.
      clients: in a round, at most.
      sigma: standard deviation of one client's noise.
      bits: of the modulus, from 8 to 32.

    Raises:
      InputError: so few bits that a sum could wrap, or a noise so small that the numbers no longer fit float32.
    """
    if not 8 <= _validate.whole("bits", bits) <= 32:
        raise InputError(f"bits: {bits} is out of range; give 8 to 32")
    step = 2.0 ** math.floor(math.log2(clip_norm / 100 / math.sqrt(entries)))
    largest = math.ceil(clip_norm / step) + 1 + math.ceil(TAIL * max(sigma / step, 1))
    if largest > EXACT:
        raise InputError(
            f"noise_multiplier: an entry with its noise takes {largest:,} steps, more than the {EXACT:,} that float32 "
            "counts exactly; lower the noise or train a smaller model"
        )
    needed = math.ceil(math.log2(2 * clients * largest + 1))
    if needed > bits:
        raise InputError(f"bits: {bits} let the sum of {clients} messages wrap; give {needed}, 32 at most")
    return FixedPoint(step, bits)


def modular_sum(form: FixedPoint, clients: int, least_clients: int) -> Aggregator:
    """The mean of integer messages, summed modulo `2^bits`, over `clients`; zeros where fewer than `least_clients`
    came.

    The masks of secure aggregation (Bonawitz et al. 2017) cancel in the sum, exactly, hence are not drawn.
    """

    def receive(messages: PyTree, ids: Array, sizes: Array, key: Array) -> tuple[PyTree, Array]:
        return messages, (sizes > 0).astype(jnp.float32)

    def add(acc: Sum, messages: PyTree, weights: Array) -> Sum:
        def integers(m: Array) -> Array:  # int32 sums wrap
            return jnp.sum(jnp.round(m / form.step).astype(jnp.int32), axis=0)

        total = jax.tree.map(lambda t, m: t + integers(m), acc.total, messages)
        return Sum(total, acc.count + jnp.sum(weights > 0))

    def finish(acc: Sum) -> PyTree:
        spare = 32 - form.bits  # shifted up and back down, the sign comes out right

        def real(total: Array) -> Array:
            centred = ((total << spare) >> spare).astype(jnp.float32)
            return jnp.where(acc.count >= least_clients, centred * form.step / clients, 0)

        return jax.tree.map(real, acc.total)

    def init(message: PyTree) -> Sum:
        return Sum(jax.tree.map(lambda m: jnp.zeros(m.shape, jnp.int32), message), jnp.zeros((), jnp.int32))

    return Aggregator(receive, init, add, finish)


def secure(
    algorithm: Algorithm,
    params: PyTree,
    *,
    clip_norm: float,
    noise_multiplier: float,
    clients: int,
    least_clients: int | None = None,
    num_clients: int | None = None,
    bits: int = 32,
) -> Algorithm:
    """`algorithm` whose clients round what they send to integers, each add a share of discrete Gaussian noise, and have
    only the sum modulo `2^bits` seen.

    Each of `least_clients` adds noise of standard deviation `noise_multiplier * clip_norm / sqrt(least_clients)`, so
    that their sum has `noise_multiplier * clip_norm`. Where more arrive there is more noise; where fewer do, for
    clients drop out or send what is not finite, secure aggregation fails and the round releases nothing. Rounding is
    stochastic, hence unbiased.
    `accounting.discrete_gaussian_spending` states what it guarantees. The metrics get `clipped`, `noise_norm`, the
    expected one, and `signal_norm`, what is left of the squared norm of the mean without it: an estimate, for nobody
    sees a sum without noise.

    Args:
      algorithm: whose aggregate is made of the mean of its messages.
      params: the model, for the number of entries of a message.
      clip_norm: L2 bound on a message.
      noise_multiplier: standard deviation of the noise on the sum over the clip norm.
      clients: in a round, by which the sum is divided.
      least_clients: that must arrive; `clients` by default, so that nobody may drop out.
      num_clients: in the population; `clients` by default.
      bits: of the modulus and of an entry on the wire.

    Raises:
      InputError: an algorithm whose aggregate is not made of a mean, a model that is not float32, or a setting out of
        range.
    """
    needs_a_mean(algorithm)
    _validate.number("clip_norm", clip_norm, above=0)
    _validate.number("noise_multiplier", noise_multiplier, above=0)
    least = _validate.whole("least_clients", clients if least_clients is None else least_clients)
    if least > _validate.whole("clients", clients):
        raise InputError(f"least_clients: {least} is more than the {clients} clients of a round; lower it")
    like = message_like(algorithm, params, num_clients or clients)
    entries = sum(leaf.size for leaf in jax.tree.leaves(like))
    sigma = noise_multiplier * clip_norm / math.sqrt(least)
    form = fixed_point(clip_norm, entries, clients, sigma, bits)
    law, of_mean = table(sigma / form.step), algorithm.aggregator.of_mean
    assert of_mean is not None

    def privatise(message: Message, told: Array, key: Array) -> tuple[Message, Array]:
        message, fits = clipped(message, told)
        leaves, structure = jax.tree.flatten(message)

        def encoded(x: Array, key: Array) -> Array:
            up, noise = jax.random.split(key)
            whole = jnp.floor(x / form.step + jax.random.uniform(up, x.shape)).astype(jnp.int32)
            return (whole + draw(noise, x.shape, law)).astype(x.dtype) * form.step

        keys = jax.random.split(key, len(leaves))
        return structure.unflatten(map(encoded, leaves, keys)), fits

    def init(message: Message) -> dict[str, Array]:
        return {name: jnp.zeros((), jnp.float32) for name in ("clipped", "signal_norm", "noise_norm")}

    def release(aggregate: Message, memory: Any, key: Array) -> tuple[Message, Any]:
        mean, tally = opened(aggregate), aggregate.extra.fits
        noise_norm = jnp.where(tally.count >= least, sigma * jnp.sqrt(tally.count * entries) / clients, 0)
        signal = jnp.sqrt(jnp.maximum(norm(mean, 2) ** 2 - noise_norm**2, 0))
        measured = {"clipped": tally.clipped(), "signal_norm": signal, "noise_norm": noise_norm}
        return of_mean(mean, clients), measured

    return algorithm._replace(
        client=carrying_client(algorithm.client, lambda broadcast: (broadcast, jnp.float32(clip_norm))),
        transform=carrying_transform(algorithm.transform, privatise)._replace(wire=lambda message: entries * bits),
        aggregator=finite_only(carrying_aggregator(modular_sum(form, clients, least))),
        release=Transform(init, release, lambda message: None),
        report=lambda state, metrics: state.release,
    )


def message_like(algorithm: Algorithm, params: PyTree, num_clients: int) -> Message:
    """Shapes of what a client sends.

    Raises:
      InputError: it is not all float32.
    """
    server = jax.eval_shape(lambda p: algorithm.server.init(p, num_clients), params)
    like = jax.eval_shape(lambda p, s: algorithm.client.like(algorithm.server.broadcast(p, s)), params, server)
    wrong = {str(leaf.dtype) for leaf in jax.tree.leaves(like)} - {"float32"}
    if wrong:
        raise InputError(f"params: messages of {', '.join(sorted(wrong))} are no fixed point; train in float32")
    return like
