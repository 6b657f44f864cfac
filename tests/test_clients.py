"""Runs that test clients on their own rows, keep their memory on disk, or are attacked."""

import json
import math

import numpy as np
import pytest
from conftest import one_line

from fedjax_sim import InputError
from fedjax_sim.experiment.clients import worst
from fedjax_sim.experiment.config import load_config
from fedjax_sim.experiment.history import read_history
from fedjax_sim.experiment.run import run

QUICK = ("model.name=logistic", "training.rounds=4", "training.evaluate_every=4", "data.clients=12",
         "training.clients_per_round=4", "training.local_steps=2", "execution.devices=1")  # fmt: skip


def go(folder, name, *settings):
    overrides = (*QUICK, f"output.folder={folder}", f"output.name={name}", *settings)
    return run(load_config(None, overrides)), folder / name


def test_the_worst_tenth():
    assert worst([0.5] * 9 + [0.1]) == pytest.approx(0.1)
    assert worst([0.9, 0.2, 0.4]) == pytest.approx(0.2)
    assert worst(np.arange(20) / 20) == pytest.approx(0.025)


def test_clients_are_tested_on_their_own_rows_with_memory_anywhere(tmp_path):
    settings = ("algorithm.name=ditto", "data.local_test_fraction=0.3")
    summary, folder = go(tmp_path, "device", *settings)
    rows = [json.loads(line) for line in (folder / "clients.jsonl").read_text().splitlines()]
    assert summary.own_tests is not None
    assert summary.own_tests.clients == len(rows) == 12
    assert json.loads((folder / "summary.json").read_text())["own_tests"]["clients"] == 12
    for kind in ("global", "personal"):
        own = [row[f"{kind}_accuracy"] for row in rows]
        assert getattr(summary.own_tests, f"{kind}_accuracy") == pytest.approx(np.mean(own), abs=1e-6)
        assert getattr(summary.own_tests, f"{kind}_worst_tenth") == pytest.approx(worst(own), abs=1e-6)
    assert any(row["global_accuracy"] != row["personal_accuracy"] for row in rows)

    on_disk, other = go(tmp_path, "disk", *settings, "execution.client_memory=disk")
    assert on_disk.own_tests == summary.own_tests
    assert (other / "clients.jsonl").read_text() == (folder / "clients.jsonl").read_text()
    assert [r["loss_after"] for r in read_history(other / "history.jsonl")] == pytest.approx(
        [r["loss_after"] for r in read_history(folder / "history.jsonl")], rel=1e-6
    )
    assert not list(other.glob("client_memory*"))

    streamed, _ = go(tmp_path, "both", *settings, "execution.client_memory=disk", "execution.memory=stream",
                     "training.evaluate_clients=5")  # fmt: skip
    assert streamed.own_tests is not None
    assert streamed.own_tests.clients == 5
    assert streamed.test_accuracy == pytest.approx(summary.test_accuracy)


def test_attacks_by_configuration(tmp_path):
    harmed, folder = go(tmp_path, "broken", "algorithm.name=median", "attack.name=nan_sender", "attack.fraction=0.3")
    assert harmed.status == "finished"
    history = read_history(folder / "history.jsonl")
    assert sum(row["rejected"] for row in history) > 0
    assert all(math.isfinite(row["update_norm"]) for row in history)
    plain, _ = go(tmp_path, "fedavg", "attack.name=nan_sender", "attack.fraction=0.5")
    assert plain.status == "diverged"
    poisoned, _ = go(tmp_path, "flip", "attack.name=label_flip", "attack.fraction=1")
    honest, _ = go(tmp_path, "honest", "attack.name=label_flip", "attack.fraction=0")
    assert poisoned.test_accuracy is not None
    assert honest.test_accuracy is not None
    assert poisoned.test_accuracy < honest.test_accuracy


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (["attack.name=nobody"], ["attack.name: 'nobody'"]),
        (
            ["attack.name=label_flip", "attack.scale=2"],
            ["attack.scale", "label_flip has no such option", "leave it out"],
        ),
        (["algorithm.name=median", "algorithm.mu=1"], ["algorithm.mu", "median has no such option"]),
        (["algorithm.name=fedper", "algorithm.personal=xyz"], ["algorithm.personal", "'xyz'", "layer0/kernel"]),
        (["algorithm.name=fedbn"], ["algorithm.personal", "layer0/bias"]),
        (["algorithm.name=krum", "algorithm.attackers=9"], ["attackers: 9"]),
    ],
)
def test_options_that_do_not_fit_are_one_line(tmp_path, settings, parts):
    with pytest.raises(InputError) as error:
        go(tmp_path, "x", *settings)
    one_line(error, *parts)


@pytest.mark.parametrize(
    ("name", "schedule"), [("fedavg", "linear"), pytest.param("fedadam", "cosine", marks=pytest.mark.slow)]
)
def test_server_schedules_slow_the_server_down(tmp_path, name, schedule):
    accuracies = []
    for kind in ("constant", schedule):
        settings = (f"algorithm.name={name}", f"algorithm.server_schedule={kind}")
        summary, folder = go(tmp_path, kind, *settings)
        assert f'server_schedule = "{kind}"' in (folder / "config.toml").read_text()
        accuracies.append(summary.test_loss)
    assert accuracies[0] != accuracies[1]
