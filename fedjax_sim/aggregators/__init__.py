"""Robust aggregation: what becomes of a cohort's messages when some of them are wrong, or meant to do harm."""

from fedjax_sim.aggregators.clipping import centered_clipping, norm_bounding
from fedjax_sim.aggregators.coordinate import coordinate_median, trimmed_mean
from fedjax_sim.aggregators.finite import finite_only
from fedjax_sim.aggregators.geometric import geometric_median
from fedjax_sim.aggregators.selection import bulyan, krum, multi_krum
from fedjax_sim.aggregators.vote import majority_vote

__all__ = [
    "bulyan",
    "centered_clipping",
    "coordinate_median",
    "finite_only",
    "geometric_median",
    "krum",
    "majority_vote",
    "multi_krum",
    "norm_bounding",
    "trimmed_mean",
]
