"""The command as a person runs it: in a process of its own, judged by its exit status, its lines and its files."""

import json
import os
import signal
import struct
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from runs import Command, commands, of_round

from fedjax_sim import InputError
from fedjax_sim.experiment.config import Config, load_config, parse_config
from fedjax_sim.experiment.history import read_history
from fedjax_sim.plots import curves

QUICK = ("--set", "model.name=logistic", "--set", "training.evaluate_every=2")


# Shells have what runs in the background ignore Ctrl-C.
HEEDING = """import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("fedjax_sim", run_name="__main__", alter_sys=True)"""


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    variables = {
        **os.environ,
        "COLUMNS": "120",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        **environment,
    }
    heeded = ("-W", "error", "-W", "default:Laplace noise of scale")  # a warning that is meant to be told
    command, pipe = [sys.executable, *heeded, "-c", HEEDING, *arguments], subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=variables, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture(scope="module")
def command() -> Iterator[Command]:
    with commands() as run:
        yield run


def test_three_rounds_leave_a_whole_run_folder(tmp_path: Path, command: Command) -> None:
    first = ("--set", "training.rounds=3", "--set", "output.name=first")
    with start(tmp_path, "run", *QUICK, *first, JAX_DISABLE_MOST_OPTIMIZATIONS="0", XLA_FLAGS="") as process:
        out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    folder = tmp_path / "runs" / "first"
    written = ["best_model", "config.toml", "curves.png", "history.jsonl", "model", "per_client.npy",
               "run.json", "summary.json"]  # fmt: skip
    assert sorted(p.name for p in folder.iterdir()) == written

    lines = out.splitlines()
    assert lines[0].startswith("scikit-learn digits: 1437 examples on 20 clients")
    assert lines[1].startswith("round 1/3:")
    assert lines[-3].startswith("Finished 3 rounds in ")
    assert lines[-2].startswith("Test accuracy ")
    assert lines[-1].startswith("Results are in runs/first: ")

    rows = read_history(folder / "history.jsonl")
    assert [row["round"] for row in rows] == [1, 2, 3]
    assert [row["test_accuracy"] is not None for row in rows] == [False, True, True]  # round 2, and the last
    assert rows[0]["loss_before"] == pytest.approx(2.302585, abs=1e-5)  # logistic regression starts at zero: log(10)
    for row in rows:
        mine = of_round(np.load(folder / "per_client.npy"), row["round"])
        assert (row["clients"], len(mine["client"]), len(set(mine["client"]))) == (10, 10, 10)
        assert row["examples"] == sum(mine["examples"])
        assert row["uplink_bits"] == row["downlink_bits"] == 10 * 32 * (64 * 10 + 10)

    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["rounds"], summary["divergence"]) == ("finished", 3, None)
    assert summary["test_accuracy"] == rows[-1]["test_accuracy"]
    assert summary["uplink_bits"] == 3 * rows[0]["uplink_bits"]
    assert summary["environment"]["platform"] in ("cpu", "gpu", "cuda", "rocm")
    assert f"{summary['test_accuracy']:.1%}" in lines[-2]
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")

    status, out, err = command(tmp_path, "run", *QUICK, "--set", "output.name=first")
    assert (status, out) == (2, "")
    assert err == (
        "error: output.name: 'runs/first' is not empty; go on with it by fedjax-sim resume runs/first, give another "
        "output.name, or remove it\n"
    )

    # the written configuration runs again, to the same numbers, whatever the devices and lanes
    again = ("--set", "output.name=second", "--set", "execution.devices=1", "--set", "execution.lanes=3")
    status, out, err = command(tmp_path, "run", "runs/first/config.toml", *again)
    assert (status, err) == (0, "")
    for row, same in zip(rows, read_history(tmp_path / "runs" / "second" / "history.jsonl"), strict=True):
        tables = (np.load(tmp_path / "runs" / name / "per_client.npy") for name in ("first", "second"))
        ids = [set(of_round(table, row["round"])["client"]) for table in tables]
        assert ids[0] == ids[1]
        for name in ("loss_before", "loss_after", "update_norm", "aggregate_norm"):
            assert same[name] == pytest.approx(row[name], rel=1e-4)


def test_a_default_folder_is_named_after_time_algorithm_and_data(tmp_path: Path, command: Command) -> None:
    arguments = (
        "--set",
        "data.name=breast_cancer",
        "--set",
        "algorithm.name=fedavg_topk",
        "--set",
        "training.rounds=1",
    )
    status, _, err = command(tmp_path, "run", *QUICK, *arguments, "--set", "output.per_client=false")
    assert (status, err) == (0, "")
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.endswith("_fedavg_topk_breast_cancer")
    (row,) = read_history(folder / "history.jsonl")
    assert not (folder / "per_client.npy").exists()
    assert row["uplink_bits"] < row["downlink_bits"]
    resolved = tomllib.loads((folder / "config.toml").read_text())
    assert resolved["algorithm"]["fraction"] == 0.05  # the algorithm's own default, written out
    assert resolved["algorithm"]["weighting"] == "examples"


def test_divergence_is_reported_with_what_there_is(tmp_path: Path, command: Command) -> None:
    # logistic regression starts at zero, so that this overflows whatever the seed
    status, out, err = command(
        tmp_path, "run", *QUICK, "--set", "algorithm.learning_rate=1e38", "--set", "output.name=d"
    )
    assert (status, err) == (3, "")
    summary = json.loads((tmp_path / "runs" / "d" / "summary.json").read_text())
    rows = read_history(tmp_path / "runs" / "d" / "history.jsonl")
    assert summary["status"] == "diverged"
    found = summary["divergence"]
    assert found["round"] == len(rows) == summary["rounds"] < 100
    assert rows[-1][found["metric"]] is None
    assert f"The model diverged: {found['metric']} is not finite in round {found['round']}" in out
    assert (tmp_path / "runs" / "d" / "curves.png").exists()


def test_ctrl_c_ends_cleanly_with_what_there_is_and_bare_noise_warns_in_one_line(tmp_path: Path) -> None:
    settings = ("privacy.mechanism=laplace_bare", "privacy.epsilon=1", "privacy.guarantee=none",
                "training.rounds=1000000", "output.name=c")  # fmt: skip
    process = start(tmp_path, "run", *QUICK, *[part for setting in settings for part in ("--set", setting)])
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("round 1/"):
            break
    process.send_signal(signal.SIGINT)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err.startswith("warning: Laplace noise of scale 1/epsilon (epsilon 1.0)")
    assert err.count("\n") == 1
    assert "Interrupted after " in out
    summary = json.loads((tmp_path / "runs" / "c" / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert summary["rounds"] == len(read_history(tmp_path / "runs" / "c" / "history.jsonl")) >= 1


BAD = {
    "misspelt key": (["run", "--set", "training.roundz=3"], ["training.roundz", "did you mean rounds?"]),
    "wrong type": (["run", "--set", "training.rounds=many"], ["training.rounds: 'many'"]),
    "negative rate": (["run", "--set", "algorithm.learning_rate=-1"], ["algorithm.learning_rate: -1"]),
    "zero clients": (["run", "--set", "data.clients=0"], ["data.clients: 0"]),
    "too many clients a round": (["run", "--set", "training.clients_per_round=50"], ["50 is more than the 20"]),
    "batch of zero": (["run", "--set", "training.batch_size=0"], ["training.batch_size: 0"]),
    "no such file": (["run", "none.toml"], ["none.toml: no such file"]),
    "no TOML": (["run", "bad.toml"], ["bad.toml: it is no TOML"]),
    "misspelt model": (["run", "--set", "model.name=cnn_smal"], ["did you mean cnn_small?"]),
    "misspelt algorithm": (["run", "--set", "algorithm.name=fedavgg"], ["algorithm.name: 'fedavgg'", "fedavg?"]),
    "misspelt data": (["run", "--set", "data.name=digit"], ["data.name: 'digit'", "did you mean digits?"]),
    "misspelt partition": (["run", "--set", "data.partition=iidd"], ["data.partition: 'iidd'"]),
    "bad weighting": (["run", *QUICK, "--set", "algorithm.weighting=x"], ["algorithm.weighting: 'x'"]),
    "foreign option": (["run", *QUICK, "--set", "algorithm.fraction=0.1"], ["algorithm.fraction: fedavg has no such"]),
    "too many clients": (["run", *QUICK, "--set", "data.clients=2000"], ["data.clients: 2000", "1437"]),
    "no folder": (["run", "--set", "data.name=idx"], ["data.path: it is empty"]),
    "folder without data": (["run", "--set", "data.name=mnist", "--set", "data.path=empty"], ["no such file"]),
    "truncated file": (["run", "--set", "data.name=idx", "--set", "data.path=idx"], ["16 bytes", "fetch the file"]),
    "a CNN on features": (["run", "--set", "data.name=breast_cancer"], ["cnn_small", "[30]"]),
    "too many devices": (["run", *QUICK, "--set", "execution.devices=1000"], ["execution.devices: 1000"]),
    "unknown command": (["walk"], ["walk"]),
    "unknown option": (["run", "--bogus"], ["--bogus"]),
    "run folder is a file": (["run", *QUICK, "--set", "output.folder=bad.toml"], ["bad.toml/", "cannot be made"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(tmp_path: Path, command: Command, case: str) -> None:
    (tmp_path / "bad.toml").write_text("[training\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "idx").mkdir()
    (tmp_path / "idx" / "train-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3, *[0, 0, 0, 9] * 3]) + bytes(16))
    before = sorted(tmp_path.iterdir())
    arguments, parts = BAD[case]
    status, out, err = command(tmp_path, *arguments)
    assert status == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err
    assert sorted(tmp_path.iterdir()) == before  # no run folder is left behind


def test_the_printed_configuration_is_the_default(tmp_path: Path, command: Command) -> None:
    status, out, _ = command(tmp_path, "config")
    assert status == 0
    assert parse_config(tomllib.loads(out)) == Config() == load_config()
    status, out, _ = command(tmp_path, "config", "--set", "training.rounds=7")
    assert parse_config(tomllib.loads(out)).training.rounds == 7


def test_a_history_cut_off_in_the_writing_is_read_up_to_there(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('{"round": 1, "loss_before": null}\n{"round": 2, "loss_')
    assert read_history(path) == [{"round": 1, "loss_before": None}]
    path.write_text('{"round": 1}\nnonsense\n{"round": 3}\n')
    with pytest.raises(InputError, match=r"history.jsonl: line 2 is no round's record"):
        read_history(path)
    with pytest.raises(InputError, match=r"none.jsonl: it cannot be read"):
        read_history(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("file", "kept"), [pytest.param("history.jsonl", "false", marks=pytest.mark.slow), ("per_client.npy", "true")]
)
def test_a_full_disk_is_one_line_and_leaves_whole_rounds(
    tmp_path: Path, command: Command, file: str, kept: str
) -> None:
    arguments = ("run", *QUICK, "--set", "training.rounds=300", "--set", "output.name=full",
                 "--set", f"output.per_client={kept}")  # fmt: skip
    status, _, err = command(tmp_path, *arguments, limit=20_000)
    assert status == 2, err
    assert err.count("\n") == 1
    assert f"{file}: round " in err
    text = (tmp_path / "runs" / "full" / "history.jsonl").read_text()
    assert text.endswith("}\n")
    assert len(read_history(tmp_path / "runs" / "full" / "history.jsonl")) == text.count("\n") >= 1


@pytest.mark.parametrize("rows", [[], [{"round": 1, "clients": 1, "loss_before": None, "test_accuracy": 0.5}]])
def test_a_figure_of_next_to_nothing(tmp_path: Path, rows: list) -> None:
    path = curves(rows, tmp_path / "curves.png", title="a run")
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", path.read_bytes()[16:24]) == (1500, 1050)
