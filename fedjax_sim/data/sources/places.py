"""Where the files of a named data set lie: a folder that the user set, or the cache that `fetch` fills."""

import os
from pathlib import Path

from fedjax_sim._validate import InputError

DATA_FOLDER = "FEDJAX_SIM_DATA"  # environment: the folder that holds mnist/, fashion_mnist/, ...
CACHE_FOLDER = "FEDJAX_SIM_CACHE"  # environment: the folder that `fetch` downloads to


def cache_folder() -> Path:
    """The folder that downloads go to: $FEDJAX_SIM_CACHE, or the user's cache as the operating system has it."""
    if given := os.environ.get(CACHE_FOLDER):
        return Path(given)
    try:
        import pooch
    except ImportError:  # only downloads need it
        return Path.home() / ".cache" / "fedjax_sim"
    return Path(pooch.os_cache("fedjax_sim"))


def find(name: str, *, can_fetch: bool = True) -> Path:
    """The folder of a named data set: $FEDJAX_SIM_DATA/NAME, or NAME in the cache.

    Args:
      name: of the data set, which is also the folder's.
      can_fetch: whether `fetch` knows it, so that the error can say so.

    Raises:
      InputError: neither folder is there.
    """
    places = []
    for folder in (lambda: os.environ.get(DATA_FOLDER), cache_folder):
        if root := folder():
            places.append(Path(root) / name)
            if places[-1].is_dir():
                return places[-1]
    ways = [f"run `fedjax-sim data fetch {name}`"] if can_fetch else []
    ways.append(f"{'or ' if can_fetch else ''}give data.path or {DATA_FOLDER}")
    raise InputError(f"data.path: it is empty and {name} is not in {' or '.join(map(str, places))}; {', '.join(ways)}")


def existing(path: str, what: str) -> Path:
    """`path` as a file or folder that is there.

    Args:
      path: the setting `data.path`.
      what: what it should be, in a few words.

    Raises:
      InputError: it is empty, or there is nothing.
    """
    if not path:
        raise InputError(f"data.path: it is empty; give {what}")
    place = Path(path)
    if not place.exists():
        raise InputError(f"data.path: {path!r} does not exist; give {what}")
    return place
