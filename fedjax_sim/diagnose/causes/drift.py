"""Drift over time: what clients have, or what it means, changes while they train."""

from fedjax_sim.diagnose.cause import Cause, Facts, Remedy, Removal
from fedjax_sim.diagnose.remedies import server_optimizers, tuned_rates


def _removals(facts: Facts) -> list[Removal]:
    if facts.config.heterogeneity.drift == "none":
        return []
    off = {f"heterogeneity.{name}": None for name in ("drift", "drift_round", "drift_severity")}
    return [Removal("data that stay as they are in the first round", lambda world: world.set(off))]


def _evidence(facts: Facts) -> list[str]:
    given = facts.config.heterogeneity
    return [
        f"{given.drift.capitalize()} drift from round {given.drift_round} at {given.drift_severity:.0%} of clients."
    ]


def _remedies(facts: Facts) -> list[Remedy]:
    return [*tuned_rates(facts), *server_optimizers(facts)]


DRIFT_OVER_TIME = Cause("drift_over_time", "Drift over time", _removals, evidence=_evidence, remedies=_remedies)
