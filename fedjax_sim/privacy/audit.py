"""Auditing: how much a run gives away at least, told from canaries that one single run trained on or did not.

Steinke, Nasr and Jagielski 2023, "Privacy auditing with one (1) training run". Each canary is a client that pulls at
one entry of the model alone, as hard as its bound lets it ("Dirac canaries", Nasr et al. 2023), through all that a
client's message goes through. A coin says of each whether it is there. Whoever sees the model before and after, and
nothing else, guesses: the more often right, the larger epsilon must be.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from fedjax_sim import _validate
from fedjax_sim._validate import InputError
from fedjax_sim.core.client import LossFn
from fedjax_sim.core.types import Array, Population, PyTree, Variables, trained

FIELD = "canary"
PURE = 1e-9  # for delta 0, of which the auditor wants a number over 0: what holds at 0 holds there


class Canaries(NamedTuple):
    """A federation with canaries in it, and what only the auditor knows of them."""

    population: Population  # the clients, and behind them the canaries, of which those that are left out own nothing
    loss_fn: LossFn
    included: np.ndarray  # bool[canaries]
    entries: np.ndarray  # int32[canaries], of the flat model
    signs: np.ndarray  # f32[canaries], 1 or -1


class Audit(NamedTuple):
    """What an audit found."""

    epsilon: float  # lower bound
    confidence: float  # with which it holds
    auroc: float  # of telling the canaries that were there from the others
    scores: np.ndarray  # f64[canaries], how far the model went where each pulled


def plant(
    population: Population, loss_fn: LossFn, params: PyTree, *, canaries: int, seed: int, strength: float = 1e3
) -> Canaries:
    """Adds `canaries` clients, of which fair coins leave out about one in two.

    Train on `population` with `loss_fn`, privately, then `audit`. There are `N + canaries` clients to sample from,
    whoever was left out. Losses of the round's metrics include those of the canaries, which mean nothing.

    Args:
      population: the real clients, their examples a dict of arrays on the device.
      loss_fn: theirs.
      params: the model, of at least as many trained entries as there are canaries.
      canaries: how many; a thousand find about four fifths of what Laplace noise of epsilon 1 to 4 gives away.
      seed: of the coins and of where canaries pull.
      strength: gradient of a canary; with the client's learning rate it has to exceed the clip norm.

    Raises:
      InputError: examples that are no dict, more canaries than entries, or a number out of range.
    """
    _validate.whole("canaries", canaries, least=2)
    _validate.real("strength", strength, above=0)
    examples = population.examples
    if not isinstance(examples, dict) or FIELD in examples:
        raise InputError(f"population: its examples are no dict without a field {FIELD!r}; give one of named arrays")
    flat, _ = ravel_pytree(trained(params))
    if canaries > flat.size:
        raise InputError(f"canaries: {canaries} are more than the {flat.size} entries of the model; plant fewer")
    rng = np.random.default_rng([seed, 0xCA4A21])
    included = rng.random(canaries) < 0.5
    entries = rng.permutation(flat.size)[:canaries].astype(np.int32)
    signs = rng.choice(np.asarray([-1, 1], np.float32), canaries)

    total, here = int(np.asarray(population.offsets)[-1]), int(included.sum())
    # what the model is asked about a canary does not matter, but has to be something it can be asked
    planted = {name: jnp.concatenate([x, jnp.repeat(x[:1], here, axis=0)]) for name, x in examples.items()}
    planted[FIELD] = jnp.concatenate([jnp.full(total, -1, jnp.int32), jnp.asarray(np.flatnonzero(included), jnp.int32)])
    offsets = np.concatenate([np.asarray(population.offsets), total + np.cumsum(included)]).astype(np.int32)

    def pulling(model: PyTree, batch: PyTree, key: Array) -> Any:
        which = batch[FIELD]
        found = loss_fn(model, {name: x for name, x in batch.items() if name != FIELD}, key)
        losses = found[0] if isinstance(model, Variables) else found
        weights, _ = ravel_pytree(trained(model))
        pull = -strength * jnp.asarray(signs)[which] * weights[jnp.asarray(entries)[which]]
        losses = jnp.where(which >= 0, pull.astype(losses.dtype), losses)
        return (losses, found[1]) if isinstance(model, Variables) else losses

    return Canaries(Population(planted, jnp.asarray(offsets)), pulling, included, entries, signs)


def audit(
    canaries: Canaries,
    before: PyTree,
    after: PyTree,
    *,
    delta: float,
    confidence: float = 0.95,
    gaussian: bool = False,
) -> Audit:
    """A lower bound on the epsilon of the run that went from the model `before` to the model `after`.

    It is a bound on what this run gave away, not an estimate of it: with few canaries, or training that moves the model
    much by itself, it lies far below.

    Args:
      canaries: from `plant`.
      before: the model that training started with.
      after: the one it ended with.
      delta: of the epsilon.
      confidence: of the bound.
      gaussian: trust that all the rounds together are one Gaussian mechanism, as they are with Gaussian noise and every
        client in every round: a tighter bound (Mahloujifar, Melis and Chaudhuri 2024, "Auditing f-differential privacy
        in one run").

    Raises:
      InputError: a number out of range, a model that is not finite, or canaries that are all in or all out.
    """
    from jax_privacy.auditing import CanaryScoreAuditor  # a heavy import, wanted by few

    for name, value in (("confidence", confidence), ("delta", delta)):
        if not 0 <= value < 1:
            raise InputError(f"{name}: {value} is out of range; give a number between 0 and 1")
    flat = [np.asarray(ravel_pytree(trained(model))[0], np.float64) for model in (before, after)]
    scores = canaries.signs * (flat[1] - flat[0])[canaries.entries]
    if not np.isfinite(scores).all():
        raise InputError("after: the model is not finite; lower the learning rates and train again")
    if canaries.included.all() or not canaries.included.any():
        raise InputError(f"canaries: all {len(scores)} are on one side; plant more")
    auditor = CanaryScoreAuditor(scores[canaries.included], scores[~canaries.included])
    bound = auditor.epsilon_one_run_fdp if gaussian else auditor.epsilon_one_run
    epsilon = float(bound(1 - confidence, max(delta, PURE)))
    return Audit(epsilon, confidence, float(auditor.attack_auroc()), scores)
