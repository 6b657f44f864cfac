"""Transforms of messages: clipping, compression, error feedback and noise."""

from collections.abc import Callable

from fedjax_sim.core.message import Transform, chain, dense_bits, identity
from fedjax_sim.messages.clip import clip, clipped
from fedjax_sim.messages.downlink import compressed_broadcast
from fedjax_sim.messages.feedback import ef21, error_feedback
from fedjax_sim.messages.lazy import lazy
from fedjax_sim.messages.lowrank import power_sgd
from fedjax_sim.messages.noise import add_gaussian, add_laplace, noise_like
from fedjax_sim.messages.quantize import half, qsgd, sign, ternary
from fedjax_sim.messages.rotate import drive, rotated
from fedjax_sim.messages.sparsify import random_k, top_k
from fedjax_sim.messages.uplink import compressed_messages

COMPRESSORS: dict[str, Callable[..., Transform]] = {
    "top_k": top_k,
    "random_k": random_k,
    "qsgd": qsgd,
    "ternary": ternary,
    "sign": sign,
    "half": half,
    "drive": drive,
    "power_sgd": power_sgd,
}

__all__ = [
    "COMPRESSORS",
    "add_gaussian",
    "add_laplace",
    "chain",
    "clip",
    "clipped",
    "compressed_broadcast",
    "compressed_messages",
    "dense_bits",
    "drive",
    "ef21",
    "error_feedback",
    "half",
    "identity",
    "lazy",
    "noise_like",
    "power_sgd",
    "qsgd",
    "random_k",
    "rotated",
    "sign",
    "ternary",
    "top_k",
]
