"""Commands that make many runs: `sweep`, `tune` and `diagnose`."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from fedjax_sim.cli.program import Alone, ConfigPath, Overrides, app

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
    distributed: Alone = False,
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

    from fedjax_sim._text import say
    from fedjax_sim.experiment.progress import counting, how_ranked, ranking
    from fedjax_sim.experiment.sweep import composed, over_seeds, table
    from fedjax_sim.experiment.sweep import sweep as run_sweep

    console = Console()
    chosen = sample(space, samples, settings.training.seed) if samples else grid(space)
    trials = over_seeds(chosen, settings.training.seed, seeds)
    with counting(console, "trial") as told:
        results = run_sweep(settings, trials, folder, jax.local_devices(), told=told)
    lines = table(results)
    console.print(ranking(lines))
    say(console, how_ranked(lines))
    if told_of_privacy := composed(results):
        say(console, told_of_privacy)
    say(console, f"Results are in {folder}")


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
    distributed: Alone = False,
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

    from fedjax_sim._text import say
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
    text = f"{found.complete} trials, {found.pruned} pruned. Best: {best}, {found.said()} on held-out clients."
    say(console, f"{text}\nRun it with: fedjax-sim run {quote(str(found.file))}")


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
    distributed: Alone = False,
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
    from fedjax_sim.diagnose.laboratory import finished
    from fedjax_sim.diagnose.watch import watching
    from fedjax_sim.experiment.folder import study_folder
    from fedjax_sim.experiment.origin import still_stands
    from fedjax_sim.report.diagnosis import print_diagnosis, write_diagnosis

    console, place, looked_for = Console(), folder or study_folder("diagnosis", settings), causes_named(cause or ())
    seen = None if config is None or overrides else finished(config, settings.training.rounds)
    if seen is not None and config is not None and not still_stands(config, settings):
        seen = None  # of other data, say: the run is observed anew
    with watching(console) as told:
        found = examine(settings, place, seeds=seeds, causes=looked_for, remedies=remedies, seen=seen, told=told)
    write_diagnosis(found, place)
    print_diagnosis(console, found, place)
