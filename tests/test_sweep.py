"""Sweeps and searches: many runs as one program equal separate ones, and what is done stays done."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import one_line
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import QUICK

from fedjax_sim import InputError
from fedjax_sim.core.many import make_many
from fedjax_sim.data import Phase
from fedjax_sim.experiment import plan, study, swept
from fedjax_sim.experiment import trials as of_trials
from fedjax_sim.experiment import tune as of_tune
from fedjax_sim.experiment.build import build
from fedjax_sim.experiment.config import load_config, to_toml
from fedjax_sim.experiment.history import read_history
from fedjax_sim.experiment.run import run
from fedjax_sim.experiment.space import Choice, Range, grid, parse_space, sample
from fedjax_sim.experiment.sweep import Done, over_seeds, sweep, table
from fedjax_sim.experiment.trials import Program, grouped, own_ground, with_settings

DEVICES = jax.devices()[:2]


def config(*overrides: str):
    return load_config(None, [*QUICK, "training.rounds=5", "training.evaluate_every=2", *overrides])


# --- many runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("width", [1, 3])
def test_runs_advance_as_they_would_alone_and_others_stay(devices: int, width: int) -> None:
    many = make_many(lambda state, given, shared: (state + given * shared, state), devices=DEVICES[:devices],
                     width=width)  # fmt: skip
    active = np.array([True, False, True, True, False, True, False, True])
    start, given = np.arange(8.0), np.arange(1.0, 9.0)
    states, outputs = many(start.copy(), given, 2.0, active)
    np.testing.assert_array_equal(states, np.where(active, start + 2 * given, start))
    np.testing.assert_array_equal(outputs, np.where(active, start, 0))
    states, _ = many(states, given, 2.0, np.zeros(8, bool))
    np.testing.assert_array_equal(states, np.where(active, start + 2 * given, start))


def test_runs_that_devices_do_not_divide_are_refused() -> None:
    with pytest.raises(InputError) as error:
        make_many(lambda s, g, x: (s, s), devices=DEVICES)(np.zeros(3), np.zeros(3), 0, np.ones(3, bool))
    one_line(error, "3 runs", "2 devices")


# --- trials and sweeps -------------------------------------------------------------------------------------------


def test_a_sweep_gives_what_separate_runs_give_and_goes_on_where_it_was(tmp_path: Path) -> None:
    """Numbers and seeds traced, algorithms apart; compressed messages and a clock, whose bits and seconds count."""
    base = config("network.profiles=lognormal", "network.dropout=0.3", "compression.uplink=sign",
                  "compression.feedback=ef21", "compression.downlink=qsgd", "algorithm.momentum=0.5")  # fmt: skip
    space = parse_space(["algorithm.learning_rate=0.03,0.3", "algorithm.name=fedavg,fedprox", "model.name=logistic"])
    trials = over_seeds(grid(space), 3, 2)
    assert len(trials) == 8
    groups = grouped(base, trials)
    assert [(len(group.places), group.varied) for group in groups] == [(4, ("algorithm.learning_rate",))] * 2
    told: list[tuple[int, ...]] = []
    results = sweep(base, trials, tmp_path / "sweep", DEVICES, told=lambda *how: told.append(how))
    assert told[-1] == (4, 8, 5, 5)
    for place in (1, 6):
        alone = run(with_settings(base, {**trials[place], "output.folder": str(tmp_path / "alone")}))
        found = results[place]
        assert found.rounds == [2, 4, 5]
        assert found.accuracy[-1] == pytest.approx(alone.test_accuracy, abs=2e-3)
        assert found.loss[-1] == pytest.approx(alone.test_loss, rel=1e-4)
        assert found.sent_bits == alone.uplink_bits + alone.downlink_bits
        assert found.seconds == pytest.approx(alone.simulated_seconds, rel=1e-6)
    file = tmp_path / "sweep" / "sweep.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:5]) + lines[5][:20])  # killed while it wrote
    before = len(told)
    again = sweep(base, trials, tmp_path / "sweep", DEVICES, width=2, told=lambda *how: told.append(how))
    assert told[before][0] == 5  # three were missing
    assert [Done(*result).settings for result in again] == [result.settings for result in results]
    losses = [np.array([r.loss for r in found], float) for found in (again, results)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert len(file.read_text().splitlines()) == 8
    with pytest.raises(InputError) as error:
        sweep(config(), trials, tmp_path / "sweep", DEVICES)
    one_line(error, "config.toml", "another configuration")
    best = table(results)
    assert [line.seeds for line in best] == [2] * 4
    assert best[0].last >= best[-1].last
    first = np.array([r.accuracy[-1] for r in results if best[0].settings.items() <= r.settings.items()], float)
    assert best[0].last == pytest.approx(first.mean())
    assert best[0].spread == pytest.approx(first.std(ddof=1))


def test_a_program_is_loaded_again_without_compiling_and_runs_that_are_dropped_stay() -> None:
    experiment = build(config())
    program = Program(experiment, ("algorithm.learning_rate",), DEVICES, slots=3)
    program.load([{"algorithm.learning_rate": rate} for rate in (0.1, 0.2, 0.3)])
    first = program.advance()
    program.drop([1])
    second = program.advance()
    assert second.sent_bits[1] == first.sent_bits[1]
    assert second.sent_bits[0] == 2 * first.sent_bits[0]
    assert second.accuracy[1] == 0  # nothing was measured of it
    compiled = program.many
    program.load([{"algorithm.learning_rate": 0.2}])
    again = program.advance()
    assert program.many is compiled
    assert again.loss == pytest.approx(first.loss[1:2], rel=1e-6)


def test_several_federations_lie_in_one_program() -> None:
    """Each run is what it is alone, also after others have moved in, which may be smaller."""
    experiments = [build(config("data.partition=quantity_zipf", f"data.seed={seed}")) for seed in (0, 1)]
    grounds = [own_ground(experiment) for experiment in experiments]
    cut = int(grounds[1].data.offsets[-2])  # without its last client
    fewer = {field: array[:cut] for field, array in grounds[1].data.examples.items()}
    small = grounds[1].data._replace(examples=fewer, offsets=np.minimum(grounds[1].data.offsets, cut))
    grounds[1] = grounds[1]._replace(phases=(Phase(0, small),))
    trials = [{"training.seed": 3, "algorithm.learning_rate": 0.1}] * 3
    losses = []
    for ground in grounds:
        alone = Program(experiments[0], ("algorithm.learning_rate",), DEVICES[:1], slots=1, grounds=[ground])
        alone.load(trials[:1])
        losses.append([*alone][-1].loss[0])
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)
    program = Program(experiments[0], ("algorithm.learning_rate",), DEVICES, slots=3, grounds=grounds)
    for order in ([0, 1], [1, 0], [1]):
        program.move([grounds[place] for place in order])
        where = [0, len(order) - 1, 0]
        program.load(trials, where)
        np.testing.assert_allclose([*program][-1].loss, [losses[order[place]] for place in where], rtol=1e-5)


def test_under_privacy_every_setting_is_a_group_of_its_own() -> None:
    base = config("privacy.mechanism=gaussian", "privacy.clip_norm=1.0", "privacy.noise_multiplier=1.0",
                  "training.sampling=poisson")  # fmt: skip
    trials = over_seeds([{"privacy.clip_norm": 0.5}, {"privacy.clip_norm": 1.5}], 0, 2)
    assert [len(group.places) for group in grouped(base, trials)] == [1] * 4


CHANGING = {
    "data that change": ("heterogeneity.drift=prior", "heterogeneity.drift_round=3"),
    "late messages that count": ("network.profiles=lognormal", "network.policy=deadline", "network.late=stale",
                                 "network.deadline_seconds=30", "heterogeneity.drift=concept",
                                 "heterogeneity.drift_round=3"),
    "no rounds": ("network.profiles=lognormal", "network.policy=asynchronous", "network.mixing=true"),
    "steps that follow the loss": ("training.adapt_steps=adacomm", "training.adapt_every=1",
                                   "training.local_epochs=4", "algorithm.name=scaffold"),
    "and a clock": ("training.adapt_steps=adacomm", "training.adapt_every=3", "training.local_epochs=4",
                    "network.profiles=lognormal", "network.dropout=0.2"),
}  # fmt: skip


QUICKEST = "late messages that count"


@pytest.mark.parametrize(
    "overrides",
    [pytest.param(CHANGING[of], id=of, marks=() if of == QUICKEST else pytest.mark.slow) for of in CHANGING],
)
def test_runs_that_change_on_the_way_are_swept_as_they_run_alone(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    base = config(*overrides, "training.rounds=6", "training.evaluate_every=2")
    trials = over_seeds(grid(parse_space(["algorithm.learning_rate=0.02,0.3"])), 1, 2)
    assert len(grouped(base, trials)) == 1
    results = sweep(base, trials, tmp_path / "sweep", DEVICES)
    for place in (0, 3):
        alone = run(with_settings(base, {**trials[place], "output.folder": str(tmp_path / f"alone{place}")}))
        rows = read_history(Path(alone.folder) / "history.jsonl")
        tested = [row for row in rows if row["test_loss"] is not None]
        found = results[place]
        assert found.rounds == [row["round"] for row in tested] == [2, 4, 6]
        assert found.loss == pytest.approx([row["test_loss"] for row in tested], rel=1e-4)
        assert found.accuracy == pytest.approx([row["test_accuracy"] for row in tested], abs=3e-3)
        assert found.sent_bits == alone.uplink_bits + alone.downlink_bits
        assert found.seconds == pytest.approx(alone.simulated_seconds or 0.0, rel=1e-6)
        if "training.adapt_steps=adacomm" in overrides:
            assert len({row.get("most_steps") for row in rows}) > 1


def test_clients_without_examples_receive_nothing(tmp_path: Path) -> None:
    base = config("data.min_examples=0", "data.alpha=0.02", "data.clients=60", "data.partition=dirichlet")
    (result,) = sweep(base, over_seeds([{"algorithm.learning_rate": 0.1}], 0, 1), tmp_path / "sweep", DEVICES[:1])
    alone = run(with_settings(base, {"algorithm.learning_rate": 0.1, "output.folder": str(tmp_path / "alone")}))
    assert result.sent_bits == alone.uplink_bits + alone.downlink_bits


RATES = {"algorithm.learning_rate": 0.1}


def test_swept_seeds_are_the_seeds_that_run(tmp_path: Path) -> None:
    trials = over_seeds(grid(parse_space(["training.seed=1,2"])), 0, 1)
    assert trials == [{"training.seed": 1}, {"training.seed": 2}]
    results = sweep(config(), trials, tmp_path / "sweep", DEVICES[:1])
    for result, seed in zip(results, (1, 2), strict=True):
        alone = sweep(config(f"training.seed={seed}"), over_seeds([RATES], seed, 1), tmp_path / str(seed), DEVICES[:1])
        assert result.loss == pytest.approx(alone[0].loss, rel=1e-5)
    assert results[0].loss != pytest.approx(results[1].loss, rel=1e-3)
    (line,) = table(results)
    assert (line.seeds, line.spread > 0) == (2, True)
    with pytest.raises(InputError) as error:
        over_seeds(trials, 0, 2)
    one_line(error, "--seeds", "training.seed", "leave one")


def test_a_setting_given_twice_is_one_trial(tmp_path: Path) -> None:
    trials = over_seeds(grid(parse_space(["algorithm.learning_rate=1,1.0,1"])), 0, 2)
    results = sweep(config(), trials, tmp_path / "sweep", DEVICES[:1])
    assert len(results) == 6
    assert len((tmp_path / "sweep" / "sweep.jsonl").read_text().splitlines()) == 2
    assert [line.seeds for line in table(results)] == [2]


@pytest.mark.parametrize(
    ("overrides", "over", "words"),
    [
        ((), "output.name=a,b", ("output.name", "all its values give the same")),
        ((), "execution.lanes=1,2", ("execution.lanes", "all its values give the same")),
        ((), "training.patience=1,2", ("training.patience", "all their rounds")),
        (("training.local_steps=1",), "training.local_epochs=1,2", ("training.local_epochs", "training.local_steps")),
        ((), "attack.fraction=0.1,0.2", ("attack.fraction", "attack.name is none")),
        ((), "model.hidden=[3],[4]", ("model.hidden", "logistic")),
        ((), "algorithm.name=fedavg,nope", ("algorithm.name", "'nope'")),
        ((), "model.name=logistic,nope", ("model.name", "'nope'")),
        ((), "data.name=digits,nope", ("data.name", "'nope'")),
        ((), "training.sampling=uniform,nope", ("training.sampling", "'nope'")),
        ((), "compression.uplink=none,nope", ("compression.uplink", "'nope'")),
        ((), "training.clients_per_round=10,30", ("training.clients_per_round", "30")),
        ((), "heterogeneity.drift_severity=0.5,1", ("heterogeneity.drift_severity", "drift is none")),
    ],
)
@pytest.mark.parametrize("kind", ["sweep", "tune"])
def test_values_that_cannot_be_used_are_told_before_anything_is_trained(
    tmp_path: Path, kind: str, overrides: tuple[str, ...], over: str, words: tuple[str, ...]
) -> None:
    base, space, folder = config(*overrides), parse_space([over]), tmp_path / "folder"

    def search() -> object:
        if kind == "sweep":
            return sweep(base, over_seeds(grid(space), 0, 1), folder, DEVICES[:1])
        return of_tune.tune(base, space, folder, DEVICES[:1], trials=1, sampler="random")

    with pytest.raises(InputError) as error:
        search()
    one_line(error, *(("model.hidden", "lists") if kind == "tune" and "[" in over else words))
    assert not folder.exists()


def test_a_value_that_the_run_replaces_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def clipped(given):
        experiment = build(given)
        training = experiment.config.training.model_copy(update={"clients_per_round": 5})
        return experiment._replace(config=experiment.config.model_copy(update={"training": training}))

    monkeypatch.setattr(swept, "build", clipped)
    with pytest.raises(InputError) as error:
        swept.tried_out(config(), [{"training.clients_per_round": 7}])
    one_line(error, "training.clients_per_round", "7", "5")


def test_settings_without_effect_are_named_afterwards(tmp_path: Path) -> None:
    trials = over_seeds([{"algorithm.momentum": 0.0}, {"algorithm.momentum": 1e-30}], 0, 1)
    with pytest.warns(UserWarning, match="algorithm.momentum: 0.0 and 1e-30 gave the very same"):
        sweep(config(), trials, tmp_path / "sweep", DEVICES[:1])


@pytest.mark.parametrize(("option", "count"), [("--seeds", 10**14), ("--samples", 10**14), ("--over", 10**6)])
def test_so_many_trials_are_refused_before_they_are_listed(option: str, count: int) -> None:
    thousand = ",".join(map(str, range(1000)))
    space = parse_space([f"a.x={thousand}", f"a.y={thousand}"])
    made = {"--seeds": lambda: over_seeds([RATES], 0, count), "--samples": lambda: sample(space, count, 0),
            "--over": lambda: grid(space)}  # fmt: skip
    with pytest.raises(InputError) as error:
        made[option]()
    one_line(error, option, "trials", "100,000")


# --- spaces ------------------------------------------------------------------------------------------------------


def test_spaces_by_hand() -> None:
    space = parse_space(["a.x=1,2.5,true,word", "a.y=[3,4],[5]", "a.z=0..1", "a.w=log:1e-4..1e-1", "a.n=2..9"])
    assert space["a.x"] == Choice((1, 2.5, True, "word"))
    assert space["a.y"] == Choice(([3, 4], [5]))
    assert space["a.z"] == Range(0.0, 1.0, False, True)
    assert space["a.w"] == Range(1e-4, 0.1, True, False)
    assert space["a.n"] == Range(2.0, 9.0, False, True)
    drawn = sample(space, 400, 1)
    assert {d["a.n"] for d in drawn} == set(range(2, 10))
    logs = np.log10([d["a.w"] for d in drawn])
    assert -4 <= logs.min() < -3.9
    assert -1.1 < logs.max() <= -1
    assert abs(logs.mean() + 2.5) < 0.15
    assert sample(space, 5, 1) == drawn[:5]


@given(st.text(max_size=30))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_space_or_one_line(text: str) -> None:
    try:
        parse_space([text])
    except InputError as error:
        message = str(error)
    else:
        message = ""
    assert "\n" not in message


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["rate=1"], ("section.key",)),
        (["a.b=1", "a.b=2"], ("a.b", "twice")),
        (["a.b=1..0"], ("below",)),
        (["a.b=log:0..1"], ("over 0",)),
        (["a.b=log:3"], ("low..high",)),
        (["a.b=x..y"], ("no numbers",)),
        ([f"a.b=0..1{'0' * 400}"], ("no numbers",)),
        ([f"a.b={'9' * 5000}..1"], ("no numbers",)),
    ],
)
def test_bad_spaces(texts: list[str], words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as error:
        parse_space(texts)
    one_line(error, *words)
    with pytest.raises(InputError, match="no grid"):
        grid(parse_space(["a.b=0..1"]))


def test_a_sweep_goes_on_where_all_that_is_left_does_not_depend_on_a_setting(tmp_path: Path) -> None:
    """Of attack.fraction without an attack, which others of its trials depend on."""
    over = ["attack.name=sign_flip,none", "attack.fraction=0.2,0.4"]
    base, trials, file = config("training.rounds=1"), grid(parse_space(over)), tmp_path / "sweep.jsonl"
    with pytest.warns(UserWarning, match="the very same"):
        whole = sweep(base, trials, tmp_path, DEVICES[:1])
    attacked = [line for line in file.read_text().splitlines() if "sign_flip" in line]
    file.write_text("".join(f"{line}\n" for line in attacked))
    with pytest.warns(UserWarning, match="the very same"):
        assert sweep(base, trials, tmp_path, DEVICES[:1]) == whole


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_program_is_compiled_once(monkeypatch: pytest.MonkeyPatch, devices: int) -> None:
    traced: list[int] = []
    make_round = plan.make_round
    monkeypatch.setattr(plan, "make_round", lambda *args, **how: traced.append(1) or make_round(*args, **how))
    program, counts = Program(build(config()), (), DEVICES[:devices], slots=2), []
    for seed in (0, 1):
        program.load([{"training.seed": seed}])
        counts += [len(traced) for _ in program]
    assert len(counts) == 6
    assert len(set(counts)) == 1


# --- tuning ------------------------------------------------------------------------------------------------------


def test_held_out_clients_are_neither_trained_on_nor_of_the_test_set() -> None:
    experiment = build(config())
    ground = of_tune.held_out_clients(experiment)
    drawn = {int(i) for round in range(60) for i in ground.sampler.draw(0, round) if i >= 0}
    held = sorted(set(range(20)) - drawn)
    assert len(held) == 4
    data = experiment.data
    expected = np.concatenate([np.asarray(data.client(i)["inputs"]) for i in held])
    np.testing.assert_array_equal(ground.test["inputs"], expected)


def test_a_study_finds_a_rate_resumes_and_keeps_within_its_budget(tmp_path: Path) -> None:
    base, space = config("network.profiles=constant"), parse_space(["algorithm.learning_rate=log:1e-4..1"])
    given = (base, space, tmp_path / "study", DEVICES)
    told: list[tuple[int, int, float]] = []
    first = of_tune.tune(*given, trials=4, batch=2, told=lambda *how: told.append(how))
    assert [how[0] for how in told] == [2, 4]
    assert first.complete + first.pruned == 4
    assert 0.02 < first.best["algorithm.learning_rate"] <= 1
    again = of_tune.tune(*given, trials=6, batch=2)
    assert again.complete + again.pruned == 6
    assert again.value >= first.value
    assert load_config(again.file).algorithm.learning_rate == again.best["algorithm.learning_rate"]
    # what two rounds send is all that is allowed: the first evaluation counts, the later ones do not
    bits = 2 * 2 * 10 * 650 * 32
    short = of_tune.tune(base, space, tmp_path / "short", DEVICES, trials=2, batch=2, prune=False,
                         budget=of_tune.Budget(bits=bits))  # fmt: skip
    program = Program(build(base), ("algorithm.learning_rate",), DEVICES, slots=2,
                      grounds=[of_tune.held_out_clients(build(base))])  # fmt: skip
    program.load([short.best])
    assert program.advance().accuracy[0] == pytest.approx(short.value)
    with pytest.raises(InputError) as error:
        of_tune.tune(base, space, tmp_path / "none", DEVICES, trials=2, batch=2, budget=of_tune.Budget(bits=bits / 2))
    one_line(error, "budget")


@pytest.mark.parametrize(
    ("overrides", "over", "sampler", "words"),
    [
        ((), ["algorithm.learning_rate=0.1,1"], "grid", ("sampler", "'grid'", "tpe")),
        ((), [], "tpe", ("--over", "nothing")),
        ((), ["training.seed=1,2"], "tpe", ("training.seed",)),
        ((), ["model.hidden=[3],[4]"], "tpe", ("model.hidden", "lists")),
        (("data.clients=1",), ["algorithm.learning_rate=0.1,1"], "random", ("data.clients", "at least 2")),
        (("network.profiles=constant", "network.policy=over_select"), ["algorithm.learning_rate=0.1,1"], "random",
         ("network.availability", "over-selection")),
    ],
)  # fmt: skip
def test_bad_searches_are_one_line(
    tmp_path: Path, overrides: tuple[str, ...], over: list[str], sampler: str, words: tuple[str, ...]
) -> None:
    with pytest.raises(InputError) as error:
        of_tune.tune(config(*overrides), parse_space(over), tmp_path / "study", DEVICES, trials=1, sampler=sampler)
    one_line(error, *words)


def test_a_study_lies_in_the_folder_that_was_given_whatever_its_name(tmp_path: Path) -> None:
    base, space = config(), parse_space(["algorithm.learning_rate=0.01..1"])
    names = ["what", "what?next", "a%41b # {x} ü"]
    for name in names:
        of_tune.tune(base, space, tmp_path / name, DEVICES[:1], trials=1, sampler="random")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert all((tmp_path / name / "study.db").is_file() for name in names)


def test_a_folder_with_another_study_or_a_damaged_one_is_one_line(tmp_path: Path) -> None:
    base, folder, usual = config(), tmp_path / "study", "algorithm.learning_rate=0.01..1"

    def search(trials: int, over: str = usual, **how: Any) -> of_tune.Tuned:
        how = {"sampler": "random"} | how
        return of_tune.tune(base, parse_space([over]), folder, DEVICES[:1], trials=trials, **how)

    def refused(*words: str, **how: Any) -> None:
        with pytest.raises(InputError) as error:
            search(2, **how)
        one_line(error, str(folder / "study.db"), "another folder", *words)

    search(1)
    refused("space", over="algorithm.learning_rate=0.01..2")
    refused("space", over="algorithm.momentum=0.01..0.5")
    refused("sampler", "tpe", sampler="tpe")
    refused("seeds", seeds=2)
    refused("budget", budget=of_tune.Budget(bits=1e9))
    whole = (folder / "study.db").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"no database", whole[:100] + bytes(4000) + whole[4100:]):
        (folder / "study.db").write_bytes(damaged)
        refused()
        assert (folder / "study.db").read_bytes() == damaged
    (folder / "study.db").write_bytes(whole)
    assert search(2).complete == 2


def test_what_a_study_remembers_of_a_batch_may_be_damaged(tmp_path: Path) -> None:
    base, space = config(), parse_space(["algorithm.learning_rate=0.01..1"])

    def search(trials: int) -> of_tune.Tuned:
        return of_tune.tune(base, space, tmp_path, DEVICES[:1], trials=trials, sampler="random")

    search(1)
    for damaged in ([1], {"trials": "x", "results": []}, {"trials": [7], "results": []}, {"trials": [0]}):
        with closing(sqlite3.connect(tmp_path / "study.db")) as database, database:
            values = json.dumps(damaged), study.BATCH
            database.execute("UPDATE study_user_attributes SET value_json = ? WHERE key = ?", values)
        with pytest.raises(InputError) as error:
            search(2)
        one_line(error, str(tmp_path / "study.db"), "damaged", study.BATCH, "another folder")


def test_cohorts_that_were_asked_for_are_not_cut_to_the_clients_left(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        of_tune.tune(config(), parse_space(["training.clients_per_round=15,18"]), tmp_path / "study", DEVICES[:1],
                     trials=2, batch=2, sampler="random")  # fmt: skip
    one_line(error, "training.clients_per_round", "18", "16 clients")


@pytest.mark.parametrize("damage", [
    lambda line: "[1]", lambda line: '"x"', lambda line: line.replace('"accuracy"', '"accurac"'),
    lambda line: line.replace('"rounds": [2', '"rounds": [[2], 2'), lambda line: "9" * 5000,
    lambda line: line.replace('"seconds": 0.0', '"seconds": []'),
    lambda line: line.replace('"by": "accuracy"', '"by": "nothing"'),
])  # fmt: skip
def test_damaged_results_are_told_and_stay(tmp_path: Path, damage: Any) -> None:
    done = Done({"algorithm.learning_rate": 0.1, "training.seed": 0}, [2], [0.5], [1.0], 10, 0.0)
    (tmp_path / "config.toml").write_text(to_toml(config()))
    written = damage(json.dumps({"run": "x"} | done._asdict())) + "\n"
    (tmp_path / "sweep.jsonl").write_text(written)
    with pytest.raises(InputError) as error:
        sweep(config(), over_seeds([RATES], 0, 1), tmp_path, DEVICES[:1])
    one_line(error, "sweep.jsonl", "holds no results of a sweep")
    assert (tmp_path / "sweep.jsonl").read_text() == written


def test_results_are_plain_lines(tmp_path: Path) -> None:
    assert of_trials.SEED == "training.seed"
    done = Done({"a.b": 1}, [2], [0.5], [1.0], 10, 0.0, [0.5], [None], 0.5)
    assert json.loads(json.dumps(done._asdict())) == done._asdict()
