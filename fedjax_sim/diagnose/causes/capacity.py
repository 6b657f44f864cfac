"""Too small a model: it does not fit the training examples even in one place."""

import math

import numpy as np

from fedjax_sim.diagnose.cause import Cause, Facts, Remedy, Removal
from fedjax_sim.diagnose.remedies import larger_model

UNFITTED = 0.1  # training loss in one place, over that of guessing, from which on a model may be too small


def _fitted(facts: Facts) -> float:
    """Training loss in one place, with tuned rates, over that of guessing."""
    return float(np.mean([course.fitted for course in facts.pooled])) / math.log(
        max(facts.experiment.data.classes or 2, 2)
    )


def _removals(facts: Facts) -> list[Removal]:
    if _fitted(facts) <= UNFITTED:
        return []
    return [Removal(remedy.name, lambda world, r=remedy: world.set(r.settings)) for remedy in larger_model(facts)]


def _evidence(facts: Facts) -> list[str]:
    return [f"Trained in one place with tuned rates, its training loss is still {_fitted(facts):.0%} of guessing."]


def _remedies(facts: Facts) -> list[Remedy]:
    return larger_model(facts)


MODEL_SIZE = Cause(
    "model_size", "Model too small", _removals, evidence=_evidence, remedies=_remedies, lowers_ceiling=True
)
