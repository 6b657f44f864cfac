"""Configurations nobody would write: each ends in a run or in one line that names what is wrong."""

import inspect
import json
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedjax_sim import ALGORITHMS, InputError
from fedjax_sim.attacks import DATA_ATTACKS, MESSAGE_ATTACKS
from fedjax_sim.data import PARTITIONS
from fedjax_sim.data.sampling import SAMPLERS
from fedjax_sim.experiment import config as of_config
from fedjax_sim.experiment.build import DP_SGD, build
from fedjax_sim.experiment.config import Config, load_config
from fedjax_sim.experiment.history import read_history
from fedjax_sim.experiment.run import run
from fedjax_sim.messages import COMPRESSORS
from fedjax_sim.models import MODELS
from fedjax_sim.privacy import MECHANISMS

ASKED = os.environ.get("FEDJAX_SIM_FUZZ")  # as many examples, from a seed of the day
EXAMPLES = int(ASKED or 30)
RUN_EVERY = 4  # of those that can be built
UNCHECKED = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much)
BASE = ("model.name=logistic", "training.rounds=2", "training.evaluate_every=2", "training.local_steps=1",
        "execution.devices=1", "training.clients_per_round=3")  # fmt: skip
NAMES: dict[str, Any] = {
    "data.name": ("digits", "breast_cancer", "synthetic", "fcube", "store", "idx"),
    "data.partition": ("auto", "column", *PARTITIONS),
    "model.name": tuple(MODELS),
    "algorithm.name": tuple(ALGORITHMS),
    "attack.name": ("none", *DATA_ATTACKS, *MESSAGE_ATTACKS),
    "privacy.mechanism": ("none", DP_SGD, *MECHANISMS),
    "compression.uplink": ("none", *COMPRESSORS),
    "compression.downlink": ("none", *COMPRESSORS),
    "network.profiles": ("none", "constant", "lognormal", "csv", "gml"),
    "training.sampling": SAMPLERS,
    "heterogeneity.drift": ("none", "concept", "prior"),
    "algorithm.weighting": ("examples", "uniform"),
}
ODD = (
    "nan",
    "inf",
    "-inf",
    "-1",
    "0",
    "1e308",
    "1e-308",
    "''",
    "'ü'",
    "true",
    "[1, 2]",
    "{a = 1}",
    "99999999999999999999",
)
LARGE = {"training.rounds", "training.local_steps", "training.local_epochs", "data.clients", "training.batch_size",
         "model.hidden", "algorithm.inner_steps", "algorithm.iterations", "algorithm.clusters"}  # fmt: skip
PATHS = [path for path in of_config.settings(Config) if path.partition(".")[0] not in ("output", "execution")]


def plain_values(annotation: Any, path: str) -> Iterator[str]:
    """Texts of values that a setting may have."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from plain_values(args[0], path)
    elif origin is Literal:
        yield from (f"{choice}" for choice in args)
    elif annotation is bool:
        yield from ("true", "false")
    elif annotation is int:
        yield from ("1", "2", "3", "7")
    elif annotation is float:
        yield from ("0.05", "0.5", "1.0", "3.0")
    elif annotation is str:
        yield from NAMES.get(path, ("none", "layer0", "nowhere"))
    elif origin is tuple:
        yield from ("[]", "[2]", "[3, 1]")
    else:
        for kind in args:
            if kind is not type(None):
                yield from plain_values(kind, path)


def override(path: str) -> st.SearchStrategy[str]:
    """A setting as it may be."""
    usual = plain_values(of_config.settings(Config)[path].annotation, path)
    return st.sampled_from(sorted(set(usual))).map(lambda value: f"{path}={value}")


def odd(path: str) -> st.SearchStrategy[str]:
    values = ODD if path not in LARGE else tuple(value for value in ODD if not value.startswith("9"))
    return st.sampled_from(values).map(lambda value: f"{path}={value}")


@st.composite
def chosen(draw: Any, section: str, table: Mapping[str, Callable[..., Any]], setting: str = "name") -> list[str]:
    """One of the names of a table, and some of the options that it has."""
    name = draw(st.sampled_from(sorted(table)))
    known = [f"{section}.{option}" for option in inspect.signature(table[name]).parameters]
    known = [path for path in known if path in PATHS and not path.endswith(f".{setting}")]
    options = draw(st.lists(st.sampled_from(known), max_size=2, unique=True)) if known else []
    return [f"{section}.{setting}={name}", *(draw(override(path)) for path in options)]


@st.composite
def private(draw: Any) -> list[str]:
    mechanism = draw(st.sampled_from([*MECHANISMS, DP_SGD]))
    noise = draw(st.sampled_from(["epsilon=3.0", "noise_multiplier=0.5"]))
    clip = [] if mechanism == "laplace_bare" else ["privacy.clip_norm=1.0"]
    return [f"privacy.mechanism={mechanism}", f"privacy.{noise}", *clip, draw(override("training.sampling")),
            *draw(some("privacy", 1))]  # fmt: skip


@st.composite
def linked(draw: Any) -> list[str]:
    policy = draw(override("network.policy"))
    more = ["network.deadline_seconds=3.0"] if policy.endswith("=deadline") else []
    profiles = draw(st.sampled_from(["constant", "lognormal"]))
    return [f"network.profiles={profiles}", policy, *more, *draw(some("network", 2))]


@st.composite
def some(draw: Any, section: str, most: int) -> list[str]:
    """Some settings of a section."""
    paths = [path for path in PATHS if path.startswith(f"{section}.")]
    return [draw(override(path)) for path in draw(st.lists(st.sampled_from(paths), max_size=most, unique=True))]


@st.composite
def overrides(draw: Any) -> list[str]:
    """Settings that mostly go together, now and then with one that goes with nothing."""
    parts = [
        chosen("data", PARTITIONS, "partition"), chosen("algorithm", ALGORITHMS),
        chosen("compression", COMPRESSORS, "uplink"), chosen("attack", {**DATA_ATTACKS, **MESSAGE_ATTACKS}),
        private(), linked(), some("heterogeneity", 2), some("training", 2), some("model", 2), some("compression", 2),
    ]  # fmt: skip
    given = [text for part in draw(st.lists(st.sampled_from(parts), max_size=3)) for text in draw(part)]
    strange = draw(st.sampled_from(["none"] * 3 + ["odd", "any"]))
    if strange != "none":
        given.append(draw(st.sampled_from(PATHS).flatmap(odd if strange == "odd" else override)))
    return given


built = [0]


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for part in value.values():
            yield from numbers(part)
    elif isinstance(value, list):
        for part in value:
            yield from numbers(part)
    elif isinstance(value, (int, float)):
        yield value


@settings(max_examples=EXAMPLES, deadline=None, derandomize=ASKED is None, suppress_health_check=UNCHECKED)
@given(overrides())
def test_any_configuration_ends_in_a_run_or_in_one_line(changes: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            config = load_config(None, [*BASE, f"output.folder={folder}", *changes])
            build(config)
            built[0] += 1
            if built[0] % RUN_EVERY:
                return
            summary = run(config)
        except InputError as error:
            message = str(error)
            assert "\n" not in message
            assert ":" in message
            return
        rows = read_history(Path(summary.folder) / "history.jsonl")
        assert len(rows) == summary.rounds
        written = json.loads((Path(summary.folder) / "summary.json").read_text())
        assert all(math.isfinite(number) for number in numbers([rows, written]))
        assert all(row["uplink_bits"] >= 0 and row.get("round_seconds", 0) >= 0 for row in rows)
