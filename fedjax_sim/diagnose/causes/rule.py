"""A robust aggregation rule where it does more harm than good."""

from fedjax_sim.diagnose.cause import EXTREME, Cause, Facts, Remedy, Removal
from fedjax_sim.diagnose.remedies import ROBUST, by_algorithm


def _removals(facts: Facts) -> list[Removal]:
    if facts.config.algorithm.name not in ROBUST:
        return []
    return [Removal("a plain mean of the updates", lambda world, r=r: world.set(r.settings)) for r in _remedies(facts)]


def _evidence(facts: Facts) -> list[str]:
    effective = facts.mean("effective_clients")
    named = f"Updates are aggregated by {facts.config.algorithm.name}"
    return [f"{named}." if effective is None else f"{named}; a round is worth {effective:.1f} clients of equal weight."]


def _remedies(facts: Facts) -> list[Remedy]:
    return by_algorithm(facts, "fedavg", "a plain mean of the updates (FedAvg)")


AGGREGATION_RULE = Cause(
    "aggregation_rule", "Robust aggregation", _removals, lambda facts: EXTREME, _evidence, _remedies
)
