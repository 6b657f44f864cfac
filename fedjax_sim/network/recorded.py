"""Devices as FedScale publishes them (Lai et al. 2022, "FedScale: Benchmarking model and system performance of
federated learning at scale"), read from tables: CSV, or Parquet where pyarrow is installed.

FedScale publishes pickled dictionaries. A pickle can run any code when it is loaded, so none is read here: convert it
once, where it is trusted.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim import _validate
from fedjax_sim._validate import InputError
from fedjax_sim.network.availability import Availability, intervals
from fedjax_sim.network.draws import FOLLOW, pick
from fedjax_sim.network.makers import Table, check_header, read_csv, resampled
from fedjax_sim.network.profiles import Profiles, make_profiles

_CAPACITY = "a row `client,computation,communication` for each client and its dictionary in d.items()"
_BEHAVIOUR = (
    "a row `client,active,inactive` for each pair of zip(v['active'], v['inactive']), for client, v in d.items()"
)


def device_capacity(
    path: str | Path,
    *,
    num_clients: int | None = None,
    seed: int = 0,
    batch_size: int,
    latency_s: float = 0.05,
    dropout: float = 0.0,
    passes: float = 1.0,
) -> Profiles:
    """FedScale's device capacities: columns `computation` and `communication`, and `client` where there is one.

    `computation` is milliseconds per example, so that a local step takes `passes * computation / 1000 * batch_size`
    seconds; `communication` is kbit/s in both directions, of 1,000 bits each. By default `computation` is taken as the
    time to train on an example. FedScale's simulator takes its published values as the time of inference, and training
    as three times that, for the backward pass costs about twice the forward pass: give `passes=3` for these. It counts
    1,024 bits to the kbit of a message, and knows neither latency nor dropout.

    When `num_clients` is given and is not the number of rows, each client draws its row with replacement by (seed, id).

    Raises:
      InputError: naming the file, and the line or column that is missing, unknown, no number or out of range.
    """
    _validate.whole("batch_size", batch_size)
    _validate.real("passes", passes, above=0)
    table = _table(path, ("computation", "communication"), ("client",), _CAPACITY)
    milliseconds, kilobits = table.columns["computation"], table.columns["communication"]
    _refuse(
        table, path, "computation", ~(np.isfinite(milliseconds) & (milliseconds >= 0)), "milliseconds of at least 0"
    )
    _refuse(table, path, "communication", ~(kilobits > 0), "kbit/s over 0")
    first = {}
    for row, client in enumerate(table.columns.get("client", ())):
        if first.setdefault(client, row) != row:
            raise InputError(
                f"{path}: {table.unit} {table.numbers[row]}: client {client!r} is on {table.unit} "
                f"{table.numbers[first[client]]} already; give each client one row"
            )
    step = passes * milliseconds / 1e3 * batch_size
    profiles = make_profiles(
        kilobits * 1e3, kilobits * 1e3, latency_s=latency_s, seconds_per_step=step, dropout=dropout
    )
    return profiles if num_clients is None else resampled(profiles, num_clients, seed)


def availability_trace(
    path: str | Path, *, num_clients: int | None = None, seed: int = 0, period_seconds: float | None = None
) -> Availability:
    """FedScale's client behaviour: a row `client, active, inactive` for each interval, in seconds.

    The rows are the lists `active` and `inactive` of every client side by side. `client` is any label; clients are
    numbered in the order in which they first appear, and a client's rows may come in any order. A client can be reached
    from `active` until just before `inactive`. One without a row is not recorded: there is nobody who is never there.

    FedScale repeats each client's trace after its own `finish_time`; here one `period_seconds` holds for all, and
    without it nobody is there after the last interval.

    When `num_clients` is given and is not the number of recorded clients, each client follows a recorded one, chosen
    with replacement by (seed, id).

    Raises:
      InputError: naming the file, and the line or column that is missing, unknown, no number or out of range, or
        intervals of one client that overlap.
    """
    if num_clients is not None:
        _validate.whole("num_clients", num_clients)
    _validate.whole("seed", seed, least=0)
    if period_seconds is not None:
        _validate.real("period_seconds", period_seconds, above=0)
    table = _table(path, ("client", "active", "inactive"), (), _BEHAVIOUR)
    active, inactive = table.columns["active"], table.columns["inactive"]
    _refuse(table, path, "active", ~(np.isfinite(active) & (active >= 0)), "finite seconds of at least 0")
    _refuse(table, path, "inactive", ~np.isfinite(inactive), "finite seconds")
    _refuse(table, path, "inactive", inactive <= active, "an end after `active`")
    if period_seconds is not None:
        _refuse(table, path, "inactive", inactive > period_seconds, f"an end up to period_seconds={period_seconds}")
    number: dict[str, int] = {}
    clients = np.array([number.setdefault(label, len(number)) for label in table.columns["client"]])
    order = np.lexsort((active, clients))
    clients, starts, ends = clients[order], active[order], inactive[order]
    overlaps = np.flatnonzero((clients[1:] == clients[:-1]) & (starts[1:] < ends[:-1]))
    if len(overlaps):
        one, other = sorted(table.numbers[i] for i in order[overlaps[0] : overlaps[0] + 2])
        label = table.columns["client"][order[overlaps[0]]]
        raise InputError(f"{path}: {table.unit}s {one} and {other}: intervals of client {label!r} overlap; merge them")
    bounds = np.flatnonzero(np.diff(clients)) + 1
    recorded = intervals(np.split(np.stack([starts, ends], axis=1), bounds), period_seconds=period_seconds)
    if num_clients is None or num_clients == len(number):
        return recorded
    return _following(recorded, pick(seed, FOLLOW, np.arange(num_clients), len(number)))


def _following(recorded: Availability, whom: np.ndarray) -> Availability:
    """Client `i` does as the recorded one `whom[i]`."""

    def followed(ids: np.ndarray) -> np.ndarray:
        return whom[_validate.client_ids(ids, len(whom))]

    return Availability(
        lambda ids, t: recorded.now(followed(ids), t), lambda ids, t: recorded.following(followed(ids), t)
    )


def _refuse(table: Table, path: str | Path, column: str, wrong: np.ndarray, fix: str) -> None:
    """Names the first row that is wrong."""
    if wrong.any():
        row = int(np.argmax(wrong))
        value = table.columns[column][row]
        raise InputError(f"{path}: {table.unit} {table.numbers[row]}: {column} is {value:g}; give {fix}")


def _table(path: str | Path, needed: Sequence[str], optional: Sequence[str], conversion: str) -> Table:
    """A CSV or Parquet file, told apart by what it begins with; `client` holds text."""
    try:
        with Path(path).open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise InputError(f"{path}: {error}; give a CSV or Parquet file") from None
    if not start:
        raise InputError(f"{path}: the file is empty; give columns {', '.join(needed)}")
    pickled = start[:1] == b"\x80" or start[:3] in (b"(dp", b"(lp") or start[:2] in (b"}q", b"]q")
    if pickled or Path(path).suffix in (".pkl", ".pickle"):
        raise InputError(
            f"{path}: a pickle can run code and is not read; load it as d where you trust it, and write {conversion}"
        )
    if start == b"PAR1":
        return _read_parquet(path, needed, optional)
    return read_csv(path, needed, optional, text=("client",))


def _read_parquet(path: str | Path, needed: Sequence[str], optional: Sequence[str]) -> Table:
    """Rows count from 1."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(
            f"{path}: Parquet needs pyarrow, which is not installed; run: pip install 'fedjax-sim[datasets]'"
        ) from None

    try:
        table = pq.ParquetFile(path).read()
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: it cannot be read ({reason}); give a Parquet file, or write it again") from None
    check_header(path, table.column_names, needed, optional)
    if table.num_rows == 0:
        raise InputError(f"{path}: no clients; give at least one row")
    columns: dict[str, Any] = {}
    for field, values in zip(table.schema, table.columns, strict=True):
        if values.null_count:
            row = values.is_null().to_pylist().index(True) + 1
            raise InputError(f"{path}: row {row}: {field.name} is missing; fill it in")
        cells = values.to_pylist()
        if field.name == "client":
            columns[field.name] = [str(cell) for cell in cells]
        elif pa.types.is_integer(field.type) or pa.types.is_floating(field.type):
            columns[field.name] = np.asarray(cells, np.float64)
        else:
            raise InputError(f"{path}: row 1: {field.name} is {_validate.shown(cells[0])}; give numbers")
    return Table(columns, range(1, table.num_rows + 1), "row")
