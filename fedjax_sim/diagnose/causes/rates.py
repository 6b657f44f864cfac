"""Learning rates that are too high or too low, of clients or server."""

from fedjax_sim.diagnose.cause import HABIT, Cause, Facts, Remedy, Removal, World
from fedjax_sim.diagnose.remedies import server_optimizers, tuned_rates

CLIENT, SERVER = (0.01, 0.1, 0.3, 3.0, 10.0, 100.0), (0.3, 3.0)
UNDER_PRIVACY = (0.1, 0.3, 3.0, 10.0)  # where each is a program of its own


def _removals(facts: Facts) -> list[Removal]:
    algorithm = facts.config.algorithm
    private = facts.config.privacy.mechanism != "none"
    rate, server = algorithm.learning_rate, None if private else algorithm.server_learning_rate
    found = [_scaled("client", "learning_rate", rate, by) for by in (UNDER_PRIVACY if private else CLIENT)]
    return found + [_scaled("server", "server_learning_rate", server, by) for by in SERVER if server is not None]


def _scaled(whose: str, name: str, rate: float, by: float) -> Removal:
    def apply(world: World) -> World:
        return world.set({f"algorithm.{name}": rate * by})

    return Removal(f"{whose} learning rate {rate * by:.3g} instead of {rate:.3g}", apply)


def _evidence(facts: Facts) -> list[str]:
    first = next((row["loss_before"] for row in facts.rows if row["loss_before"] is not None), None)
    last = next((row["loss_before"] for row in reversed(facts.rows) if row["loss_before"] is not None), None)
    if first is None or last is None:
        return ["The loss is no longer finite."]
    found = [f"The clients' loss goes from {first:.3g} to {last:.3g} over {len(facts.rows)} rounds."]
    before, after = facts.mean("loss_before"), facts.mean("loss_after")
    if before is not None and after is not None and after >= before:
        found.append(f"Local training does not lower a client's own loss: {before:.3g} before, {after:.3g} after.")
    return found


def _remedies(facts: Facts) -> list[Remedy]:
    rate = facts.config.algorithm.learning_rate
    far = [
        Remedy(f"client learning rate {rate * by:.3g}", {"algorithm.learning_rate": rate * by}) for by in (0.01, 100)
    ]
    return [*tuned_rates(facts), *far, *server_optimizers(facts)]


LEARNING_RATE = Cause("learning_rate", "Learning rate", _removals, lambda facts: HABIT, _evidence, _remedies)
