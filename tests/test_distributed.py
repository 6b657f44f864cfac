"""One federation on several processes: what they leave is what one process with as many devices leaves."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from conftest import one_line
from runs import QUICK, inside

from fedjax_sim import InputError, distributed
from fedjax_sim.experiment import checkpoint
from fedjax_sim.experiment.config import load_config
from fedjax_sim.experiment.history import read_history
from fedjax_sim.experiment.run import resume, run

COMMON = (*QUICK, "execution.devices=2", "training.local_steps=2")

# Imports take seconds: one process has done them, and the others are children of it that begin as the command does.
FORKING = """
import json, os, signal, sys, warnings
import fedjax_sim.cli.entry, fedjax_sim.distributed, fedjax_sim.experiment.progress, fedjax_sim.experiment.run
import fedjax_sim.plots, jax, sklearn.datasets

folder, address, commands = json.loads(sys.stdin.readline())
children = []
for number, arguments in enumerate(commands):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that forking is dangerous; no thread has been started
        child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(folder)
        for name, stream in (("out", 1), ("err", 2)):
            os.dup2(os.open(f"{folder}/{number}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        warnings.simplefilter("error")
        warnings.filterwarnings("default", ".*begun elsewhere")  # which is meant to be told
        sys.argv = ["fedjax-sim", *arguments, "--coordinator", address, "--processes", str(len(commands)),
                    "--process", str(number)]
        fedjax_sim.cli.main()
    children.append(child)
print(json.dumps(children), flush=True)
print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
"""


class Ended(NamedTuple):
    status: int
    out: str
    err: str


class Processes:
    """Commands at work together, and their numbers in the system."""

    def __init__(self, started: subprocess.Popen[str], folder: Path):
        assert started.stdout is not None
        self.told, self.folder = started.stdout, folder
        self.numbers: list[int] = json.loads(self.told.readline())

    def ended(self) -> list[Ended]:
        """Status and output of each, when all have ended."""
        found = enumerate(json.loads(self.told.readline()))
        return [Ended(s, *((self.folder / f"{i}.{name}").read_text() for name in ("out", "err"))) for i, s in found]


@contextmanager
def processes(folder: Path, *commands: tuple[str, ...], **environment: str) -> Iterator[Processes]:
    """Starts `fedjax-sim` with these arguments in a process each, on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "COLUMNS": "120", "FEDJAX_SIM_DATA": ""}
    with subprocess.Popen(
        [sys.executable, "-c", FORKING], env=variables | environment, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as started:  # fmt: skip
        assert started.stdin is not None
        started.stdin.write(json.dumps([str(folder), address, commands]) + "\n")
        started.stdin.flush()
        at_work = Processes(started, folder)
        try:
            yield at_work
        finally:
            if started.poll() is None:
                for number in at_work.numbers:
                    if started.poll() is None:
                        try:
                            os.kill(number, signal.SIGKILL)
                        except ProcessLookupError:
                            continue


def settings(*given: str) -> tuple[str, ...]:
    return tuple(part for setting in given for part in ("--set", setting))


def left(folder: Path) -> tuple[Any, ...]:
    """What a run leaves but for times: rows, single clients, their tests, the models, the names of files."""
    rows = [{k: v for k, v in row.items() if k != "elapsed_seconds"} for row in read_history(folder / "history.jsonl")]
    others = [path for path in sorted(folder.rglob("*")) if path.suffix in (".npy", ".jsonl") and path.parent != folder]
    others += [folder / "per_client.npy", folder / "clients.jsonl"]
    contents = [path.read_bytes() if path.exists() else b"" for path in others]
    return rows, contents, sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def on_two(folder: Path, *given: str) -> str:
    """What the primary of two processes prints of a run in `runs/two`; the other one has nothing to say."""
    both = ("run", *settings(*given, "output.name=two"))
    with processes(folder, both, both) as at_work:
        first, second = at_work.ended()
    assert (first.status, first.err) == (0, "")
    assert second == (0, "", "")
    return first.out


def test_two_processes_leave_what_one_with_two_devices_leaves(tmp_path: Path) -> None:
    """Bit for bit: a sum of two is the same in either order. The process that is not primary has nothing to say."""
    given = (*COMMON, "algorithm.name=scaffold", "data.local_test_fraction=0.2", "training.validation_fraction=0.1")
    out = on_two(tmp_path, *given)
    assert out.splitlines()[0].startswith("scikit-learn digits")
    assert "Results are in runs/two" in out
    run(load_config(None, [*given, f"output.folder={tmp_path / 'runs'}", "output.name=one"]), draw=draw)
    assert left(tmp_path / "runs" / "two") == left(tmp_path / "runs" / "one")


def draw(history: Any, path: Path) -> None:
    path.touch()


LONG = (*COMMON, "training.rounds=400", "training.evaluate_every=50", "output.checkpoint_every=5")


def begun(at_work: Processes, folder: Path, rounds: int) -> None:
    """Waits until so many rounds are written."""
    history, end = folder / "history.jsonl", time.monotonic() + 120
    while not history.exists() or history.read_text().count("\n") < rounds:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_ctrl_c_in_one_process_ends_both_with_a_checkpoint_that_one_process_goes_on_from(tmp_path: Path) -> None:
    both, folder = ("run", *settings(*LONG, "output.name=parts")), tmp_path / "runs" / "parts"
    with processes(tmp_path, both, both) as at_work:
        begun(at_work, folder, 1)
        os.kill(at_work.numbers[1], signal.SIGINT)
        first, second = at_work.ended()
    assert (first.status, first.err) == (130, "")
    assert second == (130, "", "")
    assert "Go on with: fedjax-sim resume runs/parts" in first.out
    done = len(read_history(folder / "history.jsonl"))
    assert checkpoint.rounds_saved(folder)[0] == done < 400
    assert resume(folder, draw=draw).status == "finished"
    run(load_config(None, [*LONG, f"output.folder={tmp_path / 'runs'}", "output.name=whole"]), draw=draw)
    assert left(folder) == left(tmp_path / "runs" / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_process_ends_the_other_and_three_go_on_from_the_last_checkpoint(tmp_path: Path, victim: int) -> None:
    given = (*LONG, "training.rounds=60")
    both, folder = ("run", *settings(*given, "output.name=parts")), tmp_path / "runs" / "parts"
    with processes(tmp_path, both, both) as at_work:
        begun(at_work, folder, 12)
        os.kill(at_work.numbers[victim], signal.SIGKILL)
        ended = at_work.ended()
    assert ended[victim].status == -signal.SIGKILL
    other = ended[1 - victim]
    assert other.status in ((1,) if victim == 1 else (1, -signal.SIGABRT))  # JAX watches process 0 by itself
    if other.status == 1:
        assert other.err.splitlines()[-1].startswith("error: another process is lost")
        assert victim == 0 or other.err.count("\n") == 1
    assert checkpoint.rounds_saved(folder)[0] >= 5
    three = ("resume", "runs/parts", *settings("execution.devices=3"))
    with processes(tmp_path, three, three, three) as at_work:
        first, *others = at_work.ended()
    assert first.status == 0, first.err
    assert "begun elsewhere (devices 2 -> 3)" in first.err
    assert others == [(0, "", "")] * 2
    run(load_config(None, [*given, f"output.folder={tmp_path / 'runs'}", "output.name=whole"]), draw=draw)
    parts, whole = folder / "model", tmp_path / "runs" / "whole" / "model"
    for path in whole.glob("*.npy"):
        np.testing.assert_allclose(np.load(parts / path.name), np.load(path), atol=1e-5)


@pytest.mark.slow
def test_an_error_in_one_process_is_a_line_in_both(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[training]\nrounds = 3\n")
    with processes(tmp_path, ("run", "mine.toml"), ("run", "other.toml")) as at_work:
        first, second = at_work.ended()
    assert (first.status, first.out, second.status, second.out) == (2, "", 2, "")
    assert first.err.startswith("error: process 1: other.toml")
    assert second.err.startswith("error: other.toml")
    assert first.err.count("\n") == second.err.count("\n") == 1
    disk = ("run", *settings(*COMMON, "algorithm.name=ditto", "execution.client_memory=disk"))
    with processes(tmp_path, disk, disk) as at_work:
        first, second = at_work.ended()
    assert (first.status, first.err) == (second.status, second.err) == (2, first.err)
    assert first.err.startswith("error: execution.client_memory: several processes")
    assert not (tmp_path / "runs").exists()


# --- by itself --------------------------------------------------------------------------------------------------------


def undetected(*_: Any) -> None:
    raise ValueError("coordinator_address should be defined.")


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({}, ("address", "detected", "Slurm")),
        ({"address": "10.0.0.1:1"}, ("processes", "missing")),
        ({"address": "10.0.0.1", "processes": 2, "process": 0}, ("address", "HOST:PORT")),
        ({"address": "host:0", "processes": 2, "process": 0}, ("address", "HOST:PORT")),
        ({"address": "host:1", "processes": 0, "process": 0}, ("processes", "at least 1")),
        ({"address": "host:1", "processes": 2, "process": 2}, ("process", "count from 0")),
        ({"address": "127.0.0.1:1", "processes": 2, "process": 1}, ("127.0.0.1:1", "start process 0")),
    ],
)
def test_others_that_cannot_be_joined_are_one_line(
    given: dict[str, Any], parts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(jax.distributed, "initialize", undetected)  # which refuses here, for JAX has started
    with pytest.raises(InputError) as error:
        distributed.initialize(**given)
    one_line(error, *parts)


def test_one_process_alone_decides_writes_and_waits_for_nobody() -> None:
    assert not distributed.several()
    assert distributed.is_primary()
    assert distributed.all_gather("mine") == ["mine"]
    assert distributed.decided(3) == distributed.same("it", 3) == 3
    with pytest.raises(KeyError), distributed.together():
        raise KeyError("mine")


@pytest.mark.slow
def test_two_processes_stream_what_their_own_devices_need(tmp_path: Path) -> None:
    given = (*COMMON, "execution.memory=stream", "network.profiles=lognormal", "network.dropout=0.2")
    on_two(tmp_path, *given)
    run(load_config(None, [*given, f"output.folder={tmp_path / 'runs'}", "output.name=one"]), draw=draw)
    two, one = (read_history(tmp_path / "runs" / name / "history.jsonl") for name in ("two", "one"))
    assert [row["steps"] for row in two] == [row["steps"] for row in one]
    for name in ("loss_before", "loss_after", "update_norm", "test_loss", "simulated_seconds"):
        mine, other = ([row[name] for row in rows if row[name] is not None] for rows in (two, one))
        assert mine == pytest.approx(other, rel=1e-5)  # for clients are on other devices, and sums in another order


@pytest.mark.parametrize("command", ["sweep", "tune", "diagnose"])
def test_commands_of_many_runs_say_that_they_are_of_one_process(command: str) -> None:
    status, _, err = inside(command, "--distributed")
    assert status == 2
    assert "one process" in err
    assert err.count("\n") == 1
