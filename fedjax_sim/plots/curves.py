"""The course of a run, from recorded rows and never from a live object."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.experiment.history import History, Row
from fedjax_sim.plots.style import BLUE, GREEN, GREY, ORANGE, new_figure, panel, save, thin


def curves(history: History | Sequence[Row], path: str | Path, *, title: str = "") -> Path:
    """Accuracy, losses, and how far and how unanimously clients move the model, by round, as a PNG of 1500 x 1050
    pixels.

    Args:
      history: the rounds, or their rows; quantities that were never measured are left out.
      path: the file to write.
      title: what the run was.

    Returns:
      `path`.
    """
    rows = history if isinstance(history, History) else History(history)
    figure = new_figure(10, 7, title)
    axes = figure.subplots(2, 2, sharex=True)

    accuracy = panel(axes[0, 0], "Test accuracy", "share classified rightly")
    rounds, shares = rows.column("test_accuracy")
    accuracy.plot(*thin(rounds, shares), color=BLUE, label="all examples", marker="o", markersize=3)
    _line(accuracy, rows, "test_balanced_accuracy", "mean over classes", GREEN)
    _line(accuracy, rows, "test_majority", "always the most frequent class", ORANGE, linestyle="--")
    _legend(accuracy)
    accuracy.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    accuracy.set_ylim(0, 1.02)
    if len(shares):
        chosen = np.flatnonzero(rounds == rows.latest("best_round"))
        best = chosen[0] if len(chosen) else shares.argmax()
        accuracy.axhline(shares[best], color=GREY, linewidth=0.8, linestyle=":")
        text = f"best {shares[best]:.1%}, round {rounds[best]:.0f}"
        accuracy.annotate(text, (0.98, 0.06), xycoords="axes fraction", ha="right", color=GREY, fontsize=9)
    else:
        accuracy.annotate("not evaluated yet", (0.5, 0.5), xycoords="axes fraction", ha="center", color=GREY)

    loss = panel(axes[0, 1], "Loss", "cross-entropy, nats per example")
    _line(loss, rows, "loss_before", "clients, first local step (global model)", ORANGE)
    _line(loss, rows, "loss_after", "clients, last local step (own model)", GREEN, alpha=0.5)
    _line(loss, rows, "test_loss", "test set (global model)", BLUE, marker="o", markersize=3)
    _legend(loss)
    _log_if_wide(loss, rows, ("loss_before", "loss_after", "test_loss"))

    norms = panel(axes[1, 0], "Size of the updates", "L2 norm")
    _line(norms, rows, "update_norm", "mean over clients", ORANGE)
    _line(norms, rows, "aggregate_norm", "aggregate", BLUE)
    norms.set_ylim(bottom=0)
    _legend(norms)

    diversity = panel(axes[1, 1], "Gradient diversity", "mean squared norm / squared mean's norm")
    _line(diversity, rows, "gradient_diversity", None, GREEN)
    clients = (rows.last or {}).get("clients", 1)
    _level(diversity, 1, "1: all clients agree")
    if clients > 1:
        _level(diversity, clients, f"{clients}: unrelated updates of {clients} equal clients")
    _log_if_wide(diversity, rows, ("gradient_diversity",))

    for axis in axes.flat:
        axis.tick_params(labelbottom=True)
        axis.set_xlabel("round")
        axis.xaxis.get_major_locator().set_params(integer=True)
    save(figure, path)
    return Path(path)


def _line(axis: Any, rows: History, name: str, label: str | None, color: str, **style: Any) -> None:
    rounds, values = thin(*rows.column(name))
    if len(values):
        style = {"marker": "o", "markersize": 3} if len(values) == 1 else style
        axis.plot(rounds, values, color=color, label=label, linewidth=1.4, **style)


def _level(axis: Any, value: float, meaning: str) -> None:
    axis.axhline(value, color=GREY, linewidth=1, linestyle=":", zorder=3)
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    place = {"xycoords": ("axes fraction", "data"), "xytext": (0, 3), "textcoords": "offset points", "va": "bottom"}
    axis.annotate(meaning, (0.01, value), color=GREY, fontsize=8, bbox=box, zorder=4, **place)


def _legend(axis: Any) -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8, frameon=False)


def _log_if_wide(axis: Any, rows: History, names: Sequence[str]) -> None:
    values = np.concatenate([rows.column(name)[1] for name in names])
    if len(values) and values.min() > 0 and values.max() > 30 * values.min():
        axis.set_yscale("log")
