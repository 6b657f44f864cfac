"""Every argument check: a failed one raises `InputError` with one line that names the field, the value and the fix."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


class InputError(ValueError):
    """Bad input. The message is one line: what was given, where, and how to mend it."""


_REMEDIES = {
    errno.ENOSPC: "make room, or give another place",
    errno.EDQUOT: "make room, or give another place",
    errno.EFBIG: "no file may grow as large here; give another place",
    errno.EACCES: "permission is needed; change it, or give another path",
    errno.EPERM: "permission is needed; change it, or give another path",
    errno.EROFS: "nothing can be written there; give another place",
    errno.ENOENT: "give a path that is there",
    errno.EISDIR: "it is a folder; give a file",
    errno.ENOTDIR: "a part of the path is no folder; give another path",
    errno.EEXIST: "give another path",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EMFILE: "too many files are open; raise the limit, `ulimit -n 4096` say",
}


def os_reason(error: OSError) -> str:
    """Which file an error of the system is about, what happened to it, and the fix."""
    what = error.strerror or " ".join(str(error).split()) or type(error).__name__
    remedy = _REMEDIES.get(error.errno or 0)
    where = f"{error.filename}: " if error.filename is not None else ""
    return f"{where}{what}{f'; {remedy}' if remedy else ''}"


@contextmanager
def about_file(path: Any) -> Iterator[None]:
    """Has errors of the system that name no file, those of writing into an open one, name this."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def shown(value: Any, longest: int = 80) -> str:
    """`value` as an error shows it: on one line, cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # a number of over 4,300 digits somewhere in it, or brackets without end
        text = f"a {type(value).__name__} too long to be written out"
    return text if len(text) <= longest else text[: longest - 3] + "..."


def whole(name: str, value: Any, *, least: int = 1) -> int:
    """`value` as an int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise InputError(f"{name}: {shown(value)} is not a whole number of at least {least}; give one")
    return int(value)


def real(name: str, value: Any, *, above: float | None = None, least: float | None = None) -> Any:
    """`value`, a finite number over `above` or of at least `least`, for the host; a traced one passes unseen."""
    if isinstance(value, Tracer):
        return value
    asked = f"over {above}" if above is not None else f"of at least {least}" if least is not None else ""
    array = isinstance(value, (np.ndarray, jax.Array)) and value.ndim == 0
    if isinstance(value, bool) or not (array or isinstance(value, (int, float, np.number))):
        raise InputError(f"{name}: {shown(value)} is not a number; give a finite number {asked}".rstrip())
    try:
        given = float(value)
    except OverflowError:
        given = np.inf
    if not np.isfinite(given) or (above is not None and given <= above) or (least is not None and given < least):
        raise InputError(f"{name}: {shown(value)} is out of range; give a finite number {asked}".rstrip())
    return value


def number(name: str, value: Any, *, above: float | None = None, least: float | None = None) -> Any:
    """`value`, as in `real`, for a device: it is none that float32 makes another of, see `single`."""
    value = real(name, value, above=above, least=least)
    return value if isinstance(value, Tracer) else single(name, value)


def single(name: str, value: Any, *, below_one: bool = False) -> Any:
    """`value`, a finite number, unless float32, in which devices compute, takes it for 0 or infinity though it is
    neither, or for 1 where it has to be below."""
    given, kinds = abs(float(value)), np.finfo(np.float32)
    if 0 < given < float(kinds.tiny):  # the smallest that no device flushes to 0
        raise InputError(f"{name}: {shown(value)} is 0 in float32; give 0 where that may be, or at least 1.2e-38")
    if given > float(kinds.max):
        raise InputError(f"{name}: {shown(value)} is infinite in float32; give at most 3.4e+38")
    if below_one and given < 1 <= float(np.float32(given)):
        raise InputError(f"{name}: {shown(value)} is 1 in float32; give at most 0.9999999")
    return value


def decay(name: str, value: Any) -> Any:
    """`value`, a number of at least 0 and below 1; a traced one passes unseen."""
    number(name, value, least=0)
    if not isinstance(value, Tracer) and value >= 1:
        raise InputError(f"{name}: {shown(value)} is out of range; give a number from 0 to below 1")
    return value if isinstance(value, Tracer) else single(name, value, below_one=True)


def local_work(batch_size: Any, local_epochs: Any, local_steps: Any) -> None:
    """The work of a client in a round is whole numbers."""
    whole("batch_size", batch_size)
    whole("local_epochs", local_epochs)
    if local_steps is not None:
        whole("local_steps", local_steps)


def hardware(lanes: Any, devices: Any) -> None:
    """A number of lanes and a list of devices, or None for either."""
    if lanes is not None:
        whole("lanes", lanes)
    if devices is not None and (not isinstance(devices, (list, tuple)) or len(devices) == 0):
        raise InputError(f"devices: {shown(devices)} is no list of devices; give jax.devices() or None")


def severity(value: Any) -> float:
    """`value` as a float from 0 to 1."""
    if not 0 <= real("severity", value) <= 1:
        raise InputError(f"severity: {shown(value)} is out of range; give a number from 0 (nothing) to 1")
    return float(value)


def one_of(name: str, value: Any, choices: Any) -> Any:
    """`value`, when it is among `choices`."""
    if not isinstance(value, (str, int)) or value not in choices:
        raise InputError(f"{name}: {shown(value)} is unknown; choose one of {', '.join(map(str, choices))}")
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


def finite(where: str, examples: Any) -> None:
    """No number is NaN or infinite. Costs a pass over the values, about a second for two gigabytes.

    Raises:
      InputError: naming the first that is.
    """
    for field, array in examples.items():
        if array.dtype.kind != "f":
            continue
        step = max(1, (1 << 24) // max(1, array[:1].nbytes))
        for first in range(0, len(array), step):
            part = np.asarray(array[first : first + step])
            if not np.isfinite(part).all():
                row, *place = (int(i) for i in np.argwhere(~np.isfinite(part))[0])
                raise InputError(
                    f"{where}, field {field!r}: {part[(row, *place)]} at {[first + row, *place]}; remove or fill in "
                    "such values first"
                )


def per_example(source: str, values: Any, batch_size: int, *, what: str = "loss") -> Any:
    """`values`, when they are one floating-point number per example."""
    shape, dtype = getattr(values, "shape", None), getattr(values, "dtype", None)
    if shape != (batch_size,) or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        got = type(values).__name__ if shape is None else f"{dtype}{list(shape)}"
        raise InputError(
            f"{source}: it returned {got}, not float[{batch_size}]; return one {what} per example, without averaging"
        )
    return values


def statistics(old: Any, new: Any) -> Any:
    """`new`, when it has the structure, shapes and dtypes of `old`."""

    def kind(tree: Any) -> Any:
        return jax.tree.structure(tree), [(jnp.shape(x), jnp.result_type(x)) for x in jax.tree.leaves(tree)]

    if kind(old) != kind(new):
        raise InputError(
            "loss_fn: the statistics it returned differ in structure, shape or dtype from those it was given; "
            "return (f32[B], statistics) with statistics like the given ones"
        )
    return new


def leading(name: str, examples: Any) -> int:
    """The length that all arrays of `examples` share, at least 1."""
    lengths = sorted({jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(examples)})
    if len(lengths) != 1 or lengths[0] in ((), (0,)):
        raise InputError(f"{name}: leading axes {lengths}; give arrays [total, ...] of one length, at least 1")
    return lengths[0][0]


def client_ids(ids: Any, num_clients: int) -> np.ndarray:
    """`ids` as an array, when they are whole numbers from -1, for nobody, to `num_clients - 1`."""
    array = np.asarray(ids)
    if array.dtype.kind not in "iu":
        raise InputError(f"ids: dtype {array.dtype}; give whole numbers")
    wrong = array[(array < -1) | (array >= num_clients)]
    if wrong.size:
        raise InputError(f"ids: client {wrong[0]} does not exist; give numbers from -1 to {num_clients - 1}")
    return array


def cohort(cohort_arrays: dict[str, Any], examples: Any) -> None:
    """Ids, starts, sizes and rows are integer vectors of one length; examples share their leading axis."""
    shapes = {name: tuple(array.shape) for name, array in cohort_arrays.items()}
    if len(set(shapes.values())) != 1 or any(len(s) != 1 or s[0] == 0 for s in shapes.values()):
        raise InputError(f"cohort: shapes {shapes} differ or are empty; give integer vectors of one length, C >= 1")
    for name, array in cohort_arrays.items():
        if not jnp.issubdtype(array.dtype, jnp.integer):
            raise InputError(f"cohort.{name}: dtype {array.dtype} is no integer; give int32")
    leading("cohort.examples", examples)
