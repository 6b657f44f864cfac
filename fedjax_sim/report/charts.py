"""Figures of single clients, of privacy and of communication."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from fedjax_sim.experiment.history import is_number
from fedjax_sim.plots.style import BLUE, GREEN, ORANGE, as_label, svg, thin
from fedjax_sim.report.facts import came_last, worst_tenth
from fedjax_sim.report.figures import HEIGHT, Figure, Line, clocked, costs, legend, lines, start
from fedjax_sim.report.read import Run, clean, number

ENTRIES = 250_000  # of the table of clients that are looked at together
NAMED = 40  # clients up to which each has a row with its name


class Part(NamedTuple):
    """How often a client's message counted, came late, and never came; and how often it was asked and came last."""

    client: int
    counted: int
    late: int
    dropped: int
    asked: int | None
    last: int


def names(run: Run) -> dict[int, str]:
    """What clients are called, where they were tested."""
    return {int(row["client"]): clean(row["name"]) for row in run.clients if row.get("name") is not None}


def clients(run: Run) -> Figure | None:
    """Each tested client's accuracy of the global and of its personal model, the worst first."""
    rows = sorted(run.clients, key=lambda row: row["global_accuracy"])
    if not rows:
        return None
    caption = "Accuracy on each client's own test examples, sorted by that of the global model; "
    count = worst_tenth(rows)
    caption += f"shaded: the worst tenth under the global model, {count} of {len(rows)}."
    kinds = [(kind, [(i, row[name]) for i, row in enumerate(rows) if is_number(row.get(name))])
             for kind, name in (("global", "global_accuracy"), ("personal", "personal_accuracy"))]  # fmt: skip
    few = len(rows) <= NAMED
    height = max(HEIGHT, 0.9 + 0.19 * len(rows)) if few else HEIGHT
    figure, axis = start("Accuracy of each client", "" if few else "accuracy", "accuracy" if few else "client, sorted",
                         height)  # fmt: skip
    shade = axis.axhspan if few else axis.axvspan
    shade(-0.5, count - 0.5, color=ORANGE, alpha=0.12, linewidth=0)
    for kind, points in kinds:
        place, value = thin([i for i, _ in points], [v for _, v in points])
        across, up = (value, place) if few else (place, value)
        style = {"color": BLUE, "marker": "o", "markersize": 6.5 if few else 3, "fillstyle": "none"}  # a ring, for both
        if kind == "personal":  # to be seen where they agree
            style = {"color": GREEN, "marker": "D", "markersize": 3.2 if few else 1.6}
        axis.plot(across, up, label=f"{kind} model", linestyle="", **style)
    shares = axis.xaxis if few else axis.yaxis
    shares.set_major_formatter(lambda value, _: f"{value:.0%}")
    if few:
        axis.set_yticks(range(len(rows)), [as_label(row.get("name", row["client"])) for row in rows], fontsize=8)
        axis.set_ylim(len(rows) - 0.5, -0.5)
    legend(figure, axis)
    return Figure(svg(figure, "clients", f"Accuracy of each client. {caption}"), caption)


def parts(run: Run) -> list[Part]:
    """Who took part how often, from the rows that have single clients' values."""
    if run.table is None:
        return []
    totals = {name: Counter[int]() for name in ("counted", "late", "dropped", "asked")}
    for first in range(0, len(run.table), ENTRIES):
        some = run.table[first : first + ENTRIES]
        clients, place = np.unique(some["client"], return_inverse=True)
        for name, total in totals.items():
            sums = np.bincount(place, some[name]).astype(int).tolist()
            total.update(dict(zip(clients.tolist(), sums, strict=True)))
    last, timed = came_last(run), len(run.history.column("asked")[0]) > 0
    everyone = sorted({*totals["counted"], *last})
    counted, late, dropped, asked = totals.values()
    return [Part(c, counted[c], late[c], dropped[c], asked[c] if timed else None, last[c]) for c in everyone]


def participation(run: Run, found: list[Part]) -> Figure | None:
    """How often each client's message counted, came late and never came."""
    if not found:
        return None
    kinds = [("counted", BLUE), ("late", ORANGE), ("dropped", "#c9ced4")]
    kinds = [(kind, color) for kind, color in kinds if kind == "counted" or any(getattr(p, kind) for p in found)]
    caption = "Rounds in which a client's message counted"
    if len(kinds) > 1:
        caption += ", came late or never came. Late messages count later where stale ones are taken"
    caption += f". {len(found):,} clients were seen."
    if len(found) <= NAMED:
        known = names(run)
        figure, axis = start("Who took part", "client", "rounds", max(HEIGHT, 0.9 + 0.19 * len(found)))
        shapes = {"counted": (0.0, 0.8), "late": (-0.15, 0.25), "dropped": (0.15, 0.25)}  # place in the row, height
        for kind, color in kinds:
            places, many = [i + shapes[kind][0] for i in range(len(found))], [getattr(p, kind) for p in found]
            axis.barh(places, many, shapes[kind][1], color=color, label=kind if len(kinds) > 1 else None)
        axis.set_yticks(range(len(found)), [as_label(known.get(p.client, p.client)) for p in found], fontsize=8)
        axis.set_ylim(len(found) - 0.5, -0.5)
        axis.xaxis.get_major_locator().set_params(integer=True)
        legend(figure, axis)
        return Figure(svg(figure, "participation", f"Who took part. {caption}"), caption)
    drawn = [(kind if len(kinds) > 1 else None, list(range(1, len(found) + 1)),
              sorted((getattr(p, kind) for p in found), reverse=True)) for kind, _ in kinds]  # fmt: skip
    caption += " Each curve is sorted by itself."
    return lines("participation", "Who took part", "rounds", drawn, caption, across="clients, sorted", from_zero=True)


def privacy(run: Run) -> list[Figure | None]:
    """Epsilon, clipping, and what the noise leaves of the signal."""
    history = run.history
    budget = number(run.settings, "privacy.epsilon")
    rounds, spent = history.column("epsilon")
    drawn: list[Line] = [("spent", rounds, spent)]
    if len(rounds) and budget is not None:
        drawn.append(("budget", [rounds[0], rounds[-1]], [budget, budget]))
    every, noise, signal = (history.every(name) for name in ("round", "noise_norm", "signal_norm"))
    both = (noise > 0) & ~np.isnan(signal)
    return [
        lines("epsilon", "Epsilon spent", "epsilon", drawn, "What the rounds until then have cost.", from_zero=True),
        lines("clipped", "Clipped messages", "share", [(None, *history.column("clipped"))],
              "Share of a round's messages whose norm was above the clip norm.", percent=True),
        lines("clip-norm", "Clip norm", "norm", [(None, *_varying(*history.column("clip_norm")))],
              "It follows the clients' updates.", from_zero=True),
        lines("signal", "Signal to noise", "ratio of norms", [(None, every[both], signal[both] / noise[both])],
              "Norm of the clients' summed messages over that of the noise; far below 1, rounds are mostly noise.",
              from_zero=True),
    ]  # fmt: skip


def communication(run: Run) -> list[Figure | None]:
    """What accuracy costs in bytes and simulated time, and how rounds go."""
    by_bytes, by_time = costs(run)
    unit, (by_time,) = clocked([by_time])
    history = run.history
    counts = [(name, *history.column(name)) for name in ("asked", "late", "dropped")]
    return [
        lines("by-bytes", "Accuracy by what was sent", "test accuracy", [(None, *by_bytes)],
              "By megabytes sent until then, by all clients and by the server.", across="MB, both ways", percent=True),
        lines("by-time", "Accuracy by simulated time", "test accuracy", [(None, *by_time)],
              "By time on the clients' links and devices.", across=unit, percent=True),
        lines("round-seconds", "Length of a round", "simulated seconds", [(None, *history.column("round_seconds"))],
              "On the clients' links and devices.", from_zero=True),
        lines("answers", "Who was asked", "clients", [c for c in counts if c[2].any()],
              "Clients asked in a round, and messages that were late or never came.", from_zero=True),
        lines("staleness", "Staleness", "rounds",
              [(label, *history.column(name)) for label, name in (("mean", "staleness"), ("most", "stalest"))
               if history.column(name)[1].any()],
              "How old the models were that arriving updates were computed from.", from_zero=True),
    ]  # fmt: skip


def _varying(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (x, y) if len(np.unique(y)) > 1 else (x[:0], y[:0])
