"""What trackers are told of a run: the numbers of its history, each step once, whatever stops the run or fails."""

import json
import struct
import sys
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from conftest import one_line
from runs import QUICK

from fedjax_sim import InputError
from fedjax_sim.experiment import checkpoint, tracking
from fedjax_sim.experiment.config import Config, load_config, to_toml
from fedjax_sim.experiment.history import Row, read_history
from fedjax_sim.experiment.run import resume, run
from fedjax_sim.experiment.summary import Summary
from fedjax_sim.experiment.tracking import Tracker, scalars, several, trackers

ROUNDS, DONE_AGAIN = 6, (3, 4)
SETTINGS = (
    *QUICK,
    f"training.rounds={ROUNDS}",
    "training.evaluate_every=2",
    "training.local_steps=1",
    "output.checkpoint_every=2",
)
MLFLOW = ("mlflow", "sqlalchemy", "alembic")
VARIABLES = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
             "WANDB_ERROR_REPORTING": "false"}  # fmt: skip
Steps = dict[tuple[str, int], float]


def settings(folder: Path, *names: str) -> Config:
    where = (f"output.folder={folder.parent}", f"output.name={folder.name}", f"output.track={json.dumps(names)}")
    return load_config(None, [*SETTINGS, *where])


class Killed(BaseException):
    """Ends a run where it is."""


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Summary]]:
    """A run with all trackers there are, broken off past its last checkpoint, as by a kill, and resumed."""
    names = ["tensorboard"] + ["mlflow"] * (not missing(*MLFLOW)) + ["wandb"] * (not missing("wandb"))
    folder, asked = tmp_path_factory.mktemp("tracked") / "run", []

    def stop() -> bool:
        asked.append(None)
        if len(asked) > 2:
            raise Killed
        return False

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for variable in ("MODE", "API_KEY", "DIR", "PROJECT", "NAME", "RUN_ID", "RESUME"):
            patch.delenv(f"WANDB_{variable}", raising=False)
        for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
            patch.delenv(variable, raising=False)
        for variable, value in VARIABLES.items():
            patch.setenv(variable, value)
        with pytest.raises(Killed):
            run(settings(folder, *names), stop=stop)
        assert len(read_history(folder / "history.jsonl")) == max(DONE_AGAIN)
        assert checkpoint.rounds_saved(folder) == [2]
        yield folder, resume(folder)


def expected(folder: Path) -> Steps:
    rows = read_history(folder / "history.jsonl")
    assert [row["round"] for row in rows] == list(range(1, ROUNDS + 1))
    return {(name, row["round"]): value for row in rows for name, value in scalars(row).items()}


def once(found: list[tuple[str, int, float]]) -> Steps:
    steps = {(name, step): value for name, step, value in found}
    assert len(steps) == len(found)  # none comes twice
    return steps


def as_told(steps: Steps) -> Steps:
    """Without the times of rounds that were done again, whose first ones were told."""
    return {(name, step): v for (name, step), v in steps.items() if name != "elapsed_seconds" or step not in DONE_AGAIN}


def missing(*packages: str) -> list[str]:
    return [package for package in packages if find_spec(package) is None]


def single(steps: Steps) -> Steps:
    return {place: float(np.float32(value)) for place, value in steps.items()}


def test_numbers_of_a_row() -> None:
    row: Row = {"round": 3, "clients": 2, "test_loss": None, "guarantee": "dp", "per_client": {"ids": [1, 2]},
                "test_class_accuracy": [0.5, None, 1.0], "flag": True, "loss_before": 0.25}  # fmt: skip
    classes = {"test_class_accuracy/0": 0.5, "test_class_accuracy/2": 1.0}
    assert scalars(row) == {"clients": 2, "loss_before": 0.25, **classes}


# --- TensorBoard -----------------------------------------------------------------------------------------------------


def events(folder: Path) -> Iterator[Any]:
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import masked_crc32c

    (path,) = (folder / "tensorboard").iterdir()
    data = path.read_bytes()
    while data:
        size, checked = struct.unpack("<QI", data[:12])
        assert checked == masked_crc32c(data[:8])
        body, (checked,) = data[12 : 12 + size], struct.unpack("<I", data[12 + size : 16 + size])
        assert checked == masked_crc32c(body)
        yield cast(Any, event_pb2).Event.FromString(body)
        data = data[16 + size :]


def tensorboard_numbers(folder: Path) -> Steps:
    told = [(v.tag, event.step, v) for event in events(folder) for v in event.summary.value]
    return once([(tag, step, v.simple_value) for tag, step, v in told if v.HasField("simple_value")])


def test_event_files_hold_the_history_also_of_a_resumed_run(resumed: tuple[Path, Summary]) -> None:
    from tensorboardX.proto import plugin_hparams_pb2

    folder, _ = resumed
    assert tensorboard_numbers(folder) == single(expected(folder))
    values = [v for event in events(folder) for v in event.summary.value if not v.HasField("simple_value")]
    others = {v.tag: v for v in values}
    assert len(values) == len(others) == 4
    assert b"best_test_accuracy" in others["summary/text_summary"].tensor.string_val[0]
    content = others["_hparams_/session_start_info"].metadata.plugin_data.content
    given = cast(Any, plugin_hparams_pb2).HParamsPluginData.FromString(content).session_start_info.hparams
    assert given["training.rounds"].number_value == ROUNDS
    assert given["model.name"].string_value == "logistic"


# --- what fails ------------------------------------------------------------------------------------------------------


def failing(name: str, at: int, told: list[Any]) -> Tracker:
    """Fails at its call number `at`."""

    def call(*arguments: Any) -> None:
        told.append(arguments)
        if len(told) == at:
            raise OSError(28, "No space\nleft on device")

    return Tracker(name, call, call, call)


def test_a_tracker_that_fails_costs_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, well = [], []
    table = {
        "full": lambda: failing("full", 3, told),
        "fine": lambda: failing("fine", 0, well),
        "tensorboard": tracking.tensorboard,
    }
    monkeypatch.setattr(tracking, "TRACKERS", table)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert run(settings(tmp_path / "run", "full", "fine", "tensorboard", "full")).status == "finished"
    (text,) = (str(one.message) for one in caught if "output.track" in str(one.message))
    assert text.startswith("output.track: 'full' is switched off (")
    assert "No space left on device" in text
    assert "\n" not in text
    assert len(told) == 3
    rows = [row for (rows,) in well[1:-1] for row in rows]
    assert rows == read_history(tmp_path / "run" / "history.jsonl")
    assert len(rows) == ROUNDS
    assert well[-1][0]["status"] == "finished"
    assert tensorboard_numbers(tmp_path / "run") == single(expected(tmp_path / "run"))


def test_errors_that_are_no_trackers_own_are_not_hidden() -> None:
    def wrong(*_: Any) -> None:
        raise KeyError("here")

    ignore = lambda *_: None  # noqa: E731
    with pytest.raises(KeyError):
        several([Tracker("wrong", wrong, ignore, ignore)]).began({}, Path(), [])
    both = several([Tracker("wrong", wrong, ignore, ignore, (KeyError,))])
    with pytest.warns(UserWarning, match="'wrong' is switched off"):
        both.began({}, Path(), [])
    both.advanced([{"round": 1}])


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboardX"), ("mlflow", "mlflow"), ("wandb",) * 2])
def test_a_missing_package_is_said_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for variable, value in VARIABLES.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(InputError) as error:
        run(settings(tmp_path / "run", name))
    one_line(error, f"output.track: '{name}' needs {package}", f"pip install 'fedjax-sim[{name}]'")
    assert not (tmp_path / "run").exists()


def test_names_are_checked_and_kept(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        trackers(["tensorbord"])
    one_line(error, "output.track: 'tensorbord'", "did you mean tensorboard?")
    with pytest.raises(InputError) as error:
        load_config(None, ["output.track=mlflow"])
    one_line(error, "output.track: 'mlflow'", "tensorboard, mlflow, wandb")
    (tmp_path / "c.toml").write_text(to_toml(settings(tmp_path / "run", "mlflow", "wandb")))
    assert load_config(tmp_path / "c.toml").output.track == ("mlflow", "wandb")


# --- MLflow, Weights & Biases ----------------------------------------------------------------------------------------


def needs(*packages: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(bool(missing(*packages)), reason=f"{', '.join(missing(*packages))} not installed")


@needs(*MLFLOW)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_resumed_run_is_one_run_of_mlflow(
    resumed: tuple[Path, Summary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, summary = resumed
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("fedjax_sim")
    assert experiment is not None
    (kept,) = client.search_runs([experiment.experiment_id])
    assert (kept.info.status, kept.info.run_name) == ("FINISHED", "run")
    assert kept.data.params["training.rounds"] == str(ROUNDS)
    assert kept.data.metrics["summary/best_test_accuracy"] == summary.best_test_accuracy
    assert kept.data.tags["summary/status"] == "finished"
    names = [name for name in kept.data.metrics if not name.startswith("summary/")]
    found = [(name, m.step, m.value) for name in names for m in client.get_metric_history(kept.info.run_id, name)]
    assert as_told(once(found)) == as_told(expected(folder))
    assert len(once(found)) == len(expected(folder))

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody answers
    with pytest.warns(UserWarning, match="'mlflow' is switched off"):
        several([tracking.mlflow()]).began({}, tmp_path, [])


def records(path: Path) -> Iterator[Any]:
    """Of a .wandb file: after 7 bytes blocks of 32 KiB with chunks of checksum, length, kind and data."""
    from wandb.proto import wandb_internal_pb2  # pyright: ignore[reportMissingImports]

    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        size, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # in one piece, or the last one
            yield wandb_internal_pb2.Record.FromString(whole)  # type: ignore
            whole = b""


@needs("wandb")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_resumed_run_is_one_run_of_wandb_without_a_network(resumed: tuple[Path, Summary]) -> None:
    folder, _ = resumed
    files = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    told = [record for path in files for record in records(path)]
    assert len({record.run.run_id for record in told if record.WhichOneof("record_type") == "run"}) == 1
    given = {u.key for record in told for u in record.run.config.update}
    assert {"training", "model"} <= given
    found = [
        ("/".join(item.nested_key) or item.key, record.history.step.num, json.loads(item.value_json))
        for record in told
        for item in record.history.item
    ]
    steps = once([one for one in found if not one[0].startswith("_")])
    assert as_told(steps) == as_told(expected(folder))
    assert len(steps) == len(expected(folder))
    assert "summary/best_test_accuracy" in {u.key for record in told for u in record.summary.update}
