"""What a user could do about a cause without pooling anybody's data."""

import inspect
from collections.abc import Callable
from typing import Any

from fedjax_sim._validate import InputError
from fedjax_sim.algorithms import ALGORITHMS
from fedjax_sim.diagnose.cause import KEPT_EVERYWHERE, Facts, Remedy
from fedjax_sim.diagnose.worlds import World

ROBUST = ("median", "trimmed_mean", "krum", "multi_krum", "bulyan", "rfa", "centered_clipping", "norm_bounding")
RATES = (0.1, 0.3, 3.0, 10.0)  # times the learning rate
USUAL = (0.01, 0.1, 1.0)  # learning rates that are tried, too, where the run's is far from all of them


def possible(build: Callable[[World], Any], world: World, remedy: Remedy) -> World | None:
    """The world with the remedy; None where its settings do not go with the others."""
    try:
        changed = world.set(remedy.settings)
        build(changed)
        return changed
    except InputError:
        return None


def by_algorithm(facts: Facts, name: str, title: str, **options: Any) -> list[Remedy]:
    """The federation trained by another algorithm; nothing if it is trained by that one."""
    given = facts.world.config.algorithm
    if given.name == name and not options:
        return []
    factory = inspect.signature(ALGORITHMS[name]).parameters
    lost = {f"algorithm.{option}": None for option in given.names()
            if option not in KEPT_EVERYWHERE and option not in factory}  # fmt: skip
    lost |= {"algorithm.server_learning_rate": None, "algorithm.server_schedule": None}
    made = {f"algorithm.{option}": value for option, value in options.items()}
    return [Remedy(title, {**lost, "algorithm.name": name, **made})]


def drift_corrections(facts: Facts) -> list[Remedy]:
    """Algorithms that keep local models together."""
    return [
        *(remedy for mu in (0.1, 1.0) for remedy in by_algorithm(facts, "fedprox", f"FedProx, mu {mu:g}", mu=mu)),
        *by_algorithm(facts, "scaffold", "SCAFFOLD"),
        *by_algorithm(facts, "feddyn", "FedDyn"),
    ]


def server_optimizers(facts: Facts) -> list[Remedy]:
    """Servers that remember."""
    return [
        *by_algorithm(facts, "fedavgm", "server momentum (FedAvgM)"),
        *(remedy for rate in (0.01, 0.1)
          for remedy in by_algorithm(facts, "fedadam", f"FedAdam, server rate {rate:g}", server_learning_rate=rate)),
    ]  # fmt: skip


def robust_rules(facts: Facts) -> list[Remedy]:
    """Aggregation that a few clients cannot steer."""
    return [
        *by_algorithm(facts, "median", "the median of the updates"),
        *by_algorithm(facts, "rfa", "the geometric median of the updates (RFA)"),
        *by_algorithm(facts, "trimmed_mean", "the trimmed mean of the updates"),
        *by_algorithm(facts, "multi_krum", "Multi-Krum"),
    ]


def fewer_steps(facts: Facts) -> list[Remedy]:
    """Less local work in a round, in more rounds of the same work together."""
    training, mean = facts.config.training, float(facts.steps[facts.steps > 0].mean())
    found = []
    for part in (2, 4):
        steps = max(1, round(mean / part))
        if steps < mean / 1.5:
            rounds = round(training.rounds * mean / steps)
            found.append(Remedy(
                f"{steps} local steps instead of {mean:.0f}, in {rounds} rounds",
                {"training.local_steps": steps, "training.rounds": rounds,
                 "training.evaluate_every": max(1, round(training.evaluate_every * rounds / training.rounds))},
            ))  # fmt: skip
    return found


def rates_around(rate: float, factors: tuple[float, ...] = RATES) -> list[float]:
    """Other learning rates: so many times this one, and usual ones that lie beyond."""
    found = [rate * by for by in factors]
    low, high = 0.99 * min(found), 1.01 * max(found)
    return found + [usual for usual in USUAL if not low <= usual <= high]


def tuned_rates(facts: Facts, factors: tuple[float, ...] = RATES) -> list[Remedy]:
    """Other step sizes of the client optimizer."""
    rates = rates_around(facts.config.algorithm.learning_rate, factors)
    return [Remedy(f"client learning rate {rate:.3g}", {"algorithm.learning_rate": rate}) for rate in rates]


def larger_cohort(facts: Facts) -> list[Remedy]:
    """More clients in a round."""
    training, clients = facts.config.training, facts.experiment.data.num_clients
    if training.sampling == "all":
        return []
    sizes = sorted({min(clients, training.clients_per_round * by) for by in (2, 4)} - {training.clients_per_round})
    return [Remedy(f"{size} clients a round", {"training.clients_per_round": size}) for size in sizes]


def larger_model(facts: Facts) -> list[Remedy]:
    """A model with more parameters; nothing where none is known."""
    model = facts.config.model
    if model.name == "logistic":
        return [Remedy("an MLP with hidden layers of 200 and 200",
                       {"model.name": "mlp", "model.hidden": (200, 200)})]  # fmt: skip
    if model.name in ("mlp", "mlp_norm"):
        hidden = tuple(max(4 * width, 128) for width in model.hidden)
        widths = " and ".join(map(str, hidden))
        return [Remedy(f"hidden layers of {widths}", {"model.hidden": hidden})]
    if model.name == "cnn_small":
        return [Remedy("the CNN of McMahan et al.", {"model.name": "cnn"})]
    if model.name == "cnn":
        return [Remedy("ResNet-8", {"model.name": "resnet"})]
    return []


def other_weights(facts: Facts) -> list[Remedy]:
    """Clients weighted by examples instead of equally, or the other way round."""
    if facts.config.algorithm.weighting is None:  # which the algorithm does not have
        return []
    other = "uniform" if facts.config.algorithm.weighting == "examples" else "examples"
    title = "clients weighted by their examples" if other == "examples" else "clients weighted equally"
    return [Remedy(title, {"algorithm.weighting": other})]
