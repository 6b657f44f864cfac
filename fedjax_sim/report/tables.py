"""Tables of numbers, the same in the terminal and on the page."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from fedjax_sim._text import say
from fedjax_sim.experiment.covered import SHARED
from fedjax_sim.experiment.history import is_number
from fedjax_sim.report.charts import Part, names
from fedjax_sim.report.compare import Group, difference, of_group, seed
from fedjax_sim.report.facts import Facts, came_last
from fedjax_sim.report.read import Run, clean, defaults
from fedjax_sim.report.words import NONE, duration, share, short, size, value_text

LISTED = 20  # clients in a table at most


class Table(NamedTuple):
    """Cells as text; the first `left` columns are words, the others numbers."""

    header: list[str]
    rows: list[list[str]]
    left: int = 1
    caption: str = ""


FACTS = {  # what is in a table for each run or group, and how it is written
    "accuracy": ("test accuracy", share),
    "balanced_accuracy": ("balanced accuracy", share),
    "auc": ("AUC", short),
    "majority": ("most frequent class", share),
    "best": ("best", share),
    "loss": ("test loss", short),
    "client_loss": ("clients' loss", short),
    "global_accuracy": ("global model on clients' tests", share),
    "global_worst_tenth": ("its worst tenth", share),
    "personal_accuracy": ("personal models on them", share),
    "personal_worst_tenth": ("their worst tenth", share),
    "epsilon": ("epsilon", short),
    "up_bytes": ("sent by clients", size),
    "down_bytes": ("sent by the server", size),
    "simulated_seconds": ("simulated time", duration),
    "seconds": ("wall time", duration),
    "rounds_per_second": ("rounds/s", short),
}


# --- one run ---------------------------------------------------------------------------------------------------------


def overview(run: Run, found: Facts) -> Table:
    """What a run reached, a line each."""
    of = f" of {found.asked_rounds:,}" if found.asked_rounds else ""
    rows = [["status", run.status], ["rounds", f"{found.rounds:,}{of}"]]
    for name, (label, text) in FACTS.items():
        value = getattr(found, name)
        if value is None:
            continue
        if name == "best":
            rows.append(["best test accuracy", f"{text(value)} in round {found.best_round:,}"])
            rows += [["best round", found.chosen]] if found.chosen else []
        else:
            rows.append([label, text(value)])
        if name == "epsilon" and found.guarantee:
            rows.append(["guarantee", found.guarantee])
            if isinstance(text := run.summary.get("not_covered"), str):
                rows.append(["not covered", clean(text)])
    if found.epsilon is None and found.guarantee:
        rows.append(["guarantee", found.guarantee])
    if last := came_last(run).most_common(1):
        (client, times), known = last[0], names(run)
        rows.append(["slowest client", f"{known.get(client, client)}, last in {times:,} of {found.rounds:,} rounds"])
    return Table(["", run.name], rows, left=2)


def worst_clients(run: Run) -> Table | None:
    """The clients the global model serves worst."""
    rows = sorted(run.clients, key=lambda row: row["global_accuracy"])
    cells = [
        [clean(row.get("name", row["client"])), short(_number(row, "test_examples")),
         share(_number(row, "global_accuracy")), share(_number(row, "personal_accuracy"))]
        for row in rows[:LISTED]
    ]  # fmt: skip
    caption = "All clients, the worst first" if len(rows) <= LISTED else f"The worst {LISTED} of {len(rows):,} clients"
    return Table(["client", "test examples", "global model", "personal model"], cells, 1, caption) if rows else None


def slowest(run: Run, parts: Sequence[Part]) -> Table | None:
    """Who held rounds up: came last, came late, or never came."""
    known = names(run)
    timed = any(p.asked is not None for p in parts)
    if not timed:
        rows = [[str(known.get(c, c)), f"{n:,}"] for c, n in came_last(run).most_common(LISTED)]
        return Table(["client", "came last in rounds"], rows, 1, "Whose message came last most often") if rows else None
    found = sorted(parts, key=lambda p: (-p.last, -p.late - p.dropped, p.client))[:LISTED]
    rows = [[str(known.get(p.client, p.client)),
             *(f"{n:,}" for n in (p.last, p.asked or 0, p.counted, p.late, p.dropped))] for p in found]  # fmt: skip
    header = ["client", "came last", "asked", "counted", "late", "dropped"]
    return Table(header, rows, 1, "Rounds of each client, the slowest first")


def changed(run: Run) -> list[Table]:
    """Settings that are not at their default, then those whose default is to be worked out."""
    usual = {k: v for k, v in defaults().items() if not k.startswith("output.")}
    given = {k: v for k, v in run.settings.items() if not k.startswith("output.")}
    set_, worked_out = [], []
    for key, value in given.items():
        if usual.get(key) in (None, "auto") and usual.get(key) != value:
            worked_out.append([key, value_text(value)])
        elif key in usual and usual[key] != value:
            set_.append([key, value_text(value), value_text(usual[key])])
    tables = [Table(["setting", "here", "default"], set_, 3, "Other than the default")] if set_ else []
    if worked_out:
        caption = "Without a fixed default: given, or worked out from data and algorithm"
        tables.append(Table(["setting", "here"], worked_out, 2, caption))
    return tables


def environment(run: Run) -> Table | None:
    """Where it ran."""
    found = run.summary.get("environment")
    rows = [[clean(k), clean(v)] for k, v in found.items()] if isinstance(found, dict) else []
    return Table(["", ""], rows, 2) if rows else None


# --- several runs ----------------------------------------------------------------------------------------------------


def comparison(groups: Sequence[Group]) -> Table:
    """A row for each group: the settings that differ, and means with standard deviations over seeds."""
    keys = list(groups[0].settings)
    several = any(len(g.runs) > 1 for g in groups)
    measured = [name for name in FACTS if any(getattr(f, name) is not None for g in groups for f in g.facts)]
    header = [*(keys or ["run"]), *(["seeds"] if several else []), "status", "rounds"]
    left = len(header) - 1
    shown = len(groups) > 1 and "accuracy" in measured
    for name in measured:
        header.append(FACTS[name][0])
        header += ["to the first, points"] if shown and name == "accuracy" else []
    rows = []
    for g in groups:
        row = [value_text(g.settings[key]) for key in keys] or [g.label]
        row += [", ".join(value_text(r.settings.get("training.seed")) for r in g.runs)] if several else []
        counts = {s: sum(r.status == s for r in g.runs) for s in dict.fromkeys(r.status for r in g.runs)}
        row.append(", ".join(s if len(counts) == 1 else f"{n} {s}" for s, n in counts.items()))
        row.append(", ".join(f"{n:,}" for n in sorted({f.rounds for f in g.facts})))
        for name in measured:
            row.append(_mean(of_group(g, name), FACTS[name][1]))
            row += [_difference(groups[0], g)] if shown and name == "accuracy" else []
        rows.append(row)
    return Table(header, rows, left)


def explained(groups: Sequence[Group]) -> list[str]:
    """How the numbers of a comparison are to be read."""
    words = []
    if any(len(g.runs) > 1 for g in groups):
        words.append("Numbers are means over seeds, ± one standard deviation (over n - 1).")
    if sum(found.epsilon is not None for g in groups for found in g.facts) > 1:
        seeds = [seed(run) for g in groups for run, found in zip(g.runs, g.facts, strict=True)
                 if found.epsilon is not None]  # fmt: skip
        words.append(
            f"Epsilon is of one run. On the same clients, {SHARED}."
            if len({*seeds}) < len(seeds)
            else "Epsilon is of one run: what several runs spend on the same clients adds up, at most to the sum of "
            "their epsilons at the sum of their deltas."
        )
    pairs = [d for g in groups[1:] if (d := difference(groups[0], g)) is not None]
    if any(d.half_width is not None for d in pairs):
        words.append(
            "Differences of the last test accuracy to the first row are paired by seed, with the 95 % interval by "
            "Student's t; an interval that holds 0 leaves open which is better."
        )
    if sum(d.half_width is not None for d in pairs) > 3:
        words.append("Each interval is by itself: of twenty, one misses by chance.")
    if any(d.half_width is None for d in pairs):
        words.append("Differences without an interval are of means: fewer than two seeds are in both.")
    if len({f.rounds for g in groups for f in g.facts}) > 1:
        words.append("Not all ran equally long; last accuracies are those of different rounds.")
    broken = [r.name for g in groups for r in g.runs if r.status in ("diverged", "unfinished", "interrupted")]
    if broken:
        words.append(f"Not finished: {', '.join(broken)}.")
    return words


def members(groups: Sequence[Group]) -> Table:
    """Every run by itself."""
    rows = [
        [g.label, run.name, value_text(run.settings.get("training.seed")), run.status, f"{f.rounds:,}",
         share(f.accuracy), share(f.best), short(f.loss)]
        for g in groups for run, f in zip(g.runs, g.facts, strict=True)
    ]  # fmt: skip
    return Table(["of", "run", "seed", "status", "rounds", "test accuracy", "best", "test loss"], rows, 4)


def _mean(found: tuple[float, float | None] | None, text: Any) -> str:
    if found is None:
        return NONE
    mean, deviation = found
    if deviation is None or text not in (share, short):
        return text(mean)
    return f"{100 * mean:.1f} ± {100 * deviation:.1f}%" if text is share else f"{text(mean)} ± {deviation:.1g}"


def _difference(first: Group, other: Group) -> str:
    if other is first or (found := difference(first, other)) is None:
        return NONE
    if found.half_width is None:
        return f"{found.points:+.1f}"
    return f"{found.points:+.1f} ± {found.half_width:.1f}"


def _number(row: dict[str, Any], name: str) -> float | None:
    return row[name] if is_number(row.get(name)) else None


def printed(console: Any, table: Table, heading: bool = True) -> None:
    """The table on a terminal as rich draws it, on its side where that fits better, elsewhere as aligned text."""
    if not console.is_terminal:
        for line in plain(table, heading):
            say(console, line)
        return
    from rich.table import Table as Rich
    from rich.text import Text

    turned = Table(*_turned(table))
    if heading and max(map(len, plain(table))) > console.width and len(turned.header) < len(table.header):
        table = turned
    shown = Rich(box=None, show_header=heading, padding=(0, 2, 0, 0))
    for i, name in enumerate(table.header):
        shown.add_column(Text(name), justify="left" if i < table.left else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*map(Text, row))
    console.print(shown)


def _turned(table: Table) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table on its side."""
    first, *rows = map(list, zip(table.header, *table.rows, strict=True))
    return first, rows


def plain(table: Table, heading: bool = True) -> Iterator[str]:
    """Lines of aligned text."""
    cells = [table.header, *table.rows] if heading else table.rows
    widths = [max(len(row[i]) for row in cells) for i in range(len(table.header))]
    for row in cells:
        texts = [t.ljust(w) if i < table.left else t.rjust(w) for i, (t, w) in enumerate(zip(row, widths, strict=True))]
        yield "  ".join(texts).rstrip()
