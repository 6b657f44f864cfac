"""Asynchronous schedules: who trains from which version of the model, and when the server steps.

FedAsync (Xie, Koyejo and Gupta 2019, "Asynchronous federated optimization") steps at every message, `buffer=1`; FedBuff
(Nguyen et al. 2022, "Federated learning with buffered asynchronous aggregation") after every `buffer` of them, with
`concurrency` clients at work. What happens at one moment happens in the order in which its clients began, all of it
before new clients begin; so a server whose equally fast clients fill the buffer runs synchronous rounds.

A schedule is a pure function of its arguments: the next steps of an interrupted one are those of a new one after
`itertools.islice` has passed the first.
"""

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim import _validate
from fedjax_sim._validate import InputError
from fedjax_sim.network.availability import Availability
from fedjax_sim.network.draws import DROPOUT, SPARE, Draw, candidates, uniform_of
from fedjax_sim.network.profiles import Profiles, check, planned_steps
from fedjax_sim.network.timing import round_times

_LOOKS = (16, 64, 256, 1024)  # candidates for one place, looked at together, before all the idle ones are
_FAILURES = 10_000  # for each client at work and each message waited for, before the schedule gives up


class ServerStep(NamedTuple):
    """The server's step from `version - 1` to `version`, asynchronous or the end of a synchronous round.

    All of `begun` received the parameters of `version - 1`: train them as one block, keep each message under its ticket
    and then aggregate those of `tickets`. Who will fail is not among the begun, for nobody needs that message.
    """

    version: int  # 1 for the first step
    seconds: float  # on the clock
    arrived: np.ndarray  # clients whose messages are aggregated, int32[buffer], in order of arrival
    tickets: np.ndarray  # of those messages, int64[buffer]
    staleness: np.ndarray  # server steps since each of those clients began, int64[buffer]
    begun: np.ndarray  # clients that began from version - 1, int32[k]
    begun_tickets: np.ndarray  # int64[k]
    dropped: np.ndarray  # clients that failed since the step before, int32[d]
    waited_seconds: float  # since the step before, in which nobody was at work for nobody was available
    begun_steps: np.ndarray  # local steps of those that began, int64[k]
    asked: np.ndarray  # clients that were asked since the step before, those that fail too, int32[a]
    late: np.ndarray  # clients whose message came too late for this round, int32[l]; none when asynchronous


def asynchronous(
    profiles: Profiles,
    *,
    seed: int,
    concurrency: int,
    buffer: int,
    steps: Any,
    downlink_bits: Any,
    uplink_bits: Any,
    availability: Availability | None = None,
    draw: Draw | None = None,
) -> Iterator[ServerStep]:
    """Server steps without end.

    A place becomes free when a client's message arrives or the client fails, and goes to the next candidate who is
    idle and available at that moment. When all are at work or away the place stays empty until somebody can be
    reached; when nobody is at work either, time advances to that moment, and `waited_seconds` says by how much. A
    client is not asked again before its message has been aggregated, hence never trains twice from one version.

    Args:
      profiles: of the population.
      seed: candidates and failures depend on it and on how many clients have begun.
      concurrency: clients at work at once.
      buffer: messages the server waits for before it steps.
      steps: local steps, int or int[N].
      downlink_bits: what each client receives, a number or [N].
      uplink_bits: what each client sends, a number or [N].
      availability: who can be reached when they begin; None for everybody. Who has begun finishes.
      draw: `(seed, turn) -> ids` gives the candidates of turn 0, 1, ...; a sampler's `draw` does. None draws
        uniformly.

    Raises:
      InputError: an argument out of range; from the iterator, when nobody will ever be available again, when everybody
        always fails, or when `draw` gives a client that does not exist.
    """
    clients = len(check(profiles).downlink_bps)
    for name, value in (("concurrency", concurrency), ("buffer", buffer)):
        _validate.whole(name, value)
    _validate.whole("seed", seed, least=0)
    if concurrency > clients:
        raise InputError(f"concurrency: {concurrency} is more than the {clients} clients; ask for fewer")
    if buffer > clients:
        raise InputError(f"buffer: {buffer} messages never come from {clients} clients; wait for fewer")
    if (np.asarray(profiles.dropout) >= 1).all():
        raise InputError("dropout: every client always fails, so no message arrives; give a chance below 1")
    times = round_times(profiles, np.arange(clients), steps, downlink_bits, uplink_bits)
    planned = planned_steps(steps, clients).tolist()
    queue = _Queue(profiles, times.total, times.download + times.compute, seed, availability, draw, concurrency)
    return _server_steps(queue, buffer, planned)


def _server_steps(queue: "_Queue", buffer: int, planned: list[int]) -> Iterator[ServerStep]:
    version, waiting, begun, begun_tickets, dropped, waited = 0, deque(), [], [], [], 0.0
    nobody = np.zeros(0, np.int32)
    while True:
        while len(waiting) >= buffer:
            messages = [waiting.popleft() for _ in range(buffer)]
            ids, tickets, versions = zip(*messages, strict=True)
            yield ServerStep(
                version + 1,
                queue.clock,
                np.array(ids, np.int32),
                np.array(tickets, np.int64),
                np.array([version - began for began in versions], np.int64),
                np.array(begun, np.int32),
                np.array(begun_tickets, np.int64),
                np.array(dropped, np.int32) if dropped else nobody,
                waited,
                np.array([planned[client] for client in begun], np.int64),
                np.array(queue.asked, np.int32),
                nobody,
            )
            queue.asked.clear()
            queue.release(ids)
            version, begun, begun_tickets, dropped, waited = version + 1, [], [], [], 0.0
        queue.fill(version, begun, begun_tickets)
        waited += queue.idle_seconds()
        for client, ticket, started, failed in queue.pop_moment():
            if failed:
                dropped.append(client)
            else:
                waiting.append((client, ticket, started))
        if len(dropped) > _FAILURES * (buffer + queue.concurrency):
            raise InputError(f"dropout: {len(dropped)} clients failed since step {version}; give a lower chance")


class _Queue:
    """The clock, the clients at work in order of when they end, and who may begin next; one per schedule."""

    def __init__(
        self,
        profiles: Profiles,
        total: np.ndarray,
        until_failure: np.ndarray,
        seed: int,
        availability: Availability | None,
        draw: Draw | None,
        concurrency: int,
    ) -> None:
        self.clock = 0.0
        self.free = concurrency
        self.ticket = 0
        self.seed, self.availability, self.concurrency = seed, availability, concurrency
        self.seconds, self.until_failure = total.tolist(), until_failure.tolist()
        self.dropout: list[float] | None = profiles.dropout.tolist() if np.any(profiles.dropout) else None
        self.clients = len(self.seconds)
        self.busy = bytearray(self.clients)
        self.events: list[tuple[float, int, int, int, bool]] = []  # (when, ticket, client, version, fails)
        self.candidates, self.ahead = candidates(draw, seed, self.clients), deque[int]()
        self.wake: float | None = None  # while nobody idle can be reached: when somebody can
        self.back: list[int] = []  # who became idle since
        self.asked: list[int] = []  # since the server's last step

    def fill(self, version: int, begun: list[int], begun_tickets: list[int]) -> None:
        """Gives free places to clients that begin now; adds those whose message will arrive, and their tickets."""
        while self.free:
            client = self._next()
            if client is None:
                break
            self.free -= 1
            self.busy[client] = 1
            self.asked.append(client)
            failed = self.dropout is not None and (
                uniform_of(self.seed, DROPOUT, client, self.ticket) < self.dropout[client]
            )
            spent = self.until_failure[client] if failed else self.seconds[client]
            heapq.heappush(self.events, (self.clock + spent, self.ticket, client, version, failed))
            if not failed:
                begun.append(client)
                begun_tickets.append(self.ticket)
            self.ticket += 1

    def idle_seconds(self) -> float:
        """Advances the clock to the next arrival of an available client while nobody is at work; by how much."""
        before = self.clock
        if self.events:
            return 0.0
        if self.wake is None or np.isinf(self.wake):
            raise InputError(
                f"availability: after {before} s nobody is ever available again; give a trace that repeats"
            )
        self.clock = max(self.wake, before)
        return self.clock - before

    def pop_moment(self) -> list[tuple[int, int, int, bool]]:
        """What ends at the next moment something does, unless somebody can be reached before that."""
        if not self.events:
            return []
        moment = self.events[0][0]
        if self.free and self.wake is not None and self.wake < moment:
            self.clock = max(self.clock, self.wake)
            return []
        self.clock = moment
        ended = []
        while self.events and self.events[0][0] == moment:
            _, ticket, client, version, failed = heapq.heappop(self.events)
            self.free += 1
            if failed:
                self.release((client,))
            ended.append((client, ticket, version, failed))
        return ended

    def release(self, clients: Iterable[int]) -> None:
        """These may be asked again."""
        for client in clients:
            self.busy[client] = 0
            if self.wake is not None:
                self.back.append(client)

    def _next(self) -> int | None:
        """The next client to begin, or None when nobody idle can be reached before `wake`."""
        if self.wake is not None and self.clock < self.wake:
            return self._of_those_back()
        self.wake, self.back = None, []
        if self.availability is None:  # nothing to look up together, so none is drawn ahead
            for client in islice(self.candidates, sum(_LOOKS)):
                if not self.busy[client]:
                    return client
        one = None if self.availability is None else self.availability.one
        if one is not None:
            for _ in range(_LOOKS[-1]):
                client = self.ahead.popleft() if self.ahead else next(self.candidates)
                if not self.busy[client] and one(client, self.clock):
                    return client
        for look in _LOOKS if self.availability is not None and one is None else ():
            while len(self.ahead) < look:
                self.ahead.append(next(self.candidates))
            for there in self._reached(list(islice(self.ahead, look))):
                client = self.ahead.popleft()
                if there and not self.busy[client]:
                    return client
        idle = np.flatnonzero(np.frombuffer(self.busy, np.uint8) == 0)
        there = idle if self.availability is None else idle[self.availability(idle, self.clock)]
        if len(there):
            spot = int(uniform_of(self.seed, SPARE, self.ticket) * len(there))
            return int(there[spot])
        self.wake = np.inf
        if len(idle):
            self.wake = self._first_of(idle)
        return None

    def _of_those_back(self) -> int | None:
        """Only who became idle since nobody could be reached can be reached before `wake`."""
        while self.back:
            client = self.back.pop(0)
            if self._reached([client])[0]:
                return client
            self.wake = min(self.wake or np.inf, self._first_of(np.array([client])))
        return None

    def _reached(self, ids: list[int]) -> list[bool]:
        return [True] * len(ids) if self.availability is None else self.availability(np.array(ids), self.clock).tolist()

    def _first_of(self, ids: np.ndarray) -> float:
        """When the first of these can be reached, none of whom can be now."""
        if self.availability is None:
            return np.inf
        return max(float(self.availability.following(ids, self.clock).min()), float(np.nextafter(self.clock, np.inf)))
