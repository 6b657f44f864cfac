"""Why federated training has stalled: experiments in counterfactual worlds, and what they say."""

from fedjax_sim.diagnose.cause import (
    CONDITION,
    EXTREME,
    HABIT,
    LENGTH,
    Cause,
    Facts,
    Remedy,
    Removal,
    changing,
    setting,
)
from fedjax_sim.diagnose.causes import CAUSES, causes_named
from fedjax_sim.diagnose.diagnosis import diagnose
from fedjax_sim.diagnose.found import Diagnosis, Interaction, Suspect, Tried
from fedjax_sim.diagnose.game import Estimate
from fedjax_sim.diagnose.laboratory import Told
from fedjax_sim.diagnose.worlds import Change, World

__all__ = [
    "CAUSES",
    "CONDITION",
    "EXTREME",
    "HABIT",
    "LENGTH",
    "Cause",
    "Change",
    "Diagnosis",
    "Estimate",
    "Facts",
    "Interaction",
    "Remedy",
    "Removal",
    "Suspect",
    "Told",
    "Tried",
    "World",
    "causes_named",
    "changing",
    "diagnose",
    "setting",
]
