"""An algorithm is its four parts."""

from typing import NamedTuple

from fedjax_sim.core.aggregate import Aggregator
from fedjax_sim.core.client import Client
from fedjax_sim.core.message import Transform, identity
from fedjax_sim.core.server import Server


class Algorithm(NamedTuple):
    """Client, aggregator and server, with a transform on each message and one on the aggregate."""

    client: Client
    aggregator: Aggregator
    server: Server
    transform: Transform = identity()
    release: Transform = identity()
