"""What the clients' links and devices can do, as arrays over the population, and who fails in a round.

Edge cases: a bandwidth may be infinite (transfers then cost their latency alone); a latency or a step may cost 0 s;
a dropout of 0 never fails, one of 1 always; a completeness of 0 still runs one local step, for no client trains less.
"""

from typing import Any, NamedTuple

import numpy as np

from fedjax_sim import _validate
from fedjax_sim._validate import InputError
from fedjax_sim.network.draws import DROPOUT, uniform

SLOWEST_BPS, LONGEST_SECONDS = 1e-6, 1e12  # beyond which the times of a run overflow


class Profiles(NamedTuple):
    """One row per client; `make_profiles` and the makers build checked ones. All arrays are float64[N]."""

    downlink_bps: np.ndarray  # bits a second from the server to the client
    uplink_bps: np.ndarray  # bits a second from the client to the server
    latency_s: np.ndarray  # one way, once for each transfer
    seconds_per_step: np.ndarray  # of one local step
    dropout: np.ndarray  # chance that the client fails while it trains
    completeness: np.ndarray  # share of the planned local steps that the client manages


def make_profiles(
    downlink_bps: Any,
    uplink_bps: Any,
    *,
    latency_s: Any = 0.0,
    seconds_per_step: Any = 0.0,
    dropout: Any = 0.0,
    completeness: Any = 1.0,
) -> Profiles:
    """Profiles of one length; a number stands for all the clients.

    Raises:
      InputError: lengths that differ, no client, or a value out of range.
    """
    given = Profiles(downlink_bps, uplink_bps, latency_s, seconds_per_step, dropout, completeness)
    arrays = {}
    for field, values in given._asdict().items():
        try:
            arrays[field] = np.asarray(values, np.float64)
        except (TypeError, ValueError):
            raise InputError(f"{field}: {_validate.shown(values)} holds no numbers; give floats [N]") from None
        if arrays[field].ndim > 1:
            raise InputError(f"{field}: shape {list(arrays[field].shape)}; give one number per client, [N]")
    length = max((a.shape[0] for a in arrays.values() if a.ndim), default=1)
    whole = {name: np.full(length, a) if a.ndim == 0 else a for name, a in arrays.items()}
    return check(Profiles(**whole))


def check(profiles: Profiles, ids: np.ndarray | None = None) -> Profiles:
    """`profiles`, when every value is in its range; `ids` are the clients of the rows where these are not all.

    Raises:
      InputError: naming the field, the client, the value and the fix.
    """
    lengths = {field: np.shape(values) for field, values in profiles._asdict().items()}
    if len(set(lengths.values())) != 1 or any(len(shape) != 1 or shape[0] == 0 for shape in lengths.values()):
        raise InputError(f"profiles: shapes {lengths} differ or are empty; give arrays [N] of one length, N >= 1")
    for field, values in profiles._asdict().items():
        values = np.asarray(values)
        if values.dtype.kind not in "fiu":
            raise InputError(f"{field}: dtype {values.dtype} holds no numbers; give float64[N]")
        if field.endswith("_bps"):
            good, fix = values >= SLOWEST_BPS, f"give bits a second over 0, {SLOWEST_BPS:g} at least"
        elif field in ("dropout", "completeness"):
            good, fix = (values >= 0) & (values <= 1), "give a share from 0 to 1"
        else:
            good = (values >= 0) & (values <= LONGEST_SECONDS)
            fix = f"give finite seconds of at least 0, {LONGEST_SECONDS:g} at most"
        if not good.all():
            row = int(np.argmin(good))
            client = row if ids is None else int(ids[row])
            raise InputError(f"{field}: client {client} has {values[row]}; {fix}")
    return profiles


def cohort_rows(profiles: Profiles, ids: Any) -> tuple[Profiles, np.ndarray, np.ndarray]:
    """The checked rows of a cohort, its ids, and which slots are filled; an empty slot (-1) shows client 0's row."""
    ids = _validate.client_ids(ids, len(profiles.downlink_bps))
    if ids.ndim != 1:
        raise InputError(f"ids: shape {list(ids.shape)}; give the cohort's client ids, [C]")
    chosen = np.maximum(ids, 0)
    rows = Profiles(*(np.asarray(values)[chosen] for values in profiles))
    return (check(rows, chosen) if len(ids) else rows), ids, ids >= 0


def managed_steps(profiles: Profiles, ids: Any, planned: Any) -> np.ndarray:
    """The local steps that each client manages, int64[C]: its completeness of the planned ones, rounded up, at least 1.

    An empty slot has 0, and so has a client of whom none are planned.
    """
    rows, ids, present = cohort_rows(profiles, ids)
    planned = planned_steps(planned, len(ids))
    steps = np.ceil(rows.completeness * planned * (1 - 1e-12)).astype(np.int64)  # 0.3 of 10 is 3
    return np.where(present, np.clip(steps, np.minimum(planned, 1), planned), 0)


def planned_steps(steps: Any, slots: int) -> np.ndarray:
    """`steps` as int64[slots]; one number stands for all."""
    array = np.asarray(steps)
    if array.dtype.kind not in "iu" or array.shape not in ((), (slots,)) or (array < 0).any():
        raise InputError(f"steps: {_validate.shown(steps)} are no local steps; give whole numbers of at least 0, [C]")
    return np.broadcast_to(array, slots).astype(np.int64)


def failures(profiles: Profiles, ids: Any, seed: int, round: int) -> np.ndarray:
    """Which clients of the cohort fail in this round, bool[C]: each by its own chance, a function of (seed, id, round).

    An empty slot does not fail.
    """
    rows, ids, present = cohort_rows(profiles, ids)
    _validate.whole("seed", seed, least=0)
    _validate.whole("round", round, least=0)
    return present & (uniform(seed, DROPOUT, ids, round) < rows.dropout)
