"""Diagnoses from end to end, on small federations with a planted cause, and what they are made of."""

import io
import json
import re
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import one_line
from rich.console import Console
from runs import inside, trained

import fedjax_sim as fs
from fedjax_sim.data import federate, from_clients
from fedjax_sim.data.sources import SOURCES
from fedjax_sim.diagnose import CAUSES, Cause, Change, Told, World, changing, diagnose, setting
from fedjax_sim.diagnose.exchange import redealt
from fedjax_sim.diagnose.laboratory import FILE, Course, Laboratory
from fedjax_sim.diagnose.personal import own_accuracies
from fedjax_sim.diagnose.watch import watching
from fedjax_sim.diagnose.worlds import remembering
from fedjax_sim.experiment.config import load_config
from fedjax_sim.report.diagnosis import diagnosis_page, falls, marks

pytestmark = pytest.mark.usefixtures("optimized")
QUICK = ("model.name=logistic", "data.clients=6", "training.rounds=12", "training.evaluate_every=3",
         "training.clients_per_round=6", "data.partition=iid", "algorithm.learning_rate=0.5")  # fmt: skip


def quick(*overrides: str):
    return load_config(None, [*QUICK, *overrides])


def laboratory(folder: Path) -> Laboratory:
    folder.mkdir(exist_ok=True)
    return Laboratory(folder, jax.local_devices()[:2])


def only(*names: str) -> tuple[Cause, ...]:
    return tuple(cause for cause in CAUSES if cause.name in names)


# --- the laboratory --------------------------------------------------------------------------------------------------


def test_worlds_of_one_structure_are_one_program_and_equal_runs_by_themselves(tmp_path):
    world = World(quick("data.partition=dirichlet", "data.alpha=0.3"))
    change = Change("redealt", redealt, order=1)
    worlds = [world, world.change(change), world.set({"algorithm.learning_rate": 0.1}),
              world.set({"heterogeneity.flip": 0.3})]  # fmt: skip
    lab = laboratory(tmp_path / "lab")
    found = lab.train(worlds, [0, 1])
    assert (lab.compiled, lab.trained) == (1, 8)
    settings = ["data.partition=dirichlet", "data.alpha=0.3"]
    for place, more in ((0, []), (2, ["algorithm.learning_rate=0.1"]), (3, ["heterogeneity.flip=0.3"])):
        for seed in (0, 1) if place == 0 else (1,):
            run = trained(tmp_path / f"run{place}{seed}", *QUICK, *settings, *more, f"training.seed={seed}")
            tested = [row for row in run.rows if row["test_accuracy"] is not None]
            course = found[place][seed]
            assert course.rounds == [row["round"] for row in tested]
            assert course.accuracy == pytest.approx([row["test_accuracy"] for row in tested], abs=3e-3)
            assert course.loss == pytest.approx([row["test_loss"] for row in tested], rel=2e-3)


def test_what_is_known_is_not_trained_again_and_a_torn_line_is_left_out(tmp_path):
    world = World(quick())
    first = laboratory(tmp_path).train([world], [0, 1])
    path = tmp_path / FILE
    assert len(path.read_text().splitlines()) == 2
    path.write_text(path.read_text() + '{"run": "2 ')
    lab = laboratory(tmp_path)
    assert lab.train([world], [0, 1]) == first
    assert lab.trained == 0
    path.write_text("nonsense\n")
    with pytest.raises(fs.InputError) as error:
        laboratory(tmp_path)
    one_line(error, FILE, "another folder")


def test_a_data_set_is_read_once_for_worlds_that_deal_it_otherwise(tmp_path, monkeypatch):
    read = []

    def counted(*, test_fraction: float = 0.2, seed: int = 0):
        read.append((test_fraction, seed))
        return SOURCES["breast_cancer"](test_fraction=test_fraction, seed=seed)

    monkeypatch.setitem(SOURCES, "digits", counted)
    lab, world = laboratory(tmp_path), World(quick())
    worlds = [world, world.set({"data.partition": "dirichlet", "data.alpha": 0.1}), world.set({"data.clients": 8})]
    sizes = [tuple(lab.experiment(one).data.sizes) for one in worlds]
    assert len(set(sizes)) == 3
    assert read == [(0.2, 0)]
    other, again = (lab.experiment(world.set({"data.seed": seed})) for seed in (1, 0))
    assert not np.array_equal(other.data.examples["inputs"], again.data.examples["inputs"])
    assert read == [(0.2, 0), (0.2, 1)]  # the world of before is remembered as it was built
    large = remembering(counted, 10.0)
    for _ in range(2):
        large(seed=0)
    assert len(read) == 4  # for it is too large to hold


def test_runs_on_other_data_are_other_runs(tmp_path):
    dataset = SOURCES["digits"]()
    rows = np.random.default_rng(0).permutation(len(dataset.train["labels"]))
    first, other = (federate(dataset, np.array_split(rows[:kept], 6)) for kept in (len(rows), 60))
    world = World(quick())
    found = [Laboratory(tmp_path, jax.local_devices()[:1], data=data).train([world], [0])[0][0].ended
             for data in (first, other, first)]  # fmt: skip
    assert found[0] == found[2] > found[1] + 0.05
    assert len((tmp_path / FILE).read_text().splitlines()) == 2


ON_DISK = ("algorithm.name=scaffold", "execution.client_memory=disk")  # which is trained by itself


@pytest.mark.parametrize("kept", [(), pytest.param(ON_DISK, marks=pytest.mark.slow)], ids=["as one", "by itself"])
def test_data_that_change_are_trained_as_in_a_run(tmp_path, kept):
    settings = ("heterogeneity.drift=concept", "heterogeneity.drift_round=4", "training.rounds=6", *kept)
    lab = laboratory(tmp_path)
    course = lab.train([World(quick(*settings))], [0])[0][0]
    assert lab.compiled == (not kept)
    run = trained(tmp_path / "run", *QUICK, *settings)
    tested = [row["test_accuracy"] for row in run.rows if row["test_accuracy"] is not None]
    assert course.accuracy == pytest.approx(tested, abs=3e-3)


def test_a_run_that_diverges_by_itself_has_a_course_to_the_end(tmp_path):
    broken = quick(*ON_DISK, "attack.name=nan_sender", "attack.fraction=0.5")
    course = laboratory(tmp_path).train([World(broken)], [0])[0][0]
    assert course.rounds == [3, 6, 9, 12]
    assert course.accuracy == [0.0] * 4
    assert course.loss == [None] * 4


def test_a_course_ends_with_the_mean_of_its_last_fifth():
    course = Course(list(range(1, 11)), [*[0.1] * 8, 0.5, 0.7], [*[1.0] * 10], [*[2.0] * 9, 4.0], 0, 0.0)
    assert course.ended == pytest.approx(0.6)
    assert course.fitted == pytest.approx(3.0)


# --- planted causes --------------------------------------------------------------------------------------------------


def test_flipped_labels_are_found_first_and_robust_rules_tried(tmp_path):
    causes = only("malicious_clients", "learning_rate", "client_drift")
    found = diagnose(quick("attack.name=label_flip", "attack.fraction=0.5"), tmp_path / "a", seeds=2, causes=causes)
    assert found.verdict == "stalled"
    first = found.suspects[0]
    assert first.name == "malicious_clients"
    assert first.share is not None
    assert first.share.mean > 0.1
    assert "3 of 6 clients: label_flip." in first.evidence
    shares = sum(s.share.mean for s in found.suspects if s.share is not None)
    assert found.mended is not None
    assert shares == pytest.approx(found.mended.mean - found.run.mean)
    assert any("median" in tried.name for tried in found.remedies)
    for tried in found.remedies:
        assert tried.accuracy == pytest.approx(found.run.mean + tried.gain.mean)
    if found.config:
        assert load_config(_written(tmp_path / "r.toml", found.config)).data.clients == 6
    page = diagnosis_page(found)
    assert "Malicious or broken clients" in page
    assert not re.search(r'(?:src|href)="(?!#)', page)
    bars = falls(found)
    assert bars[0].end == pytest.approx(max(found.ceiling.mean, found.mended.mean))
    assert marks(found)["guessing"] == found.chance
    assert bars[-1].end == pytest.approx(found.run.mean)
    for before, after in pairwise(bars[:-1]):
        assert after.start == pytest.approx(before.end)


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_healthy_run(tmp_path):
    causes = only("learning_rate", "too_few_rounds", "rare_participation", "label_skew")
    healthy = diagnose(quick("training.rounds=45"), tmp_path / "healthy", seeds=2, causes=causes, remedies=False)
    assert healthy.verdict == "healthy"
    assert healthy.remedies == []
    assert all(suspect.share is None for suspect in healthy.suspects)
    assert json.loads(json.dumps(healthy.plain(), allow_nan=False))["verdict"] == "healthy"
    assert "healthy" in diagnosis_page(healthy)


def test_a_cause_of_ones_own_and_data_of_ones_own(tmp_path):
    dataset = SOURCES["digits"]()
    parts = np.array_split(np.random.default_rng(0).permutation(len(dataset.train["labels"])), 6)
    data = federate(dataset, parts)
    dark = data._replace(examples={**data.examples, "inputs": (data.examples["inputs"] * 0).astype(np.uint8)})
    told = []
    mine = Cause(
        "dark_images", "Dark images",
        lambda facts: [changing("images as they are", Change("bright", lambda _: data, last=True))],
        evidence=lambda facts: [f"{len(facts.history)} rounds were watched."],
    )  # fmt: skip
    found = diagnose(quick(), tmp_path, seeds=2, data=dark, causes=[mine, *only("learning_rate")], remedies=False,
                     told=told.append)  # fmt: skip
    # in one place the images are as dark, so the run is as good as it can be there, and only what lowers the ceiling
    # would be looked for
    assert found.suspects == []
    found = diagnose(quick(), tmp_path, seeds=2, data=dark, remedies=False,
                     causes=[mine._replace(lowers_ceiling=True), *only("learning_rate")])  # fmt: skip
    assert found.suspects[0].name == "dark_images"
    assert found.suspects[0].share is not None
    assert found.suspects[0].share.mean > 0.5
    assert {told.stage for told in told} >= {"the run as it is, and in one place"}


@pytest.mark.slow
def test_a_remedy_for_data_of_ones_own_asks_for_them(tmp_path):
    low = quick("algorithm.learning_rate=0.0005")
    found = diagnose(low, tmp_path, seeds=2, data=digits_in_six(), causes=only("learning_rate"))
    (tmp_path / "remedy.toml").write_text(found.config)
    remedy = load_config(tmp_path / "remedy.toml")
    assert remedy.algorithm.learning_rate > 0.0005
    with pytest.raises(fs.InputError) as error:
        World(remedy).build()
    one_line(error, "data.partition", "build(config, data=...)")
    assert World(remedy).build(data=digits_in_six()).data.num_clients == 6
    with pytest.raises(fs.InputError) as error:
        World(quick("data.clients=7")).build(data=digits_in_six()._replace(source=""))
    one_line(error, "data.clients: 7", "the federation has 6")


def test_settings_that_do_not_go_together_are_no_way_out(tmp_path):
    impossible = Cause("impossible", "Impossible", lambda facts: [setting("nonsense", training__sampling="nonsense")],
                       lowers_ceiling=True)  # fmt: skip
    assert diagnose(quick(), tmp_path, seeds=2, causes=[impossible], remedies=False).suspects == []


@pytest.mark.slow
def test_gradients_that_differ_may_do_no_harm(tmp_path):
    """Wang et al. (2022): dissimilar gradients need not slow averaging down. One class a client, one step a round."""
    config = load_config(None, ["model.name=logistic", "data.partition=labels_per_client", "data.labels_per_client=1",
                                "data.clients=10", "training.sampling=all", "training.local_steps=1",
                                "training.rounds=150", "training.evaluate_every=15", "training.batch_size=64",
                                "algorithm.learning_rate=5.0"])  # fmt: skip
    seen = laboratory(tmp_path / "lab").observed(World(config))
    assert seen.history.column("gradient_diversity")[1].mean() > 5  # 1 where all updates agree
    found = diagnose(config, tmp_path / "found", seeds=2)
    assert found.verdict == "healthy"
    assert found.label_divergence is not None
    assert found.label_divergence > 0.4
    assert "does no harm" in found.sentences[0]


def test_every_cause_has_a_name_of_its_own():
    assert len({cause.name for cause in CAUSES}) == len({cause.title for cause in CAUSES}) == len(CAUSES)


def digits_in_six():
    dataset = SOURCES["digits"]()
    return federate(dataset, np.array_split(np.arange(len(dataset.train["labels"])), 6))


# --- bad input, and the command --------------------------------------------------------------------------------------


def test_bad_input(tmp_path):
    with pytest.raises(fs.InputError) as error:
        diagnose(quick(), tmp_path, seeds=1)
    one_line(error, "seeds", "at least 2")
    with pytest.raises(fs.InputError) as error:
        diagnose("config.toml", tmp_path)  # pyright: ignore[reportArgumentType]
    one_line(error, "experiment", "load_config(file)")
    with pytest.raises(fs.InputError) as error:
        diagnose(quick(), tmp_path, data=[{}])  # pyright: ignore[reportArgumentType]
    one_line(error, "data", "from_clients")
    with pytest.raises(fs.InputError) as error:
        diagnose(quick(), tmp_path, causes=["label_skew"])  # pyright: ignore[reportArgumentType]
    one_line(error, "causes", "causes_named")
    diagnose(quick(), tmp_path / "used", seeds=2, causes=(), remedies=False)
    with pytest.raises(fs.InputError) as error:
        diagnose(quick("data.seed=1"), tmp_path / "used", seeds=2)
    one_line(error, "another configuration")
    with pytest.raises(fs.InputError) as error:
        diagnose(World(quick()).build(data=digits_in_six()), tmp_path / "given", seeds=2)
    one_line(error, "data:", "give them")
    with pytest.raises(fs.InputError) as error:
        diagnose(quick("algorithm.name=nonsense"), tmp_path / "new", seeds=2)
    one_line(error, "algorithm.name", "nonsense")


def test_the_command_says_why_writes_it_down_and_goes_on(tmp_path):
    folder = tmp_path / "d"
    settings = [word for setting in (*QUICK, "algorithm.learning_rate=0.0005") for word in ("--set", setting)]
    settings += ["--cause", "learning_rate", "--seeds", "2", "--folder", str(folder)]
    ended = inside("diagnose", *settings)
    assert ended.status == 0, ended.err
    assert "It stalls." in ended.out
    assert "learning rate" in ended.out
    found = json.loads((folder / "diagnosis.json").read_text())
    assert (found["verdict"], found["suspects"][0]["name"]) == ("stalled", "learning_rate")
    assert found["suspects"][0]["share"]["low"] <= found["suspects"][0]["share"]["mean"]
    assert (folder / "diagnosis.png").read_bytes()[:4] == b"\x89PNG"
    assert load_config(folder / "remedy.toml").algorithm.learning_rate > 0.0005
    lines = (folder / FILE).read_text().splitlines(keepends=True)
    (folder / FILE).write_text("".join(lines[:-4]) + '{"run":')
    ended = inside("diagnose", *settings)
    assert ended.status == 0, ended.err
    assert sorted((folder / FILE).read_text().splitlines()) == sorted(line.strip() for line in lines)
    assert json.loads((folder / "diagnosis.json").read_text())["suspects"] == found["suspects"]
    for arguments, parts in (
        (("--seeds", "1"), "seeds: 1 is"),
        (("--cause", "skew"), "--cause"),
        (("nothing.toml",), "no such file"),
        (("--set", "training.rounds=0"), "training.rounds"),
    ):
        ended = inside("diagnose", *arguments)
        assert ended.status == 2
        assert ended.err.count("\n") == 1
        assert parts in ended.err


def test_progress_counts_what_runs_under_way_have_done():
    assert Told("a", 4, 10, 4, 25, 50).share == pytest.approx(0.6)
    shown = io.StringIO()
    with watching(Console(file=shown, width=100)) as tell:
        tell(Told("worlds", 0, 4, 2, 10, 20))
        tell(Told("worlds", 0, 4, 2, 20, 20))  # too soon for another line
        tell(Told("remedies", 1, 4, 2, 10, 20))
    lines = shown.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("worlds: 0/4 runs, round 10/20 of 2")


def test_clients_own_models_are_measured_where_clients_keep_tests(tmp_path):
    config = quick("data.partition=dirichlet", "data.alpha=0.05", "data.local_test_fraction=0.3", "training.rounds=3")
    world = World(config)
    lab = laboratory(tmp_path / "lab")
    state = lab.states(world, [0])[0]
    run = trained(tmp_path / "run", *QUICK, "data.partition=dirichlet", "data.alpha=0.05",
                  "data.local_test_fraction=0.3", "training.rounds=3")  # fmt: skip
    assert int(state.round) == 3
    own = run.summary.own_tests
    assert own is not None
    found = own_accuracies(lab, world, [0])
    assert [float(value[0]) for value in found] == pytest.approx([own.global_accuracy, own.personal_accuracy], abs=0.02)
    assert own.personal_accuracy > own.global_accuracy


def test_who_only_guesses_is_not_healthy_and_no_cause_is_blamed_for_which_constant_is_guessed(tmp_path):
    """Inputs and labels of different patients, and classes that are as frequent in training, but not in the test."""
    rng = np.random.default_rng(0)

    def noise(count, shares):
        return {"inputs": rng.normal(size=(count, 10)).astype(np.float32), "labels": rng.choice(4, count, p=shares)}

    test = noise(400, [0.7, 0.1, 0.1, 0.1])
    data = from_clients([noise(50, [0.25] * 4) for _ in range(6)], test=test, classes=4)
    config = load_config(None, ["model.name=logistic", "training.rounds=6", "training.evaluate_every=2"])
    found = diagnose(config, tmp_path, data=data, seeds=2, causes=only("class_imbalance"), remedies=False)
    assert found.chance == (test["labels"] == 0).mean()
    assert (found.verdict, found.guessing) == ("no better than guessing", True)
    assert [suspect.share for suspect in found.suspects] == [None]
    assert found.suspects[0].alone.low > 0.2  # drawn like the test set, the other constant is answered
    assert f"always answering the most frequent class {found.chance:.1%}" in found.sentences[0]
    assert "warn" in diagnosis_page(found)
