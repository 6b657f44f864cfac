"""A table of shares as a picture: every cell coloured, and its number written into it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.plots.style import as_label, new_figure, save


def matrix(values: Any, rows: Sequence[str], columns: Sequence[str], path: str | Path, *, title: str = "") -> Path:
    """Shares from 0 to 1 by row and column, as a PNG.

    Args:
      values: [rows, columns]; NaN is left white.
      rows: their names.
      columns: theirs.
      path: the file to write.
      title: what the numbers are.

    Returns:
      `path`.
    """
    values = np.asarray(values, float)
    figure = new_figure(2.6 + 0.95 * len(columns), 1.7 + 0.42 * len(rows), title)
    axis = figure.subplots()
    shown = axis.imshow(values, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            axis.text(j, i, f"{value:.0%}", ha="center", va="center", fontsize=9,
                      color="white" if value < 0.55 else "black")  # fmt: skip
    axis.set_xticks(
        range(len(columns)),
        [as_label(name, 40) for name in columns],
        fontsize=9,
        rotation=30,
        ha="right",
        rotation_mode="anchor",
    )
    axis.set_yticks(range(len(rows)), [as_label(name, 40) for name in rows], fontsize=9)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=1.5)
    axis.tick_params(which="minor", length=0)
    bar = figure.colorbar(shown, ax=axis, fraction=0.025, pad=0.02, format=lambda value, _: f"{value:.0%}")
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    save(figure, path)
    return Path(path)
