"""What happens to a message between client and aggregator, or to the aggregate before the server: a `Transform`."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from fedjax_sim._validate import InputError
from fedjax_sim.core.types import Array, PyTree


class Transform(NamedTuple):
    """Clipping, compression, error feedback or noise, as pure functions of one message (or of the aggregate).

    `init(message) -> memory`; `update(message, memory, key) -> (message, memory)`; `wire(message) -> bits`, the size of
    what is then sent, a Python int computed from shapes and dtypes alone, or None where the transform does not change
    it. Where the size depends on what is sent, `wire` is the largest, and `spent(memory) -> uint32[]` the bits of the
    message that led to that memory.
    """

    init: Callable[[PyTree], PyTree]
    update: Callable[[PyTree, PyTree, Array], tuple[PyTree, PyTree]]
    wire: Callable[[PyTree], int | None]
    spent: Callable[[PyTree], Array] | None = None


def dense_bits(tree: PyTree) -> int:
    """Bits of the arrays of `tree`, sent as they are."""
    return sum(leaf.size * leaf.dtype.itemsize * 8 for leaf in jax.tree.leaves(tree))


def identity() -> Transform:
    """Sends the message as it is."""
    return Transform(lambda message: (), lambda message, memory, key: (message, memory), lambda message: None)


def chain(*transforms: Transform) -> Transform:
    """Applies `transforms` in order; the size on the wire is the last one's that states any.

    Raises:
      InputError: when the size is asked for, one whose size depends on what is sent stands before another that states
        any.
    """

    def init(message: PyTree) -> PyTree:
        return tuple(t.init(message) for t in transforms)

    def update(message: PyTree, memory: PyTree, key: Array) -> tuple[PyTree, PyTree]:
        renewed = []
        for i, (transform, kept) in enumerate(zip(transforms, memory, strict=True)):
            message, kept = transform.update(message, kept, jax.random.fold_in(key, i))
            renewed.append(kept)
        return message, tuple(renewed)

    def wire(message: PyTree) -> int | None:
        stated = [(bits, t) for t in transforms if (bits := t.wire(message)) is not None]
        if any(t.spent is not None for _, t in stated[:-1]):
            raise InputError("chain: a message's size would no longer depend on what is sent; put that transform last")
        return stated[-1][0] if stated else None

    spending = [(i, t.spent) for i, t in enumerate(transforms) if t.spent is not None]

    def spent(memory: PyTree) -> Array:
        place, bits = spending[-1]
        return bits(memory[place])

    return Transform(init, update, wire, spent if spending else None)
