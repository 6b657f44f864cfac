"""What a run reached, from its rows."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import TypeAdapter, ValidationError

from fedjax_sim._text import parse_json
from fedjax_sim._validate import InputError
from fedjax_sim.experiment.choosing import Choice
from fedjax_sim.experiment.clients import ClientSummary
from fedjax_sim.experiment.covered import Spent, spent_in
from fedjax_sim.experiment.history import History, speed
from fedjax_sim.privacy import Private


class Divergence(NamedTuple):
    """Where training left the finite numbers."""

    round: int
    metric: str


class Slowest(NamedTuple):
    """The client whose message came last in most rounds."""

    client: int
    rounds: int


class Summary(NamedTuple):
    """What a run reached. Accuracies are shares of the test set."""

    status: str  # "finished", "plateau", "spent" (the privacy budget), "interrupted" or "diverged"
    folder: str
    rounds: int  # done
    first_loss: float | None  # mean over clients, of the untrained model in their first local step
    last_loss: float | None  # likewise, of the last round's model
    test_accuracy: float | None  # at the last evaluation
    test_loss: float | None
    test_balanced_accuracy: float | None  # mean of the accuracies on each class, at the last evaluation
    test_auc: float | None  # likewise, of two classes
    majority_share: float | None  # of the test set: what always answering its most frequent class reaches
    best_test_accuracy: float | None  # of the best round
    best_round: int | None
    chosen_by: str | None  # what the best round is best in: "accuracy", "balanced_accuracy" or "auc"; then in loss
    chosen_on: str | None  # "validation": examples held out of training; "test": the test set, too good there, then
    seconds: float  # of everything after the data were loaded
    start_seconds: float | None  # until the first round was done: mostly compilation
    rounds_per_second: float | None  # after the first round
    uplink_bits: int  # of all clients and rounds
    downlink_bits: int
    simulated_seconds: float | None  # on the clients' links and devices, where there is a clock
    empty_rounds: int  # in which no message arrived
    slowest: Slowest | None  # whose message came last in most rounds, where there is a clock
    divergence: Divergence | None
    own_tests: ClientSummary | None  # on the clients' own test rows, if they have any
    epsilon: float | None  # spent, of a private run with a guarantee
    privacy: str | None  # what is guaranteed, or that nothing is
    environment: dict[str, Any]
    changes: list[str]  # what was changed on the way, a sentence each
    not_covered: str | None = None  # what a guarantee leaves out
    spent: Spent | None = None  # of the clients' privacy in this run alone, where something is guaranteed
    spent_before: Spent | None = None  # by the run whose model training started from, and those before it

    def plain(self) -> dict[str, Any]:
        """The summary as it is written."""
        nested = ("divergence", "own_tests", "slowest", "spent", "spent_before")
        return self._asdict() | {name: value and value._asdict() for name in nested for value in [getattr(self, name)]}


def read_summary(path: Path) -> Summary:
    """What `Summary.plain` wrote.

    Raises:
      InputError: it is damaged, or of another version.
    """
    try:
        return TypeAdapter(Summary).validate_python(parse_json(path.read_bytes()))
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, OSError) else "it is no JSON"
    raise InputError(f"{path}: it is no summary of a run ({reason}); `fedjax-sim run {path.parent}` repeats the run")


def summarize(
    status: str,
    folder: Path,
    history: History,
    seconds: float,
    *,
    divergence: Divergence | None,
    own_tests: ClientSummary | None,
    promise: str | None,
    environment: dict[str, Any],
    changes: list[str],
    choice: Choice | None,
    private: Private | None = None,
    before: Spent | None = None,
    seeds: Sequence[int] = (),
) -> Summary:
    """The summary of rounds, and of what is not in them."""
    best = None if choice is None else history.latest("best_round")
    reached = None if best is None else history.every("test_accuracy")[int(best) - 1]
    first, last = history.first or {}, history.last or {}
    epsilon = last.get("epsilon") if last else 0.0 if status == "spent" else None
    return Summary(
        status=status,
        folder=str(folder),
        rounds=len(history),
        first_loss=first.get("loss_before"),
        last_loss=last.get("loss_before"),
        test_accuracy=history.latest("test_accuracy"),
        test_loss=history.latest("test_loss"),
        test_balanced_accuracy=history.latest("test_balanced_accuracy"),
        test_auc=history.latest("test_auc"),
        majority_share=history.latest("test_majority"),
        best_test_accuracy=None if reached is None or np.isnan(reached) else float(reached),
        best_round=None if best is None else int(best),
        chosen_by=None if choice is None else choice.by,
        chosen_on=None if choice is None else choice.on,
        seconds=round(seconds, 3),
        start_seconds=first.get("elapsed_seconds"),
        rounds_per_second=(rate := speed(history)) and round(rate, 3),
        uplink_bits=_total(history, "uplink_bits"),
        downlink_bits=_total(history, "downlink_bits"),
        simulated_seconds=last.get("simulated_seconds"),
        empty_rounds=int((history.every("clients") == 0).sum()),
        slowest=_slowest(history),
        divergence=divergence,
        own_tests=own_tests,
        epsilon=epsilon,
        privacy=promise,
        environment=environment,
        changes=changes,
        not_covered=(private and private.uncovered) or None,
        spent=spent_in(private, epsilon, seeds),
        spent_before=before,
    )


def _total(history: History, name: str) -> int:
    return sum(map(int, history.column(name)[1]))


def _slowest(history: History) -> Slowest | None:
    """Of rounds that began together: of stale messages one is always the last."""
    slowest, clients, stalest = (history.every(name) for name in ("slowest", "clients", "stalest"))
    last = Counter(slowest[~np.isnan(slowest) & (clients > 1) & ~(stalest > 0)].astype(int).tolist())
    return Slowest(*last.most_common(1)[0]) if last else None
