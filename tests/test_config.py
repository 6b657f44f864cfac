"""Configurations: defaults, files, overrides, and one line for everything wrong."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedjax_sim import InputError
from fedjax_sim.experiment.config import Config, load_config, parse_config, to_toml
from fedjax_sim.experiment.explain import allowed, settings
from fedjax_sim.experiment.names import look_up


def test_file_and_overrides_in_order(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('[training]\nrounds = 7\nbatch_size = 3\n[data]\nname = "mnist"\n')
    config = load_config(
        path, ["training.rounds=8", "training.rounds = 9", "data.path=some/path=x", "model.hidden=[3]"]
    )
    assert (config.training.rounds, config.training.batch_size) == (9, 3)
    assert (config.data.name, config.data.path, config.model.hidden) == ("mnist", "some/path=x", (3,))
    assert config.training.local_epochs == Config().training.local_epochs


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("output.name=plain words", "plain words"),
        ('output.name="quoted"', "quoted"),
        ("output.name=1\ntraining.rounds = 3", "1\ntraining.rounds = 3"),
    ],
)
def test_override_values_that_are_no_toml_are_text(override: str, value: str) -> None:
    assert load_config(None, [override]).output.name == value


@given(
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="/\\\0")).filter(
        lambda t: t not in (".", "..")
    ),
    st.floats(1e-30, 1e30),
    st.lists(st.integers(1, 65536), max_size=5),
    st.one_of(st.just("auto"), st.integers(1, 1000)),
    st.booleans(),
)
def test_toml_is_read_back_equal(name: str, rate: float, hidden: list[int], lanes: int | str, comments: bool) -> None:
    tree = {
        "output": {"name": name, "per_client": comments},
        "algorithm": {"learning_rate": rate, "fraction": 0.5},
        "model": {"hidden": hidden},
        "execution": {"lanes": lanes},
        "privacy": {"mechanism": "laplace", "epsilon": 1.5, "clip_norm": 2, "adaptive": comments},
    }
    config = parse_config(tree)
    assert parse_config(tomllib.loads(to_toml(config, comments=comments))) == config


def test_clients_of_a_round_and_of_the_population() -> None:
    with pytest.raises(InputError, match=r"^training.clients_per_round: 21 is more than the 20 of data.clients; "):
        load_config(None, ["training.clients_per_round=21", "data.clients=20"])


def test_drift_after_the_end_is_refused() -> None:
    with pytest.raises(InputError, match=r"^heterogeneity.drift_round: 101 is after the last of 100 rounds; lower it$"):
        load_config(None, ["heterogeneity.drift=prior", "heterogeneity.drift_round=101"])


def test_what_is_left_open_is_listed_behind_a_hash() -> None:
    lines = to_toml(Config(), comments=True).splitlines()
    assert any(line.startswith("# alpha =") and "Dirichlet" in line for line in lines)
    assert "alpha" not in to_toml(Config())


def test_every_setting_explains_itself() -> None:
    for path, field in settings(Config).items():
        assert field.description, path
        assert not allowed(field).startswith(" "), path


BAD = {
    "trainig.rounds=3": ["trainig: unknown section", "did you mean training?"],
    "training.roundz=3": ["training.roundz: unknown key", "did you mean rounds?"],
    "training.learning_rate=1": ["training.learning_rate: unknown key", "did you mean algorithm.learning_rate?"],
    "training.zzz=1": ["training.zzz: unknown key", "choose one of rounds, "],
    "zzz.zzz=1": ["zzz: unknown section", "choose one of data, heterogeneity, "],
    "training.rounds=abc": ["training.rounds: 'abc'", "whole number of at least 1"],
    "training.rounds=2.5": ["training.rounds: 2.5"],
    "training.rounds=true": ["training.rounds: True"],
    "training.rounds=1979-05-27": ["training.rounds: datetime.date(1979, 5, 27)"],
    "training.batch_size=0": ["training.batch_size: 0", "at least 1"],
    "training.batch_size=99999999999999999999": ["training.batch_size: 99999999999999999999", "at most 65536"],
    "training.local_steps=0": ["training.local_steps: 0"],
    "algorithm.learning_rate=-0.1": ["algorithm.learning_rate: -0.1", "number over 0"],
    "algorithm.learning_rate=nan": ["algorithm.learning_rate: nan"],
    "algorithm.learning_rate=inf": ["algorithm.learning_rate: inf"],
    "algorithm.momentum=1": ["algorithm.momentum: 1", "below 1"],
    "algorithm.fraction=2": ["algorithm.fraction: 2", "of at least 0 and of at most 1"],
    "data.clients=0": ["data.clients: 0", "at least 1"],
    "data.alpha=-1": ["data.alpha: -1", "at least 0"],
    "data.test_fraction=1": ["data.test_fraction: 1", "below 1"],
    "data.name=3": ["data.name: 3", "text in quotes"],
    "heterogeneity.gain=1.5": ["heterogeneity.gain: 1.5", "number of at least 0 and of at most 1"],
    "heterogeneity.drift=prior": ["heterogeneity.drift_round: None with drift 'prior'", "set both"],
    "heterogeneity.imbalance=0": ["heterogeneity.imbalance: 0", "over 0"],
    "privacy.mechanism=3": ["privacy.mechanism: 3", "text in quotes"],
    "privacy.guarantee=maybe": ["privacy.guarantee: 'maybe'", '"none"'],
    "privacy.accountant=gdp": ["privacy.accountant: 'gdp'", '"pld"'],
    "privacy.delta=1": ["privacy.delta: 1", "below 1"],
    "privacy.epsilon=1": ["privacy.epsilon: 1.0 has no effect"],
    "execution.lanes=0": ["execution.lanes: 0", 'of at most 1000000000 or "auto"'],
    "execution.lanes=all": ["execution.lanes: 'all'"],
    "execution.devices=-1": ["execution.devices: -1"],
    "model.hidden=[10, 0]": ["model.hidden: 0"],
    "model.hidden=10": ["model.hidden: 10", "a list"],
    "output.per_client=1": ["output.per_client: 1", "true or false"],
    "output.name=a/b": ["output.name: 'a/b'"],
    "output.name=..": ["output.name: '..'"],
    "output.folder=''": ["output.folder: ''"],
    "training.rounds": ["--set 'training.rounds'", "training.rounds=50"],
    "rounds=3": ["--set 'rounds=3'"],
    "a.b.c=3": ["--set 'a.b.c=3'"],
    "=3": ["--set '=3'"],
}


@pytest.mark.parametrize("override", BAD)
def test_bad_settings_are_one_line(override: str) -> None:
    with pytest.raises(InputError) as error:
        load_config(None, [override])
    message = str(error.value)
    assert "\n" not in message
    assert "pydantic" not in message
    for part in BAD[override]:
        assert part in message


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("training = 3", "training: 3 is not a table"),
        ("rounds = 3", "did you mean training.rounds?"),
        ("[training\n", "it is no TOML"),
        ("[training]\nrounds = 1\nrounds = 2\n", "it is no TOML"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        load_config(path)
    assert found in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b'name = "\xff"')
    for path in (tmp_path / "none.toml", tmp_path, tmp_path / "latin.toml"):
        with pytest.raises(InputError) as error:
            load_config(path)
        assert str(error.value).startswith(f"{path}: ")
        assert "\n" not in str(error.value)
    (tmp_path / "t.toml").write_text("training = 3")
    with pytest.raises(InputError, match="training: 3 is not a table"):
        load_config(tmp_path / "t.toml", ["training.rounds=3"])


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().training.rounds = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_look_up_names_the_nearest() -> None:
    assert look_up("model.name", "a", {"a": 1}) == 1
    with pytest.raises(InputError, match=r"^model.name: 'cnn_smal' is unknown; did you mean cnn_small\?$"):
        look_up("model.name", "cnn_smal", {"cnn_small": 1, "mlp": 2})
    with pytest.raises(InputError, match=r"choose one of cnn_small, mlp$"):
        look_up("model.name", "xyz", {"cnn_small": 1, "mlp": 2})
