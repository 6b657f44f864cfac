"""How many lanes to train at once: a short trial on the device at hand, remembered for the next time."""

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from fedjax_sim import _validate
from fedjax_sim._cache import cache_folder
from fedjax_sim._text import parse_json
from fedjax_sim.core.compile import tuned
from fedjax_sim.core.round import RoundFn
from fedjax_sim.core.types import Array, Cohort, PyTree, RoundState

GIVE_UP = 1.25  # wider blocks are no longer tried once one took this many times the best so far


def candidates(cohort_size: int, devices: Sequence[Any]) -> list[int]:
    """Lane widths worth trying, narrow to wide: powers of two on a CPU, of four elsewhere, up to a device's share."""
    share = max(1, -(-cohort_size // len(devices)))
    widths = [1, 2, 4, 8] if devices[0].platform == "cpu" else [4, 16, 64, 256]
    return sorted({min(width, share) for width in widths})


def tune_lanes(
    make: Callable[[int], RoundFn],
    state: RoundState,
    cohort: Cohort,
    key: Array,
    widths: Iterable[int],
    *,
    agree: Callable[[float], float] = lambda seconds: seconds,
) -> dict[int, float]:
    """Seconds of a round for each lane width that was tried; the quickest is `min(result, key=result.get)`.

    Args:
      make: `make(lanes) -> round_fn`, say a `functools.partial` of `make_round`.
      state, cohort, key: what the round is tried on; nothing of them is changed or donated.
      widths: to try, in order; the rest are left out once one is clearly slower than the best.
      agree: of a measured time, what is taken for it; processes that share a round have to take the same.

    Raises:
      InputError: no widths are given.
    """
    seconds: dict[int, float] = {}
    for lanes in widths:
        round_fn = tuned(make(_validate.whole("widths", lanes)))
        jax.block_until_ready(round_fn(state, cohort, key))
        trials = []
        for _ in range(3):
            start = time.perf_counter()
            jax.block_until_ready(round_fn(state, cohort, key))
            trials.append(time.perf_counter() - start)
        seconds[lanes] = agree(min(trials))
        if seconds[lanes] > GIVE_UP * min(seconds.values()):
            break
    if not seconds:
        raise _validate.InputError("widths: [] is empty; give at least one lane width")
    return seconds


def signature(params: PyTree, devices: Sequence[Any], **settings: Any) -> str:
    """What a tuned width is remembered under: shapes of the model, devices, JAX's version, the caller's settings."""
    shapes = [f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(params)]
    where = f"{len(devices)} x {devices[0].device_kind}"
    return json.dumps([shapes, where, jax.__version__, sorted(settings.items())])


def memory_file() -> Path:
    """Where widths are remembered: `fedjax_sim/lanes.json` in the user's cache folder."""
    return cache_folder() / "lanes.json"


def _remembered(file: Path) -> dict[str, int]:
    try:
        found = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # absent or torn: a trial makes it anew
        return {}
    return found if isinstance(found, dict) else {}


def recall(signature: str, file: Path | None = None) -> int | None:
    """The width remembered for `signature`, or None."""
    lanes = _remembered(file or memory_file()).get(signature)
    return lanes if isinstance(lanes, int) and lanes >= 1 else None


def remember(signature: str, lanes: int, file: Path | None = None) -> None:
    """Remembers a width; a cache folder that cannot be written is left alone."""
    file = file or memory_file()
    partial = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(_remembered(file) | {signature: lanes}, indent=1), encoding="utf-8")
        os.replace(partial, file)
    except OSError:
        return
