"""Transfer learning: start from saved parameters, and train only some of them.

What is not trained is a constant of the model's functions and no parameter, so that it is neither sent, nor clipped,
noised or compressed. Paths read "layer0/kernel"; patterns are regular expressions found somewhere in them.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim import _memory, _validate
from fedjax_sim._arrays import open_npy
from fedjax_sim._validate import InputError, shown
from fedjax_sim.core.types import Array, PyTree
from fedjax_sim.models.classifiers import Model, from_logits

Leaves = dict[str, Any]  # by path


def named(params: PyTree) -> Leaves:
    """The leaves of `params` by path."""
    found = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in found}


def save_leaves(path: str | Path, params: PyTree) -> None:
    """Writes the leaves of `params` into a new or empty folder, one `.npy` each ("layer0.kernel.npy"), or into one file
    where `path` ends in `.safetensors`.

    Raises:
      InputError: the folder holds something, or safetensors is not installed.
    """
    path, leaves = Path(path), {name: np.asarray(leaf) for name, leaf in named(params).items()}
    if path.suffix == ".safetensors":
        _safetensors().numpy.save_file(leaves, path)
        return
    path.mkdir(parents=True, exist_ok=True)
    if any(path.iterdir()):
        raise InputError(f"{path}: it is not empty; give another folder")
    for name, leaf in leaves.items():
        file = path / f"{name.replace('/', '.')}.npy"
        with _validate.about_file(file), open(file, "wb") as out:
            # handed a file itself, NumPy says of a full disk only how much was not written
            np.lib.format.write_array(cast(Any, SimpleNamespace(write=out.write)), leaf, allow_pickle=False)


def load_leaves(path: str | Path) -> Leaves:
    """What `save_leaves` wrote, by path.

    Raises:
      InputError: nothing there, or a file that is no array of real numbers, or of another size than it says itself.
        Nothing is allocated before that is known.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        try:
            found = dict(_safetensors().numpy.load_file(path))
        except (OSError, _safetensors().SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
            reason = " ".join(f"{error}".split())[:120]
            raise InputError(f"{path}: it cannot be read ({reason}); give a .safetensors file") from None
        return {name: _numbers(f"{path}, {shown(name)}", leaf) for name, leaf in found.items()}
    files = sorted(path.glob("*.npy")) if path.is_dir() else []
    if not files:
        raise InputError(f"{path}: no .npy files are there; give a folder of arrays, or a .safetensors file")
    return {file.stem.replace(".", "/"): _numbers(str(file), open_npy(file)) for file in files}


def _numbers(where: str, array: np.ndarray) -> np.ndarray:
    """`array` in memory, when it holds real numbers."""
    if array.dtype.kind not in "fiub":
        raise InputError(f"{where}: {array.dtype} is no array of real numbers; save parameters, as floats")
    return np.array(array)


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError:
        raise InputError(
            "path: .safetensors files need safetensors, which is not installed; run: pip install 'fedjax-sim[models]'"
        ) from None
    return safetensors


def warm_start(model: Model, leaves: Mapping[str, Any], *, skip: str | None = None) -> Model:
    """`model` that starts from `leaves` instead; leaves whose path matches `skip`, the head's say, start afresh.

    Raises:
      InputError: a leaf that is missing, unknown, of another shape or not finite.
    """
    own, structure = named(model.params), jax.tree.structure(model.params)
    fresh = set() if skip is None else {name for name in own if _pattern("skip", skip).search(name)}
    missing = [name for name in own if name not in leaves and name not in fresh]
    unknown = [name for name in leaves if name not in own and not (skip and re.search(skip, name))]
    if missing or unknown:
        name, wrong = (missing[0], "is missing") if missing else (unknown[0], "is unknown")
        raise InputError(f"leaves: {name} {wrong}; give those of this model ({', '.join(own)}), or skip it")
    new = []
    for name, leaf in own.items():
        given = leaf if name in fresh else np.asarray(leaves[name])
        if np.shape(given) != leaf.shape:
            raise InputError(
                f"leaves: {name} has shape {list(np.shape(given))}, not {list(leaf.shape)}; skip it, or take the model "
                "that it is of"
            )
        with np.errstate(over="ignore"):
            cast = np.asarray(given).astype(leaf.dtype)
        if np.isfinite(leaf).all() and not np.isfinite(cast).all():
            wrong = np.asarray(given)[~np.isfinite(cast)].flat[0]
            raise InputError(f"leaves: {name} holds {wrong}; give finite numbers of {leaf.dtype}, or skip it")
        new.append(jnp.asarray(cast))
    return model._replace(params=structure.unflatten(new))


def freeze(model: Model, pattern: str) -> Model:
    """`model` whose leaves that match stay as they are; its parameters are the others, by path.

    Raises:
      InputError: a pattern that is no regular expression, or that matches no leaf or every one.
    """
    return _part(model, pattern, lambda matches: not matches)


def train_only(model: Model, pattern: str) -> Model:
    """`model` of which only the leaves that match are trained, the head say: the converse of `freeze`."""
    return _part(model, pattern, lambda matches: matches)


def _part(model: Model, pattern: str, trained: Callable[[bool], bool]) -> Model:
    compiled, leaves = _pattern("pattern", pattern), named(model.params)
    chosen = {name: leaf for name, leaf in leaves.items() if trained(compiled.search(name) is not None)}
    if len(chosen) in (0, len(leaves)):
        raise InputError(
            f"pattern: {pattern!r} leaves {'nothing' if not chosen else 'everything'} to train; the paths are "
            f"{', '.join(leaves)}"
        )
    return _made_of(model, chosen, lambda params: {**leaves, **params})


def lora(
    model: Model, rank: int = 4, *, alpha: float | None = None, pattern: str = "", also: str | None = None
) -> Model:
    """`model` with low-rank adapters (Hu et al. 2022): `W + alpha / rank * A B` of each matrix that matches, `A` [rows,
    rank] normal with variance `1 / rows` and `B` [rank, columns] zero, so that it starts as it is.

    A leaf of two or more axes is a matrix [product of the others, last axis]. Everything else is frozen but for the
    leaves that match `also`, which are trained as they are. The parameters are `PATH/a` and `PATH/b`, and those leaves:
    `rank * (rows + columns)` numbers of each matrix.

    Args:
      model: the base.
      rank: of the adapters.
      alpha: their scale; the rank by default.
      pattern: which matrices; all by default.
      also: leaves trained fully, the head say.

    Raises:
      InputError: a rank below 1, a pattern that is no regular expression, or no matrix that matches.
    """
    rank = _validate.whole("rank", rank)
    scale = _validate.number("alpha", rank if alpha is None else alpha, above=0) / rank
    compiled, leaves = _pattern("pattern", pattern), named(model.params)
    full = {} if also is None else {n: x for n, x in leaves.items() if _pattern("also", also).search(n)}
    matrices = {n: x for n, x in leaves.items() if x.ndim >= 2 and n not in full and compiled.search(n)}
    if not matrices:
        raise InputError(f"pattern: {pattern!r} matches no matrix to adapt; the paths are {', '.join(leaves)}")
    count = sum(rank * (leaf.size // leaf.shape[-1] + leaf.shape[-1]) for leaf in matrices.values())
    _memory.require(f"rank: adapters of rank {rank:,} need", 8 * count, "lower it")
    rng, params = np.random.default_rng(0), dict(full)
    for name, leaf in matrices.items():
        rows, columns = leaf.size // leaf.shape[-1], leaf.shape[-1]
        drawn = rng.standard_normal((rows, rank), np.float32) / np.float32(rows**0.5)
        params |= {f"{name}/a": jnp.asarray(drawn, leaf.dtype), f"{name}/b": jnp.zeros((rank, columns), leaf.dtype)}

    def whole(params: Leaves) -> Leaves:
        adapted = {
            name: leaf + scale * (params[f"{name}/a"] @ params[f"{name}/b"]).reshape(leaf.shape)
            for name, leaf in matrices.items()
        }
        return {**leaves, **adapted, **{name: params[name] for name in full}}

    return _made_of(model, params, whole)


def _made_of(model: Model, params: Leaves, leaves_of: Callable[[Leaves], Leaves]) -> Model:
    """`model` with other parameters, of which `leaves_of` makes its own leaves."""
    structure = jax.tree.structure(model.params)
    order = list(named(model.params))

    def before(params: Leaves) -> PyTree:
        leaves = leaves_of(params)
        return structure.unflatten([leaves[name] for name in order])

    def logits_fn(params: PyTree, inputs: Array) -> Array:
        return model.logits_fn(before(params), inputs)

    return from_logits(params, logits_fn)._replace(whole=lambda params: model.whole(before(params)))


def _pattern(name: str, text: Any) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, TypeError):
        raise InputError(f"{name}: {_validate.shown(text)} is no regular expression; give one") from None
