"""How much memory there is, and whether something fits: asked before it is allocated."""

import os
from contextlib import suppress
from functools import cache
from pathlib import Path

from fedjax_sim._validate import InputError

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of containers


@cache
def host_bytes() -> int:
    """Memory that this process may have at most, used or not; without a limit where the system does not say."""
    found = [2**63]
    with suppress(AttributeError, OSError, ValueError):  # on another system
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in _LIMITS:
        with suppress(OSError, ValueError):  # without such a limit
            found.append(int(Path(path).read_text(encoding="ascii")))
    return min(count for count in found if count > 0)


def require(what: str, needed: int, fix: str) -> None:
    """There is memory for so many bytes.

    Args:
      what: the setting or argument, and what it asks for.
      needed: bytes at least.
      fix: what to lower.

    Raises:
      InputError: this machine has less, used or not.
    """
    here = host_bytes()
    if needed > here:
        raise InputError(f"{what} {size_text(needed)}, and {size_text(here)} are here; {fix}")


def size_text(count: float) -> str:
    """Bytes in words."""
    units = ("bytes", "kB", "MB", "GB", "TB", "PB")
    place = 0
    while count >= 1000 and place + 1 < len(units):
        count, place = count / 1000, place + 1
    return f"{count:.3g} {units[place]}"
