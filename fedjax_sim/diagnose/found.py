"""What a diagnosis says, as plain data."""

from typing import Any, NamedTuple

from fedjax_sim.diagnose.game import Estimate

STALLS, MATTERS, LITTLE = 0.02, 0.01, 0.005  # accuracy lost by a run that stalls; by a cause that matters; by any
AVERAGED = 0.05  # accuracy that averaging parallel clients, instead of steps one after another, may cost by itself
HEALTHY, UNFINISHED, NOISY, STALLED = "healthy", "not finished", "too noisy to tell", "stalled"
GUESSING = "no better than guessing"


class Tried(NamedTuple):
    """A remedy that was tried. Gains are in accuracy, from 0 to 1, over the run as it is."""

    name: str
    settings: dict[str, Any]  # None leaves one out
    gain: Estimate
    accuracy: float


class Personal(NamedTuple):
    """Models of the clients' own, on the test examples that each client keeps; means over clients and seeds."""

    name: str
    settings: dict[str, Any]
    before: float  # accuracy of the run's global model
    after: float  # accuracy of the clients' own models
    gain: Estimate


class Suspect(NamedTuple):
    """A cause that was looked for. Costs are in accuracy, from 0 to 1."""

    name: str
    title: str
    removed: str  # what was done to take it away
    alone: Estimate  # gained by taking it alone away from the run
    added: Estimate | None  # lost by adding it alone to the world without any of the causes that matter
    share: Estimate | None  # of what is lost in all; None where it does not matter
    tied: bool  # with the next in the list: which of them costs more cannot be told
    evidence: list[str]  # from the run itself

    @property
    def counts(self) -> bool:
        """Whether it costs something that is not chance."""
        return self.share is not None and self.share.mean >= LITTLE and self.share.low > 0


class Interaction(NamedTuple):
    """What causes cost together beyond what they cost by themselves."""

    names: tuple[str, ...]
    points: Estimate


class Step(NamedTuple):
    """An accuracy on the way from the ceiling down to the run, and what leads there."""

    name: str
    accuracy: float


class Diagnosis(NamedTuple):
    """Why accuracy is what it is. Accuracies are means over seeds of the last fifth of a run's evaluations."""

    verdict: str  # "healthy", "not finished", "too noisy to tell", "stalled" or "no better than guessing"
    sentences: list[str]  # the same in plain words
    title: str  # what was trained
    seeds: list[int]
    run: Estimate
    pooled: Estimate  # trained in one place with the same model, rates and budget
    ceiling: Estimate  # likewise with tuned rates
    chance: float  # of always answering the most frequent class of the test set
    guessing: bool  # whether the run is no better than that, within what seeds and test examples allow
    label_divergence: float | None  # of clients from all, beyond chance: Jensen-Shannon, 0 to 1
    lost: Estimate  # ceiling less run, paired by seed
    mended: Estimate | None  # the world without any of the causes that matter
    unexplained: Estimate | None  # what is lost in that world, too
    suspects: list[Suspect]  # those that matter first, the costliest first
    interactions: list[Interaction]
    remedies: list[Tried]  # the best first
    pair: Tried | None  # the best two together, where they fit
    personal: list[Personal]  # the best first; none where clients keep no test examples
    config: str  # ready to run: the configuration with what helps most, as TOML
    curves: dict[str, list[list[float]]]  # rounds and mean accuracy of the run, the ceiling and the mended world
    runs: int  # trained
    programs: int  # compiled for them
    seconds: float

    def plain(self) -> dict[str, Any]:
        """As it is written to JSON."""
        return _plain(self)


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return {name: _plain(part) for name, part in value._asdict().items()}
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return None if value in (float("inf"), float("-inf")) or value != value else round(value, 6)
    return value
