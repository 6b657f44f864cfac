"""Configurations nobody would write: each ends in a run or in one line that names what is wrong."""

import json
import math
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedjax_sim import ALGORITHMS, InputError
from fedjax_sim.attacks import DATA_ATTACKS, MESSAGE_ATTACKS
from fedjax_sim.data import PARTITIONS
from fedjax_sim.experiment import config as of_config
from fedjax_sim.experiment.build import build
from fedjax_sim.experiment.config import Config, load_config
from fedjax_sim.experiment.history import read_history
from fedjax_sim.experiment.run import run
from fedjax_sim.messages import COMPRESSORS
from fedjax_sim.models import MODELS
from fedjax_sim.privacy import MECHANISMS

ASKED = os.environ.get("FEDJAX_SIM_FUZZ")  # as many examples, from a seed of the day
EXAMPLES = int(ASKED or 60)
RUN_EVERY = 12  # of those that can be built
BASE = ("model.name=logistic", "training.rounds=2", "training.evaluate_every=2", "training.local_steps=1",
        "execution.devices=1", "training.clients_per_round=3")  # fmt: skip
NAMES: dict[str, Any] = {
    "data.name": ("digits", "breast_cancer", "synthetic", "fcube", "store", "idx"),
    "data.partition": ("auto", "column", *PARTITIONS),
    "model.name": tuple(MODELS),
    "algorithm.name": tuple(ALGORITHMS),
    "attack.name": ("none", *DATA_ATTACKS, *MESSAGE_ATTACKS),
    "privacy.mechanism": ("none", "dp_sgd", *MECHANISMS),
    "compression.uplink": ("none", *COMPRESSORS),
    "compression.downlink": ("none", *COMPRESSORS),
    "network.profiles": ("none", "constant", "lognormal", "csv", "gml"),
    "training.sampling": ("uniform", "poisson", "by_size", "round_robin", "all"),
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
    usual = st.sampled_from(sorted(set(plain_values(of_config.settings(Config)[path].annotation, path))))
    odd = ODD if path not in LARGE else tuple(value for value in ODD if not value.startswith("9"))
    return st.one_of(usual, usual, usual, st.sampled_from(odd)).map(lambda value: f"{path}={value}")


CHANGES = st.lists(st.sampled_from(PATHS).flatmap(override), min_size=1, max_size=6)
NAMED = st.lists(st.sampled_from(sorted(NAMES)).flatmap(override), min_size=0, max_size=3)
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


@settings(max_examples=EXAMPLES, deadline=None, derandomize=ASKED is None, suppress_health_check=list(HealthCheck))
@given(CHANGES, NAMED)
def test_any_configuration_ends_in_a_run_or_in_one_line(changes: list[str], named: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            config = load_config(None, [*BASE, f"output.folder={folder}", *named, *changes])
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
