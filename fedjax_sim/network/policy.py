"""How long the server waits in a round, and for whom: each policy maps a cohort's times to an `Outcome`.

A client that drops out fails at the end of its training. A server that waits for everybody notices that at once (the
connection breaks); one with a deadline does not, and waits until then. Empty slots (-1) count for nothing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim import _validate
from fedjax_sim._validate import InputError
from fedjax_sim.network.profiles import planned_steps
from fedjax_sim.network.timing import Times


class Outcome(NamedTuple):
    """What came of a round, slot by slot."""

    arrived: np.ndarray  # int32[C], the id where its message arrived in time, else -1
    steps: np.ndarray  # int64[C], local steps of those that arrived, else 0
    late: np.ndarray  # bool[C], whose message came too late, or after enough others
    dropped: np.ndarray  # bool[C], who failed
    seconds: float  # of the round


class Policy(NamedTuple):
    """Call it with (ids int[C], times, planned steps int or int[C], dropped bool[C] or None) for an `Outcome`.

    The other fields say what that depends on; a policy of your own that does not say is taken to depend on everything.
    """

    decide: Callable[..., Outcome]
    by_time: bool = (
        True  # whether a client counts, or its steps, depends on its times; else all count but those dropped
    )
    by_others: bool = True  # it depends on other clients' times or presence
    seconds: float | None = None  # how long every round lasts, whoever takes part; None where that depends on them

    def __call__(self, ids: Any, times: Times, planned: Any, dropped: Any = None) -> Outcome:
        return self.decide(ids, times, planned, dropped)


def wait_for_all() -> Policy:
    """Until the last message is there or known to be lost. Nobody arrives: until the last failure; no clients: 0 s."""

    def decide(ids: Any, times: Times, planned: Any, dropped: Any = None) -> Outcome:
        cohort = _Cohort.of(ids, times, planned, dropped)
        arrived = cohort.present & ~cohort.dropped
        return cohort.outcome(arrived, cohort.planned, float(cohort.known.max(initial=0.0)))

    return Policy(decide, by_time=False, by_others=False)


def deadline(seconds: float, *, partial: bool = False, wait_out: bool = False) -> Policy:
    """Until `seconds`, or earlier when everybody has arrived; who is later is left out, one exactly in time is not.

    With `wait_out` every round lasts until the deadline, so that nobody's presence changes when the next one begins.

    With `partial` a client that would be late does as many local steps as let it arrive in time, but at least 1, as
    FedProx accepts them (Li et al. 2020, "Federated optimization in heterogeneous networks"); who cannot do even one is
    late. Transfers are taken to last as long as before. Nobody arrives: the round lasts until the deadline.

    Raises:
      InputError: a deadline that is not over 0.
    """
    limit = float(_validate.real("seconds", seconds, above=0))

    def decide(ids: Any, times: Times, planned: Any, dropped: Any = None) -> Outcome:
        cohort = _Cohort.of(ids, times, planned, dropped)
        steps, total = cohort.planned, times.total
        if partial:
            per_step = times.compute / np.maximum(steps, 1)
            room = limit - (0.0 if times.pipelined else times.download + times.upload)
            fitting = np.floor(room / np.where(per_step > 0, per_step, 1.0) * (1 + 1e-12))  # 0.3 / 0.1 is 3
            feasible = (per_step > 0) & (fitting >= 1)
            if times.pipelined:
                feasible &= np.maximum(times.download, times.upload) <= limit
            fewer = feasible & (total > limit)
            steps = np.where(fewer, np.minimum(fitting, steps), steps).astype(np.int64)
            alone = steps * per_step
            shorter = np.maximum(alone, np.maximum(times.download, times.upload)) if times.pipelined \
                else times.download + alone + times.upload  # fmt: skip
            total = np.where(fewer, np.minimum(shorter, limit), total)
        arrived = cohort.present & ~cohort.dropped & (total <= limit)
        everybody = not wait_out and arrived.any() and not (cohort.present & ~arrived).any()
        return cohort.outcome(arrived, steps, float(total[arrived].max()) if everybody else limit)

    return Policy(decide, by_others=False, seconds=limit if wait_out else None)


def over_select(extra: int, *, keep: int) -> Policy:
    """Of a cohort of up to `keep + extra` clients the first `keep` to arrive, ties to the smaller id; then it ends.

    Bonawitz et al. (2019), "Towards federated learning at scale", select 130 % of what they need. Fewer than `keep`
    arrive: it waits for all of them, and for the failures, as `wait_for_all` does.

    Raises:
      InputError: `keep` under 1 or `extra` under 0; from the policy, a cohort of more clients.
    """
    _validate.whole("keep", keep)
    _validate.whole("extra", extra, least=0)

    def decide(ids: Any, times: Times, planned: Any, dropped: Any = None) -> Outcome:
        cohort = _Cohort.of(ids, times, planned, dropped)
        count = int(cohort.present.sum())
        if count > keep + extra:
            raise InputError(f"over_select: {count} clients, not {keep} + {extra}; sample as many as are selected")
        able = np.flatnonzero(cohort.present & ~cohort.dropped)
        first = able[np.lexsort((cohort.ids[able], times.total[able]))][:keep]
        arrived = np.zeros(len(cohort.ids), bool)
        arrived[first] = True
        enough = len(first) == keep
        seconds = times.total[first].max() if enough else cohort.known.max(initial=0.0)
        return cohort.outcome(arrived, cohort.planned, float(seconds))

    return Policy(decide)


class _Cohort(NamedTuple):
    """The checked arguments of a policy."""

    ids: np.ndarray
    planned: np.ndarray
    dropped: np.ndarray
    present: np.ndarray
    known: np.ndarray  # when the server knows of each, [C]

    @staticmethod
    def of(ids: Any, times: Times, planned: Any, dropped: Any) -> "_Cohort":
        ids = _validate.client_ids(ids, 2**31 - 1)
        slots = ids.shape
        gone = np.zeros(slots, bool) if dropped is None else np.asarray(dropped)
        for name, array in (("ids", ids), ("dropped", gone), *zip(Times._fields[:4], times[:4], strict=True)):
            if np.shape(array) != slots or len(slots) != 1:
                raise InputError(f"{name}: shape {list(np.shape(array))} in a cohort of {list(slots)}; give [C]")
        if gone.dtype != bool:
            raise InputError(f"dropped: dtype {gone.dtype}; give bool[C]")
        present = ids >= 0
        gone = gone & present
        known = np.where(gone, times.compute if times.pipelined else times.download + times.compute, times.total)
        return _Cohort(ids, planned_steps(planned, len(ids)), gone, present, np.where(present, known, 0.0))

    def outcome(self, arrived: np.ndarray, steps: np.ndarray, seconds: float) -> Outcome:
        late = self.present & ~self.dropped & ~arrived
        ids = np.where(arrived, self.ids, -1).astype(np.int32)
        return Outcome(ids, np.where(arrived, steps, 0), late, self.dropped, seconds)
