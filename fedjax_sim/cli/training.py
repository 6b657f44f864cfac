"""Commands that train: `run`, `resume`, and `config`, which prints what they would use."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fedjax_sim._interrupt import leave
from fedjax_sim.cli.program import ConfigPath, Overrides, app


@app.command()
def run(config: ConfigPath = None, overrides: Overrides = None) -> None:
    """Trains a federation and writes a run folder with history, summary and curves.

    CONFIG may be the folder of a run, which is then repeated.

    Exit status: 0 when finished, 2 for bad input, 3 when the model diverged, 130 when interrupted.
    """
    from fedjax_sim.experiment.config import load_config

    settings = load_config(config, overrides or [])
    _train(settings, None)


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="Folder of a run that was interrupted or killed.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PATH=VALUE", help="Goes on with one setting changed, which is recorded; may be repeated."
        ),
    ] = None,
) -> None:
    """Goes on with a run from its last checkpoint, as if it had never stopped.

    Settings, data and files must be those that it was begun with, unless --set asks for others.
    """
    from fedjax_sim._validate import InputError
    from fedjax_sim.experiment.config import load_config

    if not (folder / "config.toml").is_file():
        raise InputError(f"{folder}: it holds no config.toml; give the folder of a run")
    _train(load_config(folder / "config.toml", overrides or []), folder, overrides or [])


def _train(settings: Any, folder: Path | None, overrides: Sequence[str] = ()) -> None:
    """Runs a configuration, or goes on with the run in `folder`, in front of the user."""
    from fedjax_sim.core.devices import use_cpu_devices

    asked, cores = settings.execution.devices, use_cpu_devices()  # before anything below starts JAX
    if asked != "auto" and asked < cores:
        use_cpu_devices(asked)

    from rich.console import Console

    from fedjax_sim._text import say
    from fedjax_sim.experiment import run as experiment
    from fedjax_sim.experiment.progress import STATUS, closing, reporter, stopping
    from fedjax_sim.plots import curves

    console, rounds = Console(), settings.training.rounds
    title = f"{settings.algorithm.name} on {settings.data.name}, {settings.model.name}"
    told, stop = stopping(reporter(console, rounds))
    how: dict[str, Any] = {"draw": lambda rows, path: curves(rows, path, title=title), "stop": stop}
    if folder is None:
        summary = experiment.run(settings, told, **how)
    else:
        summary = experiment.resume(folder, told, overrides=overrides, **how)
    for line in closing(summary, rounds):
        say(console, line)
    if summary.status == "interrupted":
        leave(text="")
    raise typer.Exit(STATUS[summary.status])


@app.command("config")
def show_config(
    config: ConfigPath = None,
    overrides: Overrides = None,
    explain: Annotated[bool, typer.Option("--explain", help="List what each setting may be, too.")] = False,
) -> None:
    """Prints the configuration that `run` would use, with the meaning of every setting, as TOML to start from."""
    from fedjax_sim.experiment.config import explained, load_config, to_toml

    if explain:
        typer.echo(explained(load_config(config, overrides or [])), nl=False)
        return
    typer.echo(to_toml(load_config(config, overrides or []), comments=True), nl=False)
