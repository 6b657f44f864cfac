"""What privacy costs: accuracy against epsilon, one line per mechanism, with its spread over seeds."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.plots.style import BLUE, GREEN, GREY, ORANGE, as_label, new_figure, panel, save


def tradeoff(
    accuracies: Mapping[str, Any], epsilons: Sequence[float], path: str | Path, *, chance: float, title: str = ""
) -> Path:
    """Accuracies by mechanism, [epsilons, seeds] each, as a PNG; an infinite epsilon is drawn as no noise.

    Args:
      accuracies: shares from 0 to 1, by the name of the mechanism; at most four.
      epsilons: in the order of the rows, infinity last.
      path: the file to write.
      chance: accuracy of guessing, drawn as a line.
      title: what was trained.

    Returns:
      `path`.
    """
    figure = new_figure(7.5, 4.6, title)
    axis = panel(figure.subplots(), "Accuracy by privacy budget", "test accuracy")
    places = np.arange(len(epsilons))
    for (name, values), color, marker in zip(
        accuracies.items(), (BLUE, ORANGE, GREEN, GREY), ("o", "s", "^", "D"), strict=False
    ):
        values = np.asarray(values, float)
        mean, spread = values.mean(axis=1), values.std(axis=1, ddof=1) if values.shape[1] > 1 else 0 * values[:, 0]
        axis.errorbar(
            places, mean, yerr=spread, color=color, marker=marker, capsize=3, linewidth=1.8, label=as_label(name, 40)
        )
    axis.axhline(chance, color=GREY, linewidth=1, linestyle=":", label="guessing")
    names = ["no noise" if math.isinf(epsilon) else f"{epsilon:g}" for epsilon in epsilons]
    axis.set_xticks(places, names)
    axis.set_xlabel("epsilon: less is more private", fontsize=9)
    axis.set_ylim(0, 1)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.legend(fontsize=9, frameon=False, loc="upper left")
    save(figure, path)
    return Path(path)
