"""Commands keep what they have compiled, and whatever becomes of that folder, they end as they would without it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedjax_sim._cache import cache_folder
from fedjax_sim.cli import compiled
from fedjax_sim.cli.compiled import FOLDER, keep_compiled

ROOT = Path(__file__).parents[1]

PROGRAM = """
import sys
from fedjax_sim.cli.compiled import keep_compiled
keep_compiled()
import jax, jax.monitoring
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None)
print(jax.jit(lambda x: x * 2 + 1)(20.5), len(hits))
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user's cache folder, before JAX is imported."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, "jax")
    monkeypatch.setattr(compiled.warnings, "filterwarnings", lambda *_: None)
    return tmp_path


def command(home: Path, program: str = PROGRAM, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process where every warning is an error."""
    own = {"XDG_CACHE_HOME": str(home), "PYTHONPATH": str(ROOT), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    inherited = {name: value for name, value in os.environ.items() if name not in (FOLDER, "FEDJAX_SIM_DATA")}
    done = [sys.executable, "-W", "error", *(["-c", program] if program else []), *arguments]
    return subprocess.run(done, env=inherited | own, cwd=home, capture_output=True, text=True)


def entries(home: Path) -> list[Path]:
    return sorted(home.glob("fedjax_sim/compiled-*/*-cache"))


def test_programs_are_compiled_once_and_damaged_ones_again_without_a_word(tmp_path):
    first, second = command(tmp_path), command(tmp_path)
    assert (first.stdout, first.stderr) == ("42.0 0\n", "")
    assert entries(tmp_path)
    assert (second.stdout.split()[0], second.stderr) == ("42.0", "")
    assert int(second.stdout.split()[1]) > 0
    for entry in entries(tmp_path):
        entry.write_bytes(entry.read_bytes()[:-20] + bytes(20))
    third = command(tmp_path)
    assert (third.stdout, third.stderr) == ("42.0 0\n", "")


def test_the_folder_keeps_within_its_bound(tmp_path, monkeypatch):
    lines = PROGRAM + "for i in range(8): jax.jit(lambda x: x * i - 1)(20.5)"
    assert command(tmp_path, lines).returncode == 0
    whole = [entry.stat().st_size for entry in entries(tmp_path)]
    assert len(whole) >= 9
    monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", str(3 * max(whole)))
    assert command(tmp_path, lines.replace("- 1", "- 2")).returncode == 0
    assert 0 < sum(entry.stat().st_size for entry in entries(tmp_path)) <= 3 * max(whole)


def test_a_folder_that_cannot_be_written_changes_nothing(tmp_path):
    (tmp_path / "fedjax_sim").write_text("no folder")
    done = command(tmp_path)
    assert (done.stdout, done.stderr) == ("42.0 0\n", "")


@pytest.mark.slow
def test_a_whole_command_keeps_its_programs_and_finds_them_for_other_rates_and_seeds(tmp_path):
    for more in ((), ("algorithm.learning_rate=0.3", "training.seed=1")):
        settings = ("model.name=logistic", "training.rounds=1", f"output.folder={tmp_path / 'runs'}", *more)
        done = command(tmp_path, "", "-m", "fedjax_sim", "run", *[part for s in settings for part in ("--set", s)])
        assert (done.returncode, done.stderr) == (0, "")
        assert len([entry for entry in entries(tmp_path) if entry.name.startswith("jit_program")]) == 1


def test_what_the_user_says_counts(home):
    for said in ({FOLDER: "/elsewhere"}, {FOLDER: ""}):
        variables = dict(said)
        keep_compiled(variables)
        assert variables == said
    variables = {"JAX_COMPILATION_CACHE_MAX_SIZE": "1000"}
    keep_compiled(variables)
    assert variables["JAX_COMPILATION_CACHE_MAX_SIZE"] == "1000"
    assert Path(variables[FOLDER]).parent == home / "fedjax_sim"
    assert Path(variables[FOLDER]).is_dir()
    assert not list(home.glob("*/*/*-cache"))


def test_the_library_and_programs_that_have_imported_jax_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    variables = {}
    keep_compiled(variables)
    assert variables == {}
    assert not list(tmp_path.iterdir())


def test_what_a_killed_command_left_is_removed_and_the_rest_kept(home):
    variables = {}
    keep_compiled(variables)
    folder = Path(variables[FOLDER])
    for name in ("whole-cache", "torn-cache", "untimed-cache"):
        (folder / name).write_bytes(b"12345")
    (folder / "whole-atime").write_bytes(bytes(8))
    (folder / "torn-atime").write_bytes(bytes(3))
    keep_compiled({})
    assert sorted(path.name for path in folder.iterdir()) == [".lockfile", "whole-atime", "whole-cache"]


def test_without_a_home_nothing_can_be_kept(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    with pytest.raises(OSError, match=str(cache_folder().parent)):
        cache_folder().mkdir(parents=True)
