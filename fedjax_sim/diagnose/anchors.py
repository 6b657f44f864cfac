"""What there is to compare with: the same training in one place, and guessing."""

import math

import numpy as np

from fedjax_sim.diagnose.cause import KEPT_EVERYWHERE, Change, cleared
from fedjax_sim.diagnose.exchange import pooled, test_shares
from fedjax_sim.diagnose.game import Estimate
from fedjax_sim.diagnose.remedies import rates_around
from fedjax_sim.diagnose.worlds import World
from fedjax_sim.experiment.build import Experiment


def in_one_place(world: World, experiment: Experiment, steps: np.ndarray) -> World:
    """All examples at one client that makes as many steps in a round as the cohort together, with plain SGD of the
    clients' rate, momentum and batch size: as many gradients as the federation's. Nothing is hidden, compressed, late
    or harmful there; inputs and labels are as clients have them."""
    training = experiment.config.training
    together = max(1, round((training.clients_per_round or 1) * float(steps.mean())))
    sections = ("attack", "compression", "network", "privacy")
    off = {path: None for section in sections for path in cleared(experiment.config, section)}
    off |= dict(cleared(experiment.config, "algorithm", keep=KEPT_EVERYWHERE))
    off |= {f"heterogeneity.{name}": None for name in ("drift", "drift_round", "drift_severity")}
    alone = {
        "algorithm.name": "fedavg", "training.sampling": "uniform", "training.clients_per_round": 1,
        "training.local_steps": together, "training.adapt_steps": "none", "training.patience": None,
    }  # fmt: skip
    return world.set({**off, **alone}).change(Change("all in one place", pooled, order=9, last=True))


def tuned(one_place: World, rate: float) -> list[World]:
    """The same with other learning rates."""
    return [one_place.set({"algorithm.learning_rate": other}) for other in rates_around(rate)]


def guesses(accuracy: Estimate, constant: float, tested: int) -> bool:
    """Whether an accuracy is no higher than that of a constant answer on the same examples.

    To its interval over seeds comes that of the test set: of answers that are right on shares a and c of the examples,
    min(a + c, 2 - a - c) differ at most, and their difference varies by no more than that (McNemar 1947).

    Args:
      accuracy: over seeds.
      constant: accuracy of the constant answer.
      tested: test examples.
    """
    together = accuracy.mean + constant
    of_test = 1.96 * math.sqrt(min(together, 2 - together) / max(tested, 1))
    return accuracy.mean - math.hypot(accuracy.mean - accuracy.low, of_test) <= constant


def chance(experiment: Experiment) -> float:
    """The accuracy of always saying what is most frequent in the test set."""
    shares = test_shares(experiment.data)
    return 0.0 if shares is None else float(shares.max())
