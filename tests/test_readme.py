"""The README's programs run as printed, and do what it says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from runs import QUICK, inside

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


DIAGNOSIS, ROUNDS, SETTINGS, OWN, DATA = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def output(program: str, folder: Path) -> str:
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_hospitals_that_code_diseases_in_another_order_are_found(tmp_path: Path):
    said = output(DIAGNOSIS, tmp_path)
    assert said.startswith("It stalls.")
    assert "can be explained: label disagreement" in said
    assert (tmp_path / "why" / "diagnosis.html").is_file()


def test_the_round_function_learns(tmp_path: Path):
    weights = [float(w) for w in re.findall(r"-?\d+\.\d+(?:e-?\d+)?|-?\d+\.", output(ROUNDS, tmp_path))[:5]]
    assert all(abs(w - wanted) < 0.01 for w, wanted in zip(weights, range(5), strict=True))


def test_one_program_trains_three_settings_and_tests_every_client(tmp_path: Path):
    cosines, before, after = (
        [float(x) for x in part.split()] for part in re.findall(r"\[([^\]]+)\]", output(SETTINGS, tmp_path))
    )
    assert len(cosines) == len(before) == len(after) == 3
    assert all(0.1 < c < 1 for c in cosines)
    assert all(0.5 < b < a <= 1 for b, a in zip(before, after, strict=True))


def test_an_algorithm_of_ones_own_runs_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    settings = ("algorithm.name=mine:damped", "algorithm.damping=0.001", "output.name=one", *QUICK)
    try:
        done = inside("run", *(part for setting in settings for part in ("--set", setting)))
    finally:
        sys.modules.pop("mine", None)
    assert (done.status, done.err) == (0, "")
    assert "damping = 0.001" in (tmp_path / "runs" / "one" / "config.toml").read_text()


def test_federations_are_made_as_it_says(tmp_path: Path):
    stored, made = output(DATA, tmp_path).splitlines()
    assert stored.startswith("(20, 5) 0.2")
    divergence, shift = map(float, made.split())
    assert divergence > 0.4
    assert shift > 0.2


def test_ci_calls_the_readmes_test_command():
    (command,) = re.findall(r"^    (python3 -m venv .*pytest)$", README, re.MULTILINE)
    script = (Path(__file__).parents[1] / ".ci" / "run").read_text(encoding="utf-8")
    assert command in script
