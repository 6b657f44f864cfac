"""What a run recorded: one row per round, a plain dict, kept as one line of JSON each.

A row holds `round` (from 1), `clients`, `examples` and `steps` of the round in all; `loss_before` and `loss_after`,
means over its clients weighted by examples; `drift`, `update_norm` and `cosine`, plain means; `rejected`, how many sent
what is not finite and were left out, of these means too; `aggregate_norm`, `gradient_diversity`, `effective_clients`;
`uplink_bits` and `downlink_bits` in all, with a clock those of messages that came too late, too; `elapsed_seconds`
since the start of the run; `test_accuracy`, `test_loss`, `test_ece` (calibration error), `test_class_accuracy` (a list)
and their mean `test_balanced_accuracy`, for two classes `test_auc`, and `test_majority`, the accuracy of always
answering the most frequent class, likewise `validation_accuracy` and so on where examples are held out, and the
`best_round` so far, None where the model was not evaluated; whatever else the algorithm reports, `clipped`,
`clip_norm`, `signal_norm` and `noise_norm` of private ones; with noise, `epsilon` spent until then and whether there is
a `guarantee`; with a simulated clock, `asked` clients, of which messages were `late` or never came (`dropped`),
`staleness` (mean over messages, in rounds) and `stalest`, `round_seconds`, `waited_seconds` until anybody could be
reached, `simulated_seconds` since the start, and the `slowest` client, whose message came last; `most_steps` where
local steps are adapted; and `lanes`, the clients trained at once on a device. A number that is not finite becomes None.
What single clients did is in a file of its own, see `per_client`.
"""

import json
import math
from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from fedjax_sim._text import parse_json
from fedjax_sim._validate import InputError, about_file, os_reason, shown
from fedjax_sim.core.types import RoundMetrics
from fedjax_sim.experiment.folder import append_line
from fedjax_sim.network import ServerStep

Row = dict[str, Any]

WATCHED = (
    "loss_before",
    "loss_after",
    "drift",
    "update_norm",
    "aggregate_norm",
    "gradient_diversity",
)  # what shows divergence, in order
AT_ONCE = 1000  # rows of a long history that are passed on together
_HUGE = 1e300  # no quantity is as large


class History:
    """The rounds of a run as columns of numbers; their rows themselves are not kept, but for the first and the last."""

    def __init__(self, rows: Iterable[Row] = ()):
        self.first: Row | None = None
        self.last: Row | None = None
        self._rounds = array("d")
        self._columns: dict[str, array[float]] = {}
        self._lists: dict[str, tuple[list[float], list[list[Any]]]] = {}
        self.add(rows)

    def __len__(self) -> int:
        return len(self._rounds)

    def add(self, rows: Iterable[Row]) -> None:
        """The rounds that follow."""
        for row in rows:
            self.first, self.last, before = self.first or row, row, len(self._rounds)
            self._rounds.append(row["round"])
            for name, value in row.items():
                if is_number(value):
                    column = self._columns.setdefault(name, array("d"))
                    column.extend([math.nan] * (before - len(column)))
                    column.append(value)
                elif isinstance(value, list):
                    rounds, lists = self._lists.setdefault(name, ([], []))
                    rounds.append(row["round"])
                    lists.append(value)

    def every(self, name: str) -> np.ndarray:
        """A quantity in every round, float64[rounds], NaN where it was not measured."""
        values = np.array(self._columns.get(name, ()), np.float64)
        return np.concatenate([values, np.full(len(self) - len(values), np.nan)])

    def column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Rounds and values of a quantity, float64[k] each, where it was measured."""
        values = self.every(name)
        there = ~np.isnan(values)
        return np.array(self._rounds)[there], values[there]

    def latest(self, name: str) -> float | None:
        """A quantity when it was last measured."""
        values = self.column(name)[1]
        return float(values[-1]) if len(values) else None

    def lists(self, name: str) -> tuple[list[float], list[list[Any]]]:
        """Rounds and values of a quantity that is a list, where it was measured."""
        return self._lists.get(name, ([], []))


def is_number(value: Any) -> TypeGuard[float]:
    """Whether `value` is a finite number, which True is not, and not of absurd size."""
    return value.__class__ in (int, float) and -_HUGE < value < _HUGE


def rows_from(metrics: RoundMetrics, first: int, *, elapsed_seconds: float) -> list[Row]:
    """The rows of some rounds, from number `first` on, without test metrics.

    Args:
      metrics: of `R` rounds on the host, NumPy arrays [R, ...].
      first: number of the first of them, from 1.
      elapsed_seconds: since the start of the run, when they had ended.
    """
    present = metrics.ids >= 0
    counted = present & ~metrics.rejected
    each, by_examples = counted.astype(np.float64), np.where(counted, metrics.examples, 0).astype(np.float64)

    def mean(values: Any, weights: Any) -> list[float | None]:
        with np.errstate(invalid="ignore", divide="ignore"):  # of a diverged model, or of nobody
            return _listed((np.where(counted, values, 0) * weights).sum(1) / weights.sum(1))

    def total(values: Any) -> list[int]:
        return values.sum(1, dtype=np.int64).tolist()

    rounds = len(present)
    columns: dict[str, list[Any]] = {
        "round": [*range(first, first + rounds)],
        "clients": total(present),
        "examples": total(metrics.examples),
        "steps": total(metrics.steps),
        "loss_before": mean(metrics.loss_before, by_examples),
        "loss_after": mean(metrics.loss_after, by_examples),
        "drift": mean(metrics.drift, each),
        "update_norm": mean(metrics.update_norm, each),
        "cosine": mean(metrics.cosine, each),
        "rejected": total(metrics.rejected),
        "aggregate_norm": _listed(metrics.aggregate_norm),
        "gradient_diversity": _listed(metrics.gradient_diversity),
        "effective_clients": _listed(metrics.effective_clients),
        "uplink_bits": total(metrics.uplink_bits),
        "downlink_bits": total(metrics.downlink_bits),
        "elapsed_seconds": [round(elapsed_seconds, 3)] * rounds,
    }
    later = ("accuracy", "loss", "ece", "class_accuracy", "balanced_accuracy", "majority")
    columns |= {name: [None] * rounds for name in (*(f"test_{name}" for name in later), "best_round")}
    columns |= {name: [_finite(value) for value in values] for name, values in metrics.extra.items()}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def with_clock(row: Row, step: ServerStep, before: float, beside_bits: tuple[int, int]) -> Row:
    """`row` with what the clock says, and with the bits that the server sent, and clients in vain."""
    stale = step.staleness
    return {
        **row,
        "downlink_bits": beside_bits[0],
        "uplink_bits": row["uplink_bits"] + beside_bits[1],
        "asked": len(step.asked),
        "late": len(step.late),
        "dropped": len(step.dropped),
        "staleness": _finite(stale.mean()) if len(stale) else None,
        "stalest": int(stale.max()) if len(stale) else None,
        "round_seconds": _finite(step.seconds - before),
        "waited_seconds": _finite(step.waited_seconds),
        "simulated_seconds": _finite(step.seconds),
        "slowest": int(step.arrived[-1]) if len(step.arrived) else None,
    }


def with_test(row: Row, test: dict[str, Any], on: str = "test") -> Row:
    """`row` with metrics {"accuracy", "loss", ...} of the model after that round, on the test set or other examples."""
    return {**row, **{f"{on}_{name}": _listed(v) if np.ndim(v) else _finite(v) for name, v in test.items()}}


def first_not_finite(metrics: RoundMetrics) -> tuple[int, str] | None:
    """Which of some rounds, from 0, is the first in which a watched metric holds NaN or an infinity, and which metric,
    from arrays [R, ...] on the host; clients whose updates were rejected for that are not looked at."""

    def broken(name: str) -> np.ndarray:
        wrong = ~np.isfinite(getattr(metrics, name))
        return (wrong & ~metrics.rejected).any(1) if wrong.ndim > 1 else wrong

    table = np.stack([broken(name) for name in WATCHED], axis=1)
    if not table.any():
        return None
    place = int(table.any(1).argmax())
    return place, WATCHED[int(table[place].argmax())]


def _finite(value: Any) -> float | None:
    value = float(value)
    return float(f"{value:.7g}") if math.isfinite(value) else None


def _listed(values: Any) -> list[Any]:
    return values.tolist() if values.dtype.kind in "iu" else [_finite(v) for v in values]


def append(file: Any, rows: Iterable[Row]) -> None:
    """Writes a line per row into an unbuffered file; each has left this process when the call returns, and none is left
    in part.

    Raises:
      InputError: the disk is full, say; the rows before stand.
    """
    for row in rows:
        line = json.dumps(row, allow_nan=False)
        try:
            append_line(file, line)
        except OSError as error:
            reason = os_reason(OSError(error.errno, error.strerror))
            text = f"round {row['round']} cannot be written: {reason}; the rounds before are there"
            raise InputError(f"{file.name}: {text}") from None


def rows_of(path: str | Path) -> Iterator[Row]:
    """The rows of a `history.jsonl` one by one, read as they are asked for. A last line cut off in the writing is left
    out.

    Raises:
      InputError: there is no such file, or a line that is no row: an object whose `round` is the number of its line.
    """
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith("\n"):
                    return
                try:
                    row = parse_json(line)
                except (ValueError, RecursionError):
                    row = None
                if not isinstance(row, dict) or "round" not in row:
                    raise InputError(f"{path}: line {number} is no round's record; the file is damaged, run again")
                if type(row["round"]) is not int or row["round"] != number:
                    wrong = f"line {number} is of round {shown(row['round'])}, and not {number}"
                    raise InputError(f"{path}: {wrong}; the file is damaged, run again")
                yield row
    except UnicodeDecodeError:
        raise InputError(f"{path}: it is not text; give a run's history.jsonl") from None
    except OSError as error:
        raise InputError(f"{path}: it cannot be read ({error.strerror}); give a run's history.jsonl") from None


def read_history(path: str | Path) -> list[Row]:
    """All rows of a `history.jsonl`; `History(rows_of(path))` takes a fraction of the memory.

    Raises:
      InputError: as in `rows_of`.
    """
    return list(rows_of(path))


def batched(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Lists of so many rows, the last one of what is left."""
    rest = iter(rows)
    while some := list(islice(rest, size)):
        yield some


class Rows:
    """The first `rounds` rows of a `history.jsonl`, read anew whenever they are gone through."""

    def __init__(self, path: Path, rounds: int):
        self.path, self.rounds = path, rounds

    def __iter__(self) -> Iterator[Row]:
        return islice(rows_of(self.path), self.rounds) if self.rounds else iter(())


def cut_history(path: Path, rounds: int) -> None:
    """Cuts off the file what comes after the first `rounds` rows, a torn last line, too."""
    with about_file(path), open(path, "r+b") as file:
        for _ in range(rounds):
            file.readline()
        file.truncate(file.tell())


def speed(history: History) -> float | None:
    """Rounds per second after the first round, which includes compilation; evaluation is included."""
    elapsed = history.every("elapsed_seconds")
    seconds = elapsed[-1] - elapsed[0] if len(elapsed) else 0.0
    return float((len(elapsed) - 1) / seconds) if seconds > 0 else None
