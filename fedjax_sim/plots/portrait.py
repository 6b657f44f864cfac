"""A federation at a glance: labels by client, sizes, and what the inputs look like from client to client."""

from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.data import FederatedData, Heterogeneity
from fedjax_sim.plots.style import BLUE, GREY, as_label, new_figure, panel, save

BARS = 60  # clients up to which each has a bar of its own
NAMED = 24  # clients up to which names are written
SAMPLE, BINS = 10_000, 150  # clients looked at, and bars of their means, where there are more
LEGEND = 12  # classes shown apart; the others are one
STRIPS, TILES = 6, 10  # clients and examples in the strip of images
OTHERS = "#c9ccd1"


def portrait(data: FederatedData, about: Heterogeneity, path: str | Path, *, title: str = "") -> Path:
    """Labels by client as stacked bars, sizes, and a strip of images (or, of tables, feature means), as a PNG.

    Args:
      data: the federation.
      about: what `describe` said of it.
      path: the file to write.
      title: what it is.

    Returns:
      `path`.
    """
    shown = _shown(data)
    counts = None if data.classes is None or "labels" not in data.examples else _label_counts(data, shown)
    inputs = data.examples.get("inputs")
    below = 0.0 if inputs is None else 0.55 * min(STRIPS, len(shown)) + 0.7 if inputs.ndim == 4 else 3.2
    if inputs is not None and inputs.ndim not in (2, 4):
        below = 0.0
    figure = new_figure(10, 6.0 + below, title or data.source)
    figure.supxlabel(_caption(about), fontsize=9, color=GREY, x=0.01, ha="left")
    parts = figure.subfigures(3 if below else 2, 1, height_ratios=[3.4, 2.4, below][: 3 if below else 2])
    order = np.arange(len(shown)) if counts is None else _order(counts, len(shown) > BARS)
    _labels(parts[0].subplots(), data, shown[order], None if counts is None else counts[order])
    _sizes(parts[1].subplots(), data, shown[order])
    if below and inputs is not None:
        (_images if inputs.ndim == 4 else _features)(parts[2], data, shown)
    save(figure, path)
    return Path(path)


def _shown(data: FederatedData) -> np.ndarray:
    """The clients in the figure: all, or evenly spaced ones."""
    return np.unique(np.linspace(0, data.num_clients - 1, min(SAMPLE, data.num_clients)).astype(np.int64))


def _label_counts(data: FederatedData, clients: np.ndarray) -> np.ndarray:
    return np.stack([np.bincount(data.client(int(i))["labels"], minlength=data.classes or 0) for i in clients])


def _order(counts: np.ndarray, many: bool) -> np.ndarray:
    """Clients as they come where each can be read, else by their most frequent class and its share."""
    if not many:
        return np.arange(len(counts))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    ties = np.random.default_rng(0).random(shares.shape) * 1e-9  # or equal shares would all count for the first class
    return np.lexsort((-shares.max(1), (shares + ties).argmax(1)))


def _caption(about: Heterogeneity) -> str:
    parts = [f"{about.clients:,} clients, {about.examples:,} examples", f"Gini of sizes {about.gini:.2f}"]
    if about.js_divergence is not None:
        parts.append(f"label divergence (Jensen-Shannon) {about.js_divergence:.3f}; {about.js_iid:.3f} if iid")
    if about.feature_shift is not None:
        parts.append(f"feature shift {about.feature_shift:.3f}")
    return "  |  ".join(parts)


def _colors(classes: int) -> list[str]:
    wheel = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bb9955", "#88aa22", "#ddaa99",
             "#225588", "#ee9944", "#7755aa"]  # fmt: skip
    return wheel[:classes]


def _labels(axis: Any, data: FederatedData, clients: np.ndarray, counts: np.ndarray | None) -> None:
    mean = "mean " if len(clients) > BARS else ""
    panel(axis, "Labels", f"{mean}share of the client's examples")
    if counts is None:
        axis.annotate("no classes", (0.5, 0.5), xycoords="axes fraction", ha="center", color=GREY)
        return
    common = np.argsort(-counts.sum(0), kind="stable")[:LEGEND]
    common = np.sort(common)
    rest = counts.sum(1) - counts[:, common].sum(1)
    stacked = np.column_stack([counts[:, common], rest]) / np.maximum(counts.sum(1, keepdims=True), 1)
    colors, names = [*_colors(len(common)), OTHERS], [*(str(c) for c in common), "others"]
    many = len(clients) > BARS
    if many:
        stacked = stacked[stacked.sum(1) > 0]
        stacked = np.stack([part.mean(0) for part in np.array_split(stacked, min(BINS, len(stacked)))])
    bottoms, width, gap = np.cumsum(stacked, 1) - stacked, len(clients) / len(stacked), 0.0 if many else 0.15
    places = (np.arange(len(stacked)) + 0.5) * width - 0.5
    for k, (color, name) in enumerate(zip(colors, names, strict=True)):
        if stacked[:, k].any():
            style = {"color": color, "label": name, "linewidth": 0, "snap": not many}
            axis.bar(places, stacked[:, k], width * (1 - gap), bottom=bottoms[:, k], **style)
    axis.set_ylim(0, 1)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.grid(visible=False)
    each = f"; a bar is the mean of {round(width)}" if many and width > 1.5 else ""
    _client_axis(axis, data, clients, f"clients, sorted by their most frequent class{each}")
    axis.legend(title="class", fontsize=8, title_fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def _client_axis(axis: Any, data: FederatedData, clients: np.ndarray, sorted_by: str) -> None:
    axis.set_xlim(-0.6, len(clients) - 0.4)
    if len(clients) > BARS:
        axis.set_xticks([])
        part = "" if len(clients) == data.num_clients else f" ({len(clients):,} of {data.num_clients:,})"
        axis.set_xlabel(sorted_by + part, fontsize=9)
    elif len(clients) <= NAMED:
        names = [data.name(int(i)) for i in clients]
        plain = all(name == f"client_{i}" for name, i in zip(names, clients, strict=True))
        names = [str(i) for i in clients] if plain else [as_label(name, 18) for name in names]
        turned = {"rotation": 35, "ha": "right"} if max(map(len, names)) * len(names) > 100 else {}
        axis.set_xticks(np.arange(len(clients)), names, fontsize=8, **turned)
        axis.set_xlabel("client", fontsize=9) if plain else None
    else:
        axis.set_xlabel("client", fontsize=9)


def _sizes(axis: Any, data: FederatedData, clients: np.ndarray) -> None:
    sizes = np.asarray(data.sizes)
    if len(clients) <= BARS:
        panel(axis, "Sizes", "examples")
        axis.bar(np.arange(len(clients)), sizes[clients], 0.85, color=BLUE, linewidth=0)
        axis.grid(visible=False, axis="x")
        _client_axis(axis, data, clients, "")
        return
    low, high = max(int(sizes.min()), 1), int(sizes.max())
    if high > 20 * low:  # too wide for bars of equal width
        panel(axis, "Sizes", "share of clients")
        ordered = np.sort(sizes[sizes > 0])
        empty = len(sizes) - len(ordered)
        axis.step(ordered, (empty + np.arange(1, len(ordered) + 1)) / len(sizes), where="post", color=BLUE)
        axis.set_ylim(0, 1.02)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axis.set_xlabel("at most so many examples", fontsize=9)
        without = f", {empty:,} clients without any" if empty else ""
    else:
        panel(axis, "Sizes", "clients")
        step = 1 + (high - low) // 40
        axis.hist(sizes, bins=np.arange(int(sizes.min()), high + 1 + step, step) - 0.5, color=BLUE, rwidth=0.9)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_xlabel("examples of a client", fontsize=9)
        without = ""
    text = f"median {np.median(sizes):,.0f}{without}"
    axis.annotate(text, (1, 1.03), xycoords="axes fraction", color=GREY, fontsize=8, ha="right")


def _images(part: Any, data: FederatedData, clients: np.ndarray) -> None:
    """A row of examples from each of a few clients, one class a column where the client has it."""
    chosen = clients[np.unique(np.linspace(0, len(clients) - 1, STRIPS).astype(int))]
    axes = part.subplots(len(chosen), TILES, squeeze=False)
    part.suptitle("Examples of some clients, by class", fontsize=11, fontweight="bold", x=0.01, ha="left")
    classes = np.arange(data.classes or TILES)[:TILES]
    for number, (row, client) in enumerate(zip(axes, chosen.tolist(), strict=True)):
        held = data.client(client)
        for column, axis in enumerate(row):
            axis.set_axis_off()
            if number == 0 and "labels" in held:
                axis.set_title(f"{classes[column % len(classes)]}", fontsize=8, color=GREY)
            of_class = np.flatnonzero(held["labels"] == classes[column % len(classes)]) if "labels" in held else []
            index = column // len(classes)
            if index < len(of_class):
                image = np.asarray(held["inputs"][of_class[index]])
                top = 255 if image.dtype == np.uint8 else 1.0
                image = np.clip(image.astype(np.float32) / top, 0, 1)
                grey = image.shape[-1] != 3
                axis.imshow(image[..., 0] if grey else image, cmap="gray" if grey else None, vmin=0, vmax=1)
        name = f"client {client}" if data.names is None else data.name(client)
        row[0].annotate(as_label(name, 16), (-0.25, 0.5), xycoords="axes fraction", ha="right", va="center", fontsize=8)


def _features(part: Any, data: FederatedData, clients: np.ndarray) -> None:
    """Each client's feature means, in pooled standard deviations from the pooled mean."""
    chosen = clients[np.unique(np.linspace(0, len(clients) - 1, BARS).astype(int))]
    held = [np.asarray(data.client(int(i))["inputs"], np.float64) for i in chosen]
    pooled = np.concatenate(held)
    kept = np.unique(np.linspace(0, pooled.shape[1] - 1, min(64, pooled.shape[1])).astype(int))
    means = np.stack([x.mean(0) if len(x) else np.full(x.shape[1], np.nan) for x in held])
    shifts = ((means - pooled.mean(0)) / np.maximum(pooled.std(0), 1e-12))[:, kept]
    axis = panel(part.subplots(), "Feature means", "client")
    picture = axis.imshow(shifts, cmap="RdBu_r", vmin=-2, vmax=2, aspect="auto", interpolation="nearest")
    axis.grid(visible=False)
    if np.nanmax(np.abs(shifts), initial=0.0) < 1e-3:
        text = "no differences: every client was standardised by itself"
        axis.annotate(text, (0.5, 0.5), xycoords="axes fraction", ha="center", color=GREY)
    axis.set_xlabel("feature", fontsize=9)
    step = max(1, len(chosen) // 12)
    names = [data.name(int(i)) for i in chosen[::step]]
    axis.set_yticks(
        np.arange(len(chosen))[::step], [as_label(n.removeprefix("client_"), 16) for n in names], fontsize=8
    )
    bar = part.colorbar(picture, ax=axis, pad=0.01)
    bar.set_label("pooled standard deviations", fontsize=8)
    bar.ax.tick_params(labelsize=8)
