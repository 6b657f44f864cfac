"""Where accuracy goes: a waterfall from the ceiling down to the run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.plots.style import BLUE, GREY, ORANGE, as_label, new_figure, save

LINE = 30  # letters of a name in a line


class Fall(NamedTuple):
    """A bar: a level that is reached (`start` None), or a way from one level to another."""

    name: str
    start: float | None
    end: float
    low: float | None = None  # interval of the level, or of the length of the way
    high: float | None = None
    quiet: bool = False  # of which nothing is known


def waterfall(falls: Sequence[Fall], *, marks: Mapping[str, float], title: str = "", width: float = 7.5) -> Any:
    """A figure with a bar for each, from the top down; `marks` are accuracies drawn as lines where they are within the
    picture."""
    figure = new_figure(width, 0.9 + 0.46 * len(falls), title)
    axis = figure.subplots()
    levels = [value for fall in falls for value in (fall.start, fall.end) if value is not None]
    lowest, highest = min(levels), max(levels)
    room = max(highest - lowest, 0.02)
    left = max(0.0, lowest - 0.35 * room)
    right = min(1.0, highest) + 0.16 * (highest - left)
    for place, fall in enumerate(falls):
        if fall.start is None:
            axis.barh(place, fall.end - left, left=left, color=BLUE if place == 0 else GREY, height=0.62)
            text, at = f"{fall.end:.1%}", fall.end
        else:
            color = "#c3c8ce" if fall.quiet else ORANGE if fall.end <= fall.start else BLUE
            axis.barh(place, fall.end - fall.start, left=fall.start, color=color, height=0.62)
            text, at = f"{100 * (fall.end - fall.start):+.1f}".replace("-", "\N{MINUS SIGN}"), max(fall.start, fall.end)
            if fall.low is not None and fall.high is not None:  # of the length, drawn at its end
                ends = np.clip(sorted((fall.start - fall.low, fall.start - fall.high)), left, highest + 0.05 * room)
                axis.plot(ends, [place, place], color="#222222", linewidth=1.2)
                at = max(at, float(ends[1]))
        if place + 1 < len(falls):
            axis.plot([fall.end, fall.end], [place, place + 1], color=GREY, linewidth=0.7, linestyle=":", zorder=0)
        axis.text(at + 0.012 * (right - left), place, text, va="center", fontsize=9)
    for name, accuracy in marks.items():
        if left < accuracy < right:
            axis.axvline(accuracy, color=GREY, linewidth=1, linestyle="--", zorder=0)
            axis.text(accuracy, len(falls) - 0.42, f" {name}", fontsize=8, color=GREY, va="bottom")
    axis.set_yticks(range(len(falls)), [fill(as_label(fall.name, 200), LINE) for fall in falls], fontsize=9)
    axis.set_ylim(len(falls) - 0.4, -0.6)
    axis.set_xlim(left, right)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.tick_params(labelsize=9, length=0)
    axis.grid(axis="x", color="#e3e5e8", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.set_xlabel("test accuracy, mean over seeds; lines are 95 % intervals of what a cause costs", fontsize=8.5)
    return figure


def draw_waterfall(falls: Sequence[Fall], path: str | Path, *, marks: Mapping[str, float], title: str = "") -> Path:
    """The same as a PNG; returns `path`."""
    save(waterfall(falls, marks=marks, title=title), path)
    return Path(path)
