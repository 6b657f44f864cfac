"""How commands end that are interrupted, or that meet what nobody foresaw: one line and a status, at any moment."""

import errno
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from fedjax_sim._validate import about_file, os_reason
from fedjax_sim.cli import entry

# Nothing can be interrupted cleanly while Python itself starts. Shells have what runs in the background ignore Ctrl-C.
STARTED = """import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from fedjax_sim import _interrupt, cli
heed = _interrupt.heed

def told():
    heed()
    print("started", flush=True)

_interrupt.heed = told
cli.main()"""
COMMANDS = {
    "run": ("run", "--set", "model.name=logistic", "--set", "training.rounds=1000000"),
    "report": ("report", "run"),
    "sweep": ("sweep", "--set", "model.name=logistic", "--set", "training.rounds=1000000",
              "--over", "algorithm.learning_rate=0.1,0.2"),
    "config": ("config",),
}  # fmt: skip
LAST = {"report": "report.html", "config": "track = "}  # words at the end, of those that end by themselves
FEW, MANY = (0.0, 0.2, 0.6, 1.4), tuple(0.05 * i for i in range(80))


def interrupted(folder: Path, command: str, moments: tuple[float, ...]) -> Iterator[tuple[float, int, str]]:
    """When Ctrl-C came, in seconds, with status and stderr; commands that had said their last are left out."""
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    for moment in moments:
        with subprocess.Popen(
            [sys.executable, "-c", STARTED, *COMMANDS[command]], cwd=folder, env=variables, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            time.sleep(moment)
            if process.poll() is not None:
                return
            process.send_signal(signal.SIGINT)
            try:
                out, err = process.communicate(timeout=60)
            finally:
                process.kill()
            if (process.returncode, err) == (0, "") and LAST.get(command, "\0") in out:
                continue  # Python itself was ending
            yield moment, process.returncode, err


@pytest.mark.parametrize(
    ("command", "moments"),
    [("run", FEW), ("config", FEW[:3]), *(pytest.param(name, MANY, marks=pytest.mark.slow) for name in COMMANDS)],
)
def test_ctrl_c_is_one_line_and_status_130(tmp_path: Path, command: str, moments: tuple[float, ...]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "history.jsonl").write_text("".join(f'{{"round": {i}}}\n' for i in range(1, 20_000)))
    found = list(interrupted(tmp_path, command, moments))
    assert len(found) > 1
    for moment, status, err in found:
        assert (status, err.count("\n") <= 1, "Traceback" in err) == (130, True, False), (moment, status, err)
        assert moment or err.startswith("interrupted")


def test_what_nobody_foresaw_is_one_line_with_a_report_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> NoReturn:
        raise KeyError("two\nlines\x1b[31m")

    monkeypatch.setattr(entry, "app", fail)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(SystemExit) as end:
        entry.main()
    assert end.value.code == 1
    (report,) = tmp_path.iterdir()
    err = capsys.readouterr().err
    assert re.fullmatch(r"error: KeyError: .*; this was not foreseen, please report it with (\S+)\n", err)
    assert err.rstrip().endswith(str(report))
    assert err.count("\n") == 1
    assert "\x1b" not in err
    assert "in fail\n" in report.read_text()
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(SystemExit):
        entry.main()
    assert "no report could be written (Not a directory)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "fix"),
    [(errno.ENOSPC, "make room"), (errno.EDQUOT, "make room"), (errno.EACCES, "permission"),
     (errno.EROFS, "another place"), (errno.EISDIR, "it is a folder"), (errno.ENOTDIR, "no folder"), (errno.EIO, "")],
)  # fmt: skip
def test_an_error_of_the_system_names_the_file_and_has_a_fix_of_its_own(
    number: int, fix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> NoReturn:
        with about_file("some/file"):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(entry, "app", fail)
    with pytest.raises(SystemExit) as end:
        entry.main()
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: some/file: {os.strerror(number)}")
    assert fix in err
    assert ("make room" in err) == (number in (errno.ENOSPC, errno.EDQUOT))
    assert err.count("\n") == 1


def test_an_error_that_names_its_file_keeps_it() -> None:
    with pytest.raises(OSError, match="No such file") as error, about_file("another"):
        Path("nowhere/at/all").read_text()
    assert os_reason(error.value) == "nowhere/at/all: No such file or directory; give a path that is there"
