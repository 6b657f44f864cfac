"""What lies in a run folder may be damaged or half removed: a run goes on from what is whole, or says in a line what is
not, and nothing that was written is lost."""

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import one_line
from runs import QUICK
from test_resume import After, left

import fedjax_sim.experiment.run as running
from fedjax_sim import InputError
from fedjax_sim.experiment import checkpoint
from fedjax_sim.experiment.config import load_config
from fedjax_sim.experiment.history import History
from fedjax_sim.experiment.run import resume, run

ROUNDS, DONE = 7, 5
SETTINGS = (
    *QUICK, f"training.rounds={ROUNDS}", "training.evaluate_every=2", "training.local_steps=2", "data.clients=6",
    "training.clients_per_round=3", "algorithm.name=scaffold", "execution.client_memory=disk", "execution.lanes=3",
    "output.checkpoint_every=1",
)  # fmt: skip


def settings(folder: Path) -> list[str]:
    return [*SETTINGS, f"output.folder={folder.parent}", f"output.name={folder.name}"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run that is whole, and one that was interrupted after a few rounds."""
    folder = tmp_path_factory.mktemp("runs")
    run(load_config(None, settings(folder / "whole")))
    run(load_config(None, settings(folder / "parts")), stop=After(DONE))
    assert checkpoint.rounds_saved(folder / "parts") == [DONE, DONE - 1]
    return folder


@pytest.fixture
def parts(runs: Path, tmp_path: Path) -> Path:
    return shutil.copytree(runs / "parts", tmp_path / "parts")


def file_of(folder: Path, done: int) -> Path:
    (found,) = (folder / checkpoint.FOLDER).glob(f"{done}.*")
    return found


def flip(path: Path, place: float = 0.5) -> None:
    """One bit."""
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 4
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a bit of the newest flipped": lambda folder: flip(file_of(folder, DONE)),
    "the newest cut": lambda folder: file_of(folder, DONE).write_bytes(file_of(folder, DONE).read_bytes()[:-1]),
    "the newest empty": lambda folder: file_of(folder, DONE).write_bytes(b""),
    "the last row lost": lambda folder: cut(folder / "history.jsonl", DONE - 1),
    "the last row damaged": lambda folder: flip(folder / "history.jsonl", 0.999),
}


def cut(path: Path, lines: int) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:lines]))


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_run_goes_back_to_the_checkpoint_before_by_itself(runs: Path, parts: Path, kind: str) -> None:
    """With the client memory on disk, whose journals reach as far back as the checkpoints."""
    DAMAGE[kind](parts)
    with pytest.warns(UserWarning, match=rf"parts: the run goes on after round {DONE - 1}, .*\(round {DONE}: ") as told:
        assert resume(parts).status == "finished"
    assert len(told) == 1
    assert left(parts) == left(runs / "whole")


def test_a_checkpoint_half_removed_by_hand_is_as_if_it_had_never_been(runs: Path, parts: Path) -> None:
    file_of(parts, DONE).unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resume(parts).status == "finished"
    assert left(parts) == left(runs / "whole")


@pytest.mark.parametrize("name", ["memory_0.bin", "memory_1.bin"])
def test_client_memory_that_is_damaged_is_found_out(runs: Path, parts: Path, name: str) -> None:
    path = parts / "client_memory" / name
    path.write_bytes(bytes(255 - byte for byte in path.read_bytes()))
    rows = (parts / "history.jsonl").read_text()
    with pytest.warns(UserWarning, match="goes on from the beginning, and the rounds that were done are in history_1"):
        assert resume(parts).status == "finished"
    assert left(parts) == left(runs / "whole")
    assert (parts / "history_1.jsonl").read_text() == rows


def test_without_any_whole_checkpoint_training_begins_anew_and_rows_are_kept(runs: Path, parts: Path) -> None:
    for done in (DONE, DONE - 1):
        flip(file_of(parts, done))
    rows = (parts / "history.jsonl").read_text()
    with pytest.warns(UserWarning, match=r"from the beginning, .*\(round 5: it is damaged; round 4: it is damaged\)"):
        assert resume(parts).status == "finished"
    assert left(parts) == left(runs / "whole")
    assert (parts / "history_1.jsonl").read_text() == rows


def test_checkpoints_of_another_version_are_said_to_be(runs: Path, parts: Path) -> None:
    shutil.rmtree(parts / checkpoint.FOLDER)
    (parts / checkpoint.FOLDER / "5" / "d").mkdir(parents=True)
    with pytest.warns(UserWarning, match=r"from the beginning, .*\(5: of another version\)"):
        assert resume(parts).status == "finished"
    assert left(parts) == left(runs / "whole")


def test_a_history_without_the_rows_before_any_checkpoint_is_one_line(parts: Path) -> None:
    path = parts / "history.jsonl"
    for change in (lambda: cut(path, 2), lambda: flip(path, 0.1), lambda: path.write_bytes(b"\xef\xbb\xbf\xff\x00\n")):
        kept = path.read_bytes()
        change()
        damaged = path.read_bytes()
        with pytest.raises(InputError) as error:
            resume(parts)
        one_line(error, str(path), "put the rows back")
        assert path.read_bytes() == damaged
        path.write_bytes(kept)


# --- the end of a run ------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends a run where it is."""


def drawn(history: History, path: Path) -> None:
    path.write_text(f"{len(history)} rounds")


@pytest.mark.parametrize("moment", ["pictures", "removal"])
def test_what_a_kill_after_the_summary_has_left_undone_is_made_up_for(
    runs: Path, parts: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if moment == "removal":
            patch.setattr(running, "remove", lambda path: killed() if path.name == "client_memory" else None)
        with pytest.raises(Killed):
            resume(parts, draw=killed if moment == "pictures" else drawn)
    written = (parts / "summary.json").read_text()
    assert json.loads(written)["status"] == "finished"
    assert (parts / "client_memory").exists()
    summary = resume(parts, draw=drawn)
    assert summary.status == "finished"
    assert (parts / "summary.json").read_text() == written
    assert left(parts) == left(runs / "whole")
    names = {path.name for path in (runs / "whole").iterdir()} | {"curves.png"}
    assert {path.name for path in parts.iterdir()} == names
    assert (parts / "curves.png").read_text() == f"{ROUNDS} rounds"
    with pytest.raises(InputError) as error:
        resume(parts, draw=drawn)
    one_line(error, "that run has ended (finished); nothing is left to do")


def test_a_damaged_summary_is_one_line_or_written_anew(runs: Path, parts: Path, tmp_path: Path) -> None:
    ended = shutil.copytree(runs / "whole", tmp_path / "ended")
    for text in ("", "[]", '{"status": "finished"}', "{", "[" * 5000, '{"status": ' + "9" * 5000 + "}"):
        (ended / "summary.json").write_text(text)
        with pytest.raises(InputError) as error:
            resume(ended)
        one_line(error, str(ended / "summary.json"), "it is no summary")
        assert (ended / "summary.json").read_text() == text
    (parts / "summary.json").write_text("{")
    with pytest.warns(
        UserWarning, match=r"summary.json: it is no summary of a run .*going on from the last checkpoint"
    ):
        assert resume(parts).status == "finished"
    assert left(parts) == left(runs / "whole")


# --- a full disk -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.toml", "checkpoints/partial", "summary.json", "layer0.bias.npy"])
def test_a_full_disk_names_the_file_and_loses_nothing(
    tmp_path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Once there is room the run goes on to the same end; one that could not write down its settings leaves nothing."""
    folder, sync = tmp_path / "run", os.fsync

    def full(descriptor: int) -> None:
        if name in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(28, "No space left on device")
        sync(descriptor)

    def full_model(path: str | Path, *_: object) -> None:
        raise OSError(28, "No space left on device", f"{path}/{name}")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        if name.endswith(".npy"):
            patch.setattr(running, "save_leaves", full_model)
        with pytest.raises(OSError, match="No space left on device") as error:
            run(load_config(None, settings(folder)))
    assert name in str(error.value.filename)
    assert not [path for path in folder.rglob("*partial") if path.is_file()]
    if name == "config.toml":
        assert not folder.exists()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resume(folder).status == "finished"
    assert left(folder) == left(runs / "whole")


def test_checkpoints_keep_every_kind_of_array(tmp_path: Path) -> None:
    import jax
    import jax.numpy as jnp

    state = {"b": jnp.ones((2, 3), jnp.bfloat16) * 1.5, "k": jax.random.key(3), "s": jnp.float32(2),
             "e": jnp.zeros((0, 4)), "i": jnp.arange(3, dtype=jnp.uint8), "t": jnp.array([True, False]),
             "z": jnp.bfloat16(0.1)}  # fmt: skip
    saved = checkpoint.Saved(state, {"w": np.ones(3)}, np.int32(1), np.int32(-1), np.zeros(0, bool))
    checkpoint.save(tmp_path, 3, saved)
    found = checkpoint.restore(checkpoint.read(tmp_path, 3), saved)
    for given, back in zip(jax.tree.leaves(saved), jax.tree.leaves(found), strict=True):
        assert given.dtype == back.dtype
        assert type(given) is type(back) or isinstance(back, (np.ndarray, np.generic))
        if isinstance(back, jax.Array) and jnp.issubdtype(back.dtype, jax.dtypes.prng_key):
            given, back = jax.random.key_data(given), jax.random.key_data(back)
        np.testing.assert_array_equal(np.asarray(given), np.asarray(back))
    flip(file_of(tmp_path, 3), 0.2)
    with pytest.raises(checkpoint.Damaged):
        checkpoint.read(tmp_path, 3)
