"""Tells TensorBoard, MLflow and Weights & Biases of a run, beside `history.jsonl`, which always has everything.

Each takes the settings as hyper-parameters, the numbers of every round at the step of that round, and the summary at
the end. A resumed run goes on in the same place: no step comes twice, and what was not told before is told then.
"""

import importlib
import json
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from logging import WARNING, getLogger
from pathlib import Path
from typing import Any, NamedTuple, cast

from fedjax_sim._text import parse_json
from fedjax_sim._validate import InputError
from fedjax_sim.experiment.folder import write_json
from fedjax_sim.experiment.history import AT_ONCE, Row, batched
from fedjax_sim.experiment.names import look_up

STATE = "tracking.json"  # by tracker, which of its runs this one is
PROJECT = "fedjax_sim"
Settings = Mapping[str, Any]


class Tracker(NamedTuple):
    """Who keeps a record of a run elsewhere; what it raises of `errors`, or an OSError, costs that record alone."""

    name: str
    began: Callable[[Settings, Path, Iterable[Row]], None]  # settings by section, run folder, rows of a resumed run
    advanced: Callable[[list[Row]], None]  # rounds done since
    ended: Callable[[dict[str, Any] | None], None]  # the summary, of an interrupted run too; None if an error ended it
    errors: tuple[type[Exception], ...] = ()


def scalars(row: Row) -> dict[str, float]:
    """The numbers of a round by name, the accuracy of each class among them."""
    of_classes = enumerate(row.get("test_class_accuracy") or ())
    each = {**row, **{f"test_class_accuracy/{label}": value for label, value in of_classes}}
    return {name: value for name, value in each.items() if _number(value) and name != "round"}


def several(trackers: Iterable[Tracker]) -> Tracker:
    """All of them as one. One that fails is switched off with a warning, and the others go on."""
    given, live = list(trackers), []

    def tell(event: Callable[[Tracker], Callable[..., None]], *arguments: Any) -> None:
        for tracker in list(live):
            try:
                event(tracker)(*arguments)
            except (OSError, *tracker.errors) as error:
                live.remove(tracker)
                reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
                text = f"output.track: {tracker.name!r} is switched off ({reason}); history.jsonl has every round"
                warnings.warn(text, stacklevel=4)

    def began(*arguments: Any) -> None:
        live[:] = given
        tell(lambda tracker: tracker.began, *arguments)

    def advanced(rows: list[Row]) -> None:
        if rows:
            tell(lambda tracker: tracker.advanced, rows)

    def ended(summary: dict[str, Any] | None) -> None:
        tell(lambda tracker: tracker.ended, summary)
        live.clear()

    return Tracker("several", began, advanced, ended)


def trackers(names: Iterable[str]) -> Tracker:
    """Those of the setting `output.track`.

    Raises:
      InputError: there is none of that name, or the package it needs is missing.
    """
    return several([look_up("output.track", name, TRACKERS)() for name in dict.fromkeys(names)])


def tensorboard() -> Tracker:
    """Event files in RUN/tensorboard; those of a resumed run are written anew from its rows."""
    _package("tensorboard", "tensorboardX")
    from tensorboardX import summary as make
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto import event_pb2, summary_pb2

    events, summaries = cast(Any, event_pb2), cast(Any, summary_pb2)  # whose classes are made when imported
    files: list[Any] = []
    begun, steps = [0.0], [0]

    def write(step: int, wall_time: float, **content: Any) -> None:
        files[0].write_event(events.Event(step=step, wall_time=wall_time, **content))

    def began(settings: Settings, folder: Path, rows: Iterable[Row]) -> None:
        place = folder / "tensorboard"
        place.mkdir(exist_ok=True)
        old = set(place.iterdir())
        files[:] = [EventsWriter(str(place / "events"))]
        begun[0] = time.time() - sum(row["elapsed_seconds"] for row in deque(rows, 1))  # of the last one
        forget = events.SessionLog(status=events.SessionLog.START)  # has viewers drop the files before
        write(0, begun[0], session_log=forget)
        shown = dict.fromkeys(("test_accuracy", "test_loss", "loss_before"))
        for content in make.hparams(dict(_flat(settings, ".")), shown)[:2]:
            write(0, begun[0], summary=content)
        for some in batched(rows, AT_ONCE):
            advanced(some)
        for path in old - {Path(files[0]._file_name)}:
            path.unlink()

    def advanced(rows: list[Row]) -> None:
        for row in rows:
            values = [summaries.Summary.Value(tag=k, simple_value=v) for k, v in scalars(row).items()]
            write(row["round"], begun[0] + row["elapsed_seconds"], summary=summaries.Summary(value=values))
            steps[0] = row["round"]
        files[0].flush()

    def ended(summary: dict[str, Any] | None) -> None:
        table = "\n".join(f"    {name}: {json.dumps(value)}" for name, value in (summary or {}).items())
        for content in (make.text("summary", table), make.hparams({}, {})[2]):
            write(steps[0], time.time(), summary=content)
        files[0].close()

    return Tracker("tensorboard", began, advanced, ended)


def mlflow() -> Tracker:
    """A run on the server that MLFLOW_TRACKING_URI names, or else in RUN/mlflow.db."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # its 7 hold a run up for minutes
    _package("mlflow", "mlflow")
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
    from mlflow.entities import Metric, Param, RunTag  # pyright: ignore[reportMissingImports]
    from mlflow.exceptions import MlflowException  # pyright: ignore[reportMissingImports]

    at: dict[str, Any] = {}

    def log(found: Iterable[tuple[int, Mapping[str, float]]], **more: Any) -> None:
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for step, values in found for name, value in values.items()]
        for i in range(0, max(len(metrics), 1), 1000):  # as many as it takes at once
            at["client"].log_batch(at["run"], metrics=metrics[i : i + 1000], **(more if i == 0 else {}))

    def began(settings: Settings, folder: Path, rows: Iterable[Row]) -> None:
        uri, place = os.environ.get("MLFLOW_TRACKING_URI"), (folder / "mlflow").absolute()
        getLogger("mlflow.store.db.utils").setLevel(WARNING)  # tells of every table it makes
        at.update(client=MlflowClient(uri or f"sqlite:///{place}.db"), told=0)
        if known := _state(folder).get("mlflow"):
            at["run"] = known["run"]
            at["client"].update_run(at["run"], status="RUNNING")
            told = at["client"].get_metric_history(at["run"], "clients")  # every row has it
            at["told"] = max((metric.step for metric in told), default=0)
        else:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            found = at["client"].get_experiment_by_name(name)
            of = found.experiment_id if found else at["client"].create_experiment(name, None if uri else place.as_uri())
            at["run"] = at["client"].create_run(of, run_name=folder.name).info.run_id
            _remember(folder, "mlflow", run=at["run"])
            params = [Param(key, str(value)[:500]) for key, value in _flat(settings, ".")]
            for i in range(0, len(params), 100):
                log([], params=params[i : i + 100])
        for some in batched(rows, AT_ONCE):
            advanced(some)

    def advanced(rows: list[Row]) -> None:
        if new := [(row["round"], scalars(row)) for row in rows if row["round"] > at["told"]]:
            log(new)
            at["told"] = new[-1][0]

    def ended(summary: dict[str, Any] | None) -> None:
        if summary is None:
            at["client"].set_terminated(at["run"], "FAILED")
            return
        flat = dict(_flat({"summary": summary}, "/"))
        numbers = {name: value for name, value in flat.items() if _number(value)}
        tags = [RunTag(name, str(value)[:500]) for name, value in flat.items() if name not in numbers]
        log([(summary["rounds"], numbers)], tags=tags[:100])
        status = {"interrupted": "KILLED", "diverged": "FAILED"}.get(summary["status"], "FINISHED")
        at["client"].set_terminated(at["run"], status)

    return Tracker("mlflow", began, advanced, ended, (MlflowException,))


def wandb() -> Tracker:
    """A run as the variables WANDB_* ask for; without WANDB_MODE or WANDB_API_KEY one in RUN/wandb, to be synced."""
    offline = not (os.environ.get("WANDB_MODE") or os.environ.get("WANDB_API_KEY"))
    if offline:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    package = _package("wandb", "wandb")
    at: dict[str, Any] = {}

    def began(settings: Settings, folder: Path, rows: Iterable[Row]) -> None:
        known = _state(folder).get("wandb", {})
        run = at["run"] = package.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=os.environ.get("WANDB_NAME", folder.name),
            id=known.get("run"), resume="allow", reinit="finish_previous", mode="offline" if offline else None,
            dir=None if os.environ.get("WANDB_DIR") else str(folder), config=dict(settings),
            settings=package.Settings(console="off", silent=True, disable_git=True),
        )  # fmt: skip
        at.update(folder=folder, told=max(known.get("rounds", 0), run.step - 1))  # offline it starts at 0
        _remember(folder, "wandb", run=run.id, rounds=at["told"])
        for some in batched(rows, AT_ONCE):
            advanced(some)

    def advanced(rows: list[Row]) -> None:
        if new := [row for row in rows if row["round"] > at["told"]]:
            for row in new:
                at["run"].log(scalars(row), step=row["round"])
            at["told"] = new[-1]["round"]
            _remember(at["folder"], "wandb", run=at["run"].id, rounds=at["told"])

    def ended(summary: dict[str, Any] | None) -> None:
        at["run"].summary.update(dict(_flat({"summary": summary or {}}, "/")))
        at["run"].finish(exit_code=int(summary is None or summary["status"] in ("interrupted", "diverged")))

    return Tracker("wandb", began, advanced, ended, (package.Error,))


TRACKERS: dict[str, Callable[[], Tracker]] = {"tensorboard": tensorboard, "mlflow": mlflow, "wandb": wandb}


def _package(tracker: str, package: str) -> Any:
    try:
        found = importlib.import_module(package)
    except ImportError:
        found = None
    if getattr(found, "__file__", None) is None:  # a mere folder of that name can be imported, too
        reason = f"needs {package}, which is not installed; run: pip install 'fedjax-sim[{tracker}]'"
        raise InputError(f"output.track: {tracker!r} {reason}")
    return found


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _flat(tree: Mapping[str, Any], joint: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What is set in a tree, by path; lists as text."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, joint, f"{prefix}{key}{joint}")
        elif value is not None:
            yield f"{prefix}{key}", value if isinstance(value, (str, int, float)) else str(value)


def _state(folder: Path) -> dict[str, Any]:
    """Which runs of the trackers this one is; none, with a warning, where that cannot be read."""
    if not (path := folder / STATE).exists():
        return {}
    try:
        found = parse_json(path.read_bytes())
    except ValueError:
        found = None
    if isinstance(found, dict) and all(isinstance(k, dict) and isinstance(k.get("run"), str) for k in found.values()):
        return found
    warnings.warn(f"{path}: it is damaged; trackers begin another run", stacklevel=2)
    return {}


def _remember(folder: Path, tracker: str, **known: Any) -> None:
    write_json(folder / STATE, {**_state(folder), tracker: known})
