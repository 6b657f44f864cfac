"""Too few rounds: accuracy is still rising when training ends."""

import numpy as np

from fedjax_sim.diagnose.cause import LENGTH, Cause, Facts, Remedy, Removal
from fedjax_sim.diagnose.laboratory import Course

RISING, TIMES = 0.005, 3  # gain in the last third from which on it is rising, and how many times longer is tried


def risen(course: Course) -> float:
    """What accuracy gained in the last third: its last fifth against the fifth before two thirds."""
    values = np.array([a or 0.0 for a in course.accuracy])
    width, middle = max(1, round(0.2 * len(values))), round(2 / 3 * len(values))
    before = values[max(0, middle - width) : max(1, middle)]
    return float(values[-width:].mean() - before.mean())


def _removals(facts: Facts) -> list[Removal]:
    config = facts.config
    if np.mean([risen(course) for course in facts.courses]) < RISING or config.privacy.mechanism != "none":
        return []
    return [Removal(
        f"{TIMES} times as many rounds",
        lambda world: world.set({"training.rounds": world.config.training.rounds * TIMES}),
    )]  # fmt: skip


def _evidence(facts: Facts) -> list[str]:
    gained = 100 * float(np.mean([risen(course) for course in facts.courses]))
    return [f"Accuracy still rose by {gained:.1f} points in the last third of the rounds."]


def _remedies(facts: Facts) -> list[Remedy]:
    rounds = facts.config.training.rounds * TIMES
    return [Remedy(f"{rounds} rounds", {"training.rounds": rounds})]


TOO_FEW_ROUNDS = Cause("too_few_rounds", "Too few rounds", _removals, lambda facts: LENGTH, _evidence, _remedies)
