"""What a suspected cause is: how to take it away, what speaks for it in the run itself, and what helps against it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.data import Heterogeneity
from fedjax_sim.diagnose.laboratory import Course, Seen
from fedjax_sim.diagnose.worlds import Change, World
from fedjax_sim.experiment.build import Experiment
from fedjax_sim.experiment.federation import THEIRS
from fedjax_sim.experiment.history import History

# Who answers for what two causes do only together: those of the highest rank among them.
LENGTH, HABIT, CONDITION, EXTREME = range(4)

KEPT_EVERYWHERE = ("name", "learning_rate", "momentum")  # settings of [algorithm] that every algorithm has


class Facts(NamedTuple):
    """All that is known of the run before causes are taken away."""

    world: World  # as it is configured
    experiment: Experiment
    about: Heterogeneity  # of the data that are trained on
    seen: Seen  # the run itself, of its own seed
    courses: list[Course]  # one for each seed
    same: list[Course]  # likewise, of the same examples in one place
    pooled: list[Course]  # likewise, with tuned rates
    steps: np.ndarray  # local steps of each client in a round, int64[N]
    known: dict[str, Any]  # what causes have found out, and would take a while to find again

    @property
    def config(self) -> Any:
        """The settings, with everything filled in."""
        return self.experiment.config

    @property
    def history(self) -> History:
        """The rounds of the run."""
        return self.seen.history

    def mean(self, name: str) -> float | None:
        """The mean of a quantity of the run's rounds, where it was measured."""
        values = self.history.column(name)[1]
        return float(values.mean()) if len(values) else None

    def total(self, name: str) -> float:
        """The sum of a quantity of the run's rounds."""
        return float(self.history.column(name)[1].sum())

    def last_of_classes(self) -> list[float | None]:
        """The accuracy on each class when the run was last tested; empty where it never was."""
        return (self.history.lists("test_class_accuracy")[1] or [[]])[-1]


class Removal(NamedTuple):
    """One way to take a cause away, and nothing else."""

    name: str  # what is done, in plain words
    apply: Callable[[World], World]


class Remedy(NamedTuple):
    """Something that the user could really do: settings to change, without anybody's data."""

    name: str
    settings: Mapping[str, Any]  # by path; None leaves one out


class Cause(NamedTuple):
    """A suspect."""

    name: str
    title: str
    removals: Callable[[Facts], list[Removal]]  # none where it cannot be at work; of several, the best is taken
    rank: Callable[[Facts], int] = lambda facts: CONDITION
    evidence: Callable[[Facts], list[str]] = lambda facts: []
    remedies: Callable[[Facts], list[Remedy]] = lambda facts: []
    lowers_ceiling: bool = False  # whether training in one place would suffer, too


def setting(name: str, **settings: Any) -> Removal:
    """A removal by settings, with two underscores for the point in their paths."""
    given = {path.replace("__", "."): value for path, value in settings.items()}
    return Removal(name, lambda world: world.set(given))


def changing(name: str, change: Change) -> Removal:
    """A removal by a change to the clients' data."""
    return Removal(name, lambda world: world.change(change))


def dealt_by_us(facts: Facts) -> bool:
    """Whether examples were dealt to clients by a partition, instead of being theirs from the beginning."""
    return facts.config.data.partition not in THEIRS


def cleared(config: Any, section: str, keep: tuple[str, ...] = ()) -> dict[str, None]:
    """Settings that leave out all of a section."""
    return {f"{section}.{name}": None for name in getattr(config, section).names() if name not in keep}


def points(value: float) -> str:
    """A share of the test set as one reads it."""
    return f"{100 * value:.1f}"
