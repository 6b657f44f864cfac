"""Transforms of messages: clipping, sparsification, error feedback and noise."""

from fedjax_sim.core.message import chain, dense_bits, identity
from fedjax_sim.messages.clip import clip
from fedjax_sim.messages.feedback import error_feedback
from fedjax_sim.messages.noise import add_laplace
from fedjax_sim.messages.sparsify import top_k

__all__ = ["add_laplace", "chain", "clip", "dense_bits", "error_feedback", "identity", "top_k"]
