"""Local differential privacy: every client adds noise before anything leaves it, and trusts nobody."""

import jax
import jax.numpy as jnp

from fedjax_sim import _validate
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import Message
from fedjax_sim.core.message import Transform, dense_bits
from fedjax_sim.core.types import Array, PyTree, RoundMetrics, RoundState, Scalar, trained
from fedjax_sim.messages import clipped
from fedjax_sim.privacy.carried import (
    carrying_aggregator,
    carrying_client,
    carrying_transform,
    only_floating,
    opened,
)
from fedjax_sim.privacy.noise import Noise, gaussian


def local(
    algorithm: Algorithm,
    *,
    clip_norm: Scalar,
    noise_multiplier: Scalar,
    noise: Noise | None = None,
    per_leaf: bool = False,
) -> Algorithm:
    """`algorithm` whose clients clip what they send to `clip_norm` and add noise of scale `noise_multiplier *
    clip_norm`.

    The order of clipping is that of the noise. Any two messages differ by `2 * clip_norm` at most. Whatever the server
    does with them, a median too, is post-processing; the number of examples, where an aggregator weighs by it, is taken
    to be public. Everything but `algorithm`, `noise` and `per_leaf` may be traced.

    The round's metrics get `clipped`, the share of the messages, `noise_norm`, the expected norm of the noise in the
    mean, and `signal_norm`, what is left of the aggregate's squared norm without it: an estimate, 0 where noise drowns
    the rest.

    Raises:
      InputError: an algorithm whose clients send twice a round, or a number out of range; from `init`, one whose
        messages hold whole numbers, such as an id or a choice.
    """
    if algorithm.survey is not None:
        raise _validate.InputError("algorithm: its clients send twice a round, and what they send first has no noise; "
                                   "take another")  # fmt: skip
    if algorithm.release is not None:
        raise _validate.InputError("algorithm: it has a transform on the aggregate already; take one without")
    _validate.number("clip_norm", clip_norm, above=0)
    _validate.number("noise_multiplier", noise_multiplier, least=0)
    noise = gaussian() if noise is None else noise
    scale = noise_multiplier * clip_norm

    def privatise(message: Message, told: Array, key: Array) -> tuple[Message, Array]:
        message, fits = clipped(message, told, noise.order, per_leaf)
        drawn, _ = noise.draw(message, (), key)
        return jax.tree.map(lambda m, n: m + jnp.asarray(scale, m.dtype) * n, message, drawn), fits

    def init(message: Message) -> dict[str, Array]:
        only_floating(message)
        entries = sum(leaf.size for leaf in jax.tree.leaves(trained(message.update)))
        return {"clipped": jnp.zeros((), jnp.float32), "entries": jnp.float32(entries)}

    def release(aggregate: Message, memory: PyTree, key: Array) -> tuple[Message, PyTree]:
        return opened(aggregate), memory | {"clipped": aggregate.extra.fits.clipped()}

    def report(state: RoundState, metrics: RoundMetrics) -> dict[str, Array]:
        clients = metrics.effective_clients
        of_noise = scale**2 * noise.variance * state.release["entries"] / jnp.where(clients > 0, clients, jnp.inf)
        signal = jnp.sqrt(jnp.maximum(metrics.aggregate_norm**2 - of_noise, 0))
        return {"clipped": state.release["clipped"], "signal_norm": signal, "noise_norm": jnp.sqrt(of_noise)}

    return algorithm._replace(
        client=carrying_client(algorithm.client, lambda broadcast: (broadcast, jnp.asarray(clip_norm, jnp.float32))),
        transform=carrying_transform(algorithm.transform, privatise)._replace(
            wire=lambda message: dense_bits(opened(message))  # whatever was left out before, noise has filled
        ),
        aggregator=carrying_aggregator(algorithm.aggregator),
        release=Transform(init, release, lambda message: None),
        report=report,
    )
