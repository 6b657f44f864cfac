"""Quantity skew: clients of very different sizes, and weights that do not go with them."""

from fedjax_sim.diagnose.cause import EXTREME, HABIT, Cause, Change, Facts, Remedy, Removal, changing
from fedjax_sim.diagnose.exchange import same_sizes
from fedjax_sim.diagnose.remedies import other_weights, server_optimizers

LEAST = 0.3  # Gini's coefficient of the sizes


def _removals(facts: Facts) -> list[Removal]:
    if facts.about.gini < LEAST:
        return []
    change = Change("same sizes", lambda data: same_sizes(data, facts.config.data.seed), order=2)
    weights = [Removal(r.name, lambda world, r=r: world.set(r.settings)) for r in other_weights(facts)]
    return [changing("every client with as many examples", change), *weights]


def _evidence(facts: Facts) -> list[str]:
    about = facts.about
    found = [f"Clients have {about.size_min:,} to {about.size_max:,} examples (Gini {about.gini:.2f})."]
    weighting = facts.config.algorithm.weighting
    if weighting is not None and (effective := facts.mean("effective_clients")) is not None:
        found.append(f"Weights by {'examples' if weighting == 'examples' else 'client, all alike'}: a round is worth "
                     f"{effective:.1f} clients of equal weight.")  # fmt: skip
    return found


def _remedies(facts: Facts) -> list[Remedy]:
    return [*other_weights(facts), *server_optimizers(facts)]


def _rank(facts: Facts) -> int:
    return EXTREME if facts.config.algorithm.weighting == "uniform" else HABIT


QUANTITY_SKEW = Cause("quantity_skew", "Quantity skew and weighting", _removals, _rank, _evidence, _remedies)
