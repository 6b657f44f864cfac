"""What a run recorded: one row per round, a plain dict, kept as one line of JSON each.

A row holds `round` (from 1), `clients`, `examples` and `steps` of the round in all; `loss_before` and `loss_after`,
means over its clients weighted by examples; `drift`, `update_norm` and `cosine`, plain means; `rejected`, how many sent
what is not finite and were left out, of these means too; `aggregate_norm`, `gradient_diversity`, `effective_clients`;
`uplink_bits` and `downlink_bits` in all; `elapsed_seconds` since the start of the run; `test_accuracy`, `test_loss`,
`test_ece` (calibration error), `test_class_accuracy` (a list) and for two classes `test_auc`, None where the model was
not evaluated; whatever else the algorithm reports, `clipped`, `clip_norm`, `signal_norm` and `noise_norm` of private
ones; with noise, `epsilon` spent until then and whether there is a `guarantee`; with a simulated clock, `asked`
clients, of which messages were `late` or never came (`dropped`), `staleness` (mean over messages, in rounds) and
`stalest`, `round_seconds`, `waited_seconds` until anybody could be reached, `simulated_seconds` since the start, and
the `slowest` client, whose message came last; `most_steps` where local steps are adapted; and where wanted
`per_client`, lists with one entry per client. A number that is not finite becomes None.
"""

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from fedjax_sim._validate import InputError
from fedjax_sim.core.types import RoundMetrics
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
_PER_CLIENT = ("ids", "examples", "steps", "loss_before", "loss_after", "drift", "update_norm", "cosine", "weight")


def row_of(metrics: RoundMetrics, round_number: int, *, per_client: bool, elapsed_seconds: float) -> Row:
    """The row of one round, from metrics on the host (NumPy, no leading axis), without test metrics."""
    present = metrics.ids >= 0
    counted = present & ~metrics.rejected
    weights = metrics.examples[counted].astype(np.float64)

    def mean(values: Any, weights: Any = None) -> float | None:
        values = values[counted].astype(np.float64)
        with np.errstate(invalid="ignore"):  # of a diverged model the mean may be inf - inf
            return _finite(np.average(values, weights=weights)) if len(values) else None

    row: Row = {
        "round": round_number,
        "clients": int(present.sum()),
        "examples": int(metrics.examples.sum(dtype=np.int64)),
        "steps": int(metrics.steps.sum(dtype=np.int64)),
        "loss_before": mean(metrics.loss_before, weights),
        "loss_after": mean(metrics.loss_after, weights),
        "drift": mean(metrics.drift),
        "update_norm": mean(metrics.update_norm),
        "cosine": mean(metrics.cosine),
        "rejected": int(metrics.rejected.sum()),
        "aggregate_norm": _finite(metrics.aggregate_norm),
        "gradient_diversity": _finite(metrics.gradient_diversity),
        "effective_clients": _finite(metrics.effective_clients),
        "uplink_bits": int(metrics.uplink_bits.sum(dtype=np.int64)),
        "downlink_bits": int(metrics.downlink_bits.sum(dtype=np.int64)),
        "elapsed_seconds": round(elapsed_seconds, 3),
        "test_accuracy": None,
        "test_loss": None,
        "test_ece": None,
        "test_class_accuracy": None,
        **{name: _finite(value) for name, value in metrics.extra.items()},
    }
    if per_client:
        row["per_client"] = {name: _listed(getattr(metrics, name)[present]) for name in _PER_CLIENT}
    return row


def with_clock(row: Row, step: ServerStep, before: float, downlink_bits: int) -> Row:
    """`row` with what the clock says: whoever was asked received a broadcast of so many bits."""
    stale = step.staleness
    clocked = {
        **row,
        "downlink_bits": downlink_bits * len(step.asked),
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
    if "per_client" in row:
        stalenesses = dict(zip(step.arrived.tolist(), stale.tolist(), strict=True))
        lists = {name: getattr(step, name).tolist() for name in ("asked", "late", "dropped")}
        of_each = [stalenesses[client] for client in row["per_client"]["ids"]]
        clocked["per_client"] = {**row["per_client"], "staleness": of_each, **lists}
    return clocked


def with_test(row: Row, test: dict[str, Any]) -> Row:
    """`row` with the test metrics {"accuracy", "loss", ...} of the model after that round."""
    return {**row, **{f"test_{name}": _listed(v) if np.ndim(v) else _finite(v) for name, v in test.items()}}


def first_not_finite(metrics: RoundMetrics) -> str | None:
    """The first of the watched metrics that holds NaN or an infinity, in one round's metrics on the host; clients whose
    updates were rejected for that are not looked at."""

    def broken(name: str) -> bool:
        values = getattr(metrics, name)
        return not np.isfinite(values[~metrics.rejected] if np.ndim(values) else values).all()

    return next((name for name in WATCHED if broken(name)), None)


def _finite(value: Any) -> float | None:
    value = float(value)
    return float(f"{value:.7g}") if math.isfinite(value) else None


def _listed(values: Any) -> list[Any]:
    return values.tolist() if values.dtype.kind in "iu" else [_finite(v) for v in values]


def append(file: TextIO, rows: Iterable[Row]) -> None:
    """Writes a line per row; each has left this process when the call returns, and none is left in part.

    Raises:
      InputError: the disk is full, say; the rows before stand.
    """
    place = file.fileno()  # past Python's buffers, which would write a broken line once more on closing
    for row in rows:
        whole, line = os.lseek(place, 0, os.SEEK_CUR), f"{json.dumps(row, allow_nan=False)}\n".encode()
        try:
            while line:
                line = line[os.write(place, line) :]
        except OSError as error:
            os.ftruncate(place, whole)
            reason = f"round {row['round']} cannot be written ({error.strerror})"
            raise InputError(f"{file.name}: {reason}; make room, the rounds before are there") from None


def read_history(path: str | Path) -> list[Row]:
    """The rows of a `history.jsonl`. A last line cut off in the writing is left out.

    Raises:
      InputError: there is no such file, or a line that is no row.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: it cannot be read ({error.strerror}); give a run's history.jsonl") from None
    rows = []
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        if not line.endswith("\n"):
            break
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict) or "round" not in row:
            raise InputError(f"{path}: line {number} is no round's record; remove the line or run again")
        rows.append(row)
    return rows


def finished_rows(folder: Path, rounds: int) -> list[Row] | None:
    """The rows of the run in `folder`, with every client's values, if it did all these rounds; None otherwise."""
    path = folder / "history.jsonl"
    rows = read_history(path) if path.is_file() else []
    return rows if len(rows) == rounds and "per_client" in rows[-1] else None


def cut_history(path: Path, rounds: int) -> list[Row]:
    """The first `rounds` rows; what comes after them, a torn last line too, is cut off the file.

    Raises:
      InputError: it has fewer.
    """
    if rounds == 0:
        path.write_bytes(b"")
        return []
    rows = read_history(path)
    if len(rows) < rounds or [row["round"] for row in rows[:rounds]] != list(range(1, rounds + 1)):
        raise InputError(f"{path}: rows up to round {rounds} are not all there; mend it, or start another run")
    with open(path, "r+b") as file:
        for _ in range(rounds):
            file.readline()
        file.truncate(file.tell())
    return rows[:rounds]


def column(rows: Sequence[Row], name: str) -> tuple[list[int], list[float]]:
    """Rounds and values of one quantity, where it was measured."""
    measured = [(row["round"], row[name]) for row in rows if row.get(name) is not None]
    return [r for r, _ in measured], [value for _, value in measured]


def speed(rows: Sequence[Row]) -> float | None:
    """Rounds per second after the first round, which includes compilation; evaluation is included."""
    seconds = rows[-1]["elapsed_seconds"] - rows[0]["elapsed_seconds"] if rows else 0
    return (len(rows) - 1) / seconds if seconds > 0 else None
