"""What does not fit in memory is refused before it is allocated, in one line that says how much it needs."""

import numpy as np
import pytest
from conftest import one_line

import fedjax_sim as fs
from fedjax_sim import _memory
from fedjax_sim.data import describe, from_clients
from fedjax_sim.data.disagreement import confusion_matrix
from fedjax_sim.experiment.build import build
from fedjax_sim.experiment.config import load_config
from fedjax_sim.models import build_model, lora

LOGISTIC = ("model.name=logistic", "training.rounds=1")


def test_sizes_in_words():
    texts = [_memory.size_text(count) for count in (12, 23e9, 3.64e12, 1e18)]
    assert texts == ["12 bytes", "23 GB", "3.64 TB", "1e+03 PB"]
    assert 1e8 < _memory.host_bytes() < 1e15
    _memory.require("nothing", 0, "")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("model.lora_rank=1000000000",), ("model.lora_rank", "592 GB", "lower it")),
        (("algorithm.name=ifca", "algorithm.clusters=1000000000"), ("2.6 TB", "lower algorithm.clusters")),
        (("model.name=mlp", f"model.hidden={[65536] * 64}"), ("2.16 TB", "narrower hidden layers")),
        (("algorithm.name=scaffold", "execution.client_memory=device", "model.name=mlp", "model.hidden=[65536]",
          "data.partition=iid", "data.clients=1400"), ("execution.client_memory", "27.6 GB", "disk")),
    ],
)  # fmt: skip
def test_settings_that_ask_for_more_than_there_is(overrides, words, monkeypatch):
    monkeypatch.setattr(_memory, "host_bytes", lambda: 23_000_000_000)
    with pytest.raises(fs.InputError) as error:
        build(load_config(None, [*LOGISTIC, *overrides]))
    one_line(error, "23 GB are here", *words)


def test_classes_that_ask_for_more_than_there_is():
    clients = [{"inputs": np.ones((2, 3), np.float32), "labels": np.array([0, 1])}] * 4
    data = from_clients(clients, classes=2)._replace(classes=2**31 - 1)
    for use in (lambda: build_model("logistic", (3000,), 2**31 - 1), lambda: describe(data),
                lambda: confusion_matrix(0, 2**31 - 1, 1.0)):  # fmt: skip
        with pytest.raises(fs.InputError) as error:
            use()
        one_line(error, "2,147,483,647 classes", "are here")


def test_what_fits_is_made():
    model = build_model("mlp", (4,), 3, hidden=(5,))
    assert lora(model, 2).params.keys() == {"layer0/kernel/a", "layer0/kernel/b", "layer1/kernel/a", "layer1/kernel/b"}
