"""Numbers and settings as one reads them."""

from typing import Any

from fedjax_sim.report.read import clean

NONE = "-"


def share(value: float | None) -> str:
    return NONE if value is None else f"{value:.1%}"


def short(value: float | None) -> str:
    return NONE if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def size(value: float | None) -> str:
    """Bytes in decimal units."""
    if value is None:
        return NONE
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= length:
            return f"{value / length:.3g} {unit}"
    return f"{value:.0f} B"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    for unit, length in (("days", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def value_text(value: Any) -> str:
    """A setting as one reads it."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(map(value_text, value)) + "]"
    return clean(value) or '""'
