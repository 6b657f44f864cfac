"""Where a run can be taken up again: after the latest whole checkpoint, with what its clients remembered then."""

import hashlib
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedjax_sim._validate import InputError
from fedjax_sim.core.host import HostMemory
from fedjax_sim.experiment import checkpoint
from fedjax_sim.experiment.build import Experiment
from fedjax_sim.experiment.checkpoint import Arrays, Damaged
from fedjax_sim.experiment.drive import keeps_on_disk
from fedjax_sim.experiment.folder import HISTORY, remove
from fedjax_sim.experiment.history import History, Rows, cut_history, rows_of
from fedjax_sim.experiment.record import identity

MEMORY = "client_memory"


class Point(NamedTuple):
    """What a run goes on from."""

    history: History  # of the rounds that are done
    found: Arrays | None = None  # of the checkpoint; None where the run begins
    memory: HostMemory | None = None  # of the clients, where it is on disk
    spoiled: tuple[str, ...] = ()  # later checkpoints, and why they are of no use
    lanes: int | None = None  # with which a run began that has to begin anew


def latest(folder: Path, experiment: Experiment) -> Point:
    """After the latest checkpoint that is whole, or before the first round where none is. `settle` goes on from there.

    Raises:
      InputError: there are whole checkpoints, but the history has not the rows before any of them.
    """
    spoiled: list[str] = []
    wrong, memory = "", None
    for done in checkpoint.rounds_saved(folder):
        try:
            found = checkpoint.read(folder, done)
            seen, sums, _, written = checkpoint.last_fields(found)
            history, reason = _rows_before(folder / HISTORY, done, written)
            if history is None:
                wrong = reason
                raise Damaged(reason)
            if keeps_on_disk(experiment):
                memory = memory or _memory(folder, experiment, again=True)
                if memory is None or not memory.back(done, seen, sums):
                    raise Damaged(f"{MEMORY} does not go with it")
        except Damaged as reason:
            spoiled.append(f"round {done}: {reason}")
            continue
        return Point(history, found, memory, tuple(spoiled))
    if memory is not None:
        memory.close()
    if wrong:
        raise InputError(f"{folder / HISTORY}: {wrong}; put the rows back, or start another run")
    spoiled += [f"{name}: of another version" for name in checkpoint.others(folder)]
    return Point(History(), spoiled=tuple(spoiled))


def settle(folder: Path, experiment: Experiment, point: Point) -> Point:
    """Makes a point the one that the run goes on from, and says so where that is not where it ended. Checkpoints and
    rows after it are removed, since those rounds are done again; rows without any checkpoint are kept beside."""
    done, memory, kept, lanes = len(point.history), point.memory, None, None
    if point.found is None:
        lanes = _first_lanes(folder / HISTORY)
        kept = _set_aside(folder / HISTORY) if point.spoiled else None
        for name in (checkpoint.FOLDER, MEMORY):
            remove(folder / name)
        (folder / HISTORY).write_bytes(b"")
        memory = _memory(folder, experiment)
    else:
        cut_history(folder / HISTORY, done)
        checkpoint.forget(folder, done)
        if memory is not None:
            memory.journal(done, oldest=min(checkpoint.rounds_saved(folder)))
    if point.spoiled:
        where = f" after round {done}" if done else " from the beginning"
        aside = f", and the rounds that were done are in {kept}" if kept else ""
        what = f"the run goes on{where}{aside}, for checkpoints are of no use"
        warnings.warn(f"{folder}: {what} ({'; '.join(point.spoiled)})", stacklevel=3)
    return point._replace(memory=memory, lanes=lanes)


def _first_lanes(path: Path) -> int | None:
    """The lanes of the first round in a history, if it is there and says so."""
    try:
        lanes = next(rows_of(path), {}).get("lanes")
    except InputError:
        return None
    return lanes if isinstance(lanes, int) and not isinstance(lanes, bool) and lanes >= 1 else None


def _rows_before(path: Path, done: int, written: np.ndarray) -> tuple[History | None, str]:
    """The rows of the rounds done, if they are those that were written; otherwise what is wrong with them."""
    history, digest = History(), hashlib.sha256()
    try:
        for row in Rows(path, done):
            digest.update(identity(row))
            history.add([row])
    except InputError as error:
        return None, str(error).removeprefix(f"{path}: ").partition(";")[0]
    if len(history) < done:
        return None, f"{len(history)} rounds are there and not {done}"
    if digest.digest() != written.tobytes():
        return None, f"rows up to round {done} are not those that were written"
    return history, ""


def _memory(folder: Path, experiment: Experiment, *, again: bool = False) -> HostMemory | None:
    """What the clients remember, where there is so much of it that it is kept on disk; None if it cannot be opened."""
    if not keeps_on_disk(experiment):
        return None
    clients = experiment.data.num_clients
    try:
        return HostMemory(experiment.algorithm, experiment.model.params, clients, folder / MEMORY, again=again)
    except InputError:
        if again:
            return None
        raise


def _set_aside(path: Path) -> str | None:
    """Gives a history another name, which is returned; None where there is none."""
    if not path.is_file() or path.stat().st_size == 0:
        return None
    for number in range(1, 10_000):
        other = path.with_name(f"{path.stem}_{number}{path.suffix}")
        if not other.exists():
            path.rename(other)
            return other.name
    raise InputError(f"{path}: there are too many like it; begin another run")
