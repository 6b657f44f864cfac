"""Label disagreement: clients read the same inputs differently, or wrongly."""

from fedjax_sim.data import DISAGREEMENTS
from fedjax_sim.diagnose.annotators import Reading, read, relabelled
from fedjax_sim.diagnose.cause import Cause, Change, Facts, Remedy, Removal, changing, dealt_by_us
from fedjax_sim.diagnose.remedies import robust_rules, tuned_rates


def _dials(facts: Facts) -> dict[str, float]:
    given = facts.config.heterogeneity
    return {name: getattr(given, name) for name in DISAGREEMENTS if getattr(given, name)}


def _reading(facts: Facts) -> Reading | None:
    """Read once, for it takes a while."""
    if "reading" not in facts.known:
        facts.known["reading"] = read(facts.experiment.data, facts.config.data.seed)
    return facts.known["reading"]


def _removals(facts: Facts) -> list[Removal]:
    if dials := _dials(facts):
        off = {f"heterogeneity.{name}": 0.0 for name in dials}
        return [Removal("every client reads labels as the test set does", lambda world: world.set(off))]
    if dealt_by_us(facts) or facts.config.attack.name != "none":
        return []  # labels are the data set's own
    if (reading := _reading(facts)) is None or not len(reading.suspects):
        return []
    change = Change("labels read anew", lambda data: relabelled(data, reading), order=0, last=True)
    return [changing("labels of the odd clients read anew by a model of the others'", change)]


def _evidence(facts: Facts) -> list[str]:
    if dials := _dials(facts):
        return ["Set: " + ", ".join(f"heterogeneity.{name} {value:g}" for name, value in dials.items()) + "."]
    reading = _reading(facts)
    if reading is None:
        return []
    data = facts.experiment.data
    return [
        f"A model of the other clients' labels contradicts {reading.contradicted[client]:.0%} of those of "
        f"{data.name(int(client))}; on the test set it errs on {reading.expected:.0%}."
        for client in reading.suspects[:3]
    ]


def _remedies(facts: Facts) -> list[Remedy]:
    return [*robust_rules(facts), *tuned_rates(facts)[:2]]


LABEL_DISAGREEMENT = Cause("label_disagreement", "Label disagreement", _removals, evidence=_evidence,
                           remedies=_remedies, lowers_ceiling=True)  # fmt: skip
