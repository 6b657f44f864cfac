"""Figures, as PNG files."""

from fedjax_sim.plots.costs import costs
from fedjax_sim.plots.curves import curves
from fedjax_sim.plots.matrix import matrix
from fedjax_sim.plots.portrait import portrait
from fedjax_sim.plots.tradeoff import tradeoff
from fedjax_sim.plots.waterfall import Fall, draw_waterfall, waterfall

__all__ = ["Fall", "costs", "curves", "draw_waterfall", "matrix", "portrait", "tradeoff", "waterfall"]
