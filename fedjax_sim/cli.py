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

    CONFIG may be the folder of a run, which is then repeated.

    Exit status: 0 when finished, 2 for bad input, 3 when the model diverged, 130 when interrupted.
    """
    from fedjax_sim.experiment.config import load_config

    settings = load_config(config, overrides or [])
    _train(settings, None)


@app.command()
def resume(folder: Annotated[Path, typer.Argument(help="Folder of a run that was interrupted or killed.")]) -> None:
    """Goes on with a run from its last checkpoint, as if it had never stopped."""
    from fedjax_sim._validate import InputError
    from fedjax_sim.experiment.config import load_config

    if not (folder / "config.toml").is_file():
        raise InputError(f"{folder}: it holds no config.toml; give the folder of a run")
    _train(load_config(folder / "config.toml"), folder)


def _train(settings: Any, folder: Path | None) -> None:
    """Runs a configuration, or goes on with the run in `folder`, in front of the user."""
    from fedjax_sim.core.devices import use_cpu_devices

    asked, cores = settings.execution.devices, use_cpu_devices()  # before anything below starts JAX
    if asked != "auto" and asked < cores:
        use_cpu_devices(asked)

    from rich.console import Console

    from fedjax_sim.experiment import run as experiment
    from fedjax_sim.experiment.progress import STATUS, closing, reporter, stopping
    from fedjax_sim.plots import curves

    console, rounds = Console(), settings.training.rounds
    title = f"{settings.algorithm.name} on {settings.data.name}, {settings.model.name}"
    told, stop = stopping(reporter(console, rounds))
    how: dict[str, Any] = {"draw": lambda rows, path: curves(rows, path, title=title), "stop": stop}
    summary = experiment.run(settings, told, **how) if folder is None else experiment.resume(folder, told, **how)
    for line in closing(summary, rounds):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if summary.status == "interrupted":
        _leave(STATUS[summary.status])
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


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a run.", metavar="RUN")],
    output: Annotated[
        Path | None, typer.Option(help="HTML file to write; report.html in the run's folder if left out.")
    ] = None,
) -> None:
    """Prints what a run reached, and writes it as one page of HTML; unfinished runs, too."""
    from rich.console import Console

    from fedjax_sim.report.facts import facts
    from fedjax_sim.report.page import report_page, writable, write_page
    from fedjax_sim.report.read import read_run
    from fedjax_sim.report.tables import overview, printed

    found = read_run(folder)
    path, reached, console = writable(output or folder / "report.html"), facts(found), Console()
    printed(console, overview(found, reached), heading=False)
    for line in [*found.notes, f"Written to {write_page(path, report_page(found, reached))}"]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs, two at least.", metavar="RUN...")],
    output: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("comparison.html"),
) -> None:
    """Prints runs side by side and writes a page of them; those that differ in training.seed alone are one row."""
    from rich.console import Console

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
        console.print(line, highlight=False, markup=False, soft_wrap=True)


Over = Annotated[
    list[str] | None,
    typer.Option(
        "--over",
        metavar="PATH=VALUES",
        help="What is tried of a setting: 0.01,0.1 lists values, 0..1 is a range, log:1e-3..1 one in logs; repeated.",
    ),
]
SweepFolder = Annotated[Path, typer.Option("--folder", help="Where results are kept; one that has some goes on.")]


@app.command()
def sweep(
    config: ConfigPath = None,
    overrides: Overrides = None,
    over: Over = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each, from training.seed on.")] = 1,
    samples: Annotated[int, typer.Option(min=0, help="Settings drawn at random; 0 for the whole grid.")] = 0,
    folder: SweepFolder = Path("sweep"),
) -> None:
    """Runs a grid or a random sample of settings over seeds, as few compiled programs, and prints the best first."""
    from fedjax_sim._validate import InputError
    from fedjax_sim.core.devices import use_cpu_devices
    from fedjax_sim.experiment.config import load_config
    from fedjax_sim.experiment.space import grid, parse_space, sample

    settings, space = load_config(config, overrides or []), parse_space(over or [])
    if not space:
        raise InputError("--over: nothing to try; give one, --over algorithm.learning_rate=0.01,0.1 say")
    use_cpu_devices()

    import jax
    from rich.console import Console

    from fedjax_sim.experiment.progress import counting, ranking
    from fedjax_sim.experiment.sweep import over_seeds, table
    from fedjax_sim.experiment.sweep import sweep as run_sweep

    console = Console()
    chosen = sample(space, samples, settings.training.seed) if samples else grid(space)
    trials = over_seeds(chosen, settings.training.seed, seeds)
    with counting(console, "trial") as told:
        results = run_sweep(settings, trials, folder, jax.local_devices(), told=told)
    console.print(ranking(table(results)))
    console.print(f"Results are in {folder}", highlight=False, markup=False)


@app.command()
def tune(
    config: ConfigPath = None,
    overrides: Overrides = None,
    over: Over = None,
    trials: Annotated[int, typer.Option(min=1, help="Trials that the study is to have in the end.")] = 32,
    batch: Annotated[int, typer.Option(min=1, help="Trials at once, as one program.")] = 8,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each trial, whose mean counts.")] = 1,
    sampler: Annotated[str, typer.Option(help="tpe, gp (needs PyTorch) or random.")] = "tpe",
    gigabytes: Annotated[float | None, typer.Option(help="What a trial may send, both ways.")] = None,
    hours: Annotated[float | None, typer.Option(help="Simulated hours of a trial; needs network.profiles.")] = None,
    prune: Annotated[bool, typer.Option(help="Stop trials that look hopeless.")] = True,
    folder: SweepFolder = Path("study"),
) -> None:
    """Searches for settings by Bayesian optimization, on clients that are held out; never on the test set."""
    from fedjax_sim._validate import InputError
    from fedjax_sim.core.devices import use_cpu_devices
    from fedjax_sim.experiment.config import load_config
    from fedjax_sim.experiment.space import parse_space

    settings, space = load_config(config, overrides or []), parse_space(over or [])
    for name, value in (("--gigabytes", gigabytes), ("--hours", hours)):
        if value is not None and not value > 0:
            raise InputError(f"{name} {value}: give a number over 0")
    if hours is not None and settings.network.profiles == "none":
        raise InputError("--hours: there is no clock; set network.profiles, to lognormal say")
    use_cpu_devices()

    import jax
    from rich.console import Console

    from fedjax_sim.experiment.progress import searching
    from fedjax_sim.experiment.tune import Budget
    from fedjax_sim.experiment.tune import tune as run_tune

    console, infinite = Console(), float("inf")
    budget = Budget(8e9 * (gigabytes or infinite), 3600 * (hours or infinite))
    with searching(console) as told:
        found = run_tune(
            settings, space, folder, jax.local_devices(), trials=trials, batch=batch, seeds=seeds, sampler=sampler,
            seed=settings.training.seed, prune=prune, budget=budget, told=told,
        )  # fmt: skip
    best = ", ".join(f"{path} {value:.4g}" if isinstance(value, float) else f"{path} {value}"
                     for path, value in found.best.items())  # fmt: skip
    console.print(
        f"{found.complete} trials, {found.pruned} pruned. Best: {best}, {found.value:.1%} on held-out clients.\n"
        f"Run it with: fedjax-sim run {found.file}",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip


@app.command()
def diagnose(
    config: ConfigPath = None,
    overrides: Overrides = None,
    seeds: Annotated[int, typer.Option(help="Training seeds of every world, from training.seed on; 2 or more.")] = 5,
    remedies: Annotated[bool, typer.Option(help="Try what helps, too.")] = True,
    cause: Annotated[
        list[str] | None, typer.Option("--cause", help="Look for this cause only, label_skew say; may be repeated.")
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Where it is kept; one that has begun goes on.")] = None,
) -> None:
    """Says why accuracy is what it is and what helps, from worlds that lack a suspected cause.

    CONFIG may be the folder of a run."""
    from fedjax_sim.core.devices import use_cpu_devices
    from fedjax_sim.experiment.config import load_config

    settings = load_config(config, overrides or [])
    use_cpu_devices()

    from rich.console import Console

    from fedjax_sim.diagnose import causes_named
    from fedjax_sim.diagnose import diagnose as examine
    from fedjax_sim.diagnose.watch import watching
    from fedjax_sim.experiment.folder import study_folder
    from fedjax_sim.experiment.history import finished_rows
    from fedjax_sim.report.diagnosis import print_diagnosis, write_diagnosis

    console, place, looked_for = Console(), folder or study_folder("diagnosis", settings), causes_named(cause or ())
    rows = None if config is None or overrides else finished_rows(config, settings.training.rounds)
    with watching(console) as told:
        found = examine(settings, place, seeds=seeds, causes=looked_for, remedies=remedies, rows=rows, told=told)
    write_diagnosis(found, place)
    print_diagnosis(console, found, place)


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
        if (status := app(standalone_mode=False)) != 130:  # which newer versions of typer make of Ctrl-C
            sys.exit(status)
        raise KeyboardInterrupt
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
        print("interrupted; where a folder keeps what was done, the same command goes on", file=sys.stderr)
        _leave(130)


def _leave(status: int) -> None:
    """Exits at once: JAX crashes in its tear-down when a compilation was interrupted."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _fail(message: Any) -> None:
    print(f"error: {' '.join(str(message).splitlines())}", file=sys.stderr)
    sys.exit(2)
