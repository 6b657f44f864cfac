"""Cohorts of a population that stays on the host or on disk: each is the clients' own flat slice, read ahead.

The round function is the same as for resident data, and so are its results: only where a client's rows lie differs.
"""

import heapq
import mmap
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeGuard

import jax
import numpy as np

from fedjax_sim import _validate
from fedjax_sim._validate import InputError
from fedjax_sim.core.devices import own_places, split_parts
from fedjax_sim.core.types import Cohort
from fedjax_sim.data.convert import narrowed
from fedjax_sim.data.federated import FederatedData, check_values


def gather(data: FederatedData, ids: np.ndarray, *, rows: int | None = None) -> Cohort:
    """The cohort of the clients `ids` with their examples alone, as host arrays.

    Args:
      data: in memory, or mapped from files, of which only the cohort's rows are read and none stay mapped in.
      ids: int[C], or int[R, C] for the cohorts of R rounds in one slice; -1 for an empty slot.
      rows: length of the slice, padded with zeros, so that cohorts of different size share one compiled round.

    Raises:
      InputError: a client that does not exist, more examples than `rows`, or numbers that are NaN or infinite.
    """
    shape = np.shape(ids)
    ids, held, firsts, sizes = _located(data, ids)
    total = int(sizes.sum())
    if rows is not None and total > rows:
        raise InputError(f"rows: {rows} are too few for a cohort of {total} examples; give more")
    starts = np.cumsum(sizes) - sizes
    examples = _taken(data, firsts, sizes, [slice(None)], max(total, 1) if rows is None else rows)
    return _cohort((ids, starts, sizes, held), shape, examples)


def homes_of(sizes: np.ndarray, devices: int) -> np.ndarray:
    """Which of so many devices takes each client of a cohort, int32 like `sizes` int[C]: from the largest to the
    smallest, each goes to the one with the fewest examples that still has room, all for equally many clients."""
    homes, room = np.zeros(len(sizes), np.int32), -(-len(sizes) // devices)
    least = [(0, device, 0) for device in range(devices)]
    for client in np.argsort(-sizes, kind="stable").tolist():
        held, device, clients = heapq.heappop(least)
        homes[client] = device
        if clients + 1 < room:
            heapq.heappush(least, (held + int(sizes[client]), device, clients + 1))
    return homes


def _gather_own(data: FederatedData, ids: np.ndarray, homes: np.ndarray, rows: int, devices: Sequence[Any]) -> Cohort:
    """As `gather`, with `Cohort.homes` like `ids`: examples [D, rows, ...] over `devices`, of which this process reads
    what its own hold; the rest are host arrays."""
    shape = np.shape(ids)
    ids, held, firsts, sizes = _located(data, ids)
    starts, at_home = np.zeros_like(sizes), [np.flatnonzero(homes.ravel() == d) for d in range(len(devices))]
    for mine in at_home:
        starts[mine] = np.cumsum(sizes[mine]) - sizes[mine]
    own = [at_home[place] for place in own_places(devices)]
    examples = {
        field: split_parts(x.reshape(len(own), rows, *x.shape[1:]), devices)
        for field, x in _taken(data, firsts, sizes, own, rows).items()
    }
    return _cohort((ids, starts, sizes, held), shape, examples, homes)


def _cohort(indices: Sequence[np.ndarray], shape: Sequence[int], examples: Any, homes: Any = None) -> Cohort:
    """Of ids, starts, sizes and rows."""
    found: list[Any] = [index.astype(np.int32).reshape(shape) for index in indices]
    return Cohort(*found, examples=examples, homes=homes)


def _taken(
    data: FederatedData, firsts: np.ndarray, sizes: np.ndarray, parts: Sequence[Any], length: int
) -> dict[str, np.ndarray]:
    """The examples of the clients in each of P parts, which index them, one client after another: arrays
    [P length, ...], with zeros behind those of a part."""
    examples = {}
    for field, array in data.examples.items():
        out = np.zeros((len(parts) * length, *array.shape[1:]), array.dtype)
        for place, part in enumerate(parts):
            _read(array, firsts[part], sizes[part], out[place * length : (place + 1) * length])
        examples[field] = narrowed(field, out)
    check_values("cohort", examples, data.classes, data.vocabulary)
    _validate.finite("cohort", examples)
    return examples


def _located(data: FederatedData, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Ids, the same with 0 for an empty slot, first rows and sizes, int64[C] each."""
    ids = _validate.client_ids(ids, data.num_clients).astype(np.int64).ravel()
    held = np.maximum(ids, 0)
    firsts = np.array(data.offsets[held])
    sizes = np.where(ids >= 0, data.offsets[held + 1] - firsts, 0)
    _forget(data.offsets)
    return ids, held, firsts, sizes


def _forget(array: np.ndarray) -> None:
    """Unmaps a file's pages, or all that were ever touched would count as this process's memory."""
    if _whole_file(array) and isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        array.base.madvise(mmap.MADV_DONTNEED)


def _read(array: np.ndarray, firsts: np.ndarray, sizes: np.ndarray, out: np.ndarray) -> None:
    """Copies the clients' rows one after another into `out`."""
    clients = [(first, size) for first, size in zip(firsts.tolist(), sizes.tolist(), strict=True) if size]
    place, width = 0, out[:1].nbytes
    if not (_whole_file(array) and width and hasattr(os, "preadv") and hasattr(os, "posix_fadvise")):
        for first, size in clients:
            out[place : place + size] = array[first : first + size]
            place += size
        return
    # read, not paged in: a third of the time, and the pages do not count as this process's memory
    name, start = str(array.filename), int(array.offset)
    target, file = memoryview(out.view(np.uint8).reshape(-1).data), os.open(name, os.O_RDONLY)
    try:
        for first, size in clients:  # asks for all of them at once, before waiting for the first
            os.posix_fadvise(file, start + first * width, size * width, os.POSIX_FADV_WILLNEED)
        for first, size in clients:
            piece = target[place * width : (place + size) * width]
            if os.preadv(file, [piece], start + first * width) != len(piece):
                raise InputError(f"{name}: it ends before row {first + size}; write the federation again")
            place += size
    finally:
        os.close(file)


def _whole_file(array: np.ndarray) -> TypeGuard[np.memmap]:
    """The array maps a file just as it lies there: no view of such an array, and none that may have been changed."""
    own = isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap) and array.filename is not None
    return own and array.flags.c_contiguous and not array.flags.writeable


def stream(
    data: FederatedData,
    cohorts: Iterable[np.ndarray],
    *,
    place: Callable[[Any], Any] = jax.device_put,
    ahead: int = 2,
    devices: Sequence[Any] | None = None,
) -> Iterator[Cohort]:
    """The cohorts with their examples on the device, read and copied by a thread while earlier rounds compute.

    Args:
      data: in memory or mapped from files.
      cohorts: client ids of each round, int[C], or of R rounds at once, int[R, C]; -1 for an empty slot. Several rounds
        in one slice, for `make_simulation`, save most of the cost of handing each over.
      place: puts a pytree of host arrays where the round wants it.
      ahead: cohorts prepared beyond the one in use, at least 1; they take memory.
      devices: of the round. Given, each holds the examples of the clients that it trains alone, which
        `Cohort.homes` says, and each process reads those of its own devices; else `place` puts all on all.

    Yields:
      One `Cohort` for each entry of `cohorts`. Slices are padded to a common length, which grows by a quarter or more
      when a cohort needs it; every growth compiles the round again.

    Raises:
      InputError: as `gather`; errors of `cohorts` itself are passed on.
    """
    _validate.whole("ahead", ahead)
    ready: queue.Queue[Any] = queue.Queue(ahead)
    stop = threading.Event()

    def put(item: Any) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        rows = 0
        try:
            for ids in cohorts:
                sizes, homes = _located(data, ids)[3].reshape(np.shape(ids)), None
                needed = max(1, int(sizes.sum()))
                if devices is not None:
                    rounds = sizes.reshape(-1, np.shape(ids)[-1])
                    homes = np.stack([homes_of(each, len(devices)) for each in rounds]).reshape(np.shape(ids))
                    needed = max(1, *(int(sizes[homes == d].sum()) for d in range(len(devices))))
                if needed > rows:
                    rows = _rounded(needed * 5 // 4)  # room for the next, too
                if devices is None or homes is None:
                    put(place(gather(data, ids, rows=rows)))
                else:
                    found = _gather_own(data, ids, homes, rows, devices)
                    put(place(found._replace(examples=()))._replace(examples=found.examples))
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:  # whatever it is, it belongs to the thread that asked
            put(error)

    thread = threading.Thread(target=work, name="cohorts", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


def _rounded(rows: int) -> int:
    """`rows` rounded up to a multiple of an eighth of the power of two below it."""
    step = max(1, 1 << max(0, rows.bit_length() - 4))
    return -(-max(rows, 1) // step) * step
