"""Commands killed at every operation on a file, one by one: what is left goes on, to what an unbroken one leaves."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from runs import QUICK, Command, commands
from test_resume import left

RUN = (
    *QUICK, "training.rounds=5", "training.evaluate_every=2", "training.local_steps=2", "training.clients_per_round=3",
    "data.clients=6", "data.local_test_fraction=0.2", "algorithm.name=scaffold", "execution.client_memory=disk",
    "execution.lanes=3", "output.checkpoint_every=1",
)  # fmt: skip

SMALL = (
    *QUICK, "training.rounds=2", "training.evaluate_every=1", "training.local_steps=9", "training.clients_per_round=2",
    "data.clients=5", "data.alpha=1",
)  # fmt: skip
RATES = ("--over", "algorithm.learning_rate=0.1,0.3,1")
RANGE = ("--over", "algorithm.learning_rate=log:1e-2..3")
MANY = {
    "sweep": ("sweep", *RATES, "--seeds", "2"),
    "tune": ("tune", *RANGE, "--trials", "3", "--batch", "2"),
    "diagnose": ("diagnose", "--seeds", "2", "--cause", "learning_rate", "--no-remedies"),
}
NAMES = ("--over", "algorithm.name=fedavg,fedprox")  # two structures, of which one is done where the other is not
MORE = {
    "sweep, more": ("sweep", *NAMES, *RATES, "--seeds", "2"),
    "tune, more": ("tune", *NAMES, *RANGE, "--trials", "5", "--batch", "2"),
    "diagnose, more": ("diagnose", "--seeds", "2", "--cause", "label_skew", "--cause", "learning_rate"),
}

IMPORTED = (
    "fedjax_sim.diagnose", "fedjax_sim.experiment.sweep", "fedjax_sim.experiment.tune", "fedjax_sim.report.diagnosis",
    "jinja2", "matplotlib.backends.backend_agg", "optuna.storages._rdb.storage",
)  # fmt: skip


def options(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    with commands(*IMPORTED, **cache) as run:
        yield run


def operations(folder: Path) -> int:
    return int(folder.with_name(f"{folder.name}.operations").read_text())


def content(folder: Path) -> dict[str, bytes]:
    """The model, bit by bit, and which files there are."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() if path.suffix == ".npy" else b"" for path in files}


def spread(count: int, chosen: int) -> list[int]:
    """So many numbers from 1 to `count`, the first and the last among them; all of them where there are no more."""
    chosen = min(chosen, count)
    return sorted({1 + round(i * (count - 1) / (chosen - 1)) for i in range(chosen)})


def test_instants_are_spread() -> None:
    assert spread(9, 3) == [1, 5, 9]
    assert spread(90, 10_000) == [*range(1, 91)]


@pytest.mark.parametrize("chosen", [3, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_run_killed_at_any_operation_on_a_file_ends_as_if_it_never_was(
    tmp_path: Path, command: Command, chosen: int
) -> None:
    """And is killed once more while it is taken up."""
    settings = options(*RUN)
    (tmp_path / "runs").mkdir()
    status, _, err = command(tmp_path, "run", *settings, "--set", "output.name=whole", die_at=0)
    assert (status, err) == (0, "")
    whole, count = tmp_path / "runs" / "whole", operations(tmp_path)
    assert count > 90
    for at in spread(count, chosen)[1:-1] if chosen < count else spread(count, chosen):
        folder = tmp_path / "runs" / f"killed{at}"
        begun = ("run", *settings, "--set", f"output.name={folder.name}")
        status, _, err = command(tmp_path, *begun, die_at=at)
        assert (status, err) == (-9, ""), at
        for again in (1 + at % 13, None):
            arguments = ("resume", f"runs/{folder.name}") if (folder / "config.toml").exists() else begun
            status, _, err = command(tmp_path, *arguments, die_at=again)
            if again is None or status != -9:
                nothing_left = status == 2 and "that run has ended (finished); nothing is left to do" in err
                assert (status, err) == (0, "") or nothing_left, (at, again, err)
        assert left(folder) == left(whole), at
        assert content(folder) == content(whole), at


def lines(path: Path) -> dict[str, str]:
    """A table's lines by what each is of."""
    return {json.loads(line)["run"]: line for line in path.read_text().splitlines()}


def studied(path: Path) -> list[Any]:
    """The trials of a study that count, in their order."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    try:
        study = optuna.load_study(study_name=optuna.get_all_study_names(storage)[0], storage=storage)
        states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        unfinished = [trial for trial in study.trials if not trial.state.is_finished()]
        return [*unfinished, *((t.state, t.params, t.values, t.intermediate_values, t.user_attrs)
                               for t in study.get_trials(states=states))]  # fmt: skip
    finally:
        storage.remove_session()
        storage.engine.dispose()


def found(folder: Path) -> dict[str, Any]:
    """What a command of many runs leaves but for times, and for what the last of its processes did of the work."""
    left: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".jsonl":
            left[path.name] = lines(path)
        elif path.suffix == ".db":
            left[path.name] = studied(path)
        elif path.suffix == ".json":
            left[path.name] = json.loads(path.read_text()) | dict.fromkeys(("runs", "programs", "seconds"))
        else:
            left[path.name] = path.read_bytes() if path.suffix == ".toml" else b""
    return left


REST = [pytest.param(kind, marks=pytest.mark.slow) for kind in MANY | MORE if kind != "sweep"]


@pytest.mark.parametrize("kind", ["sweep", *REST])
def test_many_runs_killed_at_any_operation_on_a_file_end_as_if_they_never_were(
    tmp_path: Path, command: Command, kind: str
) -> None:
    """And, of the longer ones, are killed once more while they are taken up, by the same command."""
    name, *how = (MANY | MORE)[kind]
    given = (name, *options(*SMALL), *how)
    status, _, err = command(tmp_path, *given, "--folder", "whole", die_at=0)
    assert (status, err) == (0, "")
    whole, count = found(tmp_path / "whole"), operations(tmp_path)
    assert count > (30 if kind in MORE else 15)
    for at in spread(count, 10_000) if kind in MORE else spread(count, 3)[1:-1]:
        folder = ("--folder", f"killed{at}")
        status, _, err = command(tmp_path, *given, *folder, die_at=at)
        assert (status, err) == (-9, ""), at
        if kind in MORE:
            status, _, err = command(tmp_path, *given, *folder, die_at=1 + at % 13)
            assert (status, err) in ((-9, ""), (0, "")), (at, err)
        assert command(tmp_path, *given, *folder)[::2] == (0, ""), at
        assert found(tmp_path / folder[1]) == whole, at
