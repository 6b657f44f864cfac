"""Which round is best: where classes are rare accuracy says nothing; what is chosen on the test set is said to be."""

import json
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import one_line
from hypothesis import given
from hypothesis import strategies as st
from runs import QUICK, of_round, trained
from typer.testing import CliRunner

from fedjax_sim import InputError
from fedjax_sim.cli.entry import app
from fedjax_sim.data import FederatedData, from_clients
from fedjax_sim.data.validation import hold_out
from fedjax_sim.experiment.build import build
from fedjax_sim.experiment.choosing import Choice, choice, rare
from fedjax_sim.experiment.config import load_config
from fedjax_sim.experiment.history import History
from fedjax_sim.experiment.progress import how_ranked
from fedjax_sim.experiment.space import parse_space
from fedjax_sim.experiment.sweep import sweep
from fedjax_sim.experiment.sweep import table as ranked
from fedjax_sim.experiment.tune import tune

RARE = ("data.name=csv", "model.name=logistic", "algorithm.learning_rate=0.003", "training.rounds=30",
        "training.evaluate_every=2", "training.local_epochs=1")  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    """95 % are of one class, and inputs tell the classes apart, though rarely beyond a doubt."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(1200, 4))
    risk = inputs.sum(1) + rng.gumbel(size=1200)
    labels = (risk > np.quantile(risk, 0.95)).astype(int)
    lines = [f"H{i % 4},{','.join(f'{v:.4f}' for v in inputs[i])},{labels[i]}" for i in range(1200)]
    path = tmp_path_factory.mktemp("data") / "rare.csv"
    path.write_text("client,a,b,c,d,label\n" + "\n".join(lines) + "\n")
    return str(path)


def evaluated(rows: list[dict]) -> list[dict]:
    return [row for row in rows if row["test_accuracy"] is not None]


def test_where_classes_are_rare_the_round_of_highest_auc_is_best_and_all_of_it_is_shown(
    tmp_path: Path, table: str
) -> None:
    run = trained(tmp_path / "run", *RARE, f"data.path={table}")
    rows, told = evaluated(run.rows), run.written
    assert {row["test_majority"] for row in rows} == {told["majority_share"]}
    assert told["majority_share"] == pytest.approx(0.95, abs=0.02)
    best = max(rows, key=lambda row: (row["test_auc"], -row["test_loss"]))
    first_of_accuracy = max(rows, key=lambda row: row["test_accuracy"])
    assert best["round"] != first_of_accuracy["round"]  # which was the best, by accuracy
    assert (told["best_round"], told["chosen_by"], told["chosen_on"]) == (best["round"], "auc", "test")
    assert rows[-1]["best_round"] == told["best_round"]
    assert told["best_test_accuracy"] == best["test_accuracy"]
    last = rows[-1]
    assert last["test_balanced_accuracy"] == pytest.approx(np.mean(last["test_class_accuracy"]), abs=1e-6)
    assert (told["test_auc"], told["test_balanced_accuracy"]) == (last["test_auc"], last["test_balanced_accuracy"])
    closing = next(line for line in run.lines if line.startswith("Test accuracy"))
    shown = (f"balanced {last['test_balanced_accuracy']:.1%}", f"AUC {last['test_auc']:.3f}",
             f"constant answer {told['majority_share']:.1%}")  # fmt: skip
    assert all(words in closing for words in shown)
    assert "chosen by AUC on the test set itself, so that its value there is optimistic" in closing
    assert any(all(words in line for words in shown) for line in run.lines if line.startswith("round 30/30"))
    out = CliRunner().invoke(app, ["report", str(tmp_path / "run")]).output
    for words in (f"{last['test_balanced_accuracy']:.1%}", f"{last['test_auc']:.3g}", f"{told['majority_share']:.1%}",
                  f"{best['test_accuracy']:.1%} in round {best['round']}", "optimistic"):  # fmt: skip
        assert words in out
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"always answering the most frequent class reaches {told['majority_share']:.1%}" in page


def test_patience_goes_on_while_auc_rises_and_chooses_on_examples_held_out(tmp_path: Path, table: str) -> None:
    run = trained(tmp_path / "run", *RARE, f"data.path={table}", "training.patience=3")
    rows, told = evaluated(run.rows), run.written
    accuracies = [row["test_accuracy"] for row in rows]
    assert max(accuracies[1:4]) <= accuracies[0]  # by accuracy it would have ended after four evaluations
    assert told["rounds"] > rows[3]["round"]
    assert told["chosen_on"] == "validation"
    best = max(rows, key=lambda row: (row["validation_auc"], -row["validation_loss"]))
    assert (told["best_round"], told["best_test_accuracy"]) == (best["round"], best["test_accuracy"])
    assert "chosen by AUC on training examples held out by the clients." in "".join(run.lines)
    held = build(load_config(None, [*QUICK, *RARE, f"data.path={table}", "training.patience=3"])).data
    assert held.validation is not None
    assert len(held.validation["labels"]) == pytest.approx(0.1 * 960, abs=4)
    assert sum(of_round(run.table, 1)["examples"]) == held.sizes.sum() == 960 - len(held.validation["labels"])


def test_the_best_model_is_that_of_the_best_round(tmp_path: Path, table: str) -> None:
    run = trained(tmp_path / "run", *RARE, f"data.path={table}", "training.validation_fraction=0.2")
    best = run.written["best_round"]
    assert best < run.written["rounds"]
    whole = trained(tmp_path / "again", *RARE, f"data.path={table}", "training.validation_fraction=0.2",
                    f"training.rounds={best}", "training.evaluate_every=2")  # fmt: skip
    paths = list((tmp_path / "run" / "best_model").rglob("*.npy"))
    assert paths
    for path in paths:
        np.testing.assert_array_equal(np.load(path), np.load(tmp_path / "again" / "model" / path.name))
    assert whole.written["best_round"] == best


@pytest.mark.parametrize(
    ("settings", "fraction"),
    [
        ((), 0.0),
        (("training.patience=2",), 0.1),
        (("training.patience=2", "training.validation_fraction=0"), 0.0),
        (("training.patience=2", "privacy.mechanism=gaussian", "privacy.clip_norm=1.0", "privacy.noise_multiplier=1.0",
          "training.sampling=poisson"), 0.0),
        (("training.validation_fraction=0.3",), 0.3),
    ],
)  # fmt: skip
def test_examples_are_held_out_where_something_is_chosen(settings: tuple[str, ...], fraction: float) -> None:
    experiment = build(load_config(None, [*QUICK, *settings]))
    assert experiment.config.training.validation_fraction == fraction
    assert (experiment.data.validation is not None) == (fraction > 0)
    told = choice(experiment.data)
    assert told is not None
    assert (told.on, told.of_clients) == (("validation", True) if fraction else ("test", False))


def test_sweeps_and_searches_compare_by_auc_and_show_what_a_constant_answer_reaches(
    tmp_path: Path, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = load_config(None, [*QUICK, *RARE, f"data.path={table}", "training.rounds=4", "training.evaluate_every=2"])
    trials = [{"algorithm.learning_rate": rate, "training.seed": 0} for rate in (1e-5, 0.003)]
    results = sweep(base, trials, tmp_path / "sweep", jax.devices()[:1])
    alone = trained(tmp_path / "run", *RARE, f"data.path={table}", "training.rounds=4")
    for name in ("auc", "balanced_accuracy"):
        assert getattr(results[1], name)[-1] == pytest.approx(alone.written[f"test_{name}"], abs=1e-4)
    lines = ranked(results)
    assert lines[0].auc > lines[1].auc
    assert [line.by for line in lines] == ["auc", "auc"]
    assert {line.majority for line in lines} == {alone.written["majority_share"]}
    assert "by AUC on the test set, which is optimistic" in how_ranked(lines)
    assert how_ranked(lines).endswith(f"{alone.written['majority_share']:.1%}.")
    again = sweep(base, trials, tmp_path / "sweep", jax.devices()[:1])
    assert again == results  # as they are read back

    found = tune(base, parse_space(["algorithm.learning_rate=0.001,0.02"]), tmp_path / "tune", jax.devices()[:1],
                 trials=2, batch=2, sampler="random")  # fmt: skip
    assert found.by == "auc"
    assert found.value != found.accuracy
    assert found.majority == pytest.approx(0.95, abs=0.04)
    assert found.said().startswith(f"AUC {found.value:.3f} (")
    assert f"accuracy {found.accuracy:.1%}, constant answer {found.majority:.1%}" in found.said()


# --- parts -----------------------------------------------------------------------------------------------------------


def numbered(sizes: list[int]) -> FederatedData:
    """Every example has a number of its own."""
    edges = np.concatenate([[0], np.cumsum(sizes)])
    numbers = [np.arange(a, b, dtype=np.float32)[:, None] for a, b in pairwise(edges.tolist())]
    clients = [{"inputs": n, "labels": np.zeros(len(n), np.int32)} for n in numbers]
    test = {"inputs": np.zeros((1, 1), np.float32), "labels": np.zeros(1, np.int32)}
    return from_clients(clients, test=test, classes=2)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(lambda s: sum(s) > 20), st.integers(0, 5))
def test_held_out_examples_and_the_others_are_all_of_them(sizes: list[int], seed: int) -> None:
    data = numbered(sizes)
    held = hold_out(data, 0.5, seed)
    assert held.validation is not None
    numbers = np.concatenate([held.examples["inputs"][:, 0], held.validation["inputs"][:, 0]])
    assert sorted(numbers.tolist()) == list(range(sum(sizes)))
    for client, size in enumerate(sizes):
        mine = held.client(client)["inputs"][:, 0]
        assert min(size, 1) <= len(mine) <= size
        assert abs(len(mine) - size / 2) <= 1
        assert set(mine.tolist()) <= set(data.client(client)["inputs"][:, 0].tolist())
    assert hold_out(data, 0.5, seed).offsets.tolist() == held.offsets.tolist()


def test_small_clients_give_up_their_share_on_average() -> None:
    held = hold_out(numbered([3] * 2000), 0.1, 0)
    assert held.validation is not None
    assert abs(len(held.validation["labels"]) - 600) < 5 * np.sqrt(2000 * 0.3 * 0.7)
    with pytest.raises(InputError) as error:
        build(load_config(None, [*QUICK, "training.validation_fraction=1e-9"]))
    one_line(error, "training.validation_fraction: 1e-09", "none", "raise it")


def test_classes_are_rare_by_their_training_examples() -> None:
    assert not rare(np.array([40, 10]))
    assert rare(np.array([50, 10]))
    assert not rare(np.array([50, 0]))  # nothing to be told apart
    many, labels = numbered([100]), np.repeat([0, 1, 2], [80, 10, 10])
    test = {"inputs": np.zeros((3, 1), np.float32), "labels": np.arange(3)}
    many = many._replace(classes=3, examples={**many.examples, "labels": labels}, test=test)
    found = choice(many)
    assert found is not None
    assert found.by == "balanced_accuracy"
    single = choice(many._replace(test={**test, "labels": np.zeros(3, int)}))
    assert single is not None
    assert single.by == "accuracy"  # of one class the test set says no more


def test_equal_values_are_told_apart_by_loss_and_the_first_of_equals_is_best() -> None:
    by = Choice("accuracy", "test", False)
    rows = [{"round": i, "test_accuracy": a, "test_loss": loss} for i, (a, loss) in
            enumerate([(0.9, 0.5), (0.95, 0.4), (0.95, 0.3), (0.95, 0.3), (0.95, None)], 1)]  # fmt: skip
    scores = by.scores(History(rows))
    assert [score for _, score in scores] == [by.score(row) for row in rows]
    assert max(scores, key=lambda scored: scored[1])[0] == 3


def test_a_summary_says_what_was_chosen_on(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "training.validation_fraction=0.2")
    told = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (told["chosen_by"], told["chosen_on"]) == ("accuracy", "validation")
    assert "on training examples held out by the clients" in "".join(run.lines)


@pytest.mark.parametrize(
    "promise", [(), pytest.param(("privacy.guarantee=none",), marks=pytest.mark.slow)], ids=["guaranteed", "not"]
)
def test_a_run_that_diverges_on_the_way_ends_with_the_model_of_its_last_round(
    tmp_path: Path, promise: tuple[str, ...]
) -> None:
    """Although the rounds after it were asked for in the same call. Without a guarantee more is looked at."""
    settings = ("training.evaluate_every=1", "algorithm.name=fedavgm", "algorithm.server_learning_rate=3e34",
                "privacy.mechanism=gaussian", "privacy.clip_norm=1", "privacy.noise_multiplier=2",
                *promise)  # fmt: skip
    long = trained(tmp_path / "long", *settings, "training.rounds=300")
    assert long.summary.status == "diverged"
    ended = len(long.rows)
    assert 3 < ended < 299
    short = trained(tmp_path / "short", *settings, f"training.rounds={ended}")
    assert len(short.rows) == ended
    for name in ("model", "best_model"):
        folders = [tmp_path / each / name for each in ("long", "short")]
        assert folders[0].exists() == folders[1].exists()
        for file in folders[0].glob("*.npy"):
            np.testing.assert_array_equal(np.load(file), np.load(folders[1] / file.name))
