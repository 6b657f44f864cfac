"""Figures of one run or of several, each one panel that is readable on a phone, as SVG."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.experiment.history import is_number
from fedjax_sim.plots.style import BLUE, GREEN, GREY, ORANGE, POINTS, as_label, new_figure, panel, svg, thin
from fedjax_sim.report.compare import Group, mean_curve
from fedjax_sim.report.facts import best_of
from fedjax_sim.report.read import Run

MARKED = 40  # points up to which each has a marker
COLORS = (BLUE, ORANGE, GREEN, "#7b4fa3", "#b8255f", "#8a6d1f", "#2a9db0", GREY)
STYLES = ("-", "--", ":", "-.")
WIDTH, HEIGHT = 4.6, 3.1  # inches


class Figure(NamedTuple):
    """A picture and what it shows."""

    svg: str
    caption: str


Values = Sequence[float] | np.ndarray
Line = tuple[str | None, Values, Values]  # label, places, values


def start(title: str, label: str, across: str = "round", height: float = HEIGHT) -> tuple[Any, Any]:
    """A figure of one panel, and its axes."""
    figure = new_figure(WIDTH, height)
    axis = panel(figure.subplots(), title, label)
    axis.set_xlabel(across, fontsize=9)
    return figure, axis


def lines(
    name: str,
    title: str,
    label: str,
    drawn: Sequence[Line],
    caption: str,
    *,
    across: str = "round",
    percent: bool = False,
    spreads: Mapping[int, Values] | None = None,
    from_zero: bool = False,
) -> Figure | None:
    """Curves in one panel, None where there is nothing to draw; `spreads` are half widths of a band around a line."""
    if not any(len(x) for _, x, _ in drawn):
        return None
    figure, axis = start(title, label, across)
    for i, (text, x, y) in enumerate(drawn):
        if not len(x):
            continue
        color, style = COLORS[i % len(COLORS)], STYLES[i // len(COLORS) % len(STYLES)]
        band = (spreads or {}).get(i)
        if band is not None and np.any(band):
            step = max(1, -(-len(x) // POINTS))
            places, middle, half = (np.asarray(values, float)[::step] for values in (x, y, band))
            axis.fill_between(places, middle - half, middle + half, color=color, alpha=0.18, linewidth=0)
        marker = {"marker": "o", "markersize": 3} if len(x) <= MARKED else {}
        axis.plot(*thin(x, y), color=color, linestyle=style, label=text, linewidth=1.4, **marker)
    every = np.concatenate([np.asarray(y, float) for _, _, y in drawn])
    lowest, highest = every.min(), every.max()
    if percent:
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        if highest - lowest < 0.05:
            axis.set_ylim(lowest - 0.03, highest + 0.03)
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:.1%}")
    elif lowest > 0 and highest > 30 * lowest:
        axis.set_yscale("log")
    elif from_zero:
        axis.set_ylim(bottom=min(0.0, lowest))
    if across == "round":
        axis.xaxis.get_major_locator().set_params(integer=True)
    legend(figure, axis)
    return Figure(svg(figure, name, f"{title}. {caption}"), caption)


def legend(figure: Any, axis: Any) -> None:
    """What colours mean, below the panel, where it hides nothing."""
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        columns = 1 if max(map(len, labels)) > 34 else 2
        figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(labels) // columns))
        figure.legend(handles, labels, loc="outside lower left", ncols=columns, fontsize=8, frameon=False)


def curves(run: Run) -> list[Figure | None]:
    """Accuracy and loss."""
    history = run.history
    rounds, values = history.column("test_accuracy")
    best = ""
    if (at := best_of(history)) is not None:
        best = f"; the best round, {rounds[at]:,.0f}, reaches {values[at]:.1%}"
    drawn: list[Line] = [(None, rounds, values)]
    beside = (("mean over classes", "test_balanced_accuracy"), ("the most frequent class", "test_majority"))
    others = [(text, *history.column(name)) for text, name in beside if len(history.column(name)[0])]
    drawn = [("all examples", rounds, values), *others] if others else drawn
    losses = (("clients, first local step", "loss_before"), ("clients, last local step", "loss_after"),
              ("test set", "test_loss"))  # fmt: skip
    return [
        lines("accuracy", "Test accuracy", "share classified rightly", drawn,
              f"The global model on the test set{best}.", percent=True),
        lines("loss", "Loss", "per example", [(text, *history.column(name)) for text, name in losses],
              "First step: the global model on the clients' data. Last step: each client's own model on its data."),
    ]  # fmt: skip


def movement(run: Run) -> list[Figure | None]:
    """What clients do to the model."""
    history = run.history
    return [
        lines("norms", "Size of the updates", "L2 norm",
              [("mean over clients", *history.column("update_norm")),
               ("their aggregate", *history.column("aggregate_norm"))],
              "An aggregate far below the mean: updates cancel each other. With noise, the aggregate holds it.",
              from_zero=True),
        lines("cosine", "Agreement of clients", "cosine", [(None, *history.column("cosine"))],
              "Mean cosine of a client's update to the aggregate: 1 all point the same way, 0 they are unrelated."),
        lines("diversity", "Gradient diversity", "ratio", [(None, *history.column("gradient_diversity"))],
              "Mean squared norm of updates over the squared norm of their mean: 1 where all agree, about the "
              "number of clients where updates are unrelated."),
        lines("drift", "Drift", "L2 norm", [(None, *history.column("drift"))],
              "How far clients end from the model they received, on average.", from_zero=True),
    ]  # fmt: skip


def by_class(run: Run) -> Figure | None:
    """Accuracy on each class: over the evaluations as a heat map, or bars of the only one."""
    found = [(r, values) for r, values in zip(*run.history.lists("test_class_accuracy"), strict=True) if values]
    found = [(r, values) for r, values in found if len(values) == len(found[-1][1])]
    if not found:
        return None
    classes = len(found[-1][1])
    table = np.array([[v if is_number(v) else np.nan for v in values] for _, values in found], float).T
    height = min(max(HEIGHT, 0.9 + 0.2 * classes), 9.0)
    if len(found) == 1:
        figure, axis = start("Accuracy by class", "class", "share classified rightly", height)
        axis.barh(range(classes), np.nan_to_num(table[:, 0]), color=BLUE)
        axis.set_xlim(0, 1)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    else:
        parts = np.array_split(table, min(len(found), 150), axis=1)  # of many evaluations, means of neighbours
        from matplotlib import colormaps  # of few colours: a bar of many would be an image of pixels

        figure, axis = start("Accuracy by class", "class", "round", height)
        axis.grid(visible=False)
        centers = np.array([np.mean(part) for part in np.array_split([r for r, _ in found], len(parts))])
        between = (centers[1:] + centers[:-1]) / 2
        edges = np.concatenate([2 * centers[:1] - between[:1], between, 2 * centers[-1:] - between[-1:]])
        means = np.column_stack([part.mean(1) for part in parts])
        colors = colormaps["viridis"].resampled(40)
        image = axis.pcolormesh(edges, np.arange(classes + 1) - 0.5, means, cmap=colors, vmin=0, vmax=1)
        image.set_edgecolor("face")  # no seams
        bar = figure.colorbar(image, ax=axis, format=lambda value, _: f"{value:.0%}")
        bar.ax.tick_params(labelsize=8)
    if classes <= 40:
        axis.set_yticks(range(classes))
    axis.invert_yaxis()
    last = table[:, -1]
    caption = "Share of each class of the test set that is classified rightly."
    if np.isfinite(last).any():
        worst = int(np.nanargmin(last))
        caption += f" At the end class {worst} is the worst with {last[worst]:.1%}."
    return Figure(svg(figure, "classes", f"Accuracy by class. {caption}"), caption)


# --- several runs ----------------------------------------------------------------------------------------------------


def compared_curves(groups: Sequence[Group]) -> list[Figure | None]:
    """Accuracy and losses of groups, mean and spread over seeds."""
    replicated = any(len(g.runs) > 1 for g in groups)
    caption = "Mean over seeds; bands are one standard deviation." if replicated else "One run each."
    found = []
    for name, title, label in (("test_accuracy", "Test accuracy", "share classified rightly"),
                               ("test_loss", "Test loss", "per example"),
                               ("loss_before", "Loss of the global model on clients", "per example")):  # fmt: skip
        means = [mean_curve(g, name) for g in groups]
        drawn = [(as_label(g.label, 60), x, y) for g, (x, y, _) in zip(groups, means, strict=True)]
        bands = {i: band for i, (_, _, band) in enumerate(means)}
        percent = name == "test_accuracy"
        found.append(lines(name.replace("_", "-"), title, label, drawn, caption, spreads=bands, percent=percent))
    return found


def compared_costs(groups: Sequence[Group]) -> list[Figure | None]:
    """Accuracy by what was sent, and by simulated time; a line for each run."""
    several = any(len(g.runs) > 1 for g in groups)
    caption = "The run with the lowest seed of each." if several else "One run each."
    by_bytes, by_time = zip(*(costs(g.runs[0]) for g in groups), strict=True)
    labels = [as_label(g.label, 60) for g in groups]
    unit, by_time = clocked(by_time)
    return [
        lines("cost-bytes", "Accuracy by what was sent", "test accuracy",
              [(label, *xy) for label, xy in zip(labels, by_bytes, strict=True)], caption,
              across="MB, both ways", percent=True),
        lines("cost-time", "Accuracy by simulated time", "test accuracy",
              [(label, *xy) for label, xy in zip(labels, by_time, strict=True)], caption, across=unit, percent=True),
    ]  # fmt: skip


Curve = tuple[np.ndarray, np.ndarray]


def clocked(curves: Sequence[Curve]) -> tuple[str, list[Curve]]:
    """Curves by seconds in a unit that fits, and its name."""
    longest = max((x[-1] for x, _ in curves if len(x)), default=0.0)
    unit, length = next((u for u in (("hours", 3600.0), ("minutes", 60.0)) if longest >= 2 * u[1]), ("seconds", 1.0))
    return f"simulated {unit}", [(x / length, y) for x, y in curves]


def costs(run: Run) -> tuple[Curve, Curve]:
    """Accuracies by megabytes sent until then, and by simulated seconds."""
    accuracy, seconds = (run.history.every(name) for name in ("test_accuracy", "simulated_seconds"))
    up, down = (np.nan_to_num(run.history.every(f"{way}_bits")) for way in ("uplink", "downlink"))
    sent = (up + down).cumsum() / 8e6
    tested = ~np.isnan(accuracy)
    timed = tested & ~np.isnan(seconds)
    return (sent[tested], accuracy[tested]), (seconds[timed], accuracy[timed])
