"""Where is kept what is made anew if it is lost."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`fedjax_sim` in the user's cache folder, made when it is first written to; where there is no home, one that
    cannot be made."""
    try:
        user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        user = Path(os.devnull)
    return user / "fedjax_sim"
