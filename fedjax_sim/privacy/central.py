"""Central differential privacy: the server clips what arrives, adds noise to the sum, and divides by a fixed number."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from fedjax_sim import _validate
from fedjax_sim.aggregators.finite import finite_only
from fedjax_sim.core.aggregate import Aggregator, weighted_sum
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import Message
from fedjax_sim.core.message import Transform
from fedjax_sim.core.server import Server
from fedjax_sim.core.types import Array, PyTree, Scalar
from fedjax_sim.messages import clipped
from fedjax_sim.messages.clip import norm
from fedjax_sim.privacy.carried import (
    carrying_aggregator,
    carrying_client,
    carrying_transform,
    only_floating,
    opened,
)
from fedjax_sim.privacy.noise import Noise, gaussian


class Adaptive(NamedTuple):
    """A clip norm that follows a quantile of the updates' norms (Andrew et al. 2021, algorithm 1).

    Each client also tells whether its message fitted; the noisy share `b` of those that did moves the clip norm by
    `exp(-rate (b - quantile))`. The defaults are the paper's.
    """

    quantile: Scalar = 0.5
    rate: Scalar = 0.2
    bit_noise: Scalar | None = None  # deviation on the sum of bits; a twentieth of the clients expected, or more noise


class Told(NamedTuple):
    """What is broadcast with an adaptive clip norm, and what the server keeps."""

    own: PyTree
    clip_norm: Array


class Memory(NamedTuple):
    """What the release keeps between rounds."""

    noise: PyTree
    clip_norm: Array  # f32[], of the next round
    measured: dict[str, Array]  # of the last round


def update_multiplier(noise_multiplier: Scalar, bit_noise: Scalar) -> Array:
    """The noise multiplier for the updates that leaves `noise_multiplier` for updates and bits together (Andrew et al.
    2021, theorem 1): `(z^-2 - (2 sigma_b)^-2)^(-1/2)`, since a bit less a half moves a sum by a half at most; NaN where
    a traced `bit_noise` is not over half of `noise_multiplier`.

    Raises:
      InputError: `bit_noise` is not over half of `noise_multiplier`.
    """
    traced = any(isinstance(value, Tracer) for value in (noise_multiplier, bit_noise))
    if not traced and float(noise_multiplier) >= 2 * float(bit_noise):
        limit = f"half of noise_multiplier, {float(noise_multiplier) / 2:g}"
        raise _validate.InputError(f"bit_noise: {bit_noise} leaves no noise for the updates; give more than {limit}")
    z, b = jnp.asarray(noise_multiplier, jnp.float32), jnp.asarray(bit_noise, jnp.float32)
    return jnp.where(z > 0, (jnp.maximum(z, 1e-30) ** -2 - (2 * b) ** -2) ** -0.5, 0)


def bounded_sum(denominator: Scalar, weight_cap: Scalar | None = None) -> Aggregator:
    """The sum of the messages over a number fixed beforehand, so that one client more or less moves it by one message.

    All clients weigh 1, or with `weight_cap` `min(examples / weight_cap, 1)` (McMahan et al. 2018, algorithm 1).
    """

    def receive(messages: PyTree, ids: Array, sizes: Array, key: Array) -> tuple[PyTree, Array]:
        return messages, (sizes > 0).astype(jnp.float32) if weight_cap is None else jnp.minimum(sizes / weight_cap, 1)

    return Aggregator(
        receive,
        init=lambda message: jax.tree.map(jnp.zeros_like, message),
        add=lambda acc, messages, weights: jax.tree.map(jnp.add, acc, weighted_sum(messages, weights)),
        finish=lambda acc: jax.tree.map(lambda t: (t / denominator).astype(t.dtype), acc),
    )


def needs_a_mean(algorithm: Algorithm) -> None:
    """Raises the reason why noise on one sum a round would not do for `algorithm`, if there is one."""
    for missing, reason in (
        (algorithm.survey, "its clients send twice a round, and what they send first has no noise"),
        (algorithm.release, "it has a transform on the aggregate already"),
        (algorithm.aggregator.of_mean is None or None, "its aggregate is no function of the mean of the messages"),
    ):
        if missing is not None:
            raise _validate.InputError(f"algorithm: {reason}; take one that averages, such as fedavg or scaffold")


def central(
    algorithm: Algorithm,
    *,
    clip_norm: Scalar,
    noise_multiplier: Scalar,
    clients: Scalar,
    denominator: Scalar | None = None,
    noise: Noise | None = None,
    per_leaf: bool = False,
    weight_cap: Scalar | None = None,
    adaptive: Adaptive | None = None,
) -> Algorithm:
    """`algorithm` whose server sees nothing of a round but one noisy sum of bounded messages.

    Everything that a client sends, the update and whatever else, is clipped as one vector, as it arrives, hence behind
    any compression and any attack, in the order of the noise (L2 for Gaussian, L1 for Laplace). A message that is not
    finite is left out and counted as `rejected`. The sum gets noise of scale `noise_multiplier *
    clip_norm` and is divided by `denominator`, in rounds without clients too. It guarantees what the noise
    multiplier, the sampling of clients and the number of rounds give, see `privatize`, which sets them together.
    Everything but `algorithm`, `noise` and `per_leaf` may be traced.

    The round's metrics get `clip_norm`, `clipped` (share of the messages), `signal_norm` and `noise_norm`, the norms of
    the mean before noise and of what was added. They are not private: no server would see them.

    Args:
      algorithm: whose aggregate is made of the mean of its messages.
      clip_norm: bound on the norm of a message; the first one, when adaptive.
      noise_multiplier: scale of the noise on the sum over the clip norm; with `adaptive` that of updates and bits
        together.
      clients: expected number of clients in a round.
      denominator: expected sum of weights in a round; `clients` by default.
      noise: `gaussian()` by default.
      per_leaf: clip each leaf to its share, see `messages.clipped`.
      weight_cap: examples from which on a client counts fully; all clients alike by default.
      adaptive: lets the clip norm follow the messages; Gaussian noise alone.

    Raises:
      InputError: an algorithm whose aggregate is not made of a mean, or a number out of range.
    """
    needs_a_mean(algorithm)
    total = clients if denominator is None else denominator
    for name, value in (("clip_norm", clip_norm), ("clients", clients), ("denominator", total)):
        _validate.number(name, value, above=0)
    _validate.number("noise_multiplier", noise_multiplier, least=0)
    noise = gaussian() if noise is None else noise
    bit_noise: Scalar = 0.0
    if adaptive is not None:
        given = adaptive.bit_noise
        bit_noise = jnp.maximum(clients / 20, noise_multiplier) if given is None else given
        noise_multiplier = update_multiplier(noise_multiplier, bit_noise)
    of_mean = algorithm.aggregator.of_mean
    assert of_mean is not None

    def init(message: Message) -> Memory:
        only_floating(message)
        zero = jnp.zeros((), jnp.float32)
        measured: dict[str, Array] = dict.fromkeys(("clip_norm", "clipped", "signal_norm", "noise_norm"), zero)
        return Memory(noise.init(opened(message)), jnp.asarray(clip_norm, jnp.float32), measured)

    def release(aggregate: Message, memory: Memory, key: Array) -> tuple[Message, Memory]:
        clean, tally = opened(aggregate), aggregate.extra.fits
        drawn, kept = noise.draw(clean, memory.noise, jax.random.fold_in(key, 0))
        scale = noise_multiplier * memory.clip_norm / total
        added = jax.tree.map(lambda n: n * jnp.asarray(scale, n.dtype), drawn)
        measured: dict[str, Array] = {
            "clip_norm": memory.clip_norm,
            "clipped": tally.clipped(),
            "signal_norm": norm(clean, 2),
            "noise_norm": norm(added, 2),
        }
        noisy = of_mean(jax.tree.map(jnp.add, clean, added), clients)
        if adaptive is None:
            return noisy, Memory(kept, memory.clip_norm, measured)
        drawn_bit = bit_noise * jax.random.normal(jax.random.fold_in(key, 1))
        share = 0.5 + (tally.fitting - tally.count / 2 + drawn_bit) / clients
        following = memory.clip_norm * jnp.exp(-adaptive.rate * (share - adaptive.quantile))
        return Message(noisy.update, Told(noisy.extra, following)), Memory(kept, following, measured)

    def bound(message: Message, told: Array) -> tuple[Message, Array]:
        return clipped(message, told, noise.order, per_leaf)

    def told(broadcast: PyTree) -> tuple[PyTree, Array]:
        return broadcast if adaptive is not None else (broadcast, jnp.asarray(clip_norm, jnp.float32))

    private = algorithm._replace(
        client=carrying_client(algorithm.client, told),
        transform=carrying_transform(
            algorithm.transform, lambda message, told, key: (message, told), more_bits=0 if adaptive is None else 1
        ),
        aggregator=finite_only(carrying_aggregator(bounded_sum(total, weight_cap), bound)),
        release=Transform(init, release, lambda message: None),
        report=lambda state, metrics: state.release.measured,
    )
    return private if adaptive is None else _telling(private, clip_norm)


def _telling(algorithm: Algorithm, clip_norm: Scalar) -> Algorithm:
    """`algorithm` whose server keeps and broadcasts the clip norm that the release told it."""
    server, personal = algorithm.server, algorithm.personal

    def update(params: PyTree, memory: Told, aggregate: Message) -> tuple[PyTree, Told]:
        told = aggregate.extra
        params, own = server.update(params, memory.own, Message(aggregate.update, told.own))
        return params, Told(own, told.clip_norm)

    return algorithm._replace(
        server=Server(
            lambda params, num_clients: Told(server.init(params, num_clients), jnp.asarray(clip_norm, jnp.float32)),
            lambda params, memory: Told(server.broadcast(params, memory.own), memory.clip_norm),
            update,
        ),
        personal=None if personal is None else lambda broadcast, *rest: personal(broadcast.own, *rest),
    )
