"""Figures, as PNG files."""

from fedjax_sim.plots.curves import curves
from fedjax_sim.plots.matrix import matrix
from fedjax_sim.plots.portrait import portrait
from fedjax_sim.plots.tradeoff import tradeoff

__all__ = ["curves", "matrix", "portrait", "tradeoff"]
