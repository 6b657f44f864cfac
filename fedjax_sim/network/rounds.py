"""Synchronous rounds on a clock: who is asked, who arrives in time, and what becomes of those that are late."""

import heapq
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from fedjax_sim import _validate
from fedjax_sim._validate import InputError
from fedjax_sim.network.availability import Availability
from fedjax_sim.network.draws import Draw
from fedjax_sim.network.events import ServerStep
from fedjax_sim.network.policy import Policy, wait_for_all
from fedjax_sim.network.profiles import Profiles, check, failures, managed_steps, planned_steps
from fedjax_sim.network.timing import round_times
from fedjax_sim.network.trace import Trace

Available = Callable[[np.ndarray, int], np.ndarray]  # (ids, round) -> bool[k], as samplers take it
LATE = ("drop", "stale")


def synchronous(
    profiles: Profiles,
    *,
    seed: int,
    draw: Callable[[Available | None], Draw],
    steps: Any | Callable[[int], Any],
    downlink_bits: Any,
    uplink_bits: Any,
    policy: Policy | None = None,
    late: str = "drop",
    availability: Availability | None = None,
    pipelined: bool = False,
    server_bps: float | None = None,
    traces: Sequence[Trace] | None = None,
) -> Iterator[ServerStep]:
    """Rounds without end: a cohort is drawn of those who can be reached, and the policy says when the round is over.

    While nobody of the population can be reached the server waits, and `waited_seconds` says for how long; not under a
    policy whose rounds all last equally long, for then a round without clients passes instead. A late message is
    dropped, or with `late="stale"` taken by the first round that ends after it has arrived; until then its client is at
    work and is not asked again.

    Args:
      profiles: of the population.
      seed: of the cohorts and of failures.
      draw: `draw(available)` makes `(seed, round) -> ids`; a sampler's does. None stands for everybody.
      steps: planned local steps, int or int[N], or a function of the round (from 0) that returns them.
      downlink_bits: what each client receives, a number.
      uplink_bits: what each client sends, a number.
      policy: whom to wait for; for all by default.
      late: "drop" or "stale".
      availability: who can be reached when a round begins; None for everybody.
      pipelined: as in `round_times`, and so are `server_bps` and `traces`.

    Raises:
      InputError: an argument out of range; from the iterator, when nobody will ever be available again.
    """
    count = len(check(profiles).downlink_bps)
    _validate.whole("seed", seed, least=0)
    _validate.one_of("late", late, LATE)
    policy = policy or wait_for_all()
    policy = policy if isinstance(policy, Policy) else Policy(policy)
    clock, ticket, number = 0.0, 0, 0
    busy = np.zeros(count, bool)
    underway: list[tuple[float, int, int, int]] = []  # (when, ticket, client, round) of late messages

    def reachable(ids: np.ndarray, round: int) -> np.ndarray:
        there = np.ones(len(ids), bool) if availability is None else availability(ids, clock)
        return there & ~busy[ids]

    candidates = draw(None if availability is None and late == "drop" else reachable)
    while True:
        asked, waited, only_late = _invited(candidates(seed, number), count), 0.0, False
        waits = policy.seconds is None  # else the clock may depend on nobody
        while waits and len(asked) == 0 and not reachable(idle := np.flatnonzero(~busy), number).any():
            back = np.inf if availability is None else availability.following(idle, clock).min(initial=np.inf)
            if underway and underway[0][0] <= back:
                only_late = True
                break
            if np.isinf(back):
                raise InputError(f"availability: after {clock} s nobody is ever available; give a trace that repeats")
            moment = max(float(back), float(np.nextafter(clock, np.inf)))
            waited, clock = waited + moment - clock, moment
            asked = _invited(candidates(seed, number), count)
        planned = steps(number) if callable(steps) else steps
        planned = planned_steps(planned, count)[asked] if len(asked) else np.zeros(0, np.int64)
        planned = managed_steps(profiles, asked, planned)
        times = round_times(profiles, asked, planned, downlink_bits, uplink_bits, pipelined=pipelined,
                            server_bps=server_bps, traces=traces, start=clock)  # fmt: skip
        outcome = policy(asked, times, planned, failures(profiles, asked, seed, number))
        end = underway[0][0] if only_late else clock + outcome.seconds
        on_time = np.flatnonzero(outcome.arrived >= 0)
        on_time = on_time[np.argsort(times.total[on_time], kind="stable")]
        messages = [(int(asked[i]), ticket + int(i), number) for i in on_time]
        begun = [(int(asked[i]), ticket + int(i), int(outcome.steps[i])) for i in on_time]
        if late == "stale":
            for i in np.flatnonzero(outcome.late):
                entry = (int(asked[i]), ticket + int(i), int(planned[i]))
                begun.append(entry)
                heapq.heappush(underway, (clock + float(times.total[i]), entry[1], entry[0], number))
                busy[entry[0]] = True
            while underway and underway[0][0] <= end:
                _, old, client, since = heapq.heappop(underway)
                messages.append((client, old, since))
                busy[client] = False
        clock, ticket = end, ticket + len(asked)
        clients, tickets, since = zip(*messages, strict=True) if messages else ((), (), ())
        yield ServerStep(
            number + 1,
            clock,
            np.array(clients, np.int32),
            np.array(tickets, np.int64),
            number - np.array(since, np.int64),
            np.array([client for client, _, _ in begun], np.int32),
            np.array([mine for _, mine, _ in begun], np.int64),
            asked[outcome.dropped],
            waited,
            np.array([many for _, _, many in begun], np.int64),
            asked,
            asked[outcome.late],
        )
        number += 1


def _invited(ids: Any, count: int) -> np.ndarray:
    ids = _validate.client_ids(ids, count)
    return ids[ids >= 0].astype(np.int32)
