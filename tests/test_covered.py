"""What is printed of a guarantee says what it leaves out and what it adds to: test examples, starts, sweeps."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import one_line
from runs import QUICK, Run, trained

from fedjax_sim import InputError
from fedjax_sim.experiment.build import build
from fedjax_sim.experiment.config import load_config
from fedjax_sim.experiment.covered import SHARED, Spent, together
from fedjax_sim.experiment.progress import ranking
from fedjax_sim.experiment.run import resume, run
from fedjax_sim.experiment.sweep import composed, over_seeds, sweep, table
from fedjax_sim.report.compare import group
from fedjax_sim.report.facts import facts
from fedjax_sim.report.read import read_run
from fedjax_sim.report.tables import explained, overview

PRIVATE = ("privacy.mechanism=gaussian", "privacy.clip_norm=1.0", "privacy.noise_multiplier=3.0", "privacy.delta=1e-4")
OWN = ("data.name=synthetic", "data.clients=6")  # whose global test set is all that the clients keep
SHORT = ("training.rounds=2", "training.evaluate_every=1")


def built(*overrides: str):
    return build(load_config(None, [*QUICK, *overrides]))


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with a guarantee, whose test set is nobody's."""
    return trained(tmp_path_factory.mktemp("private") / "run", *PRIVATE, *SHORT)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One that is tested on what the clients keep."""
    return trained(tmp_path_factory.mktemp("own") / "run", *OWN, *PRIVATE, *SHORT)


# --- test examples of the clients ------------------------------------------------------------------------------------


def test_clients_own_test_examples_choose_nothing_under_a_guarantee(own: Run, tmp_path: Path) -> None:
    found, folder = own, Path(own.summary.folder)
    assert found.summary.own_tests is not None
    assert not (folder / "best_model").exists()
    assert (folder / "model").is_dir()
    text = found.summary.not_covered
    assert text is not None
    for part in ("accuracy on the clients' own test examples (so that no best model is kept)", "losses, norms and who",
                 "the model's accuracy on single clients, before",
                 "other runs on the same clients add to it, too, and of those with the same seed"):  # fmt: skip
        assert part in text
    assert found.written["not_covered"] == text
    assert found.lines.count(f"{text}.") == 2  # before it trains, and beside epsilon
    kept = read_run(folder)
    assert ["not covered", text] in overview(kept, facts(kept)).rows
    for overrides in ((), (*PRIVATE, "privacy.guarantee=none")):  # nothing is promised that could be broken
        name = f"free{len(overrides)}"
        free = trained(tmp_path / name, *OWN, *SHORT, "training.evaluate_clients=0", *overrides)
        assert (tmp_path / name / "best_model").is_dir()
        assert free.summary.not_covered is None


def test_a_test_set_that_is_nobodys_may_choose(tmp_path: Path) -> None:
    found = trained(tmp_path / "public", *PRIVATE, *SHORT, "training.patience=1", "data.local_test_fraction=0.3")
    assert (tmp_path / "public" / "best_model").is_dir()
    text = found.summary.not_covered
    assert text is not None
    assert "the test set and which classes are rare are taken to be public" in text
    assert "before training, only what all 2 rounds spend is guaranteed" in text


@pytest.mark.parametrize("mechanism", ["gaussian", "local_gaussian", "dp_sgd"])
def test_patience_on_clients_own_test_examples_is_refused(mechanism: str) -> None:
    chosen = (*OWN, *PRIVATE, f"privacy.mechanism={mechanism}", "privacy.delta=1e-5", "training.patience=2")
    with pytest.raises(InputError) as error:
        built(*chosen)
    one_line(error, "training.patience: accuracy on the clients' own examples", 'privacy.guarantee "none"')
    built(*OWN, "training.patience=2")
    free = built(*chosen, "privacy.guarantee=none").private
    assert free is not None
    assert (free.spending, free.uncovered) == (None, "")
    assert free.statement.startswith("no privacy guarantee asked for")


def test_examples_that_clients_hold_out_choose_nothing_under_a_guarantee(tmp_path: Path) -> None:
    found = trained(tmp_path / "run", *PRIVATE, *SHORT, "training.validation_fraction=0.2")
    assert not (tmp_path / "run" / "best_model").exists()
    assert "on training examples that they hold out (so that no best model is kept)" in (
        found.summary.not_covered or ""
    )
    with pytest.raises(InputError) as error:
        built(*PRIVATE, "training.validation_fraction=0.2", "training.patience=2")
    one_line(error, "training.patience", "clients' own examples")


def test_what_is_covered_is_what_hides_the_unit() -> None:
    central, local = built(*PRIVATE).private, built(*PRIVATE, "privacy.mechanism=local_gaussian").private
    assert central is not None
    assert local is not None
    assert central.uncovered.startswith("Epsilon covers the models that the server makes in this run")
    assert local.uncovered.startswith("Epsilon covers what the clients send and the models made of it in this run")


def test_what_is_public_and_whom_it_is_for_is_said() -> None:
    for mechanism, unit in (("gaussian", "a whole client with all its examples"), ("dp_sgd", "one example, not a cl")):
        private = built(*PRIVATE, f"privacy.mechanism={mechanism}", "privacy.delta=1e-5", *OWN).private
        assert private is not None
        for part in ("the model and its settings, the columns of the data and their types and which labels there are",
                     f"what is hidden is {unit}", "who took part (history.jsonl, per_client.npy)",
                     "adapt it (clients.jsonl)", "do not publish these files"):  # fmt: skip
            assert part in private.uncovered
        assert "personal models" not in private.uncovered


def test_no_best_round_is_told_where_none_may_be_kept(own: Run, private: Run) -> None:
    assert any(line.startswith("Test accuracy") for line in own.lines)
    assert not any("Best in round" in line for line in own.lines)
    assert (own.summary.best_round, own.summary.best_test_accuracy, own.summary.chosen_by) == (None, None, None)
    (line,) = (line for line in private.lines if "Best in round" in line)
    assert "optimistic" in line
    assert "validation_fraction" not in line
    run = read_run(Path(private.summary.folder))
    assert "validation_fraction" not in facts(run).chosen


# --- a model to start from -------------------------------------------------------------------------------------------


def test_what_the_first_model_has_spent_adds_up(private: Run, tmp_path: Path) -> None:
    first = private
    second = trained(tmp_path / "second", *PRIVATE, *SHORT, f"model.start={Path(first.summary.folder) / 'model'}",
                     "training.seed=1")  # fmt: skip
    third = trained(tmp_path / "third", *PRIVATE, *SHORT, f"model.start={tmp_path / 'second' / 'model'}",
                    "training.seed=2")  # fmt: skip
    assert first.summary.spent_before is None
    assert first.summary.spent == Spent(first.summary.epsilon or 0, 1e-4, "each client, add or remove one", (0,))
    assert second.summary.spent_before == first.summary.spent
    before = third.summary.spent_before
    assert before is not None
    assert first.summary.epsilon is not None
    assert before.epsilon == pytest.approx(2 * first.summary.epsilon)
    assert before.delta == pytest.approx(2e-4)
    whole = f"epsilon {3 * first.summary.epsilon:.3g} at delta 0.0003 (each client, add or remove one)"
    assert f"With the runs that its first model comes from: {whole} at most." in third.lines
    assert "model.start has spent" in (third.summary.not_covered or "")
    assert third.written["spent_before"]["epsilon"] == before.epsilon
    for seed in (0, 1):  # of the first run and of the second
        with pytest.raises(InputError) as error:
            built(*PRIVATE, *SHORT, f"model.start={tmp_path / 'second' / 'model'}", f"training.seed={seed}")
        one_line(error, f"training.seed: {seed}", "model.start", "give another")
    with pytest.raises(InputError) as error:
        sweep(load_config(None, [*QUICK, *PRIVATE, *SHORT, f"model.start={tmp_path / 'second' / 'model'}"]),
              over_seeds([{"algorithm.learning_rate": 0.1}], 1, 3), tmp_path / "sweep", [])  # fmt: skip
    one_line(error, "training.seed: 1", "give another")
    built(*PRIVATE, "privacy.guarantee=none", f"model.start={tmp_path / 'second' / 'model'}")


def test_data_are_the_same_wherever_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    rows = [f"h{i % 6},{x[0]:.3f},{x[1]:.3f},{int(x.sum() > 0)}" for i, x in enumerate(rng.normal(size=(60, 2)))]
    for name, kept in (("two.csv", rows), ("copy.csv", rows), ("other.csv", rows[::-1])):
        Path(name).write_text("\n".join(["client,a,b,label", *kept]) + "\n")
    csv = (*PRIVATE, *SHORT, "data.name=csv")
    first = trained(tmp_path / "first", *csv, "data.path=two.csv").summary
    start = ("model.start=first/model", "training.seed=1")
    for path in ("two.csv", "./two.csv", str(tmp_path / "two.csv"), "copy.csv"):
        assert built(*csv, f"data.path={path}", *start).before == first.spent
    assert built(*csv, "data.path=other.csv", *start).before is None
    (tmp_path / "first" / "run.json").unlink()
    assert built(*csv, "data.path=./two.csv", *start).before == first.spent


def test_what_a_run_starts_from_does_not_change_on_resuming(private: Run, tmp_path: Path) -> None:
    first, _ = private, shutil.copytree(private.summary.folder, tmp_path / "first")
    folder, start = tmp_path / "run", f"model.start={tmp_path / 'first' / 'model'}"
    config = load_config(None, [*QUICK, *PRIVATE, *SHORT, "training.seed=1", start, f"output.folder={tmp_path}",
                                "output.name=run"])  # fmt: skip
    assert run(config, stop=lambda: True).status == "interrupted"
    for change in ("model.start=", f"model.start={tmp_path / 'copied'}", "model.skip=layer1"):
        with pytest.raises(InputError) as error:
            resume(folder, overrides=[change])
        one_line(error, change.partition("=")[0], "no effect", "start another run")
    (tmp_path / "first" / "summary.json").unlink()  # which the run has read already
    summary = resume(folder, overrides=[start])
    assert summary.spent_before == first.summary.spent
    assert "model.start has spent" in (summary.not_covered or "")


def test_a_start_that_guarantees_nothing_to_the_same_clients_is_refused(tmp_path: Path) -> None:
    trained(tmp_path / "plain", *SHORT)
    start = f"model.start={tmp_path / 'plain' / 'model'}"
    with pytest.raises(InputError) as error:
        built(*PRIVATE, start)
    one_line(error, "model.start", "guarantees nothing to them", 'privacy.guarantee "none"')
    built(*PRIVATE, start, "privacy.guarantee=none")
    trained(tmp_path / "turns", *SHORT, *PRIVATE, "training.sampling=round_robin")
    with pytest.raises(InputError) as error:
        built(*PRIVATE, f"model.start={tmp_path / 'turns' / 'model'}")
    one_line(error, "model.start", "each client, zero out one", "each client, add or remove one")
    (tmp_path / "turns" / "summary.json").write_text("{]")
    with pytest.raises(InputError) as error:
        built(*PRIVATE, f"model.start={tmp_path / 'turns' / 'model'}")
    one_line(error, "model.start", "summary.json")
    (tmp_path / "plain" / "model").rename(tmp_path / "elsewhere")  # of which nothing is known
    private = built(*PRIVATE, f"model.start={tmp_path / 'elsewhere'}").private
    assert private is not None
    assert "the test set, which classes are rare and model.start are taken to be public" in private.uncovered


# --- several runs on the same clients --------------------------------------------------------------------------------


def test_a_sweep_says_what_its_runs_spend_together(tmp_path: Path) -> None:
    config = load_config(None, [*QUICK, *PRIVATE, *SHORT])
    noises = ((3.0, 0), (3.0, 1), (6.0, 2))
    trials = [{"privacy.noise_multiplier": noise, "training.seed": seed} for noise, seed in noises]
    results = sweep(config, trials, tmp_path / "sweep", jax.local_devices()[:1])
    again = sweep(config, trials, tmp_path / "sweep", jax.local_devices()[:1])
    assert [result.spent for result in again] == [result.spent for result in results]
    alone = {noise: built(*PRIVATE, *SHORT, f"privacy.noise_multiplier={noise}").private for noise in (3.0, 6.0)}
    epsilons = [private.spending.epsilon(2) for private in alone.values() if private and private.spending]
    assert [result.spent and result.spent.epsilon for result in results] == [epsilons[0], *epsilons]
    total = f"epsilon {epsilons[0] + sum(epsilons):.3g} at delta 0.0003 (each client, add or remove one)"
    assert composed(results) == (
        "Epsilon is of one run, and what is chosen by these numbers depends on all of them: 3 runs on the same "
        f"clients spend up to {total}."
    )
    columns = [str(column.header) for column in ranking(table(results)).columns]
    assert columns[-1] == "epsilon"
    assert {line.epsilon for line in table(results)} == set(epsilons)
    assert [result.spent and result.spent.seeds for result in results] == [(0,), (1,), (2,)]
    paired = over_seeds([{"privacy.noise_multiplier": 3.0}, {"privacy.noise_multiplier": 6.0}], 0, 1)
    text = composed(sweep(config, paired, tmp_path / "paired", jax.local_devices()[:1]))
    assert text.endswith(f"On the same clients, {SHARED}.")
    assert "spend up to" not in text
    plain = [result._replace(spent=None) for result in results]
    assert composed(plain) == ""
    assert "give none together that is known" in composed([*plain[:1], *results])
    assert "epsilon" not in [str(column.header) for column in ranking(table(plain)).columns]


def test_a_sweep_keeps_to_the_budget(tmp_path: Path) -> None:
    config = load_config(None, [*QUICK, *PRIVATE, "privacy.epsilon=0.9", "training.rounds=40"])
    with pytest.raises(InputError) as error:
        sweep(config, [{"algorithm.learning_rate": 0.1}], tmp_path / "sweep", [])
    one_line(error, "privacy.epsilon: 0.9, but 40 rounds of this noise spend", "lower training.rounds")


def test_runs_side_by_side_add_up(private: Run, tmp_path: Path) -> None:
    first = Path(private.summary.folder)
    trained(tmp_path / "run1", *PRIVATE, *SHORT, "training.seed=1")
    groups, _ = group([read_run(folder) for folder in (first, tmp_path / "run1")])
    assert any(line.startswith("Epsilon is of one run: what several runs spend") for line in explained(groups))
    trained(tmp_path / "same", *PRIVATE, *SHORT, "training.rounds=1")
    groups, _ = group([read_run(folder) for folder in (first, tmp_path / "run1", tmp_path / "same")])
    assert f"Epsilon is of one run. On the same clients, {SHARED}." in explained(groups)
    alone, _ = group([read_run(first)])
    assert not any(line.startswith("Epsilon") for line in explained(alone))


def test_guarantees_of_different_kinds_do_not_add_up() -> None:
    one, other = (Spent(1.0, 1e-5, unit, (0,)) for unit in ("each client, replace one", "each example, zero out one"))
    assert together([one, one._replace(seeds=(1,))]) == Spent(2.0, 2e-5, one.kind, (0, 1))
    assert together([one, one]) is None
    assert together([one, one._replace(seeds=(1, 0))]) is None
    assert together([one, one._replace(seeds=())]) is None
    assert together([one, other]) is None
    assert together([]) is None
