"""Commands that read run folders: `report` and `compare`."""

from pathlib import Path
from typing import Annotated

import typer

from fedjax_sim.cli.program import app


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a run.", metavar="RUN")],
    output: Annotated[
        Path | None, typer.Option(help="HTML file to write; report.html in the run's folder if left out.")
    ] = None,
) -> None:
    """Prints what a run reached, and writes it as one page of HTML; unfinished runs, too."""
    from rich.console import Console

    from fedjax_sim._text import say
    from fedjax_sim.report.facts import facts
    from fedjax_sim.report.page import report_page, writable, write_page
    from fedjax_sim.report.read import read_run
    from fedjax_sim.report.tables import overview, printed

    found = read_run(folder)
    path, reached, console = writable(output or folder / "report.html"), facts(found), Console()
    printed(console, overview(found, reached), heading=False)
    for line in [*found.notes, f"Written to {write_page(path, report_page(found, reached))}"]:
        say(console, line)


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs, two at least.", metavar="RUN...")],
    output: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("comparison.html"),
) -> None:
    """Prints runs side by side and writes a page of them; those that differ in training.seed alone are one row."""
    from rich.console import Console

    from fedjax_sim._text import say
    from fedjax_sim.report.compare import group
    from fedjax_sim.report.page import comparison_page, writable, write_page
    from fedjax_sim.report.read import read_runs
    from fedjax_sim.report.tables import comparison, explained, printed

    runs = read_runs(folders)
    path = writable(output)
    groups, notes = group(runs)
    console = Console()
    printed(console, comparison(groups))
    of_runs = [f"{run.folder}: {note}" for run in runs for note in run.notes]
    page = write_page(path, comparison_page(groups, notes))
    for line in [*explained(groups), *notes, *of_runs, f"Written to {page}"]:
        say(console, line)
