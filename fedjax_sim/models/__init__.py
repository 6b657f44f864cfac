"""Classifiers by name, and the layers they are made of."""

from fedjax_sim.models.classifiers import MODELS, Model, build_model, from_logits
from fedjax_sim.models.layers import Conv, Dense, Norm, fastest_convolution, max_pool

__all__ = ["MODELS", "Conv", "Dense", "Model", "Norm", "build_model", "fastest_convolution", "from_logits", "max_pool"]
