"""Runs that are stopped or killed, and taken up again: what they leave is what the uninterrupted run leaves."""

import fcntl
import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import one_line
from runs import QUICK, commands

from fedjax_sim import InputError
from fedjax_sim.core.tune import remember, signature
from fedjax_sim.experiment import checkpoint
from fedjax_sim.experiment.build import build
from fedjax_sim.experiment.checkpoint import Saved
from fedjax_sim.experiment.choosing import stalled
from fedjax_sim.experiment.config import load_config
from fedjax_sim.experiment.folder import LOCK, locked
from fedjax_sim.experiment.history import read_history
from fedjax_sim.experiment.run import resume, run

ROUNDS = 6
COMMON = (*QUICK, f"training.rounds={ROUNDS}", "training.evaluate_every=2", "training.local_steps=2")
CLOCK = ("network.profiles=lognormal", "network.dropout=0.2")
KINDS = {
    "asynchronous, compressed": (*CLOCK, "network.policy=asynchronous", "network.buffer=3", "algorithm.name=scaffold",
                                 "compression.uplink=top_k", "compression.feedback=ef21", "compression.lazy=0.5"),
    "private, adaptive": ("privacy.mechanism=gaussian", "privacy.clip_norm=0.5", "privacy.noise_multiplier=1.0",
                          "privacy.adaptive=true", "training.sampling=poisson"),
    "matrix noise": ("privacy.mechanism=matrix", "privacy.clip_norm=0.5", "privacy.noise_multiplier=1.0",
                     "training.sampling=round_robin"),
    "streamed, on disk": (*CLOCK, "execution.memory=stream", "execution.client_memory=disk", "algorithm.name=ditto",
                          "algorithm.server_schedule=cosine", "compression.downlink=half",
                          "data.local_test_fraction=0.2"),
    "steps that follow the loss": (*CLOCK, "training.adapt_steps=adacomm", "training.adapt_every=2",
                                   "algorithm.name=fedadam"),
}  # fmt: skip


def left(folder: Path) -> tuple[list[Any], dict[str, Any], Any]:
    """What a run leaves but for times: rows, summary, and the clients' own tests."""
    rows = [{k: v for k, v in row.items() if k != "elapsed_seconds"} for row in read_history(folder / "history.jsonl")]
    summary = json.loads((folder / "summary.json").read_text())
    for name in ("folder", "seconds", "start_seconds", "rounds_per_second"):
        del summary[name]
    clients = folder / "clients.jsonl"
    table = (folder / "per_client.npy").read_bytes()
    return [*rows, table], summary, clients.read_text() if clients.exists() else None


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that came to its end."""
    folder = tmp_path_factory.mktemp("runs")
    return Path(run(load_config(None, [*QUICK, f"output.folder={folder}", "output.name=ended"])).folder)


class After:
    """Asks for an end once so many more calls were made."""

    def __init__(self, calls: int):
        self.calls = calls

    def __call__(self) -> bool:
        self.calls -= 1
        return self.calls <= 0


QUICKEST = ("asynchronous, compressed", "private, adaptive")


@pytest.mark.parametrize(
    "kind", [*QUICKEST, *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS if k not in QUICKEST)]
)
def test_a_run_stopped_anywhere_goes_on_bit_by_bit(tmp_path: Path, kind: str) -> None:
    """Stopped after its first round, and again after each call that follows."""
    overrides = [*COMMON, *KINDS[kind], f"output.folder={tmp_path}", "output.checkpoint_every=2"]
    run(load_config(None, [*overrides, "output.name=whole"]))
    summary = run(load_config(None, [*overrides, "output.name=parts"]), stop=After(1))
    folder, done = tmp_path / "parts", [1]
    assert (summary.status, summary.rounds) == ("interrupted", 1)
    while summary.status == "interrupted":
        assert checkpoint.rounds_saved(folder)
        summary = resume(folder, stop=After(1 if len(done) < 2 else 2))
        done.append(summary.rounds)
    assert done[:2] == [1, 2]
    assert done[-1] == ROUNDS
    assert left(folder) == left(tmp_path / "whole")
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        path.name for path in (tmp_path / "whole").iterdir()
    )


@pytest.mark.slow  # by chance in time, where tests/test_kills.py goes through all operations on files
def test_a_run_killed_at_random_moments_ends_as_if_it_never_was(tmp_path: Path) -> None:
    moments = 20
    rng, settings = np.random.default_rng(0), (
        *QUICK, "training.rounds=1000", "training.evaluate_every=5", "training.local_steps=2", *CLOCK,
        "algorithm.name=scaffold", "execution.client_memory=disk", "compression.uplink=sign",
        "compression.feedback=classic", "output.checkpoint_every=1", "training.clients_per_round=4",
    )  # fmt: skip
    arguments = [part for setting in settings for part in ("--set", setting)]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
             "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0"}  # fmt: skip
    with commands(**cache) as command:
        status, _, err = command(tmp_path, "run", *arguments, "--set", "output.name=whole")
        assert (status, err) == (0, "")
        folder, kills, torn = tmp_path / "runs" / "killed", 0, 0
        history, begun = folder / "history.jsonl", ("run", *arguments, "--set", "output.name=killed")
        for attempt in range(60):
            again = ("resume", "runs/killed") if (folder / "config.toml").exists() else begun
            watched = str(history) if attempt % 4 else ""  # every fourth dies wherever it is, maybe before it trains
            status, _, err = command(tmp_path, *again, watched=watched, seconds=float(rng.uniform(0.0, 0.15)))
            if status == 0:
                break
            assert (status, err) == (-9, "")
            kills += 1
            text = history.read_text() if history.exists() else ""
            torn += (folder / "checkpoints" / "partial").exists()
            assert kills < moments or len(text) > 0
            if kills == moments:
                break
            if kills == moments // 2 and text:  # as if the power had gone while a line was written
                history.write_text(text + '{"round": 9')
            shutil.rmtree(folder, ignore_errors=True) if not (folder / "config.toml").exists() else None
        assert kills == moments
        status, _, err = command(tmp_path, "resume", "runs/killed")
        assert (status, err) == (0, "")
    assert left(folder) == left(tmp_path / "runs" / "whole")


def test_the_budget_and_a_plateau_end_a_resumed_run_where_they_would_have(tmp_path: Path) -> None:
    def equal_losses(*values: float) -> list[tuple[float, float]]:
        return [(value, -1.0) for value in values]

    assert not stalled(equal_losses(0.1, 0.2), 2, 0.0)
    assert stalled(equal_losses(0.5, 0.4, 0.5), 2, 0.0)
    assert not stalled(equal_losses(0.5, 0.4, 0.51), 2, 0.0)
    assert stalled(equal_losses(0.5, 0.4, 0.51), 2, 0.02)
    assert not stalled([(0.95, -0.3), (0.95, -0.25), (0.95, -0.2)], 2, 0.0)  # equally right, and surer of it
    assert stalled([(0.95, -0.2), (0.95, -0.3)], 1, 0.0)
    overrides = [*QUICK, "training.rounds=9", "training.evaluate_every=1", "training.patience=2",
                 "training.min_improvement=0.9", f"output.folder={tmp_path}"]  # fmt: skip
    whole = run(load_config(None, [*overrides, "output.name=whole"]))
    assert (whole.status, whole.rounds) == ("plateau", 3)
    run(load_config(None, [*overrides, "output.name=parts"]), stop=After(2))
    assert resume(tmp_path / "parts").status == "plateau"
    assert left(tmp_path / "parts") == left(tmp_path / "whole")


@pytest.mark.parametrize("another", [True, False])
def test_a_lock_that_its_holder_removes_while_one_waits_for_it_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, another: bool
) -> None:
    """Between the opening of the file and its lock the holder ends, and perhaps a third process begins."""
    path, flock, third = tmp_path / LOCK, fcntl.flock, ExitStack()

    def late(file: Any, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        path.unlink()
        if another:
            third.enter_context(locked(tmp_path))
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with third:
        if another:
            with pytest.raises(InputError) as error, locked(tmp_path):
                pass
            one_line(error, "another process")
        else:
            with locked(tmp_path):
                with pytest.raises(InputError) as error, locked(tmp_path):
                    pass
                one_line(error, "another process")
    assert not path.exists()


def test_what_cannot_be_resumed_is_one_line(ended: Path, tmp_path: Path) -> None:
    overrides = [*QUICK, f"output.folder={tmp_path}"]
    with pytest.raises(InputError) as error:
        resume(tmp_path)
    one_line(error, str(tmp_path), "config.toml")
    with pytest.raises(InputError) as error:
        resume(ended)
    one_line(error, "ended (finished)")
    run(load_config(None, [*overrides, "output.name=broken"]), stop=After(2))
    folder = tmp_path / "broken"
    with locked(folder), pytest.raises(InputError) as error:
        resume(folder)
    one_line(error, "another process")
    shutil.copytree(folder, tmp_path / "short")
    (tmp_path / "short" / "history.jsonl").write_text('{"round": 1}\n')
    with pytest.raises(InputError) as error:
        resume(tmp_path / "short")
    one_line(error, "history.jsonl", "put the rows back")
    text = (folder / "config.toml").read_text()
    with pytest.raises(InputError) as error:
        resume(folder, overrides=["model.name=mlp"])
    one_line(error, "does not go with the change (model.name: logistic -> mlp)", "leave --set model.name out")
    assert (folder / "config.toml").read_text() == text
    (folder / "config.toml").write_text(text.replace("# jax ", "# jax 0.0."))
    with pytest.warns(UserWarning, match=r"begun elsewhere \(jax 0\.0\.") as warned:
        assert resume(folder).status == "finished"
    assert len(warned) == 1


def test_a_run_folder_is_repeated_under_another_name(ended: Path) -> None:
    again = Path(run(load_config(ended)).folder)
    assert again != ended
    assert left(again)[0] == left(ended)[0]


def test_what_a_first_checkpoint_left_when_it_was_killed_is_taken_away(tmp_path: Path) -> None:
    saved = Saved({"w": np.ones(3)}, {"w": np.ones(3)}, np.int32(1), np.int32(-1), np.zeros(0, bool))
    place = tmp_path / checkpoint.FOLDER
    (place / "3.orbax-checkpoint-tmp").mkdir(parents=True)
    (place / "3.orbax-checkpoint-tmp" / "part").write_text("half")
    (place / "partial").write_text("half")
    checkpoint.save(tmp_path, 3, saved)
    (found,) = place.iterdir()
    assert found.name.startswith("3.")
    assert checkpoint.rounds_saved(tmp_path) == [3]


# --- lanes ------------------------------------------------------------------------------------------------------------


def test_a_run_keeps_the_lanes_that_it_began_with_whatever_others_find_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken up from a checkpoint, or from the beginning where it was killed before there was any."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    overrides = [*COMMON, f"output.folder={tmp_path}", "output.checkpoint_every=100"]
    built = build(load_config(None, overrides))
    training = built.config.training
    of_run = signature(built.model.params, jax.local_devices()[:1], algorithm="fedavg", batch_size=training.batch_size,
                       cohort_size=training.clients_per_round)  # fmt: skip
    remember(of_run, 3)
    run(load_config(None, [*overrides, "output.name=whole"]))
    assert run(load_config(None, [*overrides, "output.name=parts"]), stop=After(1)).status == "interrupted"
    folder = tmp_path / "parts"
    unsaved = Path(shutil.copytree(folder, tmp_path / "unsaved"))
    shutil.rmtree(unsaved / checkpoint.FOLDER)
    remember(of_run, 2)
    for each in (folder, unsaved):
        resume(each)
        assert {row["lanes"] for row in read_history(each / "history.jsonl")} == {3}
        assert left(each) == left(tmp_path / "whole")
    run(load_config(None, [*overrides, "output.name=later"]))
    assert {row["lanes"] for row in read_history(tmp_path / "later" / "history.jsonl")} == {2}
