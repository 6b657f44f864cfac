"""The command line. Heavy imports happen inside the commands, so that help and errors are quick."""

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, cast

import typer

app = typer.Typer(
    name="fedjax-sim",
    help="Simulates federated learning, fast.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigPath = Annotated[
    Path | None, typer.Argument(help="TOML file; without it, the default experiment.", metavar="CONFIG")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Changes one setting, such as training.rounds=50; may be repeated."
    ),
]

# click's UsageError, or that of the copy of click which newer versions of typer bring along
USAGE_ERRORS = cast(tuple[type[Exception], ...], typer.BadParameter.__bases__)


@app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    """Simulates federated learning, fast."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def run(config: ConfigPath = None, overrides: Overrides = None) -> None:
    """Trains a federation and writes a run folder with history, summary and curves.

    Exit status: 0 when finished, 2 for bad input, 3 when the model diverged, 130 when interrupted.
    """
    from fedjax_sim.core.devices import use_cpu_devices
    from fedjax_sim.experiment.config import load_config

    settings = load_config(config, overrides or [])
    asked, cores = settings.execution.devices, use_cpu_devices()  # before anything below starts JAX
    if asked != "auto" and asked < cores:
        use_cpu_devices(asked)

    from rich.console import Console

    from fedjax_sim.experiment.progress import STATUS, closing, reporter
    from fedjax_sim.experiment.run import run as run_experiment
    from fedjax_sim.plots import curves

    console = Console()
    title = f"{settings.algorithm.name} on {settings.data.name}, {settings.model.name}"
    summary = run_experiment(
        settings,
        reporter(console, settings.training.rounds),
        draw=lambda rows, path: curves(rows, path, title=title),
    )
    for line in closing(summary, settings.training.rounds):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if summary.status == "interrupted":
        _leave(STATUS[summary.status])
    raise typer.Exit(STATUS[summary.status])


@app.command("config")
def show_config(config: ConfigPath = None, overrides: Overrides = None) -> None:
    """Prints the configuration that `run` would use, with the meaning of every setting, as TOML to start from."""
    from fedjax_sim.experiment.config import load_config, to_toml

    typer.echo(to_toml(load_config(config, overrides or []), comments=True), nl=False)


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
        console.print(title, highlight=False, markup=False)
        for table in tables(phase.data, about):
            console.print(table)
        console.print(f"Drawn in {portrait(phase.data, about, path, title=title)}", highlight=False, markup=False)


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
    from fedjax_sim._validate import InputError
    from fedjax_sim.data import save
    from fedjax_sim.experiment.config import load_config
    from fedjax_sim.experiment.federation import make_federation

    phase, *later = make_federation(load_config(config, overrides or [])).phases
    if later:
        raise InputError("heterogeneity.drift: a federation on disk does not change; leave it out, or write two")
    save(folder, phase.data)
    typer.echo(f"Written to {folder}; use it with --set data.name=store --set data.path={folder}")


def _writable(path: Path) -> None:
    from fedjax_sim._validate import InputError

    if path.suffix.lower() != ".png":
        raise InputError(f"--picture {str(path)!r}: it must end in .png; give another name")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--picture {str(path)!r}: {str(path.absolute().parent)!r} is no folder; make it first")


def _one_line(message: Any, *_: Any, **__: Any) -> None:
    print(f"warning: {' '.join(str(message).splitlines())}", file=sys.stderr)


def main() -> None:
    """The entry point: bad input is one line on stderr and exit status 2, never a traceback."""
    warnings.showwarning = _one_line
    try:
        sys.exit(app(standalone_mode=False))
    except USAGE_ERRORS as error:  # how the command was written
        _fail(getattr(error, "format_message", error.__str__)())
    except ValueError as error:
        from fedjax_sim._validate import InputError

        if not isinstance(error, InputError):
            raise
        _fail(error)
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # whoever read the output has gone, `head` for instance
            os._exit(141)
        name = f"{error.filename}: " if error.filename else ""
        _fail(f"{name}{error.strerror or error}; make room, or give another place")
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        _leave(130)


def _leave(status: int) -> None:
    """Exits at once: JAX crashes in its tear-down when a compilation was interrupted."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _fail(message: Any) -> None:
    print(f"error: {' '.join(str(message).splitlines())}", file=sys.stderr)
    sys.exit(2)
