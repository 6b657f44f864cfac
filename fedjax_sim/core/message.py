"""What happens to a message between client and aggregator, or to the aggregate before the server: a `Transform`."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from fedjax_sim.core.types import Array, PyTree


class Transform(NamedTuple):
    """Clipping, compression, error feedback or noise, as pure functions of one message (or of the aggregate).

    `init(message) -> memory`; `update(message, memory, key) -> (message, memory)`; `wire(message) -> bits`, the size of
    what is then sent, a Python int computed from shapes and dtypes alone, or None where the transform does not change
    it.
    """

    init: Callable[[PyTree], PyTree]
    update: Callable[[PyTree, PyTree, Array], tuple[PyTree, PyTree]]
    wire: Callable[[PyTree], int | None]


def dense_bits(tree: PyTree) -> int:
    """Bits of the arrays of `tree`, sent as they are."""
    return sum(leaf.size * leaf.dtype.itemsize * 8 for leaf in jax.tree.leaves(tree))


def identity() -> Transform:
    """Sends the message as it is."""
    return Transform(lambda message: (), lambda message, memory, key: (message, memory), lambda message: None)


def chain(*transforms: Transform) -> Transform:
    """Applies `transforms` in order; the size on the wire is the last one's that states any."""

    def init(message: PyTree) -> PyTree:
        return tuple(t.init(message) for t in transforms)

    def update(message: PyTree, memory: PyTree, key: Array) -> tuple[PyTree, PyTree]:
        renewed = []
        for i, (transform, kept) in enumerate(zip(transforms, memory, strict=True)):
            message, kept = transform.update(message, kept, jax.random.fold_in(key, i))
            renewed.append(kept)
        return message, tuple(renewed)

    def wire(message: PyTree) -> int | None:
        stated = [bits for t in transforms if (bits := t.wire(message)) is not None]
        return stated[-1] if stated else None

    return Transform(init, update, wire)
