"""Checkpoints of a run: all that its next round depends on, written by Orbax, each whole or not at all."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim._validate import InputError
from fedjax_sim.core.types import PyTree

FOLDER = "checkpoints"
KEPT = 2


class Saved(NamedTuple):
    """What a run goes on from, beside its configuration and its history."""

    state: PyTree  # `RoundState` or `BufferedState`
    best: PyTree  # parameters of the best model so far, as host arrays; those of the state until one was tested
    lanes: Any  # int32[], clients trained at once, -1 for the default
    most_steps: Any  # int32[], local steps of a client at most, -1 for no such limit
    seen: Any  # bool[N], who has a row in the client memory on disk; bool[0] where that is not there
    mark: Any = np.zeros(0, np.uint8)  # uint8[16], of what the rounds were made from, see `origin.Ingredients.mark`
    history: Any = np.zeros(0, np.uint8)  # uint8[32], SHA-256 of the rows of all rounds done


def save(folder: Path, done: int, saved: Saved) -> None:
    """Writes the checkpoint after `done` rounds, and removes all but the latest."""
    import orbax.checkpoint as ocp

    place = (folder / FOLDER).absolute()
    if place.is_dir():
        for path in place.iterdir():
            if not path.name.isdecimal():  # killed in the writing
                shutil.rmtree(path)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(place / str(done), _arrays(saved), force=True)
    for old in sorted(rounds_saved(folder))[:-KEPT]:
        shutil.rmtree(place / str(old))


def rounds_saved(folder: Path) -> list[int]:
    """After how many rounds there is a whole checkpoint."""
    place = folder / FOLDER
    return [int(path.name) for path in place.iterdir() if path.name.isdecimal()] if place.is_dir() else []


def restore(folder: Path, done: int, like: Saved) -> Saved:
    """The checkpoint after `done` rounds, placed on devices as `like`.

    Raises:
      InputError: it does not fit the configuration, or is broken.
    """
    import orbax.checkpoint as ocp

    place = (folder / FOLDER).absolute()
    leaves, structure = jax.tree.flatten(like)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            found = checkpointer.restore(place / str(done), _arrays(like))
    except (ValueError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{place / str(done)}: {reason}; remove it to go on from an earlier one") from None
    return structure.unflatten([_like(leaf, found.get(str(i))) for i, leaf in enumerate(leaves)])


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _arrays(saved: Saved) -> dict[str, Any]:
    """The leaves by their place, keys as their data; without empty ones, which Orbax refuses."""
    leaves = enumerate(jax.tree.leaves(saved))
    return {str(i): jax.random.key_data(x) if _is_key(x) else x for i, x in leaves if x.size}


def _like(leaf: Any, found: Any) -> Any:
    if found is None:
        return leaf
    if _is_key(leaf):
        return jax.random.wrap_key_data(found, impl=jax.random.key_impl(leaf))
    return np.asarray(found) if isinstance(leaf, np.ndarray) else found
