"""A link whose bandwidth changes over time, as it was recorded: how long a message takes, integrated exactly."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim import _validate
from fedjax_sim._validate import InputError
from fedjax_sim.network.profiles import LONGEST_SECONDS, SLOWEST_BPS


class Trace(NamedTuple):
    """A bandwidth that is constant between two edges; `read_trace` and `make_trace` build checked ones.

    A trace that `repeats` begins again at its end; another one raises when it is asked for what came after.
    """

    edges: np.ndarray  # seconds, rising from 0, [k + 1]
    bps: np.ndarray  # bits a second between two edges, [k]
    repeats: bool = True

    @property
    def mean_bps(self) -> float:
        """Bits of the whole trace over its seconds."""
        return float(self._sent()[-1] / self.edges[-1])

    def _sent(self) -> np.ndarray:
        return np.concatenate([[0.0], np.cumsum(self.bps * np.diff(self.edges))])

    def seconds_to_send(self, bits: Any, start: Any = 0.0) -> np.ndarray:
        """Seconds from `start` until `bits` are through, elementwise; 0 for no bits.

        Raises:
          InputError: bits or a start below 0, or beyond the end of a trace that does not repeat.
        """
        bits, start = np.broadcast_arrays(np.asarray(bits, np.float64), np.asarray(start, np.float64))
        for name, values in (("bits", bits), ("start", start)):
            if not (np.isfinite(values) & (values >= 0)).all():
                raise InputError(f"{name}: {_validate.shown(values.tolist())}; give finite numbers of at least 0")
        sent, end = self._sent(), self.edges[-1]
        if not self.repeats and (start > end).any():
            raise InputError(f"start: {start.max()} s is after the trace's end at {end} s; let it repeat")
        phase = start % end if self.repeats else start
        target = np.interp(phase, self.edges, sent) + bits
        if not self.repeats and (target > sent[-1] * (1 + 1e-12)).any():
            left = int((sent[-1] - (target - bits)).ravel()[int(np.argmax(target))])
            raise InputError(f"bits: {int(bits.max())} do not fit in the {left} left in the trace; let it repeat")
        cycles = np.maximum(np.ceil(target / sent[-1]) - 1, 0) if self.repeats else np.zeros(target.shape)
        rest = np.clip(target - cycles * sent[-1], 0, sent[-1])
        j = np.clip(np.searchsorted(sent, rest, side="left"), 1, len(self.bps))  # sent[j - 1] < rest <= sent[j]
        gap = rest - sent[j - 1]
        within = np.where(gap > 0, gap / np.where(self.bps[j - 1] > 0, self.bps[j - 1], 1.0), 0.0)
        finish = cycles * end + self.edges[j - 1] + within
        return np.where(bits > 0, np.maximum(finish - phase, 0), 0.0)


def make_trace(edges: Any, bps: Any, *, repeats: bool = True) -> Trace:
    """A trace from its edges in seconds [k + 1] and the bandwidth between two of them [k]; the first edge becomes 0.

    Raises:
      InputError: edges that do not rise, a bandwidth that is negative or not finite, or that is 0 throughout.
    """
    edges, bps = np.asarray(edges, np.float64), np.asarray(bps, np.float64)
    if edges.ndim != 1 or len(edges) < 2 or bps.shape != (len(edges) - 1,):
        raise InputError(f"trace: {list(edges.shape)} edges, {list(bps.shape)} bandwidths; give k + 1 and k, k >= 1")
    wrong = np.flatnonzero(
        ~(np.diff(edges) > 0) | ~(np.abs(edges) <= LONGEST_SECONDS)[1:] | ~(np.abs(edges) <= LONGEST_SECONDS)[:-1]
    )
    if len(wrong):
        i = int(wrong[0])
        raise InputError(f"trace: {edges[i + 1]} s comes after {edges[i]} s; give finite times that rise")
    wrong = np.flatnonzero(~(np.isfinite(bps) & ((bps == 0) | (bps >= SLOWEST_BPS))))
    if len(wrong):
        at = f"{bps[wrong[0]]} bit/s at {edges[wrong[0]]} s"
        raise InputError(f"trace: {at}; give finite bandwidths of at least 0, and over 0 of {SLOWEST_BPS:g} at least")
    if not bps.any():
        raise InputError("trace: nothing is ever sent; give a bandwidth over 0 somewhere")
    return Trace(edges - edges[0], bps, bool(repeats))


def read_trace(path: str | Path, *, repeats: bool = True) -> Trace:
    """A text file of lines `seconds Mbit/s`: each line tells what went through since the line before it.

    So the first line only sets the clock. This is the form of the 3G traces of Riiser et al. (2013), "Commute path
    bandwidth traces from 3G networks", as they are passed around for video streaming.

    Raises:
      InputError: naming the line that is not two numbers, or a trace that `make_trace` refuses.
    """
    rows = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            seconds, megabits = map(float, line.split())
        except ValueError:
            raise InputError(f"{path}: line {number} is {_validate.shown(line)}; give `seconds Mbit/s`") from None
        rows.append((seconds, megabits * 1e6))
    if len(rows) < 2:
        raise InputError(f"{path}: {len(rows)} lines; a trace needs at least two")
    table = np.array(rows)
    try:
        return make_trace(table[:, 0], table[1:, 1], repeats=repeats)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def read_traces(folder: str | Path, *, repeats: bool = True) -> list[Trace]:
    """`read_trace` of all the files in a folder, in the order of their names; hidden ones are left out.

    Raises:
      InputError: no folder, no file in it, or a file that `read_trace` refuses.
    """
    try:
        paths = sorted(path for path in Path(folder).iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder}: {error}; give a folder of traces") from None
    if not paths:
        raise InputError(f"{folder}: no files; give a folder that holds at least one trace")
    return [read_trace(path, repeats=repeats) for path in paths]


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}; give a text file") from None
