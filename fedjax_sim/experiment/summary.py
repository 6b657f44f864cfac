"""What a run reached, from its rows."""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_sim.experiment.clients import ClientSummary
from fedjax_sim.experiment.history import Row, speed


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
    best_test_accuracy: float | None
    best_round: int | None
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

    def plain(self) -> dict[str, Any]:
        """The summary as it is written."""
        nested = ("divergence", "own_tests", "slowest")
        return self._asdict() | {name: value and value._asdict() for name in nested for value in [getattr(self, name)]}


def summarize(
    status: str,
    folder: Path,
    rows: list[Row],
    seconds: float,
    *,
    divergence: Divergence | None,
    own_tests: ClientSummary | None,
    promise: str | None,
    environment: dict[str, Any],
    changes: list[str],
) -> Summary:
    """The summary of rows, and of what is not in them."""
    evaluated = [row for row in rows if row["test_accuracy"] is not None]
    last = evaluated[-1] if evaluated else {"test_accuracy": None, "test_loss": None}
    best = max(evaluated, key=lambda row: row["test_accuracy"], default=None)
    return Summary(
        status=status,
        folder=str(folder),
        rounds=len(rows),
        first_loss=rows[0]["loss_before"] if rows else None,
        last_loss=rows[-1]["loss_before"] if rows else None,
        test_accuracy=last["test_accuracy"],
        test_loss=last["test_loss"],
        best_test_accuracy=best["test_accuracy"] if best else None,
        best_round=best["round"] if best else None,
        seconds=round(seconds, 3),
        start_seconds=rows[0]["elapsed_seconds"] if rows else None,
        rounds_per_second=(rate := speed(rows)) and round(rate, 3),
        uplink_bits=sum(row["uplink_bits"] for row in rows),
        downlink_bits=sum(row["downlink_bits"] for row in rows),
        simulated_seconds=rows[-1].get("simulated_seconds") if rows else None,
        empty_rounds=sum(row["clients"] == 0 for row in rows),
        slowest=_slowest(rows),
        divergence=divergence,
        own_tests=own_tests,
        epsilon=rows[-1].get("epsilon") if rows else 0.0 if status == "spent" else None,
        privacy=promise,
        environment=environment,
        changes=changes,
    )


def _slowest(rows: list[Row]) -> Slowest | None:
    """Of rounds that began together: of stale messages one is always the last."""
    rounds = [row for row in rows if row.get("slowest") is not None and row["clients"] > 1 and not row["stalest"]]
    last = Counter(row["slowest"] for row in rounds)
    return Slowest(*last.most_common(1)[0]) if last else None
