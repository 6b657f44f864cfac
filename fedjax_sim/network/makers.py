"""Populations of links and devices: constant, log-normal, or from measurements and files. Each returns `Profiles`.

A client's row is a function of (seed, client id): a larger population begins with the smaller one.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim import _validate
from fedjax_sim._text import parse_json
from fedjax_sim._validate import InputError
from fedjax_sim.network.draws import COMPUTE, DOWNLINK, LINK, PHONE, ROW, UPLINK, normal, pick
from fedjax_sim.network.profiles import Profiles, check, make_profiles

OPTIONAL = ("latency_s", "seconds_per_step", "dropout", "completeness")  # may be missing from a table


def constant(
    num_clients: int,
    *,
    downlink_bps: float = 4.3e6,
    uplink_bps: float = 3.3e6,
    latency_s: float = 0.05,
    seconds_per_step: float = 0.05,
    dropout: float = 0.0,
    completeness: float = 1.0,
) -> Profiles:
    """Everybody the same; by default the medians of `lognormal`."""
    _validate.whole("num_clients", num_clients)
    return make_profiles(
        np.full(num_clients, _number("downlink_bps", downlink_bps)),
        np.full(num_clients, _number("uplink_bps", uplink_bps)),
        latency_s=_number("latency_s", latency_s),
        seconds_per_step=_number("seconds_per_step", seconds_per_step),
        dropout=_number("dropout", dropout),
        completeness=_number("completeness", completeness),
    )


def lognormal(
    num_clients: int,
    seed: int,
    *,
    median_downlink_bps: float = 4.3e6,
    sigma_downlink: float = 0.48,
    median_uplink_bps: float = 3.3e6,
    sigma_uplink: float = 0.70,
    median_seconds_per_step: float = 0.05,
    sigma_seconds_per_step: float = 0.93,
    latency_s: float = 0.05,
    dropout: float = 0.0,
    completeness: float = 1.0,
) -> Profiles:
    """Bandwidths and step times that are log-normal: `median * exp(sigma * normal)`, independent of one another.

    The medians and sigmas (standard deviations of the natural logarithm) of the links are those of the mean WiFi speeds
    of 19 phones, the sigma of the step time is that of the floating-point CPU score of 333 phones; they were computed
    from the two tables that `from_devices` reads. Across 80 recordings of 3G in motion the mean bandwidth has a median
    of 1.08e6 bit/s and a sigma of 0.43. The median step time and the latency are round figures: give your own.

    Raises:
      InputError: a median that is not over 0, or a negative sigma, latency or dropout.
    """
    ids, seed = _population(num_clients, seed)

    def spread(purpose: int, name: str, median: float, sigma: float) -> np.ndarray:
        _validate.real(f"median_{name}", median, above=0)
        _validate.real(f"sigma_{name.removesuffix('_bps')}", sigma, least=0)
        with np.errstate(over="ignore"):
            return median * np.exp(sigma * normal(seed, purpose, ids))

    return make_profiles(
        spread(DOWNLINK, "downlink_bps", median_downlink_bps, sigma_downlink),
        spread(UPLINK, "uplink_bps", median_uplink_bps, sigma_uplink),
        latency_s=latency_s,
        seconds_per_step=spread(COMPUTE, "seconds_per_step", median_seconds_per_step, sigma_seconds_per_step),
        dropout=dropout,
        completeness=completeness,
    )


def from_csv(path: str | Path, *, num_clients: int | None = None, seed: int = 0) -> Profiles:
    """A table whose header names fields of `Profiles`, one row per client.

    Both bandwidths are needed; a field that is not there takes the default of `make_profiles`. When `num_clients` is
    given and is not the number of rows, each client draws its row with replacement by (seed, id).

    Raises:
      InputError: naming the column that is missing or unknown, or the line that is not numbers or out of range.
    """
    columns = read_csv(path, [name for name in Profiles._fields if name not in OPTIONAL], OPTIONAL).columns
    try:
        table = make_profiles(columns.pop("downlink_bps"), columns.pop("uplink_bps"), **columns)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return table if num_clients is None else resampled(table, num_clients, seed)


class Table(NamedTuple):
    columns: dict[str, Any]  # float64[n], list[str] for those that hold text
    numbers: Sequence[int]  # of the rows, as errors name them
    unit: str = "line"


def read_csv(path: str | Path, needed: Sequence[str], optional: Sequence[str], text: Sequence[str] = ()) -> Table:
    """All the columns of a table of numbers; those named in `text` are left as they stand."""
    try:
        lines = list(csv.reader(_text(path).splitlines()))
    except csv.Error as error:
        raise InputError(f"{path}: {error}; give a table of numbers") from None
    header = [name.strip() for name in lines[0]] if lines else []
    check_header(path, header, needed, optional)
    rows, numbers = [], []
    for number, line in enumerate(lines[1:], 2):
        if not line:
            continue
        if len(line) != len(header):
            raise InputError(f"{path}: line {number} has {len(line)} cells under {len(header)} columns; give one each")
        try:
            rows.append([cell.strip() if n in text else float(cell) for n, cell in zip(header, line, strict=True)])
        except ValueError:
            raise InputError(f"{path}: line {number} is {_validate.shown(line)}; give numbers") from None
        numbers.append(number)
    if not rows:
        raise InputError(f"{path}: no clients; give at least one row under the header")
    columns = zip(header, zip(*rows, strict=True), strict=True)
    return Table({n: list(cells) if n in text else np.array(cells) for n, cells in columns}, numbers)


def check_header(path: str | Path, header: Sequence[str], needed: Sequence[str], optional: Sequence[str]) -> None:
    """The needed columns and perhaps optional ones, each once."""
    unknown = [name for name in header if name not in (*needed, *optional)]
    if unknown or not set(needed) <= set(header) or len(set(header)) < len(header):
        wrong = f"column {unknown[0]!r} is unknown" if unknown else f"columns {list(header)}"
        extra = f" and, once each, any of {', '.join(optional)}" if optional else ", once each"
        raise InputError(f"{path}: {wrong}; give {', '.join(needed)}{extra}")


def resampled(profiles: Profiles, num_clients: int, seed: int) -> Profiles:
    """`num_clients` clients that each draw a row with replacement; the given ones where there are as many."""
    ids, seed = _population(num_clients, seed)
    rows = len(profiles.downlink_bps)
    chosen = ids if rows == num_clients else pick(seed, ROW, ids, rows)
    return Profiles(*(values[chosen] for values in profiles))


def slowed(profiles: Profiles, ids: Any, factor: float) -> Profiles:
    """The clients `ids` have bandwidths divided and seconds per step multiplied by `factor`: one slow hospital.

    Latencies stay. A factor below 1 makes them faster; a client that is named twice is slowed once.

    Raises:
      InputError: a client that does not exist, or a factor that is not over 0.
    """
    clients = len(check(profiles).downlink_bps)
    _validate.real("factor", factor, above=0)
    ids = _validate.client_ids(np.asarray(ids, np.int64) if np.size(ids) == 0 else ids, clients)
    if (ids < 0).any():
        raise InputError(f"ids: client {ids.min()} does not exist; give numbers from 0 to {clients - 1}")
    by = np.ones(clients)
    by[ids] = factor
    with np.errstate(over="ignore", under="ignore"):
        down, up, step = profiles.downlink_bps / by, profiles.uplink_bps / by, profiles.seconds_per_step * by
    return check(profiles._replace(downlink_bps=down, uplink_bps=up, seconds_per_step=step))


def from_devices(
    folder: str | Path,
    num_clients: int,
    seed: int,
    *,
    median_seconds_per_step: float = 0.05,
    latency_s: float = 0.05,
    dropout: float = 0.0,
) -> Profiles:
    """Measured phones: `folder` holds `speed_distri.json` and `raw_ai_benchmark_list.json`.

    Each client draws, by (seed, id), a phone's WiFi link, and a phone's processor independently of it. Its bandwidths
    are log-normal with the mean and the standard deviation that were measured for that link (in kbit/s), so that none
    is negative; its step time is inversely proportional to `CPU_F_AI_Score`, with `median_seconds_per_step` at the
    median score of the table.

    Raises:
      InputError: naming the file and the entry that lacks a field or has a value out of range.
    """
    ids, seed = _population(num_clients, seed)
    _validate.real("median_seconds_per_step", median_seconds_per_step, above=0)
    speeds_path, scores_path = Path(folder) / "speed_distri.json", Path(folder) / "raw_ai_benchmark_list.json"
    speeds, phones = _json(speeds_path, dict), _json(scores_path, list)
    links = np.array(
        [
            [_field(speeds_path, name, entry, field) for field in ("down_u", "down_sigma", "up_u", "up_sigma")]
            for name, entry in speeds.items()
        ]
    )
    scores = np.array([_field(scores_path, i, entry, "CPU_F_AI_Score") for i, entry in enumerate(phones)])
    chosen = links[pick(seed, LINK, ids, len(links))] * 1e3

    def drawn(purpose: int, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
        variance = np.log1p((deviation / mean) ** 2)  # of the logarithm, for that mean and deviation
        return mean * np.exp(np.sqrt(variance) * normal(seed, purpose, ids) - variance / 2)

    return make_profiles(
        drawn(DOWNLINK, chosen[:, 0], chosen[:, 1]),
        drawn(UPLINK, chosen[:, 2], chosen[:, 3]),
        latency_s=latency_s,
        seconds_per_step=median_seconds_per_step * np.median(scores) / scores[pick(seed, PHONE, ids, len(scores))],
        dropout=dropout,
    )


def _population(num_clients: int, seed: int) -> tuple[np.ndarray, int]:
    return np.arange(_validate.whole("num_clients", num_clients)), _validate.whole("seed", seed, least=0)


def _number(name: str, value: Any) -> float:
    if isinstance(value, float) and np.isinf(value):
        return value  # an infinite bandwidth is allowed; `make_profiles` says of which field
    return float(_validate.real(name, value))


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}; give a text file") from None


def _json(path: Path, kind: type) -> Any:
    try:
        content = parse_json(_text(path))
    except ValueError as error:
        raise InputError(f"{path}: {error}; give JSON") from None
    if not isinstance(content, kind) or not content:
        raise InputError(f"{path}: it holds no {kind.__name__} of entries; give at least one")
    return content


def _field(path: Path, name: Any, entry: Any, field: str) -> float:
    """A number over 0, or of at least 0 for a deviation; the tables hold some as strings."""
    given = entry.get(field) if isinstance(entry, dict) else None
    try:
        value = float(given)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        value = np.nan
    if not np.isfinite(value) or value < 0 or (value == 0 and not field.endswith("_sigma")):
        raise InputError(f"{path}: {field} of entry {name!r} is {_validate.shown(given)}; give a number over 0")
    return value
