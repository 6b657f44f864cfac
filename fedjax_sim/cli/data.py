"""Commands about data: `data show`, `data fetch` and `data write`."""

from pathlib import Path
from typing import Annotated

import typer

from fedjax_sim.cli.program import ConfigPath, Overrides, app

data = typer.Typer(help="Looks at federations, fetches data sets, and writes federations to disk.")
app.add_typer(data, name="data")


@data.command("show")
def show_data(
    config: ConfigPath = None,
    overrides: Overrides = None,
    picture: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("federation.png"),
) -> None:
    """Prints what the federation of a configuration is like, and draws it."""
    from rich.console import Console

    from fedjax_sim._text import say
    from fedjax_sim.data import describe
    from fedjax_sim.experiment.config import load_config
    from fedjax_sim.experiment.federation import make_federation
    from fedjax_sim.experiment.show import tables
    from fedjax_sim.plots import portrait

    settings = load_config(config, overrides or [])
    _writable(picture)
    console = Console()
    federation = make_federation(settings)
    for i, phase in enumerate(federation.phases):
        about = describe(phase.data)
        path = picture if i == 0 else picture.with_name(f"{picture.stem}_round_{phase.start + 1}{picture.suffix}")
        since = f", from round {phase.start + 1}" if len(federation.phases) > 1 else ""
        title = f"{phase.data.source}, partition {federation.config.data.partition}{since}"
        say(console, title)
        for table in tables(phase.data, about):
            console.print(table)
        say(console, f"Drawn in {portrait(phase.data, about, path, title=title)}")


@data.command("fetch")
def fetch_data(name: Annotated[str, typer.Argument(help="Data set; `list` prints which there are.")]) -> None:
    """Downloads a public data set into the cache folder, checks its sums, and resumes where it was interrupted."""
    from fedjax_sim.data.sources.fetch import FILES, fetch
    from fedjax_sim.experiment.progress import download

    if name == "list":
        typer.echo("\n".join(sorted(FILES)))
        return
    with download() as progress:
        folder = fetch(name, progress=progress)
    typer.echo(f"{name} is in {folder}; use it with --set data.name={name}")


@data.command("write")
def write_data(
    folder: Annotated[Path, typer.Argument(help="Folder to write, which must not exist yet.")],
    config: ConfigPath = None,
    overrides: Overrides = None,
) -> None:
    """Writes the federation of a configuration to disk, for `data.name=store` and other programs."""
    from fedjax_sim._text import clean
    from fedjax_sim._validate import InputError
    from fedjax_sim.data import save
    from fedjax_sim.experiment.config import load_config
    from fedjax_sim.experiment.federation import make_federation

    phase, *later = make_federation(load_config(config, overrides or [])).phases
    if later:
        raise InputError("heterogeneity.drift: a federation on disk does not change; leave it out, or write two")
    save(folder, phase.data)
    typer.echo(clean(f"Written to {folder}; use it with --set data.name=store --set data.path={folder}"))


def _writable(path: Path) -> None:
    from fedjax_sim._validate import InputError

    if path.suffix.lower() != ".png":
        raise InputError(f"--picture {str(path)!r}: it must end in .png; give another name")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--picture {str(path)!r}: {str(path.absolute().parent)!r} is no folder; make it first")
