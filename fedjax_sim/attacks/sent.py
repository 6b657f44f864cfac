"""Attacks on messages: what malicious clients send instead of what they computed.

An attack acts on what a client is free to choose, as `Client.roles` declares it: the update, a model's statistics and
what else moves the server, and claims such as a loss. A claim below 0 would not be believed, so its magnitude is what
is sent. Weights, ids and numbers of steps stay as they are: a client that got its weight wrong would be left out, which
is no harm.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from fedjax_sim import _validate
from fedjax_sim.attacks.clients import checked_who
from fedjax_sim.core.aggregate import weighted_sum
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import CLAIM, GIVEN
from fedjax_sim.core.types import Array, PyTree, Scalar

STREAM = 2**31 - 1  # no client's id: attacks draw from keys of their own


class Attack(NamedTuple):
    """What is sent in place of messages, `forge(messages [L, ...], ids, present bool[L], wicked bool[L], key)`.

    Messages have None where a leaf is not the client's to choose. Returns messages shaped alike, of which those of
    `wicked` clients, all of them present, are taken. `whole` says that it looks at the other clients' messages and has
    to see the whole cohort.
    """

    forge: Callable[[PyTree, Array, Array, Array, Array], PyTree]
    whole: bool = False


def attacked(algorithm: Algorithm, attack: Attack, who: Any) -> Algorithm:
    """`algorithm` whose malicious clients train as they should and then send what `attack` makes of it.

    The attack comes after the transform on messages and before the aggregator receives, rejects, clips or weighs
    anything; attackers keep their number of examples and answer a survey honestly. An attack that looks at the other
    clients stores the cohort's messages, whatever the aggregator needs.

    Args:
      algorithm: what is attacked.
      attack: of `MESSAGE_ATTACKS`, or your own.
      who: the malicious clients, bool[N].

    Raises:
      InputError: `who` is not one bool per client; the number of clients is known when the state is made.
    """
    listed, inner, server = checked_who(who), algorithm.aggregator, algorithm.server

    def init(params: PyTree, num_clients: int) -> PyTree:
        checked_who(who, num_clients)
        return server.init(params, num_clients)

    def receive(messages: PyTree, ids: Array, sizes: Array, key: Array) -> tuple[PyTree, Array]:
        present = sizes > 0
        wicked = jnp.asarray(listed).at[ids].get(mode="clip") & present
        leaves, structure = jax.tree.flatten(messages)
        roles = jax.tree.leaves(jax.tree.broadcast(algorithm.client.roles, messages))
        free = [role != GIVEN and jnp.issubdtype(m.dtype, jnp.floating) for role, m in zip(roles, leaves, strict=True)]
        seen = structure.unflatten([m if chosen else None for m, chosen in zip(leaves, free, strict=True)])
        forged = attack.forge(seen, ids, present, wicked, jax.random.fold_in(key, STREAM))
        instead = iter(jax.tree.leaves(forged))
        for i, chosen in enumerate(free):
            if chosen:
                false = jnp.abs(next(instead)) if roles[i] == CLAIM else next(instead)
                leaves[i] = jnp.where(_per_message(wicked, leaves[i]), false, leaves[i])
        messages = structure.unflatten(leaves)
        return inner.receive(messages, ids, sizes, key)

    aggregator = inner._replace(receive=receive, whole=inner.whole or attack.whole, of_mean=None)
    return algorithm._replace(aggregator=aggregator, server=server._replace(init=init))


def sign_flip(scale: Scalar = 1.0) -> Attack:
    """Sends `-scale` times its own message, and claims `scale` times what is so. A fifth of the clients turns a mean
    around with a scale of over 4.

    Raises:
      InputError: `scale` is not over 0.
    """
    _validate.number("scale", scale, above=0)
    return Attack(lambda messages, *_: jax.tree.map(lambda m: (-scale * m).astype(m.dtype), messages))


def gaussian(scale: Scalar = 1.0) -> Attack:
    """Sends normal noise of standard deviation `scale` in every entry, and nothing else.

    Raises:
      InputError: `scale` is not over 0.
    """
    _validate.number("scale", scale, above=0)

    def forge(messages: PyTree, ids: Array, present: Array, wicked: Array, key: Array) -> PyTree:
        leaves, structure = jax.tree.flatten(messages)
        keys = jax.vmap(lambda id: jax.random.split(jax.random.fold_in(key, id), len(leaves)))(ids)

        def noise(leaf: Array, keys: Array) -> Array:
            drawn = jax.vmap(lambda key: jax.random.normal(key, leaf.shape[1:], leaf.dtype))(keys)
            return (scale * drawn).astype(leaf.dtype)

        return jax.tree.unflatten(structure, [noise(leaf, keys[:, i]) for i, leaf in enumerate(leaves)])

    return Attack(forge)


def ipm(epsilon: Scalar = 0.5) -> Attack:
    """Inner product manipulation (Xie et al. 2020): all send `-epsilon` times the mean of the honest messages.

    A small `epsilon` hides among messages that differ much; with `f` attackers of `n` a mean turns around over
    `(n - f) / f`. The default is ours.

    Raises:
      InputError: `epsilon` is not over 0.
    """
    _validate.number("epsilon", epsilon, above=0)

    def forge(messages: PyTree, ids: Array, present: Array, wicked: Array, key: Array) -> PyTree:
        return jax.tree.map(lambda m: (-epsilon * m).astype(m.dtype), _mean(messages, present & ~wicked))

    return Attack(_to_all(forge), whole=True)


def alie(z: Scalar | None = None) -> Attack:
    """A little is enough (Baruch et al. 2019): all send the honest mean minus `z` honest standard deviations, in each
    coordinate.

    By default `z` is the paper's: the normal quantile of `(n - f - s) / (n - f)` with `s = floor(n / 2 + 1) - f`
    supporters to win among `n` clients with `f` attackers, and at least 0, which it is for few attackers. The paper
    estimates mean and deviation from what the attackers computed themselves; here they know the honest messages.

    Raises:
      InputError: `z` is neither None nor a number of at least 0.
    """
    if z is not None:
        _validate.number("z", z, least=0)

    def forge(messages: PyTree, ids: Array, present: Array, wicked: Array, key: Array) -> PyTree:
        honest = present & ~wicked
        mean = _mean(messages, honest)
        square = _mean(jax.tree.map(lambda m, c: (m - c) ** 2, messages, mean), honest)
        shift = quantile(present.sum(), wicked.sum()) if z is None else jnp.asarray(z)
        return jax.tree.map(lambda c, s: c - shift.astype(c.dtype) * jnp.sqrt(s), mean, square)

    return Attack(_to_all(forge), whole=True)


def quantile(clients: Array, attackers: Array) -> Array:
    """The `z` of `alie` for so many clients with attackers among them, f32[]."""
    honest = jnp.maximum(clients - attackers, 1)
    share = (honest - (clients // 2 + 1 - attackers)) / honest
    return ndtri(jnp.clip(share.astype(jnp.float32), 0.5, 1 - 1e-6))


def nan_sender() -> Attack:
    """Sends NaN in every entry, as a broken client does."""
    return Attack(lambda messages, *_: jax.tree.map(lambda m: jnp.full_like(m, jnp.nan), messages))


def _per_message(values: Array, leaf: Array) -> Array:
    return values.reshape((-1,) + (1,) * (leaf.ndim - 1))


def _mean(messages: PyTree, counts: Array) -> PyTree:
    """Mean over the messages that count, 0 if there are none."""
    messages = jax.tree.map(lambda m: jnp.where(_per_message(counts, m), m, 0), messages)
    return weighted_sum(messages, counts / jnp.maximum(counts.sum(), 1))


def _to_all(forge: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """The one message that `forge` returns, from every attacker."""

    def forged(messages: PyTree, *others: Array) -> PyTree:
        return jax.tree.map(lambda f, m: jnp.broadcast_to(f, m.shape), forge(messages, *others), messages)

    return forged


# name -> factory of an `Attack`
MESSAGE_ATTACKS: dict[str, Callable[..., Attack]] = {
    "sign_flip": sign_flip,
    "gaussian": gaussian,
    "ipm": ipm,
    "alie": alie,
    "nan_sender": nan_sender,
}
