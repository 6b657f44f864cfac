"""A run goes on with what it was begun with; results that are kept are found by what made them."""

import json
import shutil
from pathlib import Path

import dp_accounting
import jax
import numpy as np
import pytest
from conftest import one_line
from dp_accounting.pld import privacy_loss_distribution as pld
from runs import QUICK, inside

from fedjax_sim import InputError
from fedjax_sim.data import FederatedData, from_clients, open_store, save
from fedjax_sim.data import fingerprint as of_data
from fedjax_sim.data.fingerprint import fingerprint, of_path
from fedjax_sim.diagnose import CAUSES, diagnose
from fedjax_sim.experiment.config import Config, load_config
from fedjax_sim.experiment.explain import settings
from fedjax_sim.experiment.history import read_history
from fedjax_sim.experiment.origin import Marks, still_stands
from fedjax_sim.experiment.record import read_origin
from fedjax_sim.experiment.run import Reporter, resume, run
from fedjax_sim.experiment.section import READ
from fedjax_sim.experiment.space import Choice, Range
from fedjax_sim.experiment.sweep import sweep
from fedjax_sim.experiment.tune import tune
from fedjax_sim.report.compare import group
from fedjax_sim.report.read import read_run, read_runs


class After:
    """Asks for an end once so many calls were made."""

    def __init__(self, calls: int):
        self.calls = calls

    def __call__(self) -> bool:
        self.calls -= 1
        return self.calls <= 0


def table(path: Path, seed: int = 0, *, flipped: bool = False, shuffled: bool = False) -> Path:
    """A table of six hospitals, whose labels follow the sum of its columns, or the contrary, or are other patients'."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(240, 3))
    labels = (inputs.sum(1) > 0) ^ flipped
    labels = rng.permutation(labels) if shuffled else labels
    rows = [f"H{i % 6},{','.join(f'{x:.3f}' for x in row)},{int(y)}"
            for i, (row, y) in enumerate(zip(inputs, labels, strict=True))]  # fmt: skip
    path.write_text("client,a,b,c,label\n" + "\n".join(rows) + "\n")
    return path


def stopped(folder: Path, *overrides: str, calls: int = 2) -> Path:
    """A run that was interrupted after that many rounds."""
    base = [*QUICK, "training.local_steps=2", f"output.folder={folder.parent}", f"output.name={folder.name}"]
    assert run(load_config(None, [*base, *overrides]), stop=After(calls)).status == "interrupted"
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was interrupted after two of four rounds."""
    return stopped(tmp_path_factory.mktemp("begun") / "run")


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with noise."""
    return stopped(tmp_path_factory.mktemp("noisy") / "run", *NOISY)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with noise that was interrupted after one round."""
    return stopped(tmp_path_factory.mktemp("once") / "run", *NOISY, calls=1)


# --- fingerprints ----------------------------------------------------------------------------------------------------


def federation() -> FederatedData:
    rng = np.random.default_rng(0)
    clients = [{"inputs": rng.normal(size=(n, 2)), "labels": rng.integers(0, 2, n)} for n in (3, 0, 5)]
    data = from_clients(clients, test={f: x[:2] for f, x in clients[0].items()}, classes=2, names=["a", "b", "c"])
    return data._replace(attributes={"hospital": np.array(["x", "x", "y"])})


def test_a_fingerprint_tells_every_part_of_a_federation_and_nothing_else(tmp_path: Path) -> None:
    data, usual = federation(), fingerprint(federation())
    assert fingerprint(open_store(save(tmp_path / "store", data))) == usual
    assert fingerprint(data._replace(source="elsewhere")) == usual

    def differs(other: FederatedData) -> list[str]:
        found = fingerprint(other)
        return [name for name in {**usual, **found} if usual.get(name) != found.get(name)]

    inputs, labels = data.examples["inputs"], data.examples["labels"]
    assert differs(data._replace(examples={"inputs": inputs, "labels": 1 - labels})) == ["train labels"]
    assert differs(data._replace(examples={"inputs": inputs.astype(np.float32), "labels": labels})) == ["train inputs"]
    assert differs(data._replace(examples={"inputs": inputs.reshape(-1, 1, 2), "labels": labels})) == ["train inputs"]
    assert differs(data._replace(offsets=np.array([0, 4, 4, 8]))) == ["clients"]
    assert differs(data._replace(classes=3)) == ["classes"]
    assert differs(data._replace(test=None)) == ["test inputs", "test labels"]
    assert differs(data._replace(attributes={})) == ["attribute hospital"]
    assert differs(data._replace(names=np.array(["a", "c", "b"]))) == ["names"]
    local = differs(data._replace(local_test=data.population(lambda tree: tree)))
    assert local == ["local test inputs", "local test labels", "local test clients"]
    order = [*range(3, 8), *range(3)]  # the clients the other way round
    swapped = {field: array[order] for field, array in data.examples.items()}
    assert differs(data._replace(examples=swapped, offsets=np.array([0, 5, 5, 8]))) == [
        "train inputs",
        "train labels",
        "clients",
    ]


def test_of_what_is_large_blocks_and_the_checksums_of_its_index_are_read(tmp_path: Path, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    clients = [{"inputs": rng.normal(size=(400, 8)), "labels": rng.integers(0, 2, 400)} for _ in range(2)]
    for name, constant in (("BLOCKS", 4), ("BLOCK_BYTES", 640), ("WHOLE_BYTES", 10_000)):
        monkeypatch.setattr(of_data, name, constant)
    first = open_store(save(tmp_path / "first", from_clients(clients, classes=2)))
    assert fingerprint(open_store(tmp_path / "first")) == fingerprint(first)
    clients[1]["inputs"][100, 3] += 1  # in none of the blocks
    second = open_store(save(tmp_path / "second", from_clients(clients, classes=2)))
    assert fingerprint(second)["train inputs"] != fingerprint(first)["train inputs"]
    (tmp_path / "a").write_bytes(bytes(20_000))
    (tmp_path / "b").write_bytes(bytes(19_999) + b"1")
    assert of_path(tmp_path / "a") != of_path(tmp_path / "b")
    assert of_path(tmp_path / "missing") == ""


def test_every_setting_that_names_a_file_is_known_to(tmp_path: Path) -> None:
    marked = {path for path, field in settings(Config).items() if READ in field.metadata}
    named = {path for path, field in settings(Config).items() if "path" in path.partition(".")[2]}
    assert marked == {*named, "data.owners", "model.start"}


# --- what a run was begun with ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("batch_size = 16", "batch_size = 32", "training.batch_size: 16 -> 32"),
        ("learning_rate = 0.1", "learning_rate = 0.2", "algorithm.learning_rate: 0.1 -> 0.2"),
        ("rounds = 4", "rounds = 40", "training.rounds: 4 -> 40"),
        ('name = "fedavg"', 'name = "fedprox"\nmu = 0.5', "algorithm.name: fedavg -> fedprox, algorithm.mu: not set"),
        ("alpha = 0.3\n", "", "data.alpha: 0.3 -> not set"),
        ("flip = 0.0", "flip = 0.5", "heterogeneity.flip: 0.0 -> 0.5"),
    ],
)
def test_an_edited_configuration_is_refused_with_what_differs(
    begun: Path, tmp_path: Path, old: str, new: str, told: str
) -> None:
    folder = Path(shutil.copytree(begun, tmp_path / "run"))
    text = (folder / "config.toml").read_text()
    assert old in text
    (folder / "config.toml").write_text(text.replace(old, new, 1))
    before = contents(folder)
    with pytest.raises(InputError) as error:
        resume(folder)
    one_line(error, "config.toml", told, "--set")
    assert contents(folder) == before


def test_what_results_do_not_depend_on_may_be_edited(begun: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(begun, tmp_path / "run"))
    text = (folder / "config.toml").read_text().replace("save_model = true", "save_model = false")
    (folder / "config.toml").write_text(text.replace('lanes = "auto"', "lanes = 2"))
    summary = resume(folder)
    assert (summary.status, summary.rounds, summary.changes) == ("finished", 4, [])
    assert not (folder / "model").exists()


def test_a_change_that_is_asked_for_is_made_and_written_down(begun: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(begun, tmp_path / "run"))
    before = read_history(folder / "history.jsonl")
    summary = resume(folder, overrides=["training.batch_size=32", "training.rounds=6"], stop=After(1))
    told = "from round 3 on: training.rounds: 4 -> 6, training.batch_size: 16 -> 32"
    assert (summary.status, summary.rounds) == ("interrupted", 3)
    assert told in summary.changes[0]
    assert load_config(folder).training.batch_size == 32
    change = read_origin(folder).changes[0]
    assert (change.round, change.settings) == (2, {"training.rounds": [4, 6], "training.batch_size": [16, 32]})
    assert read_origin(folder).begun.settings["training.batch_size"] == 16
    summary = resume(folder)  # as it is now, without asking again
    assert (summary.status, summary.rounds) == ("finished", 6)
    assert json.loads((folder / "summary.json").read_text())["changes"] == summary.changes == [summary.changes[0]]
    rows = read_history(folder / "history.jsonl")
    assert rows[:2] == before
    assert any(told in note for note in read_run(folder).notes)
    with pytest.raises(InputError) as error:
        resume(Path(shutil.copytree(begun, tmp_path / "moved")), overrides=["output.name=other"])
    one_line(error, "output.name", "stays")


def test_other_data_are_refused_unless_they_are_asked_for(tmp_path: Path) -> None:
    path = table(tmp_path / "study.csv")
    folder = stopped(tmp_path / "run", "data.name=csv", f"data.path={path}")
    whole, before = path.read_bytes(), contents(folder)
    table(path, flipped=True)
    with pytest.raises(InputError) as error:
        resume(folder)
    one_line(
        error, str(folder), "data.path", "train labels", "test labels", "start another run", f"--set data.path={path}"
    )
    table(path, seed=1)
    with pytest.raises(InputError) as error:
        resume(folder)
    one_line(error, "train inputs")
    assert contents(folder) == before
    path.write_bytes(whole)
    shutil.copytree(folder, tmp_path / "again")
    assert resume(tmp_path / "again").status == "finished"
    table(path, flipped=True)
    summary = resume(folder, overrides=[f"data.path={path}"])
    assert "other data in train labels" in summary.changes[0]


def test_changes_that_a_run_cannot_go_on_with_are_named(begun: Path, noisy: Path, tmp_path: Path) -> None:
    before = contents(begun)
    for rounds in (1, 2):
        with pytest.raises(InputError) as error:
            resume(begun, overrides=[f"training.rounds={rounds}"])
        one_line(error, f"training.rounds: {rounds}, and 2 rounds are done; give more")
    assert contents(begun) == before
    folder = Path(shutil.copytree(noisy, tmp_path / "private"))
    before = contents(folder)
    with pytest.raises(InputError) as error:
        resume(folder, overrides=["privacy.adaptive=true"])
    one_line(error, "privacy.adaptive: not set -> True", "leave --set privacy.adaptive out", "start another run")
    assert contents(folder) == before
    assert resume(folder).status == "finished"


def test_other_files_that_settings_name_are_refused_too(begun: Path, tmp_path: Path) -> None:
    np.savetxt(owners := tmp_path / "owners.txt", np.arange(1437) % 5, fmt="%d")
    first = Path(shutil.copytree(begun, tmp_path / "first"))
    resume(first)
    network = tmp_path / "network.csv"
    network.write_text("downlink_bps,uplink_bps,seconds_per_step\n" + "1e6,1e6,0.1\n" * 5)
    model = shutil.copytree(first / "model", tmp_path / "model")
    folder = stopped(tmp_path / "run", "data.partition=list", f"data.owners={owners}", f"model.start={model}",
                     "network.profiles=csv", f"network.path={network}")  # fmt: skip
    assert set(read_origin(folder).begun.files) == {"model.start", "network.path"}
    for path, end, told in (
        (network, b"2\n", "network.path"),
        (sorted(model.iterdir())[0], b"1", "model.start"),
        (owners, b"0\n", "clients"),
    ):
        kept = path.read_bytes()
        path.write_bytes(kept[: -len(end)] + end)
        with pytest.raises(InputError) as error:
            resume(folder)
        one_line(error, told, "start another run")
        path.write_bytes(kept)
    assert resume(folder).status == "finished"


def test_a_history_or_checkpoint_of_another_run_is_refused(begun: Path, tmp_path: Path) -> None:
    other = stopped(tmp_path / "other", "training.seed=1")
    for name, parts in (("history.jsonl", ("history.jsonl", "not those")), ("checkpoints", ("checkpoints", "another"))):
        folder = Path(shutil.copytree(begun, tmp_path / name))
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
        copy = shutil.copytree if (other / name).is_dir() else shutil.copy
        copy(other / name, folder / name)
        with pytest.raises(InputError) as error:
            resume(folder)
        one_line(error, *parts)
    folder = Path(shutil.copytree(begun, tmp_path / "unknown"))
    (folder / "run.json").unlink()
    with pytest.raises(InputError) as error:
        resume(folder)
    one_line(error, "run.json", "run it again")
    for text in ("", "[]", "{}", '{"begun": 1}', "[" * 3000, "nonsense"):
        (folder / "run.json").write_text(text)
        with pytest.raises(InputError) as error:
            resume(folder)
        one_line(error, "run.json", "damaged")


def test_a_change_that_moves_the_clock_is_refused(tmp_path: Path) -> None:
    folder = stopped(tmp_path / "run", "network.profiles=constant", "network.uplink_bps=1e6")
    with pytest.raises(InputError) as error:
        resume(folder, overrides=["network.uplink_bps=2e6"])
    one_line(error, "network", "simulated seconds")
    assert resume(folder, overrides=["training.rounds=6"]).status == "finished"


# --- what is spent stays spent ----------------------------------------------------------------------------------------

NOISY = ("privacy.mechanism=gaussian", "privacy.clip_norm=0.5", "privacy.noise_multiplier=0.6", "privacy.delta=1e-4",
         "training.sampling=poisson", "training.clients_per_round=5", "training.evaluate_every=2")  # fmt: skip


def epsilons(folder: Path) -> list[float]:
    return [row["epsilon"] for row in read_history(folder / "history.jsonl")]


def gaussian(noise: float, rate: float = 1.0):
    return pld.from_gaussian_mechanism(noise, sampling_prob=rate, value_discretization_interval=1e-3)


@pytest.mark.parametrize("noise", [2.0, pytest.param(0.4, marks=pytest.mark.slow)])
def test_noise_that_is_edited_later_takes_nothing_back(noisy: Path, tmp_path: Path, noise: float) -> None:
    """Case of the run whose noise went from 0.5 to 5.0 in its folder: its epsilon fell from 9.6 to 0.2."""
    folder = Path(shutil.copytree(noisy, tmp_path / "run"))
    before, text = epsilons(folder), (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(text.replace("noise_multiplier = 0.6", f"noise_multiplier = {noise}"))
    with pytest.raises(InputError) as error:
        resume(folder)
    one_line(error, f"privacy.noise_multiplier: 0.6 -> {noise}")
    (folder / "config.toml").write_text(text)
    summary = resume(folder, overrides=[f"privacy.noise_multiplier={noise}"])
    found, two = epsilons(folder), gaussian(0.6, 0.25).self_compose(2)
    assert found[:2] == before
    together = [two.compose(gaussian(noise, 0.25).self_compose(n)).get_epsilon_for_delta(1e-4) for n in (1, 2)]
    assert found[2:] == pytest.approx(together, rel=1e-3)
    assert found == sorted(found)
    assert summary.epsilon == found[-1]
    assert summary.privacy is not None
    assert f"noise of {noise:g}" in summary.privacy
    assert "after 2 rounds of gaussian noise of 0.6" in summary.privacy
    assert f"privacy.noise_multiplier: 0.6 -> {noise}" in summary.changes[0]


def test_turns_of_a_client_under_two_kinds_of_noise_add_up(tmp_path: Path) -> None:
    """Of Gaussians without sampling the squares of one over the noise add up; changed twice, and stopped in between."""
    given = [*NOISY, "training.sampling=all", "training.clients_per_round=20", "privacy.noise_multiplier=2.0"]
    folder = stopped(tmp_path / "run", *given, calls=1)
    assert resume(folder, overrides=["privacy.noise_multiplier=4.0"], stop=After(2)).rounds == 3
    summary = resume(folder, overrides=["privacy.noise_multiplier=2.0"])
    spent = [1 / 4, 1 / 4 + 1 / 16, 1 / 4 + 2 / 16, 2 / 4 + 2 / 16]
    exact = [dp_accounting.get_epsilon_gaussian(one**-0.5, 1e-4) for one in spent]
    assert epsilons(folder) == pytest.approx(exact, rel=2e-3)
    assert all(found >= least - 1e-9 for found, least in zip(epsilons(folder), exact, strict=True))
    assert len(summary.changes) == 2


def test_a_budget_counts_what_was_spent_before(tmp_path: Path) -> None:
    folder = stopped(tmp_path / "run", *NOISY, "training.rounds=30")
    budget = epsilons(folder)[-1] + 0.5
    summary = resume(folder, overrides=["privacy.noise_multiplier=2.0", f"privacy.epsilon={budget}"])
    assert summary.status == "spent"
    assert 2 < summary.rounds < 30
    assert budget - 0.2 < (summary.epsilon or 0) <= budget


def test_settings_that_spend_nothing_leave_epsilon_as_it_is(noisy: Path, tmp_path: Path) -> None:
    resume(Path(shutil.copytree(noisy, tmp_path / "whole")))
    folder = Path(shutil.copytree(noisy, tmp_path / "run"))
    summary = resume(folder, overrides=["algorithm.learning_rate=0.2"])
    assert epsilons(folder) == epsilons(tmp_path / "whole")
    assert summary.privacy is not None
    assert "composed" not in summary.privacy


@pytest.mark.parametrize(
    ("given", "asked", "told"),
    [
        ((), ("privacy.guarantee=none",), "give none together"),
        ((), ("privacy.delta=1e-5",), "delta 0.0001"),
        ((), ("data.alpha=0.9",), "data that the run was begun with"),
        ((), ("training.sampling=round_robin",), "relation add or remove one"),
        (("privacy.accountant=rdp",), ("privacy.noise_multiplier=2.0",), "not known"),
        (("privacy.guarantee=none",), ("privacy.guarantee=dp",), "give none together"),
        pytest.param(
            ("privacy.mechanism=matrix", "training.sampling=round_robin"),
            ("privacy.noise_multiplier=2.0",),
            "not known",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_nobody_could_account_for_is_refused(
    once: Path, tmp_path: Path, given: tuple[str, ...], asked: tuple[str, ...], told: str
) -> None:
    folder = stopped(tmp_path / "run", *NOISY, *given, calls=1) if given else once
    before = contents(folder)
    with pytest.raises(InputError) as error:
        resume(folder, overrides=asked)
    one_line(error, told, "start another")
    assert contents(folder) == before


def test_rounds_are_not_done_again_with_the_same_noise_at_another_scale(once: Path, tmp_path: Path) -> None:
    """Nor once their rows have been removed, by a resumption that was killed before it had done them again."""
    folder = Path(shutil.copytree(once, tmp_path / "run"))
    history = (folder / "history.jsonl").read_text()
    with open(folder / "history.jsonl", "a") as file:
        file.write(history.replace('"round": 1', '"round": 2'))  # killed after round 2
    for overrides in (["privacy.noise_multiplier=2.0"], ["compression.uplink=qsgd"], ["privacy.noise_multiplier=2.0"]):
        with pytest.raises(InputError) as error:
            resume(folder, overrides=overrides)
        one_line(error, "rounds 2 to 2", "same noise")
        (folder / "history.jsonl").write_text(history)
    assert resume(folder, stop=After(1)).rounds == 2
    assert resume(folder, overrides=["privacy.noise_multiplier=2.0"]).status == "finished"


# --- results that are kept are found by what made them ----------------------------------------------------------------

LEARNS = ("model.name=logistic", "training.rounds=6", "training.evaluate_every=3", "training.local_steps=4",
          "data.name=csv", "algorithm.learning_rate=0.5")  # fmt: skip


def test_a_corrected_file_is_swept_and_tuned_anew(tmp_path: Path) -> None:
    """Case 7: the labels of a table are put right, and the same command is given again."""
    path, folder, devices = tmp_path / "study.csv", tmp_path / "sweep", jax.devices()[:1]
    config, rates = load_config(None, [*LEARNS, f"data.path={path}"]), [0.3, 0.5]
    trials = [{"algorithm.learning_rate": rate, "training.seed": 0} for rate in rates]
    found, tuned = {}, {}
    for state, wrong in (("wrong", True), ("right", False), ("wrong again", True)):
        table(path, shuffled=wrong)
        told: list[int] = []
        found[state] = sweep(config, trials, folder, devices, told=lambda done, *_, told=told: told.append(done))
        assert bool(told) == (state != "wrong again")  # which is still there
        space = {"algorithm.learning_rate": Range(0.3, 0.5, log=False, whole=False)}
        tuned[state] = tune(config, space, tmp_path / "study", devices, trials=2, batch=2)
    assert found["wrong again"] == found["wrong"]
    assert tuned["wrong again"].value == tuned["wrong"].value < 0.7
    assert max(result.accuracy[-1] or 0 for result in found["wrong"]) < 0.7
    assert min(result.accuracy[-1] or 0 for result in found["right"]) > 0.9
    assert tuned["right"].value > 0.9
    fresh = sweep(config, trials, tmp_path / "fresh", devices)
    assert [one.accuracy for one in fresh] == [one.accuracy for one in found["wrong"]]


def test_each_trial_goes_by_the_files_that_it_reads_itself(tmp_path: Path) -> None:
    table(tmp_path / "a.csv", 1)
    trials = [{"data.path": str(tmp_path / f"{name}.csv"), "training.seed": 0} for name in ("a", "b")]
    config, lines = load_config(None, [*LEARNS, "training.rounds=2"]), tmp_path / "sweep" / "sweep.jsonl"
    for wrong, count in ((False, 2), (False, 2), (True, 3)):
        table(tmp_path / "b.csv", shuffled=wrong)
        sweep(config, trials, tmp_path / "sweep", jax.devices()[:1])
        assert len(lines.read_text().splitlines()) == count
    lines.write_text(lines.read_text().replace('"run": "', '"run": "of another version '))
    sweep(config, trials, tmp_path / "sweep", jax.devices()[:1])
    assert len(lines.read_text().splitlines()) == 5


def test_a_corrected_file_is_diagnosed_anew(tmp_path: Path) -> None:
    path, causes = tmp_path / "study.csv", [cause for cause in CAUSES if cause.name == "too_few_rounds"]
    config = load_config(None, [*LEARNS, f"data.path={path}"])
    found = {}
    for state in ("wrong", "right", "wrong again"):
        table(path, shuffled=state != "right")
        found[state] = diagnose(config, tmp_path / "d", seeds=2, causes=causes, remedies=False)
    assert found["wrong"].run.mean < 0.7 < 0.9 < found["right"].run.mean
    assert found["wrong again"]._replace(seconds=0, runs=0, programs=0) == found["wrong"]._replace(
        seconds=0, runs=0, programs=0
    )
    assert found["wrong again"].runs == 0
    marks = Marks()
    start = config.model_copy(update={"model": config.model.model_copy(update={"start": str(tmp_path / "m{seed}")})})
    before = marks(start, [1, 2])
    (tmp_path / "m2").write_text("other parameters")
    assert Marks()(start, [1, 2]) != before == marks(start, [1, 2])


def test_a_history_of_other_data_is_no_evidence(begun: Path, tmp_path: Path) -> None:
    path = table(tmp_path / "study.csv")
    folder = tmp_path / "run"
    resume(stopped(folder, "data.name=csv", f"data.path={path}"))
    assert still_stands(folder, load_config(folder))
    table(path, shuffled=True)
    assert not still_stands(folder, load_config(folder))
    changed = Path(shutil.copytree(begun, tmp_path / "changed"))
    resume(changed, overrides=["training.batch_size=32"])
    assert not still_stands(changed, load_config(changed))


def test_a_study_that_is_refused_or_fails_leaves_no_folder_that_blocks_the_next(tmp_path: Path) -> None:
    good = [*LEARNS, f"data.path={table(tmp_path / 't.csv')}"]
    bad = [load_config(None, [*good, other]) for other in ("algorithm.name=nonsense", "data.path=nothing.csv")]
    devices = jax.devices()[:1]
    space = {"algorithm.learning_rate": Choice((0.3, 0.5))}
    trials = [{"algorithm.learning_rate": rate, "training.seed": 0} for rate in (0.3, 0.5)]

    def fail(*_: object) -> None:
        raise MemoryError

    studies = {
        "diagnosis": lambda c, told: diagnose(c, tmp_path / "diagnosis", seeds=2, causes=(), remedies=False, told=told),
        "sweep": lambda c, told: sweep(c, trials, tmp_path / "sweep", devices, told=told),
        "study": lambda c, told: tune(c, space, tmp_path / "study", devices, trials=2, batch=2, told=told),
    }
    for name, study in studies.items():
        for config in bad:
            with pytest.raises(InputError):
                study(config, lambda *_: None)
            assert not (tmp_path / name).exists()
        if name != "study":  # which tells what was tried when it is kept already
            with pytest.raises(MemoryError):
                study(load_config(None, [*good, "algorithm.learning_rate=0.2"]), fail)
            assert not (tmp_path / name).exists()
        study(load_config(None, good), lambda *_: None)
        assert (tmp_path / name / "config.toml").is_file()


# --- a folder is made when everything that can be checked has been ---------------------------------------------------


def test_a_run_that_is_refused_leaves_no_folder(tmp_path: Path, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    clients = [{"inputs": rng.normal(size=(20, 4)), "labels": rng.integers(0, 2, 20)} for _ in range(3)]
    store = save(tmp_path / "store", from_clients(clients, test=clients[0], classes=2))
    for field, damage, overrides in (
        ("train.labels", 5, ()),
        ("test.labels", 5, ()),
        ("", 0, ("data.name=digits", "data.path=", "training.adapt_steps=adacomm", "execution.memory=stream")),
    ):
        if field:
            np.save(tmp_path / "kept.npy", array := np.load(store / f"{field}.npy"))
            array[3] = damage
            np.save(store / f"{field}.npy", array)
        given = [*QUICK, "data.name=store", f"data.path={store}", f"output.folder={tmp_path / 'runs'}", *overrides]
        for more in ((), ("output.name=named",)):
            with pytest.raises(InputError) as error:
                run(load_config(None, [*given, *more]))
            one_line(error, "labels" if field else "adapt_steps")
            assert not (tmp_path / "runs").exists()
        if field:
            shutil.copy(tmp_path / "kept.npy", store / f"{field}.npy")


def test_a_run_that_fails_before_its_first_round_is_done_leaves_no_folder(tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    given = [*QUICK, "training.local_steps=2", f"output.folder={tmp_path / 'runs'}", "output.name=failing"]
    with pytest.raises(MemoryError):
        run(load_config(None, given), Reporter(fail, lambda rows: None, lambda: None))
    assert not (tmp_path / "runs" / "failing").exists()
    with pytest.raises(MemoryError):
        run(load_config(None, given), Reporter(lambda experiment, folder: None, fail, lambda: None))
    assert len(read_history(tmp_path / "runs" / "failing" / "history.jsonl")) == 1


# --- what is shown, and the commands ---------------------------------------------------------------------------------


def test_reports_show_what_was_trained_and_keep_other_data_apart(begun: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(begun, tmp_path / "run"))
    text = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(text.replace("batch_size = 16", "batch_size = 64"))
    found = read_run(folder)
    assert found.settings["training.batch_size"] == 16
    assert any("edited since (training.batch_size: 16 -> 64)" in note for note in found.notes)
    (folder / "run.json").write_text("{}")
    assert any("run.json" in note for note in read_run(folder).notes)
    path, folders = tmp_path / "study.csv", []
    for seed, wrong in ((0, False), (1, False), (2, True)):
        table(path, shuffled=wrong)
        given = ("data.name=csv", f"data.path={path}", f"training.seed={seed}")
        folders.append(stopped(tmp_path / f"run{seed}", *given))
    groups, _ = group(read_runs(folders))
    assert [len(each.runs) for each in groups] == [2, 1]
    assert [*groups[0].settings] == ["data.content"]


def test_the_commands(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    folder = Path(shutil.copytree(begun, tmp_path / "run"))
    text = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(text.replace("batch_size = 16", "batch_size = 32"))
    status, _, err = inside("resume", "run")
    assert (status, err.count("\n")) == (2, 1)
    assert "training.batch_size: 16 -> 32" in err
    status, out, err = inside("resume", "run", "--set", "training.batch_size=32")
    assert (status, err) == (0, "")
    assert "from round 3 on: training.batch_size: 16 -> 32." in out
    status, out, err = inside("report", "run")
    assert (status, err) == (0, "")
    assert "from round 3 on: training.batch_size: 16 -> 32." in out
