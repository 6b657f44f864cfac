"""How long each client of a cohort takes: it downloads the broadcast, trains and uploads its message."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim import _validate
from fedjax_sim._validate import InputError
from fedjax_sim.network.link import shared_finish
from fedjax_sim.network.profiles import Profiles, cohort_rows, planned_steps
from fedjax_sim.network.trace import Trace


class Times(NamedTuple):
    """Seconds of each slot of the cohort, float64[C]; an empty slot takes 0."""

    download: np.ndarray
    compute: np.ndarray
    upload: np.ndarray
    total: np.ndarray
    pipelined: bool = False


def round_times(
    profiles: Profiles,
    ids: Any,
    steps: Any,
    downlink_bits: Any,
    uplink_bits: Any,
    *,
    pipelined: bool = False,
    server_bps: float | None = None,
    traces: Sequence[Trace] | None = None,
    start: float = 0.0,
) -> Times:
    """The times of a cohort whose downloads all begin at 0.

    A transfer takes its latency and its bits over its bandwidth. One after another, the three stages add up. When
    `pipelined`, a client receives the next broadcast and sends the last message while it trains, so that once the
    pipeline runs a round takes it the longest of the three stages.

    Args:
      profiles: of the population.
      ids: int[C]; -1 marks an empty slot.
      steps: local steps, int or int[C]; see `managed_steps` for what each client manages of the planned ones.
      downlink_bits: what each client receives, a number or [C].
      uplink_bits: what each client sends, a number or [C].
      pipelined: the stages overlap.
      server_bps: the bandwidth of the server's own link, each way, which transfers under way share max-min fairly; None
        for one that nobody notices. A download leaves the server at 0; an upload enters the link one latency after its
        client has trained, or at 0 when pipelined.
      traces: recorded bandwidths instead of the profiles', both ways; client `i` has that at `i` modulo their number.
      start: when the round begins on the traces' clock.

    Raises:
      InputError: a client that does not exist, a profile out of range, negative steps or bits, or traces together with
        `server_bps`.
    """
    rows, ids, present = cohort_rows(profiles, ids)
    compute = np.where(present, planned_steps(steps, len(ids)) * rows.seconds_per_step, 0.0)
    down, up = _bits("downlink_bits", downlink_bits, len(ids)), _bits("uplink_bits", uplink_bits, len(ids))
    latency = rows.latency_s
    if traces is not None:
        if server_bps is not None or len(traces) == 0:
            raise InputError(f"traces: {len(traces)} of them, server_bps {server_bps}; give at least one, and no other")
        _validate.real("start", start, least=0)
        download = latency + _traced(traces, ids, down, np.full(len(ids), float(start)))
        begins = start + (0.0 if pipelined else download + compute)
        upload = latency + _traced(traces, ids, up, begins + latency)
    elif server_bps is None:
        download, upload = latency + down / rows.downlink_bps, latency + up / rows.uplink_bps
    else:
        download, upload = np.zeros(len(ids)), np.zeros(len(ids))
        download[present] = latency[present] + shared_finish(
            np.zeros(int(present.sum())), down[present], rows.downlink_bps[present], server_bps
        )
        begins = latency + (0.0 if pipelined else download + compute)
        finish = shared_finish(begins[present], up[present], rows.uplink_bps[present], server_bps)
        upload[present] = latency[present] + (finish - begins[present])
    download, upload = np.where(present, download, 0.0), np.where(present, upload, 0.0)
    return Times(download, compute, upload, total_seconds(download, compute, upload, pipelined), pipelined)


def total_seconds(download: np.ndarray, compute: np.ndarray, upload: np.ndarray, pipelined: bool) -> np.ndarray:
    """The sum of the stages, or the longest of them."""
    return np.maximum(np.maximum(download, compute), upload) if pipelined else download + compute + upload


def _traced(traces: Sequence[Trace], ids: np.ndarray, bits: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Seconds of each client's transfer on its own trace; 0 for an empty slot."""
    seconds = np.zeros(len(ids))
    for which in np.unique(ids[ids >= 0] % len(traces)):
        mine = (ids >= 0) & (ids % len(traces) == which)
        seconds[mine] = traces[which].seconds_to_send(bits[mine], starts[mine])
    return seconds


def _bits(name: str, bits: Any, slots: int) -> np.ndarray:
    try:
        array = np.asarray(bits, np.float64)
    except (TypeError, ValueError):
        array = np.array(np.nan)
    if array.shape not in ((), (slots,)) or not (np.isfinite(array) & (array >= 0)).all():
        raise InputError(f"{name}: {_validate.shown(bits)} cannot be sent; give bits of at least 0, a number or [C]")
    return np.broadcast_to(array, slots)
