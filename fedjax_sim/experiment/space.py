"""What is tried of a setting: `PATH=0.01,0.1` lists values, `PATH=0..1` is a range, `PATH=log:1e-4..1` one in logs."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim._text import parse_toml
from fedjax_sim._validate import InputError, shown

MOST_TRIALS = 100_000
LARGEST = 1e15  # that ends of a range stay below, for whole numbers above it are not told apart


class Choice(NamedTuple):
    """One of several values."""

    values: tuple[Any, ...]


class Range(NamedTuple):
    """A number from `low` to `high`, uniform or uniform in its logarithm; whole where both ends are written whole."""

    low: float
    high: float
    log: bool
    whole: bool


Space = Mapping[str, Choice | Range]


def parse_space(texts: Sequence[str], option: str = "--over") -> dict[str, Choice | Range]:
    """What each text names, by path.

    Raises:
      InputError: a text that is none of the three forms, or a path given twice.
    """
    space: dict[str, Choice | Range] = {}
    for text in texts:
        path, equals, given = (part.strip() for part in text.partition("="))
        if not equals or path.count(".") != 1 or not given:
            raise InputError(
                f"{option} {shown(text)}: not section.key=...; write algorithm.learning_rate=0.01,0.1 or log:1e-3..1"
            )
        if path in space:
            raise InputError(f"{option} {path}: given twice; write all its values behind one {option}")
        log, span = given.startswith("log:"), given.removeprefix("log:").split("..")
        if len(span) == 2:
            space[path] = _range(option, text, span, log)
        elif log:
            raise InputError(f"{option} {shown(text)}: a range is low..high; write log:1e-3..1 say")
        else:
            space[path] = Choice(tuple(_value(part.strip()) for part in _split(given)))
    return space


def _split(text: str) -> list[str]:
    """At the commas outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _value(text: str) -> Any:
    try:
        return parse_toml(f"value = {text}")["value"]
    except ValueError:
        return text


def _range(option: str, text: str, span: list[str], log: bool) -> Range:
    ends = [_value(part.strip()) for part in span]
    if not all(type(end) in (int, float) and -LARGEST < end < LARGEST for end in ends):
        raise InputError(f"{option} {shown(text)}: its ends are no numbers below 1e15; write low..high, 0.01..1 say")
    low, high = ends
    if not low < high or (log and low <= 0):
        raise InputError(
            f"{option} {shown(text)}: give a low end below the high one{', and over 0 for log:' if log else ''}"
        )
    return Range(float(low), float(high), log, all(isinstance(end, int) for end in ends))


def refuse_many(option: str, *factors: int) -> None:
    """No more trials than can be waited for, so that lists of them fit in memory.

    Raises:
      InputError: the product of the factors is larger.
    """
    if (count := math.prod(factors)) > MOST_TRIALS:
        raise InputError(f"{option}: {shown(count)} trials are more than the {MOST_TRIALS:,} allowed; give fewer")


def grid(space: Space) -> list[dict[str, Any]]:
    """Every combination.

    Raises:
      InputError: a range, which has no end of values, or more combinations than can be waited for.
    """
    for path, entry in space.items():
        if isinstance(entry, Range):
            raise InputError(f"--over {path}: a range has no grid; list its values, or give --samples")
    refuse_many("--over", *(len(entry.values) for entry in space.values() if isinstance(entry, Choice)))
    values = [entry.values for entry in space.values() if isinstance(entry, Choice)]
    return [dict(zip(space, combination, strict=True)) for combination in itertools.product(*values)]


def sample(space: Space, count: int, seed: int) -> list[dict[str, Any]]:
    """`count` combinations drawn independently and uniformly; one is a function of its number and the seed.

    Raises:
      InputError: more than can be waited for.
    """
    refuse_many("--samples", count)
    return [
        {path: _drawn(entry, np.random.default_rng([seed, number, place]))
         for place, (path, entry) in enumerate(space.items())}
        for number in range(count)
    ]  # fmt: skip


def _drawn(entry: Choice | Range, rng: np.random.Generator) -> Any:
    if isinstance(entry, Choice):
        return entry.values[int(rng.integers(len(entry.values)))]
    if entry.whole and not entry.log:
        return int(rng.integers(int(entry.low), int(entry.high) + 1))
    low, high = (math.log(entry.low), math.log(entry.high)) if entry.log else (entry.low, entry.high)
    value = float(rng.uniform(low, high))
    value = math.exp(value) if entry.log else value
    return round(value) if entry.whole else value
