"""What commands have compiled is kept for the next one, by JAX, in the user's cache folder. Imports no JAX."""

import os
import platform
import sys
import warnings
import zlib
from collections.abc import MutableMapping
from importlib.util import find_spec
from pathlib import Path

from fedjax_sim._cache import cache_folder

MOST_BYTES = 200_000_000  # the least recently used programs go first
LEAST_SECONDS = 0.2  # of compiling, for a program to be kept
FOLDER = "JAX_COMPILATION_CACHE_DIR"


def keep_compiled(variables: MutableMapping[str, str] = os.environ) -> None:
    """Has JAX keep compiled programs, unless the user has said where, or that it should not (with an empty
    JAX_COMPILATION_CACHE_DIR). Comes before JAX is imported.

    Where the folder cannot be written, programs are compiled every time, as they are where an entry is damaged or the
    disk is full: nothing that happens to this folder ends a command or is worth a word.
    """
    if FOLDER in variables or "jax" in sys.modules or find_spec("filelock") is None:
        return
    folder = cache_folder() / f"compiled-{_processor():08x}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # what lies there is run
        _mend(folder)
    except OSError:
        return
    variables[FOLDER] = str(folder)
    variables.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(MOST_BYTES))
    variables.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(LEAST_SECONDS))
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    warnings.filterwarnings("ignore", "Cache value for key .* exceeds the maximum cache size")


def _processor() -> int:
    """A number that differs between processors with different instructions, for a home may be on several machines."""
    about = [platform.machine(), platform.processor()]
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # on another system
        lines = []
    about += sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    return zlib.crc32("\n".join(about).encode())


def _mend(folder: Path) -> None:
    """Removes what a killed command left half written, which JAX would trip over at every entry to come. It writes the
    time of an entry's last use after the entry itself.

    Raises:
      OSError: the folder cannot be read or written.
    """
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / ".lockfile", timeout=0):
            for entry in folder.glob("*-cache"):
                used = entry.with_name(f"{entry.name.removesuffix('-cache')}-atime")
                if not used.is_file() or used.stat().st_size != 8:
                    entry.unlink()
                    used.unlink(missing_ok=True)
    except Timeout:  # another command is at it
        return
