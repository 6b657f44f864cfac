"""Compression of what clients send."""

from fedjax_sim._validate import InputError
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.client import Message
from fedjax_sim.core.message import Transform, chain, dense_bits
from fedjax_sim.core.types import Array, PyTree


def compressed_messages(algorithm: Algorithm, compressor: Transform) -> Algorithm:
    """`algorithm` whose clients send their update, the part shaped like the model, through `compressor`.

    Whatever else a message holds, SCAFFOLD's change of the control variate or FedNova's number of steps, goes as it is.

    Raises:
      InputError: from `init`, an algorithm whose messages are compressed already.
    """

    def init(message: Message) -> PyTree:
        if algorithm.transform.wire(message) is not None:
            raise InputError("algorithm: it compresses its messages already; take one that does not")
        return compressor.init(message.update)

    def update(message: Message, memory: PyTree, key: Array) -> tuple[Message, PyTree]:
        sent, memory = compressor.update(message.update, memory, key)
        return message._replace(update=sent), memory

    def wire(message: Message) -> int | None:
        bits = compressor.wire(message.update)
        return None if bits is None else bits + dense_bits(message.extra)

    own = Transform(init, update, wire, compressor.spent)
    return algorithm._replace(transform=chain(algorithm.transform, own))
