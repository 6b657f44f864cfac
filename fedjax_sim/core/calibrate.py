"""How far probabilities can be believed, and how well two classes are told apart."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_sim import _validate
from fedjax_sim.core.devices import gather_entries, split_rows
from fedjax_sim.core.rewrite import suited
from fedjax_sim.core.types import Array, PyTree

BINS = 15


def make_calibration(
    logits_fn: Callable[[PyTree, Array], Array], *, batch_size: int = 256, devices: Sequence[Any] = ()
) -> Callable[[PyTree, PyTree], dict[str, Array]]:
    """The expected calibration error, and for two classes the area under the ROC curve, jitted.

    Args:
      logits_fn: `(params, inputs [B, ...]) -> f32[B, classes]`.
      batch_size: examples at once.
      devices: that share each batch, where this is part of a program that runs on several.

    Returns:
      `calibrate(params, {"inputs", "labels"}) -> {"ece": f32[]}`, and with two classes also `"auc": f32[]`, NaN where
      one of them is missing.

    Raises:
      InputError: from `calibrate`, examples of no or of different length.
    """
    _validate.whole("batch_size", batch_size)

    @jax.jit
    def calibrate(params: PyTree, examples: PyTree) -> dict[str, Array]:
        total = _validate.leading("examples", examples)
        size = min(batch_size, total)

        def some(first: Array) -> Array:
            rows = split_rows(first + jnp.arange(size), devices)
            return logits_fn(params, examples["inputs"].at[rows].get(mode="clip"))

        logits = lax.map(suited(some, jax.local_devices()), jnp.arange(0, total, size))
        logits = gather_entries(logits, devices)
        logits = logits.reshape(-1, logits.shape[-1])[:total].astype(jnp.float32)
        labels = examples["labels"]
        found = {"ece": ece(logits, labels)}
        return found | ({"auc": auc(logits[:, 1] - logits[:, 0], labels == 1)} if logits.shape[1] == 2 else {})

    return calibrate


def ece(logits: Array, labels: Array) -> Array:
    """Mean distance between confidence and accuracy over 15 bins of confidence, weighted by their examples, f32[] (Guo
    et al. 2017, "On calibration of modern neural networks", equation 3)."""
    confidence = jax.nn.softmax(logits).max(-1)
    right = (logits.argmax(-1) == labels).astype(jnp.float32)
    bins = jnp.clip(jnp.ceil(confidence * BINS).astype(jnp.int32) - 1, 0, BINS - 1)  # (k / 15, (k + 1) / 15]
    in_bin = bins == jnp.arange(BINS)[:, None]  # and no scatter, which a GPU adds up in another order every time
    gap = jnp.where(in_bin, right - confidence, 0).sum(1)
    return jnp.abs(gap).sum() / labels.shape[0]


def auc(scores: Array, positive: Array) -> Array:
    """The chance that a positive example has a higher score than a negative one, ties counting half, f32[]; NaN where
    there are none of either (Hanley and McNeil 1982)."""
    ordered = jnp.sort(scores)
    below, up_to = (jnp.searchsorted(ordered, scores, side=side) for side in ("left", "right"))
    rank = (below + up_to + 1) / 2  # the mean rank of those that tie, from 1
    count = positive.sum().astype(jnp.float32)
    others = positive.shape[0] - count
    above = jnp.where(positive, rank, 0).sum() - count * (count + 1) / 2
    return above / (count * others)
