"""The majority of signs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.aggregators.finite import finite_only, uniform
from fedjax_sim.core.aggregate import Aggregator, weighted_sum
from fedjax_sim.core.types import Array, PyTree


class Votes(NamedTuple):
    """What is counted of a leaf."""

    total: Array  # f32, of the leaf's shape
    like: Array  # zero, of the leaf's dtype, which the result is to have


def majority_vote() -> Aggregator:
    """In each coordinate, the sign that most messages have there (signSGD with majority vote; Bernstein et al. 2019,
    algorithm 1).

    The aggregate's entries are -1, 0, where votes are even, and 1: the server's learning rate is the length of its step
    in each coordinate, whatever the clients sent. Uniform over clients; a zero does not vote. One bit for each entry
    would do on the wire: `messages.sign` sends that, and its scale. All that is in the message is voted on, statistics
    of the model included.
    """

    def init(message: PyTree) -> PyTree:
        return jax.tree.map(lambda m: Votes(jnp.zeros(m.shape, jnp.float32), jnp.zeros((), m.dtype)), message)

    def add(acc: PyTree, messages: PyTree, weights: Array) -> PyTree:
        def count(m: Array, votes: Votes) -> Votes:
            return votes._replace(total=votes.total + weighted_sum(jnp.sign(m).astype(jnp.float32), weights))

        return jax.tree.map(count, messages, acc)

    def finish(acc: PyTree) -> PyTree:
        leaf = lambda node: isinstance(node, Votes)  # noqa: E731
        return jax.tree.map(lambda votes: jnp.sign(votes.total).astype(votes.like.dtype), acc, is_leaf=leaf)

    return finite_only(Aggregator(uniform, init, add, finish))
