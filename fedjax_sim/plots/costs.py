"""What accuracy costs: against simulated hours and against bytes, one line per way to communicate."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from fedjax_sim.experiment.history import Row
from fedjax_sim.plots.style import BLUE, GREEN, GREY, ORANGE, as_label, new_figure, panel, save


def costs(histories: Mapping[tuple[str, bool], Sequence[Row]], path: str | Path, *, title: str = "") -> Path:
    """Test accuracy by simulated hours and by gigabytes that all clients sent and received, as a PNG.

    Args:
      histories: rows of runs with a simulated clock, by a name, of at most four, and whether messages were compressed;
        compressed ones are drawn dashed. Strong lines are means of up to five evaluations.
      path: the file to write.
      title: what was trained.

    Returns:
      `path`.
    """
    figure = new_figure(11, 4.8, title)
    by_time, by_bytes = figure.subplots(1, 2, sharey=True)
    panel(by_time, "By time on the clients' links and devices", "test accuracy")
    panel(by_bytes, "By what was sent, both ways", "")
    colors = dict(zip(dict.fromkeys(name for name, _ in histories), (BLUE, ORANGE, GREEN, GREY), strict=False))
    lowest = 1.0
    for (name, compressed), rows in histories.items():
        bits = accumulate(row["uplink_bits"] + row["downlink_bits"] for row in rows)
        points = [
            (row["simulated_seconds"] / 3600, sent / 8e9, row["test_accuracy"])
            for row, sent in zip(rows, bits, strict=True)
            if row["test_accuracy"] is not None
        ]
        hours, gigabytes, accuracy = zip(*points, strict=True) if points else ((), (), ())
        style = {"color": colors[name], "linewidth": 1.8, "linestyle": "--" if compressed else "-"}
        text = f"{name}{', compressed' if compressed else ''}"
        for axis, places in ((by_time, hours), (by_bytes, gigabytes)):
            axis.plot(places, accuracy, color=colors[name], linewidth=0.7, alpha=0.18)
            axis.plot(places, _smooth(accuracy), label=as_label(text, 60), **style)
        lowest = min([lowest, *accuracy[len(accuracy) // 10 :]])
    by_time.set_xlabel("simulated hours", fontsize=9)
    by_bytes.set_xlabel("sent by clients and server, logarithmic", fontsize=9)
    by_bytes.set_xscale("log")
    by_bytes.xaxis.set_major_formatter(lambda value, _: f"{value:g} GB" if value >= 1 else f"{1000 * value:g} MB")
    by_time.set_xlim(left=0)
    by_time.set_ylim(max(0.0, lowest - 0.05), None)
    by_time.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    by_time.legend(fontsize=8, frameon=False, loc="lower right")
    save(figure, path)
    return Path(path)


def _smooth(values: Sequence[float], width: int = 5) -> list[float]:
    """Means over what lies around each value, fewer at the ends."""
    reach = [min(width // 2, i, len(values) - 1 - i) for i in range(len(values))]
    return [sum(values[i - r : i + r + 1]) / (2 * r + 1) for i, r in enumerate(reach)]
