"""Commands that train: `run`, `resume`, and `config`, which prints what they would use."""

import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from fedjax_sim._interrupt import leave
from fedjax_sim.cli.program import ConfigPath, Overrides, app

_SEVERAL = "Several processes"
Distributed = Annotated[
    bool,
    typer.Option(
        "--distributed",
        help="Share the work with the processes that Slurm, Open MPI, Kubernetes or a TPU pod started together.",
        rich_help_panel=_SEVERAL,
    ),
]
Coordinator = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Where process 0 can be reached, for processes that were started by hand.",
        rich_help_panel=_SEVERAL,
    ),
]
Processes = Annotated[int | None, typer.Option(help="How many those are.", rich_help_panel=_SEVERAL)]
Process = Annotated[int | None, typer.Option(help="Which of them this is, from 0.", rich_help_panel=_SEVERAL)]


@app.command()
def run(
    config: ConfigPath = None,
    overrides: Overrides = None,
    distributed: Distributed = False,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
) -> None:
    """Trains a federation and writes a run folder with history, summary and curves.

    CONFIG may be the folder of a run, which is then repeated. On several processes, start this command in each of them.

    Exit status: 0 when finished, 1 when another process was lost, 2 for bad input, 3 when the model diverged, 130 when
    interrupted.
    """
    shared = _joined(distributed, coordinator, processes, process)

    from fedjax_sim.experiment.config import load_config

    with _together(shared):
        settings = load_config(config, overrides or [])
    _train(settings, None, shared=shared)


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="Folder of a run that was interrupted or killed.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PATH=VALUE", help="Goes on with one setting changed, which is recorded; may be repeated."
        ),
    ] = None,
    distributed: Distributed = False,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
) -> None:
    """Goes on with a run from its last checkpoint, as if it had never stopped.

    Settings, data and files must be those that it was begun with, unless --set asks for others. The number of processes
    may be another; all of them have to see FOLDER.
    """
    shared = _joined(distributed, coordinator, processes, process)

    from fedjax_sim._validate import InputError
    from fedjax_sim.experiment.config import load_config

    with _together(shared):
        if not (folder / "config.toml").is_file():
            raise InputError(f"{folder}: it holds no config.toml; give the folder of a run, which all processes see")
        settings = load_config(folder / "config.toml", overrides or [])
    _train(settings, folder, overrides or [], shared=shared)


def _joined(distributed: bool, coordinator: str | None, processes: int | None, process: int | None) -> bool:
    """Joins other processes, if that is asked for, and returns whether it was."""
    if not distributed and (coordinator, processes, process) == (None, None, None):
        return False
    _keep_output()
    from fedjax_sim._validate import InputError
    from fedjax_sim.core.devices import use_cpu_devices
    from fedjax_sim.distributed import initialize

    try:
        initialize(coordinator, processes, process)
    except InputError as error:
        what, _, reason = str(error).partition(":")
        raise InputError(f"{'--coordinator' if what == 'address' else f'--{what}'}:{reason}") from error
    use_cpu_devices()
    return True


def _together(shared: bool) -> AbstractContextManager[None]:
    """An error within ends all processes that share a run."""
    if not shared:
        return nullcontext()
    from fedjax_sim.distributed import together

    return together()


def _keep_output() -> None:
    """Standard output is for what Python prints: libraries that connect processes report there, too."""
    sys.stdout.flush()
    how: dict[str, Any] = {"encoding": sys.stdout.encoding, "errors": sys.stdout.errors, "buffering": 1}
    sys.stdout = open(os.dup(1), "w", closefd=False, **how)  # noqa: SIM115
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)


def _train(settings: Any, folder: Path | None, overrides: Sequence[str] = (), *, shared: bool = False) -> None:
    """Runs a configuration, or goes on with the run in `folder`, in front of the user; `shared` with other processes,
    of which the primary one alone says how it goes."""
    from fedjax_sim.core.devices import use_cpu_devices

    if not shared:
        asked, cores = settings.execution.devices, use_cpu_devices()  # before anything below starts JAX
        if asked != "auto" and asked < cores:
            use_cpu_devices(asked)

    from rich.console import Console

    from fedjax_sim._text import say
    from fedjax_sim.distributed import is_primary
    from fedjax_sim.experiment import run as experiment
    from fedjax_sim.experiment.progress import STATUS, closing, plain, reporter, stopping
    from fedjax_sim.plots import curves

    primary = is_primary()
    console, rounds = Console(quiet=not primary), settings.training.rounds
    if not primary:
        warnings.simplefilter("ignore")
    title = f"{settings.algorithm.name} on {settings.data.name}, {settings.model.name}"
    told, stop = stopping((reporter if primary else plain)(console, rounds), shared=shared)
    how: dict[str, Any] = {"draw": lambda rows, path: curves(rows, path, title=title), "stop": stop}
    if folder is None:
        summary = experiment.run(settings, told, **how)
    else:
        summary = experiment.resume(folder, told, overrides=overrides, **how)
    for line in closing(summary, rounds) if primary else ():
        say(console, line)
    if shared:
        from fedjax_sim.distributed import finish

        finish()
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
