"""Transforms of messages: clipping, sparsification, error feedback and noise."""

from fedjax_sim.core.message import chain, dense_bits, identity
from fedjax_sim.messages.clip import clip, clipped
from fedjax_sim.messages.feedback import error_feedback
from fedjax_sim.messages.noise import add_gaussian, add_laplace, noise_like
from fedjax_sim.messages.sparsify import top_k

__all__ = [
    "add_gaussian",
    "add_laplace",
    "chain",
    "clip",
    "clipped",
    "dense_bits",
    "error_feedback",
    "identity",
    "noise_like",
    "top_k",
]
