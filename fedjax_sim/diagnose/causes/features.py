"""Feature shift: clients' inputs differ at equal label, as those of different scanners do."""

from fedjax_sim.data import SHIFTS
from fedjax_sim.diagnose.align import aligned
from fedjax_sim.diagnose.cause import Cause, Change, Facts, Remedy, Removal, changing, dealt_by_us
from fedjax_sim.diagnose.remedies import drift_corrections, server_optimizers

LEAST = 0.02  # share of the inputs' variance at equal label that clients explain


def _dials(facts: Facts) -> dict[str, float]:
    given = facts.config.heterogeneity
    return {name: getattr(given, name) for name in SHIFTS if getattr(given, name)}


def _removals(facts: Facts) -> list[Removal]:
    if dials := _dials(facts):
        off = {f"heterogeneity.{name}": 0.0 for name in dials}
        return [Removal("every client with the same scanner", lambda world: world.set(off))]
    shift = facts.about.feature_shift
    inputs = facts.experiment.data.examples["inputs"]
    if dealt_by_us(facts) or shift is None or shift < LEAST or inputs.dtype.kind not in "fu":
        return []
    change = Change("inputs aligned", aligned, order=3, last=True)
    return [changing("each client's inputs aligned with the others' in offset and scale", change)]


def _evidence(facts: Facts) -> list[str]:
    found = []
    if facts.about.feature_shift is not None:
        found.append(f"Clients explain {facts.about.feature_shift:.0%} of the inputs' variance at equal label.")
    if dials := _dials(facts):
        found.append("Set: " + ", ".join(f"heterogeneity.{name} {value:g}" for name, value in dials.items()) + ".")
    return found


def _remedies(facts: Facts) -> list[Remedy]:
    return [*drift_corrections(facts), *server_optimizers(facts)]


FEATURE_SHIFT = Cause(
    "feature_shift", "Feature shift", _removals, evidence=_evidence, remedies=_remedies, lowers_ceiling=True
)
