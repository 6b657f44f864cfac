"""Learning rates that are too high or too low, of clients or server."""

import numpy as np

from fedjax_sim.diagnose.cause import CONDITION, HABIT, Cause, Facts, Remedy, Removal, World
from fedjax_sim.diagnose.found import STALLS
from fedjax_sim.diagnose.remedies import RATES, rates_around, server_optimizers, tuned_rates

CLIENT, SERVER = (0.01, 0.1, 0.3, 3.0, 10.0, 100.0), (0.3, 3.0)  # times the rate


def _removals(facts: Facts) -> list[Removal]:
    algorithm = facts.config.algorithm
    private = facts.config.privacy.mechanism != "none"
    rate, server = algorithm.learning_rate, None if private else algorithm.server_learning_rate
    rates = [rate * by for by in RATES] if private else rates_around(rate, CLIENT)  # under privacy each is a program
    found = [_other("client", "learning_rate", rate, other) for other in rates]
    if server is not None:
        found += [_other("server", "server_learning_rate", server, other) for other in rates_around(server, SERVER)]
    return found


def _other(whose: str, name: str, rate: float, other: float) -> Removal:
    def apply(world: World) -> World:
        return world.set({f"algorithm.{name}": other})

    return Removal(f"{whose} learning rate {other:.3g} instead of {rate:.3g}", apply)


def _rank(facts: Facts) -> int:
    """A rate that is wrong in one place, too, is no habit."""
    tuned, same = (np.mean([course.ended for course in courses]) for courses in (facts.pooled, facts.same))
    return CONDITION if tuned - same >= STALLS else HABIT


def _evidence(facts: Facts) -> list[str]:
    losses = facts.history.column("loss_before")[1]
    if not len(losses):
        return ["The loss is no longer finite."]
    found = [f"The clients' loss goes from {losses[0]:.3g} to {losses[-1]:.3g} over {len(facts.history)} rounds."]
    before, after = facts.mean("loss_before"), facts.mean("loss_after")
    if before is not None and after is not None and after >= before:
        found.append(f"Local training does not lower a client's own loss: {before:.3g} before, {after:.3g} after.")
    return found


def _remedies(facts: Facts) -> list[Remedy]:
    return [*tuned_rates(facts, CLIENT), *server_optimizers(facts)]


LEARNING_RATE = Cause("learning_rate", "Learning rate", _removals, _rank, _evidence, _remedies)
