"""Classifiers by name, and the layers they are made of."""

from fedjax_sim.models.classifiers import MODELS, Model, build_model, from_logits
from fedjax_sim.models.layers import Conv, Dense, Norm, max_pool
from fedjax_sim.models.transfer import freeze, load_leaves, lora, save_leaves, train_only, warm_start

__all__ = [
    "MODELS",
    "Conv",
    "Dense",
    "Model",
    "Norm",
    "build_model",
    "freeze",
    "from_logits",
    "load_leaves",
    "lora",
    "max_pool",
    "save_leaves",
    "train_only",
    "warm_start",
]
