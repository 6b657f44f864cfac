"""Checkpoints of a run: all that its next round depends on. Each is one file of arrays (`.npz`), there whole or not at
all, whose name tells the round and the digest of its bytes."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim._validate import InputError, about_file
from fedjax_sim.core.devices import put
from fedjax_sim.core.types import PyTree

FOLDER, PARTIAL = "checkpoints", "partial"
KEPT = 2
Arrays = dict[str, np.ndarray]


class Saved(NamedTuple):
    """What a run goes on from, beside its configuration and its history."""

    state: PyTree  # `RoundState` or `BufferedState`
    best: PyTree  # parameters of the best model so far, as host arrays; those of the state until one was tested
    lanes: Any  # int32[], clients trained at once, -1 for the default
    most_steps: Any  # int32[], local steps of a client at most, -1 for no such limit
    seen: Any  # bool[N], who has a row in the client memory on disk; bool[0] where that is not there
    sums: Any = np.zeros(0, np.uint32)  # uint32[N], checksums of those rows, or uint32[0]
    mark: Any = np.zeros(0, np.uint8)  # uint8[16], of what the rounds were made from, see `origin.Ingredients.mark`
    history: Any = np.zeros(0, np.uint8)  # uint8[32], SHA-256 of the rows of all rounds done


class Misfit(InputError):  # noqa: N818
    """A checkpoint of another configuration."""


class Damaged(Exception):  # noqa: N818
    """A checkpoint that is not what was written; the message says why."""


def save(folder: Path, done: int, saved: Saved) -> None:
    """Writes the checkpoint after `done` rounds, and removes all but the latest.

    Raises:
      OSError: it cannot be written, for the disk is full, say; those before are still there.
    """
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    partial = place / PARTIAL
    try:
        with about_file(partial), open(partial, "w+b") as file:
            np.savez(file, **cast(Any, _arrays(saved)))
            file.flush()
            os.fsync(file.fileno())
            digest = _digest(file)
        path = place / f"{done}.{digest}.npz"
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)  # what there is of it takes up room
        raise
    kept = rounds_saved(folder)[:KEPT]
    for other in place.iterdir():
        if other != path and (_round(other) == done or _round(other) not in kept):
            _remove(other)


def rounds_saved(folder: Path) -> list[int]:
    """After how many rounds there is a checkpoint, the latest first."""
    return sorted(_files(folder), reverse=True)


def others(folder: Path) -> list[str]:
    """Names of what lies among the checkpoints and is none, those of another version say."""
    place = folder / FOLDER
    found = [path for path in place.iterdir() if _round(path) is None] if place.is_dir() else []
    return [path.name for path in found if path.name != PARTIAL]


def read(folder: Path, done: int) -> Arrays:
    """The arrays of the checkpoint after `done` rounds. Nothing of a file is looked at before its digest is right.

    Raises:
      Damaged: it is not.
    """
    path = _files(folder)[done]
    try:
        with open(path, "rb") as file:
            if _digest(file) != path.name.split(".")[1]:
                raise Damaged("it is damaged")
            file.seek(0)
            with np.load(file, allow_pickle=False) as found:
                return {name: found[name] for name in found.files}
    except PermissionError:
        raise
    except OSError as error:
        raise Damaged(f"it cannot be read ({error.strerror})") from None


def restore(found: Arrays, like: Saved) -> Saved:
    """What a checkpoint holds, placed on devices as `like`.

    Raises:
      Misfit: it does not fit the configuration.
    """
    expected, (leaves, structure) = _arrays(like), jax.tree.flatten(like)
    for name in sorted(expected.keys() | found.keys(), key=lambda name: (len(name), name)):
        wanted, given = (None if a is None else (a.dtype, a.shape) for a in (expected.get(name), found.get(name)))
        if wanted != given:
            reason = f"array {name} is {_shown(given)} and not {_shown(wanted)}"
            raise Misfit(
                f"checkpoints: they are of another configuration ({reason}); set config.toml as it was, or begin anew"
            )
    return structure.unflatten([_like(leaf, found[str(i)]) for i, leaf in enumerate(leaves)])


def last_fields(found: Arrays) -> tuple[np.ndarray, ...]:
    """Of `Saved`, the arrays from `seen` on."""
    count = len(found)
    return tuple(found[str(count - i)] for i in (4, 3, 2, 1))


def forget(folder: Path, after: int) -> None:
    """Removes the checkpoints after more rounds."""
    for done, path in _files(folder).items():
        if done > after:
            _remove(path)


def _files(folder: Path) -> dict[int, Path]:
    place = folder / FOLDER
    found = {_round(path): path for path in place.iterdir()} if place.is_dir() else {}
    return {done: path for done, path in found.items() if done is not None}


def _round(path: Path) -> int | None:
    """Of a checkpoint; None for anything else."""
    parts = path.name.split(".")
    return int(parts[0]) if len(parts) == 3 and parts[0].isdecimal() and parts[2] == "npz" and path.is_file() else None


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _digest(file: Any) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _arrays(saved: Saved) -> Arrays:
    """The leaves by their place: keys as their data, and types that NumPy itself does not know as bytes."""
    arrays = [np.asarray(jax.random.key_data(x) if _is_key(x) else x) for x in jax.tree.leaves(saved)]
    return {str(i): x if x.dtype.isbuiltin == 1 else x[..., None].view(np.uint8) for i, x in enumerate(arrays)}


def _like(leaf: Any, found: np.ndarray) -> Any:
    if _is_key(leaf):
        return put(jax.random.wrap_key_data(jnp.asarray(found), impl=jax.random.key_impl(leaf)), leaf.sharding)
    array = found if leaf.dtype.isbuiltin == 1 else found.view(leaf.dtype)[..., 0]
    return put(array, leaf.sharding) if isinstance(leaf, jax.Array) else array


def _shown(kind: tuple[np.dtype, tuple[int, ...]] | None) -> str:
    return "missing" if kind is None else f"{kind[0]}{list(kind[1])}"
