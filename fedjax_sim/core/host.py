"""Per-client memory on disk: with a row for each of 100,000 clients it outgrows any device, and most hosts."""

import os
import weakref
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim import _validate
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.compile import tuned
from fedjax_sim.core.round import RoundFn, init
from fedjax_sim.core.types import Array, Cohort, PyTree, RoundMetrics, RoundState

CHECKED_BYTES = 6.4e7  # of rows that are looked at together


class HostMemory:
    """What every client remembers, in one file per array, of which a round reads and writes the cohort's rows.

    The files are sparse: a client's row takes up disk from the first time it takes part, and until then is what
    `algorithm.client.init` says. Rows are read and written, not mapped: what is mapped counts as the process's memory,
    fills a sparse file several times slower, page by page, and ends the process where a disk is full.
    """

    def __init__(
        self, algorithm: Algorithm, params: PyTree, num_clients: int, folder: str | Path, *, again: bool = False
    ):
        """Makes the files, or opens them again.

        Args:
          algorithm: whose clients and transform remember something.
          params: the initial model.
          num_clients: `N`.
          folder: where, an empty one or a new one.
          again: opens what lies there; `back` comes before anything is read.

        Raises:
          InputError: the folder holds something, or nothing where it should, or cannot be made.
        """
        one = init(algorithm, params, _validate.whole("num_clients", num_clients), memory_rows=1)
        self.initial = jax.tree.map(np.asarray, (one.clients, one.messages))
        self.num_clients, self.seen = num_clients, np.zeros(num_clients, bool)
        self.sums = np.zeros(num_clients, np.uint32)  # checksums of the rows
        leaves, self._structure = jax.tree.flatten(self.initial)
        self._files: list[BinaryIO] = []
        self._folder, self._journal, self._journaled = Path(folder), None, np.zeros(num_clients, bool)
        weakref.finalize(self, _close, self._files)
        try:
            if not again:
                self._folder.mkdir(parents=True, exist_ok=True)
                if any(self._folder.iterdir()):
                    raise _validate.InputError(f"folder: {str(folder)!r} is not empty; give another")
            for i, leaf in enumerate(leaves):
                path = self._folder / f"memory_{i}.bin"
                self._files.append(open(path, "r+b" if again else "x+b", buffering=0))  # noqa: SIM115
                if not again:
                    self._files[-1].truncate(num_clients * leaf.nbytes)
        except OSError as error:
            raise _validate.InputError(f"folder: {str(folder)!r} ({error.strerror}); give another") from None

    def journal(self, mark: int, *, oldest: int | None = None) -> None:
        """From now on rows are noted before they are overwritten for the first time, so that a process which is killed
        can go `back` to this mark, or to one of those before it.

        Marks later than this one are forgotten, and those before `oldest`, by default all before this one. What is
        killed is the process: nothing is synced, and what a power cut takes shows in the checksums.
        """
        if self._journal is not None:
            self._journal.close()
            self._files.remove(self._journal)
            self._journal = None
        for later in self._marks()[::-1]:  # the newest first: what is left is always the whole of what it was
            if later > mark:
                self._notes(later).unlink()
        partial = self._folder / "undo.partial"
        with _validate.about_file(partial):
            self._journal = open(partial, "wb", buffering=0)  # noqa: SIM115
        os.replace(partial, self._notes(mark))
        self._files.append(self._journal)
        self._journaled[:] = False
        for earlier in self._marks():
            if earlier < (mark if oldest is None else oldest):
                self._notes(earlier).unlink()

    def back(self, mark: int, seen: np.ndarray, sums: np.ndarray) -> bool:
        """Puts back the rows as they were at a mark, with `seen` and `sums` of that time, and looks whether they are.
        Where they are not, a mark further back may do; `journal` makes this the state to go on from."""
        self.seen, self.sums = np.array(seen), np.array(sums)
        for later in self._marks()[::-1]:
            if later >= mark:
                self._undo(self._notes(later))
        known = np.flatnonzero(self.seen)
        at_once = max(1, int(CHECKED_BYTES // max(self.row_bytes, 1)))
        for first in range(0, len(known), at_once):
            ids = known[first : first + at_once]
            if not np.array_equal(_sums(jax.tree.leaves(self.rows(ids)), len(ids)), self.sums[ids]):
                return False
        return True

    def _notes(self, mark: int) -> Path:
        return self._folder / f"undo_{mark}.bin"

    def _marks(self) -> list[int]:
        names = [path.stem.removeprefix("undo_") for path in self._folder.glob("undo_*.bin")]
        return sorted(int(name) for name in names if name.isdecimal())

    def _note(self, ids: np.ndarray) -> None:
        """Writes down the rows of those among `ids` that will be overwritten for the first time since the mark."""
        fresh = np.unique(ids[(ids >= 0) & self.seen[np.maximum(ids, 0)] & ~self._journaled[np.maximum(ids, 0)]])
        if self._journal is None or len(fresh) == 0:
            return
        leaves = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(self.rows(fresh))]
        whole = self._journal.tell()
        try:
            for slot, client in enumerate(fresh):
                record = np.int64(client).tobytes() + b"".join(leaf[slot].tobytes() for leaf in leaves)
                _write(self._journal, memoryview(record))
        except OSError:
            self._journal.truncate(whole)
            self._journal.seek(whole)
            raise
        self._journaled[fresh] = True

    def _undo(self, path: Path) -> None:
        """Puts the noted rows back; a torn last note is of a row that had not been touched."""
        first = jax.tree.leaves(self.initial)
        length = 8 + self.row_bytes
        with open(path, "rb") as notes:
            while len(record := notes.read(length)) == length:
                client, place = int(np.frombuffer(record[:8], np.int64)[0]), 8
                if not 0 <= client < self.num_clients:
                    return  # damaged, which the checksums will show
                for file, leaf in zip(self._files[: len(first)], first, strict=True):
                    file.seek(client * leaf.nbytes)
                    _write(file, memoryview(record)[place : place + leaf.nbytes])
                    place += leaf.nbytes

    def close(self) -> None:
        """Closes the files."""
        _close(self._files)

    @property
    def row_bytes(self) -> int:
        """Bytes of one client's row over all arrays."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.initial))

    def rows(self, ids: np.ndarray) -> tuple[PyTree, PyTree]:
        """The memory of the clients `ids` and of the transform on their messages, arrays [C, ...]; the initial rows for
        those who never took part, and in empty slots."""
        known = np.flatnonzero((ids >= 0) & self.seen[np.maximum(ids, 0)])

        def read(file: BinaryIO, first: np.ndarray) -> np.ndarray:
            out = np.repeat(first, len(ids), axis=0)
            if first.size == 0:
                return out
            for slot in known[np.argsort(ids[known])]:  # in the order in which they lie
                file.seek(int(ids[slot]) * first.nbytes)
                target = memoryview(out[slot : slot + 1].reshape(-1).view(np.uint8).data)
                while len(target) and (got := file.readinto(target)):  # type: ignore[attr-defined]
                    target = target[got:]
            return out

        leaves = jax.tree.leaves(self.initial)
        found = [read(f, leaf) for f, leaf in zip(self._files[: len(leaves)], leaves, strict=True)]
        return jax.tree.unflatten(self._structure, found)

    def keep(self, ids: np.ndarray, rows: tuple[PyTree, PyTree]) -> None:
        """Writes the rows of the clients `ids`, as `rows` gave them; empty slots are passed over.

        Raises:
          InputError: rows of another shape.
          OSError: they cannot be written, for the disk is full, say.
        """
        slots = np.flatnonzero(ids >= 0)
        leaves, first = jax.tree.leaves(rows), jax.tree.leaves(self.initial)
        for leaf, one in zip(leaves, first, strict=True):
            if np.shape(leaf) != (len(ids), *one.shape[1:]):
                shape = (len(ids), *one.shape[1:])
                raise _validate.InputError(f"rows: {list(np.shape(leaf))}; give one row per id, {list(shape)}")
        self._note(ids)
        kept = [np.ascontiguousarray(leaf, one.dtype) for leaf, one in zip(leaves, first, strict=True)]
        for file, leaf, one in zip(self._files[: len(first)], kept, first, strict=True):
            for slot in slots[np.argsort(ids[slots])] if one.nbytes else ():
                file.seek(int(ids[slot]) * one.nbytes)
                _write(file, _bytes(leaf, slot))
        self.seen[ids[slots]] = True
        self.sums[ids[slots]] = _sums([leaf[slots] for leaf in kept], len(slots))


def _bytes(leaf: np.ndarray, slot: int) -> memoryview:
    """One row of a contiguous array."""
    return memoryview(leaf[slot : slot + 1].reshape(-1).view(np.uint8).data)


def _sums(leaves: list[np.ndarray], rows: int) -> np.ndarray:
    """A checksum of each row, uint32[rows], over all arrays."""
    kept, sums = [np.ascontiguousarray(leaf) for leaf in leaves if leaf.size], np.zeros(rows, np.uint32)
    for slot in range(rows):
        for leaf in kept:
            sums[slot] = zlib.crc32(_bytes(leaf, slot), int(sums[slot]))
    return sums


def _write(file: BinaryIO, source: memoryview) -> None:
    """All of it: what is not buffered may be written in part."""
    with _validate.about_file(getattr(file, "name", "client memory")):
        while len(source):
            source = source[file.write(source) :]


def _close(files: list[BinaryIO]) -> None:
    for file in files:
        file.close()


def with_host_memory(round_fn: RoundFn, memory: HostMemory) -> Callable[..., tuple[RoundState, RoundMetrics]]:
    """`round_fn(state, cohort, key)` with per-client memory on disk: results are those of memory on the device.

    Args:
      round_fn: from `make_round`, jitted here.
      memory: where it lies.

    Returns:
      A function with the same arguments and results, for the host: it fits no `jit`. The state is that of `init(...,
      memory_rows=C)`, whose per-client arrays are those of the last cohort.
    """
    run = tuned(round_fn)

    def hosted(state: RoundState, cohort: Cohort, key: Array) -> tuple[RoundState, RoundMetrics]:
        ids = np.asarray(cohort.ids)
        clients, messages = jax.tree.map(jnp.asarray, memory.rows(ids))
        cohort = cohort._replace(rows=jnp.arange(len(ids), dtype=jnp.int32))
        state, metrics = run(state._replace(clients=clients, messages=messages), cohort, key)
        memory.keep(ids, (state.clients, state.messages))
        return state, metrics

    return hosted


def memory_bytes(algorithm: Algorithm, params: PyTree, num_clients: int) -> int:
    """Bytes that one client of a population of `num_clients` remembers."""
    state: Any = jax.eval_shape(lambda p: init(algorithm, p, num_clients, memory_rows=1), params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((state.clients, state.messages)))
