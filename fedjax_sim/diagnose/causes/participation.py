"""Rare participation: a round sees few of the clients."""

from itertools import pairwise

from fedjax_sim.diagnose.cause import EXTREME, HABIT, Cause, Facts, Remedy, Removal
from fedjax_sim.diagnose.remedies import by_algorithm, larger_cohort, server_optimizers, tuned_rates

FEW, SHARE = 4, 0.1  # a cohort below these is out of the ordinary
MOST = 200  # clients that are trained in each round instead, where there are more


def _removals(facts: Facts) -> list[Removal]:
    clients, training = facts.experiment.data.num_clients, facts.config.training
    goal = min(clients, max(MOST, 2 * training.clients_per_round))
    if training.clients_per_round >= goal or facts.config.network.policy == "asynchronous":
        return []
    if goal == clients:
        everyone = {"training.sampling": "all", "training.clients_per_round": None}
        return [Removal("every client in every round", lambda world: world.set(everyone))]
    return [Removal(f"{goal} clients in every round", lambda world: world.set({"training.clients_per_round": goal}))]


def _rank(facts: Facts) -> int:
    cohort = facts.config.training.clients_per_round
    return EXTREME if cohort < max(FEW, SHARE * facts.experiment.data.num_clients) else HABIT


def _evidence(facts: Facts) -> list[str]:
    cohort, clients = facts.config.training.clients_per_round, facts.experiment.data.num_clients
    rounds = facts.config.training.rounds
    found = [f"A round trains {cohort} of {clients} clients: each takes part in {rounds * cohort / clients:.0f} of "
             f"{rounds} rounds on average."]  # fmt: skip
    tested = facts.history.column("test_accuracy")[1].tolist()
    late = tested[len(tested) // 2 :]
    if len(late) > 3:
        jumps = sum(abs(b - a) for a, b in pairwise(late)) / (len(late) - 1)
        found.append(f"In the second half, accuracy jumps by {100 * jumps:.1f} points from one evaluation to the next.")
    return found


def _remedies(facts: Facts) -> list[Remedy]:
    rates = tuned_rates(facts)[:2]
    return [*larger_cohort(facts), *by_algorithm(facts, "scaffold", "SCAFFOLD"), *server_optimizers(facts), *rates]


RARE_PARTICIPATION = Cause("rare_participation", "Rare participation", _removals, _rank, _evidence, _remedies)
