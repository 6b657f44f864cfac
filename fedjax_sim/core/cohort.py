"""Which clients take part, and where their examples lie."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from fedjax_sim import _validate
from fedjax_sim.core.types import Array, Cohort, Population, Procedural


def clients_in(population: Population | Procedural) -> int:
    """`N`, the number of clients."""
    return population.num_clients if isinstance(population, Procedural) else population.offsets.shape[0] - 1


def select(population: Population | Procedural, ids: Any) -> Cohort:
    """The cohort of the clients `ids` (int32[C], -1 for an empty slot), whose examples are resident or computed.

    Raises:
      InputError: ids that are no whole numbers, or of clients that do not exist. Inside `jit`, where no value can be
        looked at, an id of a client that does not exist is nobody's: an empty slot.
    """
    if not isinstance(ids, Tracer):
        _validate.client_ids(ids, clients_in(population))
    elif not jnp.issubdtype(ids.dtype, jnp.integer):
        raise _validate.InputError(f"ids: dtype {ids.dtype}; give whole numbers")
    ids = jnp.asarray(ids, jnp.int32)
    ids = jnp.where((ids >= 0) & (ids < clients_in(population)), ids, -1)
    held = jnp.maximum(ids, 0)
    if isinstance(population, Procedural):
        return _computed(population, ids, held)
    offsets = population.offsets
    if not isinstance(offsets, jax.Array):  # on the host, where they may be wider
        if offsets[-1] >= 2**31:
            raise _validate.InputError(f"population: {offsets[-1]} examples do not fit a device; stream its cohorts")
        offsets = jnp.asarray(np.asarray(offsets), jnp.int32)
    starts = offsets[held]
    sizes = jnp.where(ids >= 0, offsets[held + 1] - starts, 0)
    return Cohort(ids, starts, sizes, held, population.examples)


def _computed(population: Procedural, ids: Array, held: Array) -> Cohort:
    keys = jax.vmap(partial(jax.random.fold_in, population.key))(held)
    examples, sizes = jax.vmap(population.make)(keys, held)
    each = {jnp.shape(leaf)[:2] for leaf in jax.tree.leaves(examples)}
    if len(each) != 1 or len(next(iter(each))) != 2 or jnp.shape(sizes) != ids.shape:
        shapes = [jnp.shape(leaf)[1:] for leaf in jax.tree.leaves(examples)]
        raise _validate.InputError(
            f"make: arrays {shapes} and size {list(jnp.shape(sizes)[1:])}; return arrays [K, ...] of one K, and int32[]"
        )
    rows = next(iter(each))[1]
    sizes = jnp.where(ids >= 0, jnp.clip(sizes, 0, rows), 0).astype(jnp.int32)
    starts = jnp.arange(ids.shape[0], dtype=jnp.int32) * rows
    return Cohort(ids, starts, sizes, held, jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), examples))
