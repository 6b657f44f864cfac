"""An algorithm is its four parts."""

from collections.abc import Callable
from typing import NamedTuple

from fedjax_sim.core.aggregate import Aggregator
from fedjax_sim.core.client import Client, LocalData, Message
from fedjax_sim.core.message import Transform, identity
from fedjax_sim.core.server import Server
from fedjax_sim.core.types import Array, PyTree, RoundMetrics, RoundState


class Survey(NamedTuple):
    """What the cohort is asked before it trains, for algorithms whose rounds have two exchanges.

    `ask(broadcast, data, key) -> Message` is answered by each client; `aggregator` combines the answers;
    `tell(server memory, aggregate) -> server memory` before the server broadcasts once more, for training.
    """

    ask: Callable[[PyTree, LocalData, Array], Message]
    like: Callable[[PyTree], Message]
    aggregator: Aggregator
    tell: Callable[[PyTree, Message], PyTree]


class Algorithm(NamedTuple):
    """Client, aggregator and server, with a transform on each message and maybe one on the aggregate.

    `personal(broadcast, memory, data, key) -> model` is what a client predicts with after adapting to its own examples;
    without one, the broadcast model trained on them. `report(state, metrics) -> {name: f32[]}`, of the state after a
    round, is added to that round's metrics as `extra`.
    """

    client: Client
    aggregator: Aggregator
    server: Server
    transform: Transform = identity()
    release: Transform | None = None
    survey: Survey | None = None
    personal: Callable[[PyTree, PyTree, LocalData, Array], PyTree] | None = None
    report: Callable[[RoundState, RoundMetrics], dict[str, Array]] | None = None
