"""A diagnosis as a page, as tables, and as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedjax_sim._text import say
from fedjax_sim.diagnose import Diagnosis, Estimate, Suspect, Tried
from fedjax_sim.diagnose.found import HEALTHY
from fedjax_sim.diagnose.words import span
from fedjax_sim.experiment.folder import write_json, write_whole
from fedjax_sim.plots import Fall, draw_waterfall, waterfall
from fedjax_sim.plots.style import svg
from fedjax_sim.report.figures import Figure, lines
from fedjax_sim.report.page import Folded, Page, Section, render, write_page
from fedjax_sim.report.tables import Table, printed
from fedjax_sim.report.words import NONE

SEEN = 0.0005  # accuracy from which on a step is worth a bar


def falls(found: Diagnosis) -> list[Fall]:
    """From the ceiling down to the run: training in one place, or the world without the causes where that is better."""
    place, last = (
        Fall("in one place, tuned rates", None, found.ceiling.mean),
        Fall("the run as it is", None, found.run.mean),
    )
    if found.mended is None or found.unexplained is None:
        return [place, Fall("unexplained", found.ceiling.mean, found.run.mean, quiet=True), last]
    level, steps = found.mended.mean, [place]
    if found.unexplained.mean < 0:
        steps = [Fall("without these causes", None, level)]
    elif found.unexplained.mean > SEEN:
        steps.append(Fall("unexplained", found.ceiling.mean, level, *found.unexplained[1:], quiet=True))
    for suspect in found.suspects:
        if suspect.share is not None and abs(suspect.share.mean) > SEEN:
            steps.append(Fall(suspect.title, level, level - suspect.share.mean, *suspect.share[1:]))
            level -= suspect.share.mean
    return [*steps, last]


def marks(found: Diagnosis) -> dict[str, float]:
    """What is drawn beside: guessing, and training in one place where it is not the first bar."""
    beyond = found.unexplained is not None and found.unexplained.mean < 0
    return {"guessing": found.chance, **({"in one place": found.ceiling.mean} if beyond else {})}


def causes(found: Diagnosis) -> Table:
    """Every cause that was looked for, the costliest first, in points."""
    rows = [[s.title, s.removed, points(s.share), points(s.alone), points(s.added)] for s in found.suspects]
    return Table(["cause", "what was changed", "its share", "gained by that alone", "lost by it alone"], rows, 2,
                 f"Points of accuracy with 95 % intervals over {len(found.seeds)} seeds, paired by seed.")  # fmt: skip


def remedies(found: Diagnosis) -> Table | None:
    """What was tried against them, the best first; None where nothing was."""
    tried: list[Tried] = [*([found.pair] if found.pair is not None else []), *found.remedies]
    if not tried:
        return None
    rows = [[t.name, f"{t.accuracy:.1%}", points(t.gain, True), _settings(t)] for t in tried]
    rows = [[name, settings, accuracy, gain] for name, accuracy, gain, settings in rows]
    return Table(["remedy", "settings", "accuracy", "gain"], rows, 2)


def personal(found: Diagnosis) -> Table | None:
    """Models of the clients' own, the best first; None where none was tried."""
    if not found.personal:
        return None
    rows = [[p.name, f"{p.before:.1%}", f"{p.after:.1%}", points(p.gain, True)] for p in found.personal]
    return Table(["clients' own models", "global model", "own model", "gain"], rows, 1,
                 "Means over clients, each on the test examples that it keeps.")  # fmt: skip


def diagnosis_page(found: Diagnosis) -> str:
    """The diagnosis as one page of HTML that needs nothing but itself."""
    fallen = svg(waterfall(falls(found), marks=marks(found)), "waterfall", "Where accuracy goes")
    caption = "From what can be reached down to the run; each bar is what a cause costs."
    curves = lines(
        "curves", "Accuracy over the rounds", "test accuracy",
        [(name, [r for r, _ in curve], [a for _, a in curve]) for name, curve in found.curves.items()],
        "Means over seeds.", percent=True,
    )  # fmt: skip
    shown = [Figure(fallen, caption), *([curves] if curves else [])]
    tried, matter = remedies(found), [s for s in found.suspects if s.share is not None]
    sections = [
        Section("accuracy", "Where accuracy goes", figures=shown),
        *([Section("causes", "Causes", tables=[causes(found)])] if found.suspects else []),
        *([Section("together", "What causes cost only together", tables=[_interactions(found)])]
          if found.interactions else []),
        *(Section(s.name, f"{s.title}: what the run shows", texts=s.evidence) for s in matter if s.evidence),
        *([Section("remedies", "What helps", texts=["Measured on the run as it is, with nobody's data pooled."],
                   tables=[table for table in (tried, personal(found)) if table is not None])] if tried else []),
        Section("how", "How this was found", texts=_how(found),
                folded=[Folded("A configuration with what helps most", found.config)] if found.config else []),
    ]  # fmt: skip
    mood = "" if found.verdict == HEALTHY else "warn"
    return render(Page(f"Diagnosis: {found.verdict}", found.title, mood, found.sentences, [], sections))


def write_diagnosis(found: Diagnosis, folder: str | Path, *, title: str = "") -> None:
    """Writes diagnosis.json, .html and .png into the folder, and remedy.toml where there is one."""
    folder = Path(folder)
    write_json(folder / "diagnosis.json", found.plain())
    write_page(folder / "diagnosis.html", diagnosis_page(found))
    draw_waterfall(falls(found), folder / "diagnosis.png", marks=marks(found), title=title or found.title)
    if found.config:
        write_whole(folder / "remedy.toml", found.config)


def print_diagnosis(console: Any, found: Diagnosis, folder: Path) -> None:
    """The sentences, the tables, and where everything lies."""
    told = [f"Run what helps with: fedjax-sim run {folder / 'remedy.toml'}"] if found.config else []
    told.append(f"Written to {folder}: diagnosis.html, .json, .png")
    console.print()
    _say(console, found.sentences)
    for table in (causes(found) if found.suspects else None, remedies(found), personal(found)):
        if table is not None:
            console.print()
            printed(console, table)
    console.print()
    _say(console, told)


def _say(console: Any, lines: Sequence[str]) -> None:
    for line in lines:
        say(console, line)


def points(value: Estimate | None, sign: bool = False) -> str:
    """Points of accuracy with their interval."""
    return NONE if value is None else span(value, sign)


def _interactions(found: Diagnosis) -> Table:
    titles = {s.name: s.title for s in found.suspects}
    rows = [[" and ".join(_named(titles, part.names)), points(part.points)] for part in found.interactions]
    return Table(["causes", "points beyond the sum of their parts"], rows, 1)


def _named(titles: dict[str, str], names: Sequence[str]) -> list[str]:
    return [titles[name] if i == 0 else titles[name].lower() for i, name in enumerate(names)]


def _settings(tried: Tried) -> str:
    return ", ".join(f"{path} = {value}" for path, value in tried.settings.items() if value is not None) or NONE


def _how(found: Diagnosis) -> list[str]:
    ways = [_way(s) for s in found.suspects]
    return [
        f"{found.runs} runs of {len(found.seeds)} seeds ({found.seeds[0]} to {found.seeds[-1]}) as {found.programs} "
        f"compiled programs, in {found.seconds:.0f} s. Accuracies are means over the last fifth of the evaluations.",
        "A cause's share is what it costs in the world without the other causes, and its part of what causes cost only "
        "together: the Harsanyi dividends of all combinations, shared alike by the causes that are out of the ordinary "
        "in each, and by all where none is (weighted Shapley values, Kalai and Samet 1987). Causes whose removal gains "
        "nothing sure have no share.",
        *([f"Changed in the other worlds: {'; '.join(ways)}."] if ways else []),
    ]


def _way(suspect: Suspect) -> str:
    return f"{suspect.title.lower()}: {suspect.removed}"
