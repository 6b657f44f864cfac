"""The server's own link, shared by all transfers that are under way: max-min fair, exact, event by event.

Every transfer has a rate of its own that it cannot exceed (the client's bandwidth). At any moment the capacity is dealt
out so that nobody's rate could grow but at the cost of somebody who has no more (Bertsekas and Gallager 1992,
"Data networks", section 6.5.2): `rate_i = min(cap_i, level)`, with one level for all. With equal caps this is processor
sharing. Rates change only when a transfer begins or ends.
"""

from typing import Any

import numpy as np

from fedjax_sim import _validate
from fedjax_sim._validate import InputError


def fair_rates(caps_bps: np.ndarray, server_bps: float) -> np.ndarray:
    """Max-min fair rates under these caps on a link of `server_bps`."""
    if len(caps_bps) == 0 or caps_bps.sum() <= server_bps:
        return caps_bps.astype(np.float64)
    caps = np.sort(caps_bps)
    below = np.concatenate([[0.0], np.cumsum(caps)[:-1]])  # what the narrower ones take
    levels = (server_bps - below) / np.arange(len(caps), 0, -1)  # for the others, if these are all filled
    level = levels[int(np.argmax(levels <= caps))]  # the first whose cap is not reached
    return np.minimum(caps_bps, level)


def shared_finish(starts: Any, bits: Any, caps_bps: Any, server_bps: float) -> np.ndarray:
    """When each transfer ends, in seconds [k], if transfer `i` of `bits[i]` bits enters the link at `starts[i]`.

    Costs one pass over the transfers under way for each that begins or ends.

    Raises:
      InputError: lengths that differ, negative bits or starts, or a bandwidth that is not over 0.
    """
    starts, bits, caps = (np.asarray(x, np.float64) for x in (starts, bits, caps_bps))
    if not (starts.ndim == 1 and starts.shape == bits.shape == caps.shape):
        raise InputError(f"link: shapes {starts.shape}, {bits.shape}, {caps.shape} differ; give starts, bits, caps [k]")
    for name, good, fix in (
        ("starts", np.isfinite(starts) & (starts >= 0), "finite seconds of at least 0"),
        ("bits", np.isfinite(bits) & (bits >= 0), "finite bits of at least 0"),
        ("caps_bps", caps > 0, "bits a second over 0"),
    ):
        if not good.all():
            row = int(np.argmin(good))
            raise InputError(f"{name}: transfer {row} has {(starts, bits, caps)[_FIELDS[name]][row]}; give {fix}")
    capacity = float(_validate.real("server_bps", server_bps, above=0))
    finish = starts.copy()
    order = np.lexsort((np.arange(len(starts)), starts))
    order = order[bits[order] > 0]
    left, begun, clock = bits.copy(), 0, 0.0
    active = np.zeros(0, np.int64)
    while len(active) or begun < len(order):
        if len(active) == 0:
            clock = starts[order[begun]]
        until = begun
        while until < len(order) and starts[order[until]] <= clock:
            until += 1
        active, begun = np.concatenate([active, order[begun:until]]), until
        rates = fair_rates(np.minimum(caps[active], capacity), capacity)
        ends = left[active] / rates
        soonest = float(ends.min())
        pause = starts[order[begun]] - clock if begun < len(order) else np.inf
        step = min(soonest, pause)
        left[active] -= rates * step
        done = ends <= step * (1 + 1e-12)
        clock = clock + step if soonest <= pause else starts[order[begun]]
        finish[active[done]] = clock
        active = active[~done]
    return finish


_FIELDS = {"starts": 0, "bits": 1, "caps_bps": 2}
