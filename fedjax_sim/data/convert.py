"""Labels and inputs in the form that is trained on, or a line that says why they are not: nothing changes silently."""

import warnings
from collections.abc import Sequence

import numpy as np

from fedjax_sim._validate import InputError, shown

WHITE = 255  # of eight bits; uint8 inputs are pixels, which the models divide by it
BRIGHT = 128  # no image set is so dark that its brightest pixel stays below
EXACT = 2**24  # whole numbers up to here are float32's, too
LARGE, SAMPLE = 10.0, 2000  # root mean square of what is not standardised; rows that are looked at
_REAL = "buif"


def class_labels(where: str, labels: np.ndarray, classes: int | None) -> np.ndarray:
    """Labels as one class a row, where classes are set.

    Args:
      where: what the error begins with.
      labels: classes [n] or [n, 1], which may be booleans or whole floats, or one-hot rows [n, classes].
      classes: how many there are; without it, labels may be anything.

    Returns:
      Integers [n]: integers [n] as they are, all else as int64.

    Raises:
      InputError: fractions, rows without just one 1, a class out of range, or more axes.
    """
    if classes is None:
        return labels
    given = labels
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and labels.shape[1] == classes:
        wrong = np.flatnonzero(((labels != 0) & (labels != 1)).any(1) | ((labels == 1).sum(1) != 1))
        if len(wrong):
            row = shown(labels[wrong[0]].tolist())
            raise InputError(f"{where}: row {wrong[0]} is {row}, not one 1 among zeros; give one class a row")
        return labels.argmax(1)
    if labels.ndim != 1:
        raise InputError(
            f"{where}: {given.dtype}{list(given.shape)}; give one class a row, [n], or one-hot [n, {classes}]"
        )
    if labels.dtype.kind == "f":
        wrong = np.flatnonzero(labels != np.rint(labels))
        if len(wrong):
            raise InputError(
                f"{where}: {labels[wrong[0]]} in row {wrong[0]} is no class; numbers cannot be predicted yet, so give "
                f"whole numbers from 0 to {classes - 1}"
            )
    check_classes(where, labels, classes)
    return labels if labels.dtype.kind in "iu" else labels.astype(np.int64)


def check_classes(where: str, labels: np.ndarray, classes: int) -> None:
    """Labels are numbers from 0 to `classes - 1`, one a row.

    Raises:
      InputError: others.
    """
    if labels.ndim != 1:
        raise InputError(f"{where}: {labels.dtype}{list(labels.shape)}; give one class a row, [n]")
    if labels.size == 0:
        return
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        value = f"{labels[wrong[0]]} in row {wrong[0]}"
        low, high = labels.min(), labels.max()
        given = f"{labels.dtype} from {low} to {high}, {value} the first"
        raise InputError(f"{where}: {given}; give whole numbers from 0 to {classes - 1}")


def pixels(inputs: Sequence[np.ndarray]) -> bool:
    """Whether inputs of another dtype than uint8 are pixels from 0 to 255, so that they have to be scaled alike.

    Args:
      inputs: what is trained on first, then test inputs: [n, height, width] or [n, height, width, channels].

    Returns:
      True where all are whole numbers from 0 to 255, and the first have some from 128 on.
    """
    first = inputs[0]
    if first.ndim < 3 or first.size == 0 or first.dtype == np.uint8 or first.dtype.kind not in "iuf":
        return False
    return bool(first.max() >= BRIGHT) and all(_of_eight_bits(array) for array in inputs)


def _of_eight_bits(array: np.ndarray) -> bool:
    if array.size == 0:
        return True
    whole = array.dtype.kind != "f" or bool((array == np.rint(array)).all())
    return bool(array.min() >= 0) and bool(array.max() <= WHITE) and whole


def as_bytes(where: str, inputs: np.ndarray) -> np.ndarray:
    """Pixels as uint8.

    Raises:
      InputError: they are not whole numbers from 0 to 255.
    """
    if not _of_eight_bits(inputs):
        raise InputError(
            f"{where}: {inputs.dtype} from {inputs.min()} to {inputs.max()}, but the first client's are pixels, whole "
            "numbers from 0 to 255; give uint8 everywhere, or floats from 0 to 1"
        )
    return inputs.astype(np.uint8)


def tell_of_pixels(where: str, dtype: np.dtype, *, depth: int = 3) -> None:
    """The warning that goes with `as_bytes`."""
    text = f"{where}: {dtype} images of whole numbers from 0 to 255 are kept as uint8, which the models divide by 255"
    warnings.warn(text, stacklevel=depth)


def unscaled(inputs: np.ndarray) -> str | None:
    """What is wrong with the scale of inputs, in a sentence; None where they are uint8 or about standardised.

    Args:
      inputs: [n, ...]; at most 2,000 rows are looked at, evenly spaced.
    """
    if inputs.dtype == np.uint8 or inputs.dtype.kind not in "iuf" or inputs.size == 0:
        return None
    rows = np.asarray(inputs[:: max(1, -(-len(inputs) // SAMPLE))], np.float64).reshape(-1, *inputs.shape[1:])
    if rows.ndim <= 2:
        rows = rows.reshape(len(rows), -1)
        column = int(np.sqrt((rows**2).mean(0)).argmax())
        what, values = f"column {column} has values", rows[:, column]
    else:
        what, values = "they have values", rows
    if np.sqrt((values**2).mean()) <= LARGE:
        return None
    return (
        f"inputs: {what} from {values.min():g} to {values.max():g}, far from standardised, so that training may "
        "diverge or learn nothing; subtract the training mean and divide by the deviation, or give images as uint8"
    )


def narrowed(field: str, array: np.ndarray) -> np.ndarray:
    """`array` in a dtype that devices hold: numbers of more than 32 bits in 32, in the machine's byte order.

    A warning tells where whole numbers lose digits in float32.

    Raises:
      InputError: an integer that does not fit in 32 bits, a float beyond float32, or no numbers.
    """
    kind, wide = array.dtype.kind, array.dtype.itemsize > 4
    if kind not in _REAL:
        value = f", {shown(array.reshape(-1)[0])} for instance" if array.size else ""
        raise InputError(f"field {field!r}: {array.dtype}{value}, is not trained on; give booleans, integers or floats")
    if not wide:
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    if kind == "f":
        return to_float32(f"field {field!r}", array)
    dtype = np.int32 if kind == "i" else np.uint32
    if array.size:
        low, high = int(array.min()), int(array.max())
        allowed = np.iinfo(dtype)
        if low < allowed.min or high > allowed.max:
            raise InputError(
                f"field {field!r}: values from {low} to {high} exceed {np.dtype(dtype).name}; give smaller numbers"
            )
    return array.astype(dtype)


def in_float32(array: np.ndarray) -> np.ndarray:
    """Which of these floats are finite once they are float32."""
    return np.isfinite(array) if array.dtype.itemsize <= 4 else np.abs(array) <= np.finfo(np.float32).max


def to_float32(where: str, array: np.ndarray) -> np.ndarray:
    """Finite numbers as float32; a warning tells where whole numbers lose digits.

    Raises:
      InputError: a number beyond float32.
    """
    if array.size == 0:
        return array.astype(np.float32)
    low, high = array.min().item(), array.max().item()
    largest = float(np.finfo(np.float32).max)
    if low < -largest or high > largest:
        raise InputError(f"{where}: {low if low < -largest else high} is beyond float32; remove or rescale it")
    result = array.astype(np.float32)
    if max(-low, high) > EXACT:
        columns, kept = (part.reshape(len(part), -1) for part in (array, result))
        lost = (kept != columns) & (columns == np.rint(columns)).all(0)  # a column of whole numbers may hold ids
        if lost.any():
            text = f"{where}: {columns[lost][0]:.0f} becomes {kept[lost][0]:.0f} in float32, which keeps 24 bits; "
            warnings.warn(text + "rescale it, or leave it out if it is an id", stacklevel=3)
    return result


def told_apart(where: str, names: Sequence[str]) -> None:
    """A warning where names differ in nothing but capitals, for they may be one."""
    alike: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        alike.setdefault(name.casefold(), []).append(name)
    listed = [" and ".join(map(shown, group)) for group in alike.values() if len(group) > 1]
    if listed:
        more = f", and {len(listed) - 3} more" if len(listed) > 3 else ""
        text = f"{where}: {', '.join(listed[:3])}{more} are taken as different ones, {len(set(names))} in all; "
        warnings.warn(text + "if they are one, write them alike", stacklevel=3)
