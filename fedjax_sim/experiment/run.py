"""Runs an experiment into a folder of its own, and takes one up again where it was stopped or killed."""

import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import jax

from fedjax_sim._validate import InputError
from fedjax_sim.core.devices import replicate
from fedjax_sim.core.host import HostMemory
from fedjax_sim.experiment import checkpoint
from fedjax_sim.experiment.build import Experiment, build
from fedjax_sim.experiment.clients import evaluate_clients
from fedjax_sim.experiment.config import Config, to_toml
from fedjax_sim.experiment.drive import keeps_on_disk
from fedjax_sim.experiment.folder import (
    CLIENTS,
    CONFIG,
    HISTORY,
    SUMMARY,
    environment,
    header,
    locked,
    make_folder,
    read_header,
    refuse_used,
    unless_nothing_comes_of_it,
    write_json,
    write_text,
)
from fedjax_sim.experiment.history import AT_ONCE, History, Row, Rows, append, batched, cut_history, rows_of
from fedjax_sim.experiment.loop import Loop, keeps_clients
from fedjax_sim.experiment.origin import Origin, Seen, asked, changed, read_origin
from fedjax_sim.experiment.per_client import FILE, Table
from fedjax_sim.experiment.rehearsal import rehearse
from fedjax_sim.experiment.spent import promise, spent
from fedjax_sim.experiment.summary import Summary, summarize
from fedjax_sim.experiment.tracking import Tracker, several, trackers
from fedjax_sim.models import save_leaves
from fedjax_sim.privacy.composition import Past

MEMORY, MODEL, BEST_MODEL = "client_memory", "model", "best_model"


class Reporter(NamedTuple):
    """Who is told how a run goes; all calls come from the thread that called `run`."""

    built: Callable[[Experiment, Path], None]  # data and model are there, compilation follows
    advanced: Callable[[list[Row]], None]  # rounds done since the last call
    stopped: Callable[[], None]  # no more rounds, for whatever reason


class Audience(NamedTuple):
    """Who is told of a run, who draws it, and who may stop it."""

    reporter: Reporter = Reporter(lambda experiment, folder: None, lambda rows: None, lambda: None)
    draw: Callable[[History, Path], Any] | None = None  # draws the history into a file
    stop: Callable[[], bool] = lambda: False  # asked between calls; True ends training there, to be resumed
    tracker: Tracker = several([])  # who keeps a record elsewhere


def run(
    config: Config,
    reporter: Reporter | None = None,
    *,
    draw: Callable[[History, Path], Any] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Summary:
    """Trains as `config` says, and writes as it goes. Ctrl-C ends it early with what there is.

    Args:
      config: the experiment.
      reporter: who is told of progress; nothing is printed here.
      draw: draws the history into the file `curves.png` of the run folder.
      stop: asked after every second or so; True ends training with a checkpoint.

    Returns:
      The summary, which also lies in the run folder as `summary.json`.

    Raises:
      InputError: a setting that does not fit, data that cannot be read, or a run folder that is in use.
    """
    refuse_used(config.output)  # before the work of building, too
    tracker = trackers(config.output.track)
    devices = _devices(config)
    experiment = build(config, (seen := Seen()).changes)
    rehearse(experiment, devices)
    origin = Origin(seen.ingredients(experiment))
    folder = make_folder(experiment.config)
    with unless_nothing_comes_of_it(folder), locked(folder):
        origin.write(folder)
        _write_config(folder, experiment.config, environment(devices, config))
        audience = Audience(reporter or Audience().reporter, draw, stop, tracker)
        return _train(folder, experiment, devices, History(), origin, audience)


def resume(
    folder: str | Path,
    reporter: Reporter | None = None,
    *,
    overrides: Sequence[str] = (),
    draw: Callable[[History, Path], Any] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Summary:
    """Goes on with a run that was interrupted or killed, from its last checkpoint, bit for bit as if it never was.

    Rounds that were done after the checkpoint are done again, and their rows replaced. The run's settings, data and
    other input files must be those that it was begun with, as `run.json` in its folder has them; [execution] and
    [output] may differ.

    Args:
      folder: of the run.
      reporter: as in `run`, like `draw` and `stop`.
      overrides: settings to go on with, such as "training.batch_size=32". `run.json` and the summary say from which
        round on they hold.

    Raises:
      InputError: no such run, one that has ended or is at work, settings, data, files, a history or a checkpoint that
        are not the run's own, or a change under which nobody could say what privacy is spent in all.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: it holds no {CONFIG}; give the folder of a run")
    with locked(folder):
        if (folder / SUMMARY).is_file() and (status := _status(folder)) != "interrupted":
            raise InputError(f"{folder}: that run has ended ({status}); nothing is left to do")
        origin = read_origin(folder)
        config = asked(folder, origin, overrides)
        devices, tracker = _devices(config), trackers(config.output.track)
        _compare(folder, environment(devices, config))
        experiment = build(config, (seen := Seen()).changes)
        done = max(checkpoint.rounds_saved(folder), default=0)
        change = changed(folder, origin, done, seen.ingredients(experiment), overrides)
        origin = origin if change is None else origin._replace(changes=(*origin.changes, change))
        written = sum(1 for _ in rows_of(folder / HISTORY)) if change else done
        earlier = spent(origin, experiment, done, written)
        history = cut_history(folder / HISTORY, done)
        audience = Audience(reporter or Audience().reporter, draw, stop, tracker)
        return _train(folder, experiment, devices, history, origin, audience, earlier, change is not None)


def _write_config(folder: Path, config: Config, about: dict[str, Any]) -> None:
    write_text(folder / CONFIG, header(about) + to_toml(config))


def _train(
    folder: Path, experiment: Experiment, devices: list[Any], history: History, origin: Origin, audience: Audience,
    earlier: Sequence[Past] = (), changed: bool = False,
) -> Summary:  # fmt: skip
    """The rounds after those of `history`, and what is left in the folder at the end. `changed`: the last change of
    `origin` is to be written, once the checkpoint is known to go with it."""
    config, begun, done = experiment.config, time.perf_counter(), len(history)
    before = history.last["elapsed_seconds"] if history.last else 0.0
    status, divergence, own_tests = "finished", None, None
    memory = _client_memory(experiment, folder, done)
    with ExitStack() as opened:
        file = opened.enter_context(open(folder / HISTORY, "r+" if done else "w", encoding="utf-8"))
        file.seek(0, 2)
        table = opened.enter_context(closing(Table(folder / FILE, done))) if keeps_clients(experiment) else None
        try:
            audience.reporter.built(experiment, folder)
            loop, past = (
                Loop(experiment, devices, memory, folder, history, origin, earlier),
                Rows(folder / HISTORY, done),
            )
            if changed:  # in this order: a kill in between leaves a change that has to be asked for again
                _write_config(folder, config, read_header((folder / CONFIG).read_text(encoding="utf-8")))
                origin.write(folder)
            for rows in batched(past, AT_ONCE):
                audience.reporter.advanced(rows)
            audience.tracker.began(config.model_dump(), folder, past)
            for step in loop.steps(audience.stop):
                history.add(step.rows)
                if table is not None and step.entries is not None:
                    table.append(step.entries)
                append(file, step.rows)
                if step.rows:
                    audience.reporter.advanced(step.rows)
                audience.tracker.advanced(step.rows)
                status, divergence = step.status or status, step.divergence
            if divergence is None and history:
                data, key = experiment.phases[-1].data, replicate(jax.random.key(config.training.seed), devices)
                own_tests = evaluate_clients(experiment, data, loop.federation, memory, key, devices, folder / CLIENTS)
            if config.output.save_model and history:
                _save_models(experiment, loop, folder)
        except KeyboardInterrupt:
            status = "interrupted"
        except BaseException:
            audience.tracker.ended(None)
            raise
        finally:
            audience.reporter.stopped()
            if memory is not None:
                memory.close()
    summary = summarize(
        status,
        folder,
        history,
        before + time.perf_counter() - begun,
        divergence=divergence,
        own_tests=own_tests,
        promise=promise(experiment.private, earlier),
        environment=environment(devices, config),
        changes=[change.sentence() for change in origin.changes],
    )
    if status != "interrupted":
        for leftover in (checkpoint.FOLDER, MEMORY):
            shutil.rmtree(folder / leftover, ignore_errors=True)
    write_json(folder / SUMMARY, summary.plain())
    if audience.draw is not None and history:
        audience.draw(history, folder / "curves.png")
    audience.tracker.ended(summary.plain())
    return summary


def _save_models(experiment: Experiment, loop: Loop, folder: Path) -> None:
    """All parameters of the last model and, if any was tested, of the best, as folders of arrays."""
    models = {MODEL: loop.federation.params, BEST_MODEL: loop.best if loop.accuracies else None}
    for name, params in models.items():
        if params is not None:
            shutil.rmtree(folder / name, ignore_errors=True)
            save_leaves(folder / name, experiment.model.whole(params))


def _client_memory(experiment: Experiment, folder: Path, done: int) -> HostMemory | None:
    """What the clients remember, on disk where there is much of it, as it was after so many rounds."""
    if not keeps_on_disk(experiment):
        return None
    if not done:
        shutil.rmtree(folder / MEMORY, ignore_errors=True)
    given = (experiment.algorithm, experiment.model.params, experiment.data.num_clients, folder / MEMORY)
    return HostMemory(*given, after=done if done else None)


def _devices(config: Config) -> list[Any]:
    available, asked = jax.local_devices(), config.execution.devices
    if asked != "auto" and asked > len(available):
        raise InputError(f'execution.devices: {asked}, but there are {len(available)}; give fewer, or "auto"')
    count = len(available) if asked == "auto" else asked
    return available[: min(count, config.training.clients_per_round or count)]


def _status(folder: Path) -> str:
    import json

    try:
        return str(json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["status"])
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder / SUMMARY}: it is no summary ({error}); remove it to resume the run") from None


def _compare(folder: Path, now: dict[str, Any]) -> None:
    """Warns where a resumed run may not be bit-equal to an uninterrupted one."""
    then = read_header((folder / CONFIG).read_text(encoding="utf-8"))
    changed = [f"{name} {then[name]} -> {value}" for name, value in now.items() if then.get(name, "") != str(value)]
    changed = [text for text in changed if not text.startswith("system")]
    if changed:
        text = f"{folder}: begun elsewhere ({', '.join(changed)}); results may differ in their last digits"
        warnings.warn(text, stacklevel=3)
