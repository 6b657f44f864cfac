"""When clients can be reached: functions of (client ids, seconds), so that nobody replays the past.

An `Availability` is called for the present and asked by `following` when each client can be reached next. The former
fits a sampler after `by_round` has told it how long a round lasts.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim import _validate
from fedjax_sim._validate import InputError
from fedjax_sim.network.draws import PERIOD, PHASE, uniform, uniform_of

DAY_SECONDS = 86_400.0
_MOST_PERIODS = 100_000  # that `periodic` looks ahead


class Availability(NamedTuple):
    """Call it with (ids, seconds) for bool[k]; its fields are pure functions of client ids int[k] and a clock."""

    now: Callable[[np.ndarray, float], np.ndarray]  # bool[k]
    following: Callable[[np.ndarray, float], np.ndarray]  # the first second from then on, float64[k]; inf for never
    one: Callable[[int, float], bool] | None = None  # `now` of one client, without the cost of arrays

    def __call__(self, ids: np.ndarray, seconds: float) -> np.ndarray:
        return self.now(np.asarray(ids), seconds)


def by_round(availability: Availability, round_seconds: float) -> Callable[[np.ndarray, int], np.ndarray]:
    """`(ids, round) -> bool` for a sampler, where every round begins `round_seconds` after the one before."""
    seconds = float(_validate.real("round_seconds", round_seconds, above=0))
    return lambda ids, round: availability(ids, round * seconds)


def always() -> Availability:
    """Everybody, at any time."""
    return Availability(lambda ids, t: np.ones(len(ids), bool), lambda ids, t: np.full(len(ids), float(t)))


def periodic(probability: float, period_seconds: float, seed: int) -> Availability:
    """In every period each client can be reached with this probability, independently of the others and of the past.

    Raises:
      InputError: a probability that is not over 0 and at most 1, or a period that is not over 0.
    """
    probability = _share("probability", probability)
    period = float(_validate.real("period_seconds", period_seconds, above=0))
    _validate.whole("seed", seed, least=0)

    def drawn(ids: np.ndarray, index: np.ndarray | int) -> np.ndarray:
        return uniform(seed, PERIOD, ids, index) <= probability

    def now(ids: np.ndarray, t: float) -> np.ndarray:
        return drawn(ids, int(t // period))

    def following(ids: np.ndarray, t: float) -> np.ndarray:
        ids = np.asarray(ids)
        found = np.where(now(ids, t), float(t), np.inf)
        first = int(t // period)
        for index in range(first + 1, first + 1 + _MOST_PERIODS):
            left = np.flatnonzero(np.isinf(found))
            if len(left) == 0:
                break
            start = index * period
            start = start if start // period >= index else float(np.nextafter(start, np.inf))
            found[left[drawn(ids[left], index)]] = start
        return found

    return Availability(now, following, lambda id, t: uniform_of(seed, PERIOD, id, int(t // period)) <= probability)


def diurnal(share: float, seed: int, *, period_seconds: float = DAY_SECONDS) -> Availability:
    """Every client is awake for this share of each day, at an hour of its own that depends on its id alone.

    Raises:
      InputError: a share that is not over 0 and at most 1, or a period that is not over 0.
    """
    share = _share("share", share)
    period = float(_validate.real("period_seconds", period_seconds, above=0))
    _validate.whole("seed", seed, least=0)

    def days(ids: np.ndarray, t: np.ndarray | float) -> np.ndarray:
        return np.asarray(t) / period + uniform(seed, PHASE, ids)

    def awake(ids: np.ndarray, t: np.ndarray | float) -> np.ndarray:
        return days(ids, t) % 1 < share

    def following(ids: np.ndarray, t: float) -> np.ndarray:
        ids = np.asarray(ids)
        day = days(ids, t)
        wakes = np.maximum((np.floor(day) + 1 - day) * period + t, t)
        return np.where(awake(ids, t), float(t), _awake_by(awake, ids, wakes, period))

    return Availability(awake, following, lambda id, t: (t / period + uniform_of(seed, PHASE, id)) % 1 < share)


def intervals(per_client: Sequence[Any], *, period_seconds: float | None = None) -> Availability:
    """A recorded trace: client `i` can be reached in the intervals [k, 2] of `per_client[i]`, ends left out.

    Args:
      per_client: for each client its intervals in order of time, in seconds; none for one who is never there.
      period_seconds: the trace repeats after so many seconds; without it nobody is there after the last interval.

    Raises:
      InputError: intervals that overlap, are empty or out of order, begin before 0 or end after the period.
    """
    period = None if period_seconds is None else float(_validate.real("period_seconds", period_seconds, above=0))
    limit = np.inf if period is None else period
    tables = []
    for client, rows in enumerate(per_client):
        table = np.asarray(rows, np.float64).reshape(-1, 2) if np.size(rows) else np.zeros((0, 2))
        flat = table.ravel()
        rising = (np.diff(flat)[::2] > 0).all() and (np.diff(flat)[1::2] >= 0).all()
        if not (rising and np.all(flat >= 0) and np.all(flat <= limit)):
            raise InputError(
                f"per_client: client {client} has {_validate.shown(table.tolist())}; "
                f"give rising intervals [start, end) that do not overlap, from 0 to {limit}"
            )
        tables.append(table)
    if not tables:
        raise InputError("per_client: no client; give the intervals of at least one")
    offsets = np.concatenate([[0], np.cumsum([len(table) for table in tables])])
    starts, ends = np.concatenate(tables).T if offsets[-1] else (np.zeros(0), np.zeros(0))

    def first_open(ids: np.ndarray, t: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """Each client's first interval that ends after `t`, by bisection, and whether there is one."""
        ids = _validate.client_ids(ids, len(tables))
        low, high = offsets[ids], offsets[ids + 1]
        last = high
        while (low < high).any():
            middle = (low + high) // 2
            over = np.where(low < high, ends[np.minimum(middle, len(ends) - 1)] > t, True)
            low, high = np.where(over, low, middle + 1), np.where(over & (low < high), middle, high)
        return np.minimum(low, max(len(ends) - 1, 0)), low < last

    def local(t: Any) -> Any:
        return t if period is None else t % period

    def now(ids: np.ndarray, t: np.ndarray | float) -> np.ndarray:
        if len(starts) == 0:
            return np.zeros(len(ids), bool)
        index, exists = first_open(ids, local(t))
        return exists & (starts[index] <= local(t))

    def following(ids: np.ndarray, t: float) -> np.ndarray:
        if len(starts) == 0:
            return np.full(len(ids), np.inf)
        index, exists = first_open(ids, local(t))
        begin = t - local(t)
        soon = np.where(exists, np.maximum(begin + starts[index], t), np.inf)
        if period is not None:
            index, some = first_open(ids, 0.0)
            soon = np.where(exists, soon, np.where(some, begin + period + starts[index], np.inf))
        return np.where(now(ids, t), float(t), _awake_by(now, ids, soon, period or 1.0))

    return Availability(now, following)


def _awake_by(now: Callable[..., np.ndarray], ids: np.ndarray, wakes: np.ndarray, scale: float) -> np.ndarray:
    """`wakes`, put off by rounding errors where they come before the moment that they stand for."""
    for _ in range(16):
        finite = np.isfinite(wakes)
        early = finite & ~now(ids, np.where(finite, wakes, 0.0))
        if not early.any():
            break
        wakes = np.where(early, wakes + np.spacing(np.maximum(np.where(finite, wakes, 0.0), scale)), wakes)
    return wakes


def _share(name: str, value: Any) -> float:
    if _validate.real(name, value, above=0) > 1:
        raise InputError(f"{name}: {_validate.shown(value)} is over 1; give a share over 0 and at most 1")
    return float(value)
