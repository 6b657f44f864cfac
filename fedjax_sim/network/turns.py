"""From a schedule to arrays for `core.buffered`: which clients train before a step of the server, as one block.

A client trains when its message is needed, or when the version it received is about to be forgotten, and all that wait
train with it: on a device that runs many clients at once, few wide blocks instead of many narrow ones.
"""

import heapq
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from fedjax_sim._validate import InputError
from fedjax_sim.network.events import ServerStep


class Row(NamedTuple):
    """One step of the server; -1 marks an empty slot."""

    ids: np.ndarray  # int32[P], clients that train before it
    most_steps: np.ndarray  # int32[P], their local steps
    places: np.ndarray  # int32[P], where their messages are kept
    versions: np.ndarray  # int32[P], server steps there had been when they began
    arrived: np.ndarray  # int32[A], places of the messages that are aggregated


def extent(steps: Iterable[ServerStep]) -> tuple[int, int]:
    """Messages on their way at once, and those aggregated in a step, at most; of a schedule that ends."""
    held = places = arrivals = 0
    for step in steps:
        held += len(step.begun)
        places, arrivals = max(places, held), max(arrivals, len(step.arrived))
        held -= len(step.arrived)
    return max(places, 1), max(arrivals, 1)


def rows(
    steps: Iterable[ServerStep], *, places: int, arrivals: int, versions: int, until: Collection[int] = ()
) -> Iterator[Row]:
    """The rows of a schedule.

    Args:
      steps: from the schedule's beginning.
      places: `P`, messages that may be on their way at once.
      arrivals: `A`, messages aggregated in a step at most.
      versions: `V`, latest broadcasts that are kept; 1 trains everybody at once. Results do not depend on it.
      until: rounds (from 0) before which all that began must have trained, for the clients' data change there.

    Raises:
      InputError: from the iterator, more messages than places or arrivals.
    """
    free = list(range(places))  # a heap, so that places do not depend on the past beyond who holds them
    held: dict[int, int] = {}  # ticket -> place
    waiting: dict[int, tuple[int, int, int, int]] = {}  # ticket -> (id, steps, place, version), not trained yet
    for step in steps:
        number = step.version - 1
        if len(step.begun) > len(free) or len(step.arrived) > arrivals:
            raise InputError(f"places: {places} and {arrivals} arrivals are too few in step {step.version}; give more")
        for client, ticket, many in zip(step.begun, step.begun_tickets, step.begun_steps, strict=True):
            held[int(ticket)] = place = heapq.heappop(free)
            waiting[int(ticket)] = (int(client), int(many), place, number)
        oldest = min((entry[3] for entry in waiting.values()), default=number)
        needed = any(int(ticket) in waiting for ticket in step.tickets)
        due: list[tuple[int, int, int, int]] = []
        if needed or oldest <= number - versions + 1 or number + 1 in until:
            due = list(waiting.values())
            waiting.clear()
        table = np.full((4, places), -1, np.int32)
        table[:, : len(due)] = np.array(due, np.int32).reshape(-1, 4).T
        arrived = np.full(arrivals, -1, np.int32)
        arrived[: len(step.arrived)] = [held[int(ticket)] for ticket in step.tickets]
        ids, most, where, since = table
        yield Row(ids, np.maximum(most, 0), where, np.maximum(since, 0), arrived)
        for ticket in step.tickets:
            heapq.heappush(free, held.pop(int(ticket)))
