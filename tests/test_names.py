"""Code of other people, by name from the command line: an algorithm, a model, sources, a partition, a compressor and a
cause in one file that the package has never seen."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import one_line
from runs import QUICK as RUN
from runs import inside, trained

import fedjax_sim as fs
from fedjax_sim.experiment.build import build
from fedjax_sim.experiment.config import load_config, to_toml
from fedjax_sim.experiment.run import resume, run

CODE = '''
"""Of somebody else."""
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax
from pydantic import Field

import fedjax_sim as fs
from fedjax_sim.diagnose import Cause, setting
from fedjax_sim.messages import top_k
from fedjax_sim.models import from_logits


def damped(
    loss_fn, *, client_tx, server_tx=optax.sgd(1.0), damping: float | jax.Array = 0.5, names: tuple[str, ...] = ()
):
    """Federated averaging with weight decay, of leaves of these names or all."""

    def loss(params, batch, key):
        leaves = {name: leaf for name, leaf in params.items() if name in names} if names else params
        return loss_fn(params, batch, key) + damping * optax.tree.norm(leaves, squared=True)

    return fs.fedavg(loss, client_tx=client_tx, server_tx=server_tx)


def linear(input_shape, classes, *, seed, scale: Annotated[float, Field(ge=0)]):
    size = int(np.prod(input_shape))
    start = scale * np.random.default_rng(seed).normal(size=(size, classes))
    flat = lambda inputs: inputs.reshape(inputs.shape[0], -1).astype(jnp.float32)
    params = {"w": jnp.asarray(start, jnp.float32)}
    return from_logits(params, lambda params, inputs: flat(inputs) @ params["w"])


def _rows(rng, size, shift=0.0):
    labels = rng.integers(0, 2, size).astype("i4")
    return {"inputs": (rng.normal(size=(size, 3)) + labels[:, None] + shift).astype("f4"), "labels": labels}


def clinics(*, shift: float = 0.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    return fs.data.from_clients([_rows(rng, n, shift) for n in (9, 20, 5)], test=_rows(rng, 30), classes=2)


def rows(*, seed: int = 0):
    rng = np.random.default_rng(seed)
    return fs.data.Dataset(_rows(rng, 40), _rows(rng, 30), 2, (3,), "")


def halves(labels, clients, *, first: float = 0.5):
    cut = int(first * len(labels))
    return [np.arange(cut), *np.array_split(np.arange(cut, len(labels)), clients - 1)]


def largest(fraction: float):
    return top_k(fraction)


def rate():
    return "no cause"


SLOW = Cause("too_slow", "Too slow", lambda facts: [setting("ten times the rate", algorithm__learning_rate=1.0)])
NUMBER = 3
'''
USED = ("algorithm.name=theirs:damped", "model.name=theirs:linear", "model.scale=0.1", "data.name=theirs:clinics")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with the file in it."""
    (tmp_path / "theirs.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in ("theirs", "broken"):
        sys.modules.pop(name, None)


@pytest.fixture
def importable(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """For those that are no commands, which look there by themselves."""
    monkeypatch.syspath_prepend(here)
    return here


def sets(*overrides: str) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


QUICK = sets("training.rounds=4", "training.evaluate_every=2", *USED)


def test_every_command_takes_them(here: Path) -> None:
    done = inside("run", *QUICK, *sets("algorithm.damping=0.01", "data.shift=0.5", "output.name=one"))
    assert (done.status, done.err) == (0, "")
    assert "theirs:clinics: 34 examples on 3 clients" in done.out
    written = load_config(here / "runs" / "one" / "config.toml")
    assert written.algorithm.model_extra == {"damping": 0.01, "names": ()}
    assert (written.model.model_extra, written.data.model_extra) == ({"scale": 0.1}, {"shift": 0.5})
    assert written.data.partition == "own"
    assert load_config(here / "runs" / "one").algorithm == written.algorithm
    again = inside("run", "runs/one", *sets("output.name=again"))
    assert (again.status, again.err) == (0, "")
    histories = [(here / "runs" / name / "history.jsonl").read_text().splitlines() for name in ("one", "again")]
    first, second = ([json.loads(line)["loss_before"] for line in lines] for lines in histories)
    assert first == second

    swept = inside("sweep", *QUICK, "--over", "algorithm.damping=0,10", "--folder", "swept")
    assert (swept.status, swept.err) == (0, "")
    assert inside("report", "runs/one").status == inside("data", "show", *sets(*USED)).status == 0
    asked = ("--cause", "theirs:SLOW", "--cause", "label_skew", "--seeds", "2", "--no-remedies", "--folder", "told")
    why = inside("diagnose", *QUICK, *asked)
    assert (why.status, why.err) == (0, "")
    assert "too_slow" in (here / "told" / "diagnosis.json").read_text()


def test_options_reach_what_they_are_of(importable: Path) -> None:
    def model(*overrides: str):
        return trained(importable / "runs" / f"r{len(list(importable.glob('runs/*')))}", *USED, *overrides)

    losses = [run.rows[-1]["test_loss"] for run in (model("algorithm.damping=0.0"), model("algorithm.damping=5"))]
    assert losses[1] > losses[0] + 0.01
    dealt = ("data.name=theirs:rows", "data.partition=theirs:halves", "data.first=0.25", "data.clients=4")
    experiment = build(load_config(None, [*dealt, "model.name=logistic"]))
    assert experiment.data.sizes.tolist() == [10, 10, 10, 10]
    assert "first = 0.25" in to_toml(experiment.config)
    assert experiment.data.source == "theirs:rows"
    fewer = model("compression.uplink=theirs:largest", "compression.fraction=0.5", "compression.feedback=classic")
    assert 0 < fewer.summary.uplink_bits < model().summary.uplink_bits
    listed = build(load_config(None, [*USED, 'algorithm.names=["w"]'])).config.algorithm
    assert listed.model_extra == {"damping": 0.5, "names": ("w",)}


def test_options_of_our_own_that_no_table_declares_are_set_and_recorded() -> None:
    config = build(
        load_config(None, ["data.name=synthetic", "data.clients=5", "data.iid=true", "model.name=logistic"])
    ).config
    assert config.data.model_extra == {"iid": True, "variances": False}
    assert load_config(None, ["data.iid=true"]).data.model_extra == {"iid": True}


def test_edited_code_is_other_code(importable: Path) -> None:
    stopped = ("output.name=begun", "output.checkpoint_every=1")
    answers = iter([False, True])
    base = [*RUN, *USED, *stopped, f"output.folder={importable / 'runs'}"]
    assert run(load_config(None, base), stop=lambda: next(answers, True)).status == "interrupted"
    shutil.copytree(importable / "runs" / "begun", importable / "copy")
    (importable / "theirs.py").write_text(CODE.replace("damping *", "2 * damping *"))
    with pytest.raises(fs.InputError) as error:
        resume(importable / "runs" / "begun")
    one_line(error, "algorithm.name", "'theirs:damped' is not what it was", "put it back")
    (importable / "theirs.py").write_text(CODE)
    assert resume(importable / "runs" / "begun").status == "finished"


BAD = {
    "algorithm.name=theirs:damper": ["algorithm.name: theirs has no damper", "did you mean damped?"],
    "algorithm.name=theirs.py:damped": ["names a file; write theirs:damped"],
    "algorithm.name=nothing:damped": ["nothing cannot be imported", "current folder"],
    "algorithm.name=theirs:rows": ["takes no client_tx"],
    "algorithm.name=theirs:NUMBER": ["theirs:NUMBER is a int", "give a function"],
    "algorithm.name=:": ["':' is no package.module:attribute"],
    "algorithm.name=broken:x": ["broken cannot be imported (ZeroDivisionError: division by zero, broken.py line 2)"],
    "algorithm.name=fedavgg": ["did you mean fedavg?", "package.module:attribute"],
    "algorithm.dampin=1": ["algorithm.dampin: theirs:damped has no such option; did you mean damping?"],
    'algorithm.damping="much"': ["algorithm.damping: 'much' is not allowed; give a number"],
    "algorithm.damping=true": ["algorithm.damping: True is not allowed; give a number"],
    "algorithm.damping=inf": ["algorithm.damping: inf is infinite"],
    "algorithm.damping=nan": ["algorithm.damping: nan"],
    "algorithm.names=[nan]": ["algorithm.names: nan is not finite"],
    "algorithm.damping={a = 1}": ["algorithm.damping", "is no number, text, true, false or list"],
    "algorithm.names=[1]": ["algorithm.names", "a list, each a text"],
    "algorithm.q=1.0": ["algorithm.q: theirs:damped has no such option; leave it out"],
    "model.scale=-1": ["model.scale: -1 is not allowed; give a number of at least 0"],
    "model.name=theirs:rows": ["theirs:rows gives a Dataset; it has to give Model"],
    "data.name=theirs:halves": ["data.labels"],
    "data.name=theirs:rate": ["theirs:rate gives a str; it has to give Dataset or FederatedData"],
    "data.partition=iid": ["data.partition: iid, but theirs:clinics gives clients of its own"],
    "compression.uplink=theirs:rate": ["compression.uplink: theirs:rate gives a str"],
}


@pytest.mark.parametrize("override", BAD)
def test_what_is_wrong_is_one_line(importable: Path, override: str) -> None:
    (importable / "broken.py").write_text("\nx = 1 / 0\n")
    more = () if override.startswith("model.") else ("model.scale=0.1",)
    used = [each for each in USED if not override.startswith(each.partition("=")[0] + "=") and "scale" not in each]
    if override.startswith("algorithm.name"):
        more = (*more, "model.name=logistic") if "fedavgg" in override else more
    with pytest.raises(fs.InputError) as error:
        build(load_config(None, [*used, *more, override]))
    one_line(error, *BAD[override])


def test_causes_have_to_be_causes(here: Path) -> None:
    done = inside("diagnose", *QUICK, "--cause", "theirs:rate")
    assert done.status == 2
    assert "--cause: theirs:rate gives a function; it has to give Cause" in done.err


def test_a_missing_option_is_asked_for(importable: Path) -> None:
    with pytest.raises(fs.InputError) as error:
        build(load_config(None, [each for each in USED if "scale" not in each]))
    one_line(error, "model.scale: missing, and theirs:linear needs it; set it")


def test_installed_packages_have_names(here: Path) -> None:
    """As `pip` leaves them: a folder of metadata beside the code."""
    about = here / "theirs-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    groups = {"algorithms": "fed_damped = theirs:damped", "sources": "clinics = theirs:clinics"}
    (about / "entry_points.txt").write_text("".join(f"[fedjax_sim.{k}]\n{v}\n" for k, v in groups.items()))
    sys.path.append(str(here))
    done = inside("run", *sets("training.rounds=2", "model.name=logistic", "algorithm.name=fed_damped",
                               "algorithm.damping=0.1", "data.name=clinics", "output.name=one"))  # fmt: skip
    assert (done.status, done.err) == (0, "")
    assert "theirs.py" not in (here / "runs" / "one" / "config.toml").read_text()
    files = json.loads((here / "runs" / "one" / "run.json").read_text())["begun"]["files"]
    assert set(files) == {"algorithm.name"}
    with pytest.raises(fs.InputError) as error:
        build(load_config(None, ["algorithm.name=fed_dampd"]))
    one_line(error, "did you mean fed_damped?")
