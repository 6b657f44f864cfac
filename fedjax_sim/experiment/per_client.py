"""What single clients did in each round of a run: `per_client.npy`, one array of typed columns, which NumPy reads.

    table = np.load("runs/NAME/per_client.npy", mmap_mode="r")  # table["loss_before"], pandas.DataFrame(table)

An entry is of one client in one round, rounds in order. The number of entries in the file's header is written after the
entries, so that a file whose writer was killed is whole up to there.
"""

import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedjax_sim._validate import InputError
from fedjax_sim.core.types import RoundMetrics
from fedjax_sim.network import ServerStep

FILE = "per_client.npy"
SMALL = 100  # clients in a round up to which `output.per_client = "auto"` keeps these values
MEASURED = ("examples", "steps", "loss_before", "loss_after", "drift", "update_norm", "cosine", "weight", "rejected")
ENTRY = np.dtype([
    ("round", "<i4"), ("client", "<i4"),
    ("asked", "<i4"), ("late", "<i4"), ("dropped", "<i4"),  # how often in this round
    ("counted", "?"),  # its message was aggregated in this round; the columns from here on are of that message
    ("rejected", "?"), ("staleness", "<i4"), ("examples", "<i4"), ("steps", "<i4"), ("loss_before", "<f4"),
    ("loss_after", "<f4"), ("drift", "<f4"), ("update_norm", "<f4"), ("cosine", "<f4"), ("weight", "<f4"),
])  # fmt: skip


def entries(metrics: RoundMetrics, first: int, steps: Sequence[ServerStep] = ()) -> np.ndarray:
    """The entries of some rounds; in each those whose messages were aggregated, in the cohort's order, then the others.

    Args:
      metrics: of `R` rounds on the host, NumPy arrays [R, ...].
      first: number of the first of them, from 1.
      steps: of the schedule, `R` of them, where there is a clock.
    """
    rounds, slots = np.nonzero(metrics.ids >= 0)
    mine = np.zeros(len(rounds), ENTRY)
    mine["round"], mine["client"], mine["asked"], mine["counted"] = first + rounds, metrics.ids[rounds, slots], 1, True
    for name in MEASURED:
        mine[name] = getattr(metrics, name)[rounds, slots]
    if not steps:
        return mine
    parts = np.split(mine, np.searchsorted(rounds, np.arange(1, len(steps))))
    return np.concatenate([_on_the_clock(part, first + i, steps[i]) for i, part in enumerate(parts)])


def _on_the_clock(mine: np.ndarray, number: int, step: ServerStep) -> np.ndarray:
    """The entries of one round with what the clock says, and those of clients whose messages were not aggregated."""
    others = np.setdiff1d(np.concatenate([step.asked, step.late, step.dropped]), mine["client"])
    found = np.concatenate([mine, np.zeros(len(others), ENTRY)])
    found["round"], found["client"][len(mine) :] = number, others
    clients = found["client"]
    for name in ("asked", "late", "dropped"):
        found[name] = (clients[:, None] == getattr(step, name)).sum(1)
    found["staleness"] = ((clients[:, None] == step.arrived) * step.staleness).sum(1)
    return found


class Table:
    """The file, open for more rounds."""

    def __init__(self, path: Path, rounds: int = 0):
        """Begins the file, or goes on with it after so many rounds; what it has of later ones is cut off.

        Raises:
          InputError: there is none to go on with, or it is damaged.
        """
        self.path, count = path, 0
        if rounds:
            table = read_table(path)
            if table is None:
                raise InputError(f"{path}: it is not there; put it back, or set output.per_client=false to go on")
            count = int(np.searchsorted(table["round"], rounds, side="right"))
        try:
            self.file = open(path, "r+b" if rounds else "wb", buffering=0)  # noqa: SIM115
            self._settle(count)
        except OSError as error:
            raise InputError(f"{path}: it cannot be written ({error.strerror}); make room, or mend it") from None

    def append(self, found: np.ndarray) -> None:
        """Writes entries; those before stand, whatever happens.

        Raises:
          InputError: the disk is full, say.
        """
        data = memoryview(np.ascontiguousarray(found, ENTRY).tobytes())
        try:
            self.file.seek(_place(self.count))
            while data:
                data = data[self.file.write(data) or 0 :]
            self._settle(self.count + len(found))
        except OSError as error:
            self.file.truncate(_place(self.count))
            reason = f"round {found['round'][0] if len(found) else 0} cannot be written ({error.strerror})"
            raise InputError(f"{self.path}: {reason}; make room, the rounds before are there") from None

    def close(self) -> None:
        self.file.close()

    def _settle(self, count: int) -> None:
        """This many entries are there, and nothing behind them."""
        os.ftruncate(self.file.fileno(), max(_place(count), len(_header(0))))
        self.file.seek(0)
        self.file.write(_header(count))
        self.count = count


def read_table(path: Path) -> np.ndarray | None:
    """The table, mapped from the disk and not read yet; None where there is none.

    Raises:
      InputError: it is damaged.
    """
    try:
        with open(path, "rb") as file:
            told = re.search(rb"'shape': \((\d{1,15}),\)", header := file.read(len(_header(0))))
        count, size = int(told[1]) if told else 0, path.stat().st_size
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: it cannot be read ({error.strerror})") from None
    if header != _header(count) or size < _place(count):
        raise InputError(f"{path}: it is no whole table of clients' values; remove it, or put the whole one back")
    return np.memmap(path, ENTRY, "r", _place(0), (count,)) if count else np.zeros(0, ENTRY)


def _header(count: int) -> bytes:
    """Of a file in NumPy's format, always of one length: NumPy leaves room for the count to grow."""
    written = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(ENTRY), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(written, described)
    return written.getvalue()


def _place(count: int) -> int:
    """Where entry number `count` begins."""
    return len(_header(0)) + count * ENTRY.itemsize
