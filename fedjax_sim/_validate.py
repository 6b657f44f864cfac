"""Every argument check: a failed one raises `InputError` with one line that names the field, the value and the fix."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


class InputError(ValueError):
    """Bad input. The message is one line: what was given, where, and how to mend it."""


def whole(name: str, value: Any, *, least: int = 1) -> int:
    """`value` as an int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise InputError(f"{name}: {value!r} is not a whole number of at least {least}; give one")
    return int(value)


def number(name: str, value: Any, *, above: float | None = None, least: float | None = None) -> Any:
    """`value`, a finite number over `above` or of at least `least`; a traced one passes unseen."""
    if isinstance(value, Tracer):
        return value
    asked = f"over {above}" if above is not None else f"of at least {least}" if least is not None else ""
    try:
        given = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name}: {value!r} is not a number; give a finite number {asked}".rstrip()) from None
    if not np.isfinite(given) or (above is not None and given <= above) or (least is not None and given < least):
        raise InputError(f"{name}: {value!r} is out of range; give a finite number {asked}".rstrip())
    return value


def one_of(name: str, value: Any, choices: Any) -> Any:
    """`value`, when it is among `choices`."""
    if value not in choices:
        raise InputError(f"{name}: {value!r} is unknown; choose one of {', '.join(map(str, choices))}")
    return value


def floating(name: str, tree: Any) -> None:
    """All leaves of `tree` are floating-point arrays, and there is at least one."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        raise InputError(f"{name}: it holds no arrays; give a pytree of floating-point arrays")
    for path, leaf in leaves:
        dtype = getattr(leaf, "dtype", type(leaf).__name__)
        if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating):
            where = name + jax.tree_util.keystr(path)
            raise InputError(f"{where}: {dtype} cannot be trained; give a floating-point array and keep others out")


def per_example(losses: Any, batch_size: int) -> Any:
    """`losses`, when it is one floating-point value per example."""
    shape, dtype = getattr(losses, "shape", None), getattr(losses, "dtype", None)
    if shape != (batch_size,) or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise InputError(
            f"loss_fn: it returned {dtype}{list(shape) if shape is not None else type(losses).__name__}, not "
            f"float[{batch_size}]; return one loss per example, without averaging over the batch"
        )
    return losses


def cohort(cohort_arrays: dict[str, Any], examples: Any) -> None:
    """Ids, starts, sizes and rows are integer vectors of one length; examples share their leading axis."""
    shapes = {name: tuple(array.shape) for name, array in cohort_arrays.items()}
    if len(set(shapes.values())) != 1 or any(len(s) != 1 or s[0] == 0 for s in shapes.values()):
        raise InputError(f"cohort: shapes {shapes} differ or are empty; give integer vectors of one length, C >= 1")
    for name, array in cohort_arrays.items():
        if not jnp.issubdtype(array.dtype, jnp.integer):
            raise InputError(f"cohort.{name}: dtype {array.dtype} is no integer; give int32")
    leading = {leaf.shape[:1] for leaf in jax.tree.leaves(examples)}
    if len(leading) != 1 or () in leading or (0,) in leading:
        raise InputError(f"cohort.examples: leading axes {sorted(leading)}; give arrays [total, ...] of one length")
