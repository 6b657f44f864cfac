"""The scripts run as a reader runs them, and what they print is so."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedjax_sim.attacks import malicious
from fedjax_sim.models import build_model
from fedjax_sim.plots import matrix, tradeoff

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import attack_matrix  # noqa: E402
import compare_algorithms  # noqa: E402


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(SCRIPTS / f"{name}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)


def sections(output: str) -> list[list[float]]:
    """Accuracies per round of each table, in percent."""
    tables = [part for part in output.split("\n\n") if "round  1" in part]
    return [[float(x) for x in re.findall(r"accuracy +([\d.]+) %  global model \[", table)] for table in tables]


def test_real_training_learns_and_the_articles_update_does_not():
    output = run("article_fedavg").stdout
    trained, random = sections(output)
    assert len(trained) == len(random) == 10
    assert trained[-1] > 85
    assert sum(random) / 10 < 70
    assert re.search(r"round 10 .*\[( *-?\d\.\d\d){10}\]", output)


def test_random_labels_cannot_be_learnt():
    trained, _ = sections(run("article_fedavg", "--random-labels").stdout)
    assert 40 < trained[-1] < 60


def test_weighting_changes_the_model():
    output = run("article_weighted").stdout
    weighted, uniform = sections(output)
    assert min(weighted[-1], uniform[-1]) > 85
    assert "22, 33, 44 %" in output
    assert float(re.findall(r"differ by ([\d.]+) %", output)[0]) > 0


@pytest.mark.parametrize("seed", ["0", pytest.param("1", marks=pytest.mark.slow)])
def test_bare_noise_drowns_the_model_and_warns_on_every_run(seed):
    done = run("article_laplace", "--seed", seed)
    clear, bare, _ = sections(done.stdout)
    assert clear[-1] > 85
    assert sum(bare) / 10 < sum(clear) / 10 - 10
    assert done.stderr.startswith("warning: Laplace noise of scale 1/epsilon (epsilon 1.0)")
    assert "guarantees no privacy" in done.stderr


def test_an_algorithm_is_compared_over_seeds_in_one_program(monkeypatch):
    monkeypatch.delenv("FEDJAX_SIM_DATA", raising=False)
    monkeypatch.setattr(compare_algorithms, "STEPS", 2)
    data = compare_algorithms.federation()
    models = [build_model("logistic", data.input_shape, data.classes or 0) for _ in range(compare_algorithms.SEEDS)]
    scores = compare_algorithms.run("fedavg", data, models, 3)
    assert scores.accuracy.shape == scores.personal.shape == scores.worst_tenth.shape == (compare_algorithms.SEEDS,)
    assert (scores.worst_tenth < scores.personal).all()
    assert len(set(scores.accuracy.tolist())) > 1  # the seeds draw other cohorts
    assert compare_algorithms.spread(np.array([0.5, np.nan])) == "diverged"


def test_the_malicious_fifth_holds_half_of_the_examples(monkeypatch):
    monkeypatch.delenv("FEDJAX_SIM_DATA", raising=False)
    who = malicious(attack_matrix.CLIENTS, attack_matrix.FRACTION, attack_matrix.SEED)
    sizes = attack_matrix.federation(who).sizes
    assert who.sum() == 5
    assert 0.3 < sizes[who].sum() / sizes.sum() < 0.7


def test_a_matrix_is_drawn(tmp_path):
    path = matrix([[0.1, 0.95], [float("nan"), 1.0]], ["mean", "median"], ["none", "sign flip"], tmp_path / "m.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_tradeoff_is_drawn(tmp_path):
    values = {"Laplace": [[0.1, 0.2], [0.8, 0.9]], "Gaussian": [[0.7], [0.9]]}
    path = tradeoff(values, [1.0, float("inf")], tmp_path / "t.png", chance=0.1, title="digits")
    assert path.read_bytes().startswith(b"\x89PNG")
