"""A report as one page of HTML that needs nothing but itself."""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_sim._validate import InputError
from fedjax_sim.experiment.folder import write_whole
from fedjax_sim.report import charts, figures, tables
from fedjax_sim.report.compare import Group, difference
from fedjax_sim.report.facts import Facts, ending, verdict
from fedjax_sim.report.figures import Figure
from fedjax_sim.report.read import Run, clean
from fedjax_sim.report.tables import Table

MOODS = {"diverged": "bad", "interrupted": "warn", "unfinished": "warn"}
SPOKEN, LISTED = 4, 6  # experiments that are spoken of one by one, and runs named at the top


class Folded(NamedTuple):
    title: str
    text: str


class Section(NamedTuple):
    """A heading and what is below it; left out where nothing is."""

    id: str
    title: str
    texts: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    folded: Sequence[Folded] = ()


class Page(NamedTuple):
    title: str
    subtitle: str
    mood: str
    verdict: list[str]
    notes: list[str]
    sections: list[Section]


def report_page(run: Run, found: Facts) -> str:
    """The page of one run."""
    parts = charts.parts(run)
    by_class, clients = figures.by_class(run), charts.clients(run)
    config = [Folded("The whole configuration", run.config)] if run.config else []
    sections = [
        Section("results", "Results", tables=[tables.overview(run, found)]),
        _section("curves", "Accuracy and loss", figures.curves(run)),
        _section("movement", "What clients do to the model", figures.movement(run)),
        _section("by-class", "Accuracy by class", [by_class]),
        _section("each-client", "Each client", [clients], [tables.worst_clients(run)]),
        _section("took-part", "Participation", [charts.participation(run, parts)], [tables.slowest(run, parts)]),
        _section("private", "Privacy", charts.privacy(run)),
        _section("sent", "Communication", charts.communication(run)),
        _section("settings", "Settings", [], tables.changed(run))._replace(folded=config),
        _section("environment", "Environment", [], [tables.environment(run)]),
    ]
    mood, told = MOODS.get(run.status, ""), verdict(run, found)
    return render(Page(_title(run), run.folder, mood, told, run.notes, _filled(sections)))


def comparison_page(groups: Sequence[Group], notes: Sequence[str]) -> str:
    """The page of several runs side by side."""
    runs = [run for g in groups for run in g.runs]
    found = [f"{run.folder}: {note}" for run in runs for note in run.notes]
    sections = [
        Section("results", "Results", texts=tables.explained(groups), tables=[tables.comparison(groups)]),
        _section("curves", "Accuracy and loss", figures.compared_curves(groups)),
        _section("sent", "Communication", figures.compared_costs(groups)),
        Section("runs", "Every run", tables=[tables.members(groups)]),
        Section("settings", "Configurations", folded=[
            Folded(f"{g.label}: {g.runs[0].folder}", g.runs[0].config) for g in groups if g.runs[0].config]),
    ]  # fmt: skip
    mood = "warn" if any(run.status in MOODS for run in runs) else ""
    title = f"{len(groups)} experiments compared" if len(groups) > 1 else f"{groups[0].label}: {len(runs)} seeds"
    subtitle = ", ".join(run.folder for run in runs[:LISTED])
    subtitle += f" and {len(runs) - LISTED} more" if len(runs) > LISTED else ""
    return render(Page(title, subtitle, mood, comparison_verdict(groups), [*notes, *found], _filled(sections)))


def comparison_verdict(groups: Sequence[Group]) -> list[str]:
    """Who is ahead, and whether seeds are enough to say so."""
    sentences = []
    reached = [(mean[0], g) for g in groups if (mean := tables.of_group(g, "accuracy")) is not None]
    if not reached:
        return ["No test accuracy was measured."]
    best = max(reached, key=lambda pair: pair[0])
    if len(groups) > 1:
        mean = "mean " if any(len(g.runs) > 1 for g in groups) else ""
        sentences.append(f"{best[1].label} has the highest {mean}test accuracy at the end, {best[0]:.1%}.")
    else:
        sentences.append(f"The mean test accuracy at the end is {best[0]:.1%}.")
    for g in groups[1:] if len(groups) <= SPOKEN else ():  # of more, the table says it
        found = difference(groups[0], g)
        if found is None:
            continue
        to = f"{g.label} against {groups[0].label}: {found.points:+.1f} points"
        if found.half_width is None:
            sentences.append(f"{to}, without replicates that would say how sure that is.")
        else:
            sure = abs(found.points) > found.half_width
            low, high = found.points - found.half_width, found.points + found.half_width
            sentences.append(
                f"{to}, {low:+.1f} to {high:+.1f} at 95 % over {found.seeds} paired seeds"
                f"{'.' if sure else ': that may be chance.'}"
            )
    every = [pair for g in groups for pair in zip(g.runs, g.facts, strict=True) if pair[0].status in MOODS]
    sentences += [f"{run.name}: {ending(run, found)}" for run, found in every[:SPOKEN]]
    if len(every) > SPOKEN:
        sentences.append(f"{len(every) - SPOKEN} more runs did not finish; see below.")
    return sentences


def write_page(path: Path, text: str) -> Path:
    """Writes a page so that it is there whole or not at all, and returns its path."""
    return write_whole(path, text)


def writable(path: Path) -> Path:
    """`path`, when a page may go there.

    Raises:
      InputError: it does not end in .html, is a folder, or lies in none.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--output {str(path)!r}: it must end in .html; give another name")
    if path.is_dir():
        raise InputError(f"--output {str(path)!r}: it is a folder; give a file's name in it")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--output {str(path)!r}: {str(path.absolute().parent)!r} is no folder; make it first")
    return path


def _title(run: Run) -> str:
    named = [run.settings.get(f"{section}.name") for section in ("algorithm", "data", "model")]
    if any(name is None for name in named):
        return run.name
    return f"{run.name}: {clean(named[0])} on {clean(named[1])}, {clean(named[2])}"


def _section(name: str, title: str, drawn: Sequence[Figure | None], listed: Sequence[Table | None] = ()) -> Section:
    return Section(name, title, (), [f for f in drawn if f is not None], [t for t in listed if t is not None])


def _filled(sections: Sequence[Section]) -> list[Section]:
    return [s for s in sections if s.figures or s.tables or s.folded]


@cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    text = files("fedjax_sim.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(text)


def render(page: Page) -> str:
    """The page as HTML."""
    return _template().render(page=page)
