"""The scripts run as a reader runs them, and what they print is so."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(SCRIPTS / f"{name}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)


def sections(output: str) -> list[list[float]]:
    """Accuracies per round of each table, in percent."""
    tables = [part for part in output.split("\n\n") if "round  1" in part]
    return [[float(x) for x in re.findall(r"accuracy +([\d.]+) %  global model \[", table)] for table in tables]


def test_real_training_learns_and_the_articles_update_does_not():
    trained, random = sections(run("article_fedavg").stdout)
    assert len(trained) == len(random) == 10
    assert trained[-1] > 85
    assert sum(random) / 10 < 70
    assert re.search(r"round 10 .*\[( *-?\d\.\d\d){10}\]", run("article_fedavg").stdout)


def test_random_labels_cannot_be_learnt():
    trained, _ = sections(run("article_fedavg", "--random-labels").stdout)
    assert 40 < trained[-1] < 60


def test_weighting_changes_the_model():
    output = run("article_weighted").stdout
    weighted, uniform = sections(output)
    assert min(weighted[-1], uniform[-1]) > 85
    assert "22, 33, 44 %" in output
    assert float(re.findall(r"differ by ([\d.]+) %", output)[0]) > 0


@pytest.mark.parametrize("seed", ["0", "1"])
def test_bare_noise_drowns_the_model_and_warns_on_every_run(seed):
    done = run("article_laplace", "--seed", seed)
    clear, bare, _ = sections(done.stdout)
    assert clear[-1] > 85
    assert sum(bare) / 10 < sum(clear) / 10 - 10
    assert done.stderr.startswith("warning: Laplace noise of scale 1/epsilon (epsilon 1.0)")
    assert "guarantees no privacy" in done.stderr
