"""Runs an experiment into a folder of its own, and takes one up again where it was stopped or killed.

Several processes (`fedjax_sim.distributed`) all call `run` or `resume` alike. The primary one makes, locks and writes
the folder, which the others read on resuming.
"""

import hashlib
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_sim import distributed
from fedjax_sim._validate import InputError
from fedjax_sim.core.devices import replicate
from fedjax_sim.experiment import checkpoint
from fedjax_sim.experiment.build import Experiment, build
from fedjax_sim.experiment.choosing import choice
from fedjax_sim.experiment.clients import evaluate_clients
from fedjax_sim.experiment.config import Config, load_config, to_toml
from fedjax_sim.experiment.covered import keeps_the_best
from fedjax_sim.experiment.drive import refuse_on_several
from fedjax_sim.experiment.folder import (
    CLIENTS,
    CONFIG,
    HISTORY,
    LOCK,
    PARTIAL,
    SUMMARY,
    environment,
    header,
    locked,
    make_folder,
    read_header,
    refuse_used,
    remove,
    unless_nothing_comes_of_it,
    write_json,
    write_whole,
)
from fedjax_sim.experiment.hardware import devices_of
from fedjax_sim.experiment.history import AT_ONCE, History, Row, Rows, append, batched, rows_of
from fedjax_sim.experiment.loop import Loop, keeps_clients
from fedjax_sim.experiment.origin import Seen, asked, changed, given
from fedjax_sim.experiment.per_client import FILE, Table
from fedjax_sim.experiment.record import Change, Ingredients, Origin, difference, read_origin
from fedjax_sim.experiment.recover import MEMORY, Point, latest, settle
from fedjax_sim.experiment.rehearsal import rehearse
from fedjax_sim.experiment.spent import as_begun, promise, remember, spent
from fedjax_sim.experiment.summary import Summary, read_summary, summarize
from fedjax_sim.experiment.tracking import Tracker, several, trackers
from fedjax_sim.models import save_leaves
from fedjax_sim.privacy.composition import Past

MODEL, BEST_MODEL, PICTURE = "model", "best_model", "curves.png"
LEFTOVERS = (MEMORY, checkpoint.FOLDER)  # of a run that has ended


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
      reporter: who is told of progress, in every process; nothing is printed here.
      draw: draws the history into the file `curves.png` of the run folder.
      stop: asked after every second or so; True, in any process, ends training with a checkpoint.

    Returns:
      The summary, which also lies in the run folder as `summary.json`.

    Raises:
      InputError: a setting that does not fit, data that cannot be read, or a run folder that is in use.
      Lost: another process is lost; the checkpoints are there.
    """
    primary = distributed.is_primary()
    with distributed.together():
        if primary:
            refuse_used(config.output)  # before the work of building, too
        audience = _audience(config, reporter, draw, stop)
        devices = devices_of(config)
        experiment = build(config, (seen := Seen()).changes)
        refuse_on_several(experiment)
        rehearse(experiment, devices)
        before = experiment.before and experiment.before._asdict()
        origin = Origin(seen.ingredients(experiment), before=before)
    distributed.same("settings or data", origin.begun.mark())
    with ExitStack() as held:
        with distributed.together():
            folder, point = Path(), Point(History())
            if primary:
                folder = make_folder(experiment.config)
                held.enter_context(unless_nothing_comes_of_it(folder))
                held.enter_context(locked(folder))
                origin.write(folder)
                _write_config(folder, experiment.config, environment(devices, config))
                point = settle(folder, experiment, point)
        folder = Path(distributed.decided(str(folder)))
        return _train(folder, experiment, devices, point, origin, audience)


def resume(
    folder: str | Path,
    reporter: Reporter | None = None,
    *,
    overrides: Sequence[str] = (),
    draw: Callable[[History, Path], Any] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Summary:
    """Goes on with a run that was interrupted or killed, from its last checkpoint, bit for bit as if it never was.

    Rounds that were done after the checkpoint are done again, and their rows replaced. A checkpoint that is damaged is
    passed over with a warning, for the one before it; where there is none, training begins anew, and the rows are kept
    beside. Of a run that was killed when all rounds were done, what is still missing is made up for.

    The run's settings, data and other input files must be those that it was begun with, as `run.json` in its folder has
    them; [execution] and [output] may differ, and so may the number of processes, each of which has to see the folder.

    Args:
      folder: of the run.
      reporter: as in `run`, like `draw` and `stop`.
      overrides: settings to go on with, such as "training.batch_size=32". `run.json` and the summary say from which
        round on they hold.

    Raises:
      InputError: no such run, one that has ended or is at work, settings, data, files, a history or a checkpoint that
        are not the run's own, or a change under which nobody could say what privacy is spent in all.
    """
    folder, primary = Path(folder), distributed.is_primary()
    with ExitStack() as held:
        with distributed.together():
            if not (folder / CONFIG).is_file():
                seen_by = " that every process sees" if distributed.several() else ""
                raise InputError(f"{folder}: it holds no {CONFIG}; give the folder of a run{seen_by}")
            for name in (SUMMARY, CLIENTS, PICTURE):
                if (folder / name).is_dir():  # found now, and not when there is something to write
                    raise InputError(f"{folder / name}: it is a folder in the place of a file of the run; remove it")
            killed = (folder / LOCK).exists()
            if primary:
                held.enter_context(locked(folder))
            ended = _ended(folder)
        if distributed.same(f"{folder}", ended is not None):
            assert ended is not None
            with distributed.together():
                return _make_up(folder, ended, killed, Audience(draw=draw)) if primary else ended
        with distributed.together():
            origin = read_origin(folder)
            config = asked(folder, origin, overrides)
            devices, audience = devices_of(config), _audience(config, reporter, draw, stop)
            if primary:
                _compare(folder, environment(devices, config))
            experiment = as_begun(build(config, (seen := Seen()).changes), origin)
            refuse_on_several(experiment)
            now = seen.ingredients(experiment)
        with distributed.together():
            taken = _taken_up(folder, experiment, origin, now, overrides) if primary else None
        with distributed.together():  # the others read what the primary process has settled
            point, origin, earlier, change = taken or _taken_up(folder, experiment, origin, now, overrides)
            sums = [hashlib.sha256(array.tobytes()).hexdigest()[:8] for array in (point.found or {}).values()]
        distributed.same(f"{folder}", [len(point.history), origin.now.mark(), *sums[:100]])
        point = point._replace(lanes=distributed.decided(point.lanes))
        try:
            return _train(folder, experiment, devices, point, origin, audience, earlier, change is not None)
        except checkpoint.Misfit as error:
            if change is None or not change.settings:
                raise
            listed = ", ".join(difference(path, *pair) for path, pair in change.settings.items())
            out = " ".join(f"--set {path}" for path in change.settings if path in given(overrides)) or "it"
            raise InputError(
                f"{folder}: the state of the run does not go with the change ({listed}); leave {out} out, or start "
                "another run"
            ) from error


def _taken_up(
    folder: Path, experiment: Experiment, origin: Origin, now: Ingredients, overrides: Sequence[str]
) -> tuple[Point, Origin, list[Past], Change | None]:
    """Where a run goes on, its record from then on, what was spent under other privacy, and what is changed."""
    point = latest(folder, experiment)
    done = len(point.history)
    change = changed(folder, origin, done, now, overrides)
    origin = remember(folder, origin, done, experiment)
    origin = origin if change is None else origin._replace(changes=(*origin.changes, change))
    earlier = spent(origin, experiment, done, changing=change is not None)
    point = settle(folder, experiment, point) if distributed.is_primary() else point
    return point, origin, earlier, change


def _write_config(folder: Path, config: Config, about: dict[str, Any]) -> None:
    write_whole(folder / CONFIG, header(about) + to_toml(config))


def _train(
    folder: Path, experiment: Experiment, devices: list[Any], point: Point, origin: Origin, audience: Audience,
    earlier: Sequence[Past] = (), changed: bool = False,
) -> Summary:  # fmt: skip
    """The rounds after a point, and what is left in the folder at the end. `changed`: the last change of
    `origin` is to be written, once the checkpoint is known to go with it."""
    history, found, memory, _, lanes = point
    config, begun, done = experiment.config, time.perf_counter(), len(history)
    before = history.last["elapsed_seconds"] if history.last else 0.0
    status, divergence, own_tests, loop = "finished", None, None, None
    primary, file, table = distributed.is_primary(), None, None
    with ExitStack() as opened:
        try:
            with distributed.together():
                if primary:
                    file = opened.enter_context(open(folder / HISTORY, "ab", buffering=0))
                    keeps = keeps_clients(experiment)
                    table = opened.enter_context(closing(Table(folder / FILE, done))) if keeps else None
                audience.reporter.built(experiment, folder)
                loop = Loop(experiment, devices, memory, folder, history, origin, earlier, found, lanes)
                past = Rows(folder / HISTORY, done)
            with distributed.together():
                if changed and primary:  # in this order: a kill in between leaves a change to be asked for again
                    _write_config(folder, config, read_header((folder / CONFIG).read_text(encoding="utf-8")))
                    origin.write(folder)
                for rows in batched(past, AT_ONCE):
                    audience.reporter.advanced(rows)
                audience.tracker.began(config.model_dump(), folder, past)
            for step in loop.steps(audience.stop):
                with distributed.announced():
                    history.add(step.rows)
                    if table is not None and step.entries is not None:
                        table.append(step.entries)
                    if file is not None:
                        append(file, step.rows)
                    if step.rows:
                        audience.reporter.advanced(step.rows)
                    audience.tracker.advanced(step.rows)
                    status, divergence = step.status or status, step.divergence
            if divergence is None and history:
                data, key = experiment.phases[-1].data, replicate(jax.random.key(config.training.seed), devices)
                of_clients = folder / CLIENTS if primary else None
                with distributed.linked():
                    own_tests = evaluate_clients(experiment, data, loop.federation, memory, key, devices, of_clients)
            with distributed.together():
                if config.output.save_model and history and primary:
                    _save_models(experiment, loop, folder)
        except KeyboardInterrupt:
            if distributed.several() and not (loop and loop.stopped):  # the others do not know of it
                raise
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
        choice=choice(experiment.data) if keeps_the_best(experiment.private, experiment.data) else None,
        private=experiment.private,
        before=experiment.before,
        seeds=origin.seeds(),
    )
    with distributed.together():
        if primary:
            write_json(folder / SUMMARY, summary.plain())
            _leave(folder, history, summary, audience)
    return summary


def _leave(folder: Path, history: History, summary: Summary, audience: Audience) -> Summary:
    """What comes after the summary, which says that a run has ended: whoever is killed in here is owed the rest."""
    if audience.draw is not None and history:
        audience.draw(history, folder / PICTURE)
    audience.tracker.ended(summary.plain())
    if summary.status != "interrupted":
        for leftover in LEFTOVERS:
            remove(folder / leftover)
    return summary


def _make_up(folder: Path, summary: Summary, killed: bool, audience: Audience) -> Summary:
    """What a run is owed that has nothing left to train.

    Raises:
      InputError: nothing.
    """
    unfinished = killed or any((folder / name).exists() for name in LEFTOVERS)
    if not unfinished and (audience.draw is None or (folder / PICTURE).exists()):
        raise InputError(f"{folder}: that run has ended ({summary.status}); nothing is left to do")
    config, history = load_config(folder / CONFIG), History(rows_of(folder / HISTORY))
    if unfinished:  # its trackers may not have heard of the end
        audience = audience._replace(tracker=trackers(config.output.track))
        audience.tracker.began(config.model_dump(), folder, Rows(folder / HISTORY, len(history)))
    return _leave(folder, history, summary, audience)


def _ended(folder: Path) -> Summary | None:
    """The summary of a run that has nothing left to train.

    Raises:
      InputError: it is damaged, and nothing else says whether the run has ended.
    """
    if not (folder / SUMMARY).is_file():
        return None
    try:
        found = read_summary(folder / SUMMARY)
    except InputError as error:
        if not checkpoint.rounds_saved(folder):
            raise
        warnings.warn(f"{error}; going on from the last checkpoint", stacklevel=3)
        return None
    return None if found.status == "interrupted" else found


def _save_models(experiment: Experiment, loop: Loop, folder: Path) -> None:
    """All parameters of the last model and, if any was chosen and may be, of the best, as folders of arrays."""
    best = loop.best_round and keeps_the_best(experiment.private, experiment.data)
    models = {MODEL: loop.federation.params, BEST_MODEL: loop.best.params if best else None}
    for name, params in models.items():
        if params is not None:
            params = jax.tree.map(np.asarray, params) if distributed.several() else params
            partial = folder / f"{name}{PARTIAL}"
            remove(partial)
            save_leaves(partial, experiment.model.whole(params))
            remove(folder / name)
            partial.rename(folder / name)


def _audience(
    config: Config,
    reporter: Reporter | None,
    draw: Callable[[History, Path], Any] | None,
    stop: Callable[[], bool],
) -> Audience:
    """Who is told; pictures and records elsewhere are the primary process's.

    Raises:
      InputError: a record that cannot be kept.
    """
    told = Audience(reporter or Audience().reporter, stop=stop)
    return told._replace(draw=draw, tracker=trackers(config.output.track)) if distributed.is_primary() else told


def _compare(folder: Path, now: dict[str, Any]) -> None:
    """Warns where a resumed run may not be bit-equal to an uninterrupted one."""
    then = read_header((folder / CONFIG).read_text(encoding="utf-8"))
    before = {name: then.get(name, "unknown") for name in now}
    changed = [f"{name} {before[name]} -> {value}" for name, value in now.items() if before[name] != str(value)]
    changed = [text for text in changed if not text.startswith("system")]
    if changed:
        text = f"{folder}: begun elsewhere ({', '.join(changed)}); results may differ in their last digits"
        warnings.warn(text, stacklevel=3)
