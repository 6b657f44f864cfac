"""What all figures share. Nothing global in matplotlib is touched."""

import io
import re
import warnings
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim._text import clean
from fedjax_sim.experiment.folder import write_whole

POINTS = 2000  # of a curve at most
BLUE, ORANGE, GREEN, GREY = "#0b6fa4", "#d95f02", "#1b8a5a", "#5f6368"


def new_figure(width: float, height: float, title: str = "") -> Any:
    """A figure of that many inches at 150 dots an inch, drawn without a screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(as_label(title, 200), fontsize=12, x=0.01, ha="left")
    return figure


def as_label(text: Any, longest: int = 26) -> str:
    """Text from elsewhere as a figure may show it: short, on one line, and no dollar begins a formula."""
    shown = clean(text)
    return (shown if len(shown) <= longest else shown[: longest - 1] + "…").replace("$", r"\$")


def save(figure: Any, path: str | Path) -> Path:
    """Writes the figure as a PNG that is there whole or not at all, and returns its path."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a box is drawn instead
        figure.savefig(buffer, format="png")
    return write_whole(Path(path), buffer.getvalue())


def panel(axis: Any, title: str, label: str) -> Any:
    """Titles and a quiet grid for one pair of axes, which is returned."""
    axis.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axis.set_ylabel(label, fontsize=9)
    axis.grid(color="#e3e5e8", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=9)
    return axis


def thin(x: Any, y: Any, most: int = POINTS) -> tuple[list[float], list[float]]:
    """At most `most` of the points: of every stretch its lowest and its highest, and both ends."""
    x, y = np.asarray(x), np.asarray(y, float)
    if len(x) > most:
        kept = {0, len(y) - 1}
        edges = np.linspace(0, len(y), max((most - 2) // 2, 1) + 1).astype(int)
        for first, after in pairwise(edges.tolist()):
            part = y[first:after]
            kept |= {int(first + part.argmin()), int(first + part.argmax())}
        order = sorted(kept)
        x, y = x[order], y[order]
    return x.tolist(), y.tolist()


def svg(figure: Any, name: str, title: str) -> str:
    """The figure as an SVG element of a page, with a title; ids begin with `name`, so that no two figures' clash."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the reader's fonts have it, or a box
        figure.savefig(buffer, format="svg", metadata={"Date": None}, facecolor="white")
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    size = re.search(r'<svg[^>]*?width="([\d.]+)pt"', text)
    wide = f'style="max-width:{1.6 * float(size[1]):.0f}pt"' if size else ""
    head, _, body = text.partition(">")
    head = re.sub(r' (width|height)="[\d.]+pt"', "", head)
    told = f'<title id="{name}-title">{escape(title)}</title>'
    return f'{head} role="img" aria-labelledby="{name}-title" {wide}>{told}{body}'
