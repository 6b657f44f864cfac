"""Every file of a run folder damaged in every way: each command that reads it works, or names the file in one line."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import QUICK
from test_resume import After

from fedjax_sim import InputError
from fedjax_sim.experiment.config import load_config
from fedjax_sim.experiment.run import resume, run
from fedjax_sim.report.facts import facts
from fedjax_sim.report.page import report_page
from fedjax_sim.report.read import read_run
from fedjax_sim.report.tables import overview

LINES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "a line twice": lambda lines: [*lines[:2], *lines[1:]],
    "a line missing": lambda lines: [*lines[:1], *lines[2:]],
    "lines in another order": lambda lines: lines[::-1],
    "numbers as text": lambda lines: [line.replace(b": 1", b': "1"').replace(b"= 1", b'= "x1"') for line in lines],
    "no numbers": lambda lines: [line.replace(b": 1", b": null").replace(b"= 1", b"= []") for line in lines],
    "NaN": lambda lines: [line.replace(b": 1", b": NaN, \"x\": 1").replace(b"= 1", b"= nan") for line in lines],
    "huge numbers": lambda lines: [line.replace(b": 1", b": 1" + b"0" * 5000) for line in lines],
    "large numbers": lambda lines: [line.replace(b": 1", b": 1e300") for line in lines],
    "keys missing": lambda lines: [line.replace(b"loss", b"lass").replace(b"status", b"state").replace(b"rounds", b"r")
                                   for line in lines],
    "brackets": lambda lines: [*lines[:1], b"[" * 5000 + b"\n", *lines[2:]],
}  # fmt: skip
BYTES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "a bit flipped": lambda data: (
        data[: len(data) // 3] + bytes([data[len(data) // 3] ^ 16]) + data[len(data) // 3 + 1 :]
    ),
    "NUL bytes": lambda data: data[:40] + bytes(20) + data[60:],
    "no UTF-8": lambda data: data[:40] + b"\xff\xfe\xc3" + data[43:],
    "a mark before it": lambda data: b"\xef\xbb\xbf" + data,
    "all bytes 255": lambda data: b"\xff" * len(data),
    "something else": lambda data: b'{"a": [1, {"b": null}]}\n',
    "a list": lambda data: b"[1, 2]\n",
}
KINDS = [*LINES, *BYTES, "a folder"]
FILES = ("history.jsonl", "summary.json", "config.toml", "run.json", "clients.jsonl", "per_client.npy", "tracking.json")
SETTINGS = (*QUICK, "training.rounds=6", "training.evaluate_every=2", "training.local_steps=1", "data.clients=6",
            "training.clients_per_round=3", "data.local_test_fraction=0.2", "output.checkpoint_every=1",
            "network.profiles=lognormal")  # fmt: skip


def damage(path: Path, kind: str) -> None:
    data = path.read_bytes()
    if kind == "a folder":
        path.unlink()
        path.mkdir()
    elif kind in LINES:
        path.write_bytes(b"".join(LINES[kind](data.splitlines(keepends=True))))
    else:
        path.write_bytes(BYTES[kind](data))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run(load_config(None, [*SETTINGS, f"output.folder={folder}", "output.name=whole"]))
    run(load_config(None, [*SETTINGS, f"output.folder={folder}", "output.name=parts"]), stop=After(4))
    for name in ("whole", "parts"):
        (folder / name / "tracking.json").write_text('{"mlflow": {"run": "1"}}\n')
    return folder


CASES = [(name, kind) for name in FILES for kind in KINDS]


@pytest.mark.parametrize("drawn", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FILES)
def test_reports_work_or_name_the_file(runs: Path, tmp_path: Path, name: str, drawn: bool) -> None:
    for i, kind in enumerate(KINDS):
        folder = shutil.copytree(runs / "whole", tmp_path / f"run{i}")
        damage(folder / name, kind)
        found, message = None, ""
        try:
            found = read_run(folder)
        except InputError as error:
            message = str(error)
        if found is None:
            assert name == "history.jsonl", (kind, message)
            assert str(folder) in message, (kind, message)
            assert name in message, (kind, message)
            assert "\n" not in message, (kind, message)
            continue
        reached = facts(found)
        assert overview(found, reached).rows, kind
        if drawn:
            assert "</html>" in report_page(found, reached), kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [case if i % 23 == 0 else pytest.param(*case, marks=pytest.mark.slow) for i, case in enumerate(CASES)],
)
def test_resume_works_or_names_the_file_and_loses_nothing(runs: Path, tmp_path: Path, name: str, kind: str) -> None:
    folder = shutil.copytree(runs / "parts", tmp_path / "parts")
    if not (folder / name).exists():  # clients are tested when a run has ended
        return
    damage(folder / name, kind)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            assert resume(folder).status == "finished"
        message = ""
    except (InputError, OSError) as error:
        message = str(error)
    if message:
        assert "\n" not in message
        assert str(folder) in message
        assert {path for path in before if not path.exists()} == set()
        return
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == list(range(1, 7))
