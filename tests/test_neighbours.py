"""Neighbouring federations through the whole pipeline: what the accountant counts differs, and nothing else does."""

import os
import warnings
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from conftest import one_line
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fedjax_sim import InputError
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.cohort import select
from fedjax_sim.core.message import Transform
from fedjax_sim.core.round import init, make_round
from fedjax_sim.data import FederatedData, from_clients, open_store, save
from fedjax_sim.experiment.build import DP_SGD, Changes, Experiment, build
from fedjax_sim.experiment.config import load_config
from fedjax_sim.privacy import MECHANISMS
from fedjax_sim.privacy.accounting import ADD

ASKED = os.environ.get("FEDJAX_SIM_FUZZ")  # as many examples, from a seed of the day
EXAMPLES = int(ASKED or 40)
UNCHECKED = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much)

SIZES, ROUNDS, COHORT, CLIENT, CLIP = (9, 3, 6, 12, 4, 7, 2, 5), 12, 4, 2, 0.05
BASE = ("model.name=logistic", f"training.rounds={ROUNDS}", "training.batch_size=4", "execution.devices=1",
        f"privacy.clip_norm={CLIP}", "privacy.noise_multiplier=1.0")  # fmt: skip
CONSTANT = ("network.profiles=constant", "network.uplink_bps=1e3", "network.downlink_bps=1e3",
            "network.seconds_per_step=0.1")  # fmt: skip
GAUSSIAN = ("privacy.mechanism=gaussian", "training.sampling=poisson", "training.clients_per_round=4")


LIMITED = ("network.policy=deadline", "network.deadline_seconds=2.5")
REACHED = ("network.availability=periodic", "network.availability_seconds=7")


class Neighbour(NamedTuple):
    """What is different about one client."""

    gone: bool = False  # it has no example; else it has others
    slowdown: float = 1.0  # of its link and device


def federation() -> FederatedData:
    """One client pulls against all the others, whose messages are longer than the clip norm."""
    rng = np.random.default_rng(0)
    clients = []
    for id, size in enumerate(SIZES):
        labels = np.where(rng.random(size) < 0.8, 2 if id == CLIENT else 0, 1).astype(np.int32)
        clients.append({"inputs": rng.normal(1, 0.5, (size, 5)).astype(np.float32), "labels": labels})
    return from_clients(clients, classes=3)


def replaced(data: FederatedData, *, gone: bool, same_size: bool, one_example: bool) -> FederatedData:
    """`data` whose client `CLIENT` has other examples, or another one, or none."""
    parts = [{name: np.array(array) for name, array in data.client(i).items()} for i in range(data.num_clients)]
    own = parts[CLIENT]
    rows = 1 if one_example else len(own["labels"])
    own["inputs"][:rows], own["labels"][:rows] = 50.0, 2 - own["labels"][:rows]
    if not (same_size or one_example):
        keep = 0 if gone else 3
        parts[CLIENT] = {name: np.concatenate([array] * 3)[: keep * len(array)] for name, array in own.items()}
    new = from_clients(parts, classes=data.classes)
    return data._replace(examples=new.examples, offsets=new.offsets)


# --- configurations --------------------------------------------------------------------------------------------------


def one_of(*choices: tuple[str, ...] | str) -> st.SearchStrategy[tuple[str, ...]]:
    return st.sampled_from([(choice,) if isinstance(choice, str) else choice for choice in choices])


NOTHING: tuple[str, ...] = ()
PRIVACY = one_of(
    *(f"privacy.mechanism={name}" for name in (*MECHANISMS[:-1], DP_SGD)), *[GAUSSIAN[0]] * 4,
    *((GAUSSIAN[0], f"privacy.{option}") for option in ("adaptive=true", "weight_cap=6", "per_leaf=true")),
)  # fmt: skip
SAMPLINGS = {"matrix": ("round_robin", "all"), "discrete_gaussian": ("uniform", "round_robin", "all")}  # all by default
ALGORITHM = one_of(*(f"algorithm.name={name}" for name in (
    *["fedavg"] * 4, "fedprox", "scaffold", "fedadam", "fedexp", "feddyn", "fednova", "median", "fedavg_topk", "ditto",
)))  # fmt: skip
COMPRESSION = one_of(*[NOTHING] * 6, ("compression.uplink=top_k", "compression.feedback=classic"),
                     "compression.uplink=qsgd", "compression.lazy=0.5", "compression.downlink=half")  # fmt: skip
DIALS = one_of(*[NOTHING] * 4, *(f"heterogeneity.{dial}=0.7" for dial in ("affine", "missing", "flip", "confusion")),
               "heterogeneity.noise_levels=0.3", "heterogeneity.swap=0.4",
               ("heterogeneity.drift=concept", "heterogeneity.drift_round=3"))  # fmt: skip
ATTACK = one_of(*[NOTHING] * 6, "attack.name=sign_flip", "attack.name=label_flip", "attack.name=alie")
PROFILES = one_of(CONSTANT, CONSTANT, ("network.profiles=lognormal", *CONSTANT[1:]))
POLICY = one_of(
    "network.policy=wait", "network.policy=over_select", "network.policy=asynchronous",
    *(("network.policy=deadline", f"network.deadline_seconds={seconds}") for seconds in (1.6, 2.5, 4.0)),
)  # fmt: skip
DEADLINE = one_of(*[NOTHING] * 4, "network.partial=true", "network.wait_out=true", "network.wait_out=true",
                  ("network.partial=true", "network.wait_out=true"), "network.late=stale")  # fmt: skip
LINK = one_of(*[NOTHING] * 3, "network.server_bps=1500", "network.pipelined=true", "network.dropout=0.2",
              "network.completeness=0.5", "network.latency_s=0.3", "network.bandwidth_path=TRACES")  # fmt: skip
AWAY = one_of(*[NOTHING] * 2, *(("network.availability=" + kind, "network.availability_seconds=7") for kind in
              ("periodic", "diurnal")))  # fmt: skip


@st.composite
def configurations(draw: Any) -> tuple[str, ...]:
    privacy = draw(PRIVACY)
    known = SAMPLINGS.get(privacy[0].partition("=")[2], ("poisson", "poisson", "uniform", "round_robin", "all"))
    sampling = draw(st.sampled_from(known))
    chosen = [ALGORITHM, COMPRESSION, DIALS, ATTACK]
    if draw(st.integers(0, 3)):
        chosen += [PROFILES, LINK, AWAY, POLICY]
    found = [text for part in chosen for text in draw(part)]
    if "network.policy=deadline" in found:
        found += draw(DEADLINE)
    cohort = [] if sampling == "all" else [f"training.clients_per_round={COHORT}"]
    return (*privacy, f"training.sampling={sampling}", *cohort, *found)


NEIGHBOURS = st.builds(Neighbour, st.booleans(), st.sampled_from([1.0, 1e-3, 30.0, 1e6]))


# --- what is compared ------------------------------------------------------------------------------------------------


def draws(experiment: Experiment) -> list[Any]:
    """What becomes of the other clients in each round: who is asked, counts, fails or is late, with how many steps."""

    def others(ids: Any) -> list[int]:
        return sorted(set(np.asarray(ids).tolist()) - {CLIENT, -1})

    if experiment.simulation is None:
        return [others(experiment.sampler.draw(0, round)) for round in range(ROUNDS)]
    return [
        (*map(others, (step.asked, step.arrived, step.dropped, step.late)),
         {int(id): int(many) for id, many in zip(step.begun, step.begun_steps, strict=True) if id != CLIENT})
        for step in islice(experiment.simulation.schedule(None), ROUNDS)
    ]  # fmt: skip


def holdings(experiment: Experiment) -> Any:
    """What the other clients train on, phase by phase, and from where."""
    others = [id for id in range(len(SIZES)) if id != CLIENT]
    held = [(phase.start, *(phase.data.client(id) for id in others)) for phase in experiment.phases]
    return held, experiment.model.params


class Trained(NamedTuple):
    """One round of the client and others."""

    others: Any  # what was measured of the others
    aggregate: Any  # before noise, where a server adds it
    noise: Any


def trained(experiment: Experiment) -> Trained:
    algorithm, private = experiment.algorithm, experiment.private
    assert private is not None
    kept = algorithm.release
    if kept is not None:
        algorithm = recording(algorithm, kept)
    state = init(algorithm, experiment.model.params, len(SIZES))
    ids = np.array([1, CLIENT, 3, 4], np.int32)
    cohort = select(experiment.data.population(), ids)
    round_fn = make_round(algorithm, batch_size=4, local_steps=2, local_sampling=private.local_sampling)
    state, metrics = jax.jit(round_fn)(state, cohort, jax.random.key(3))
    of_all = ("cosine", "aggregate_norm", "gradient_diversity", "effective_clients")  # tell of client and noise, too
    measured = {
        name: np.asarray(m)[ids != CLIENT] for name, m in metrics._asdict().items() if name not in (*of_all, "extra")
    }
    measured["weight"] = measured["weight"] / max(measured["weight"].sum(), 1e-30)
    return Trained(measured, None if kept is None else state.release[1], metrics.extra.get("noise_norm"))


def recording(algorithm: Algorithm, release: Transform) -> Algorithm:
    """`algorithm` that keeps the aggregate as the release got it."""

    def update(aggregate: Any, memory: Any, key: Any) -> Any:
        released, kept = release.update(aggregate, memory[0], key)
        return released, (kept, aggregate)

    report = algorithm.report
    return algorithm._replace(
        release=Transform(lambda message: (release.init(message), ()), update, release.wire),
        report=report and (lambda state, metrics: report(state._replace(release=state.release[0]), metrics)),
    )


def assert_same(one: Any, other: Any, tolerance: float = 0.0) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


def norm(tree: Any, order: int) -> float:
    return float(np.linalg.norm(np.concatenate([np.ravel(np.asarray(leaf)) for leaf in jax.tree.leaves(tree)]), order))


places: dict[str, str] = {}
checked = {"asked": 0, "guaranteed": 0, "trained": 0}


@settings(max_examples=EXAMPLES, deadline=None, derandomize=ASKED is None, suppress_health_check=UNCHECKED)
@given(configurations(), NEIGHBOURS, st.integers(0, 11).map(lambda number: number == 7))
@example((*GAUSSIAN, *CONSTANT, *LIMITED, "network.server_bps=1500"), Neighbour(slowdown=1e6), False)
@example(
    (*GAUSSIAN, *CONSTANT, *LIMITED, "network.server_bps=1500", "network.partial=true"), Neighbour(slowdown=1e6), False
)
@example((*GAUSSIAN, *CONSTANT, *REACHED), Neighbour(slowdown=30.0), False)
@example((*GAUSSIAN, *CONSTANT, *LIMITED, "network.bandwidth_path=TRACES"), Neighbour(slowdown=30.0), False)
@example((*GAUSSIAN, *CONSTANT, *LIMITED, *REACHED), Neighbour(slowdown=30.0), False)
@example((*GAUSSIAN, *CONSTANT, *LIMITED, *REACHED, "network.wait_out=true"), Neighbour(slowdown=30.0), False)
@example((*GAUSSIAN, "heterogeneity.missing=1.0"), Neighbour(gone=True), True)
@example((*GAUSSIAN, "privacy.weight_cap=6", "algorithm.name=scaffold"), Neighbour(), True)
def look(overrides: tuple[str, ...], neighbour: Neighbour, train: bool) -> None:
    checked["asked"] += 1
    overrides = tuple(text.replace("TRACES", places["traces"]) for text in overrides)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            one = build(load_config(None, [*BASE, *overrides]), data=federation())
        except InputError:
            return
        private = one.private
        assert private is not None
        assert private.spending is not None
        checked["guaranteed"] += 1
        same_size = "numbers of examples" in private.statement
        change = partial(
            replaced, gone=neighbour.gone, same_size=same_size, one_example=private.spending.unit == "example"
        )
        public = "over all clients are taken to be public" in private.statement  # hence the same in both
        device: tuple[str, ...] = ()
        if one.simulation is not None:
            device = (f"network.slow_clients=[{CLIENT}]", f"network.slowdown={neighbour.slowdown}")
        changes = Changes(last=(change,)) if public else Changes(dealt=(change,))
        other = build(load_config(None, [*BASE, *overrides, *device]), changes, data=federation())
    assert other.private is not None
    assert other.private.statement == private.statement
    assert other.private.noise_multiplier == private.noise_multiplier
    assert draws(one) == draws(other)
    if not public or len(one.phases) == 1:
        assert_same(holdings(one), holdings(other))
    if not train:
        return
    checked["trained"] += 1
    a, b = trained(one), trained(other)
    assert_same(a.others, b.others, 1e-5)
    mechanism, cap = one.config.privacy.mechanism, one.config.privacy.weight_cap
    if mechanism in ("gaussian", "laplace", "matrix") and one.config.attack.name in ("none", "label_flip"):
        weights = np.ones(len(SIZES)) if cap is None else np.minimum(np.array(SIZES) / cap, 1)
        expected = len(SIZES) if one.config.training.sampling == "all" else COHORT
        clips = 1 if neighbour.gone and not same_size and private.spending.relation == ADD else 2
        moved = jax.tree.map(np.subtract, a.aggregate._replace(extra=a.aggregate.extra.extra),
                             b.aggregate._replace(extra=b.aggregate.extra.extra))  # fmt: skip
        assert norm(moved, 1 if mechanism == "laplace" else 2) <= 1.0001 * clips * CLIP / (expected * weights.mean())
        assert a.noise == b.noise


def test_what_the_accountant_counts_is_all_that_differs(tmp_path: Path) -> None:
    places["traces"] = str(tmp_path)
    for number, slowest in enumerate((0.0005, 0.00065)):
        lines = [f"{3 * i} {slowest * (1 + i % 4)}" for i in range(9)]
        (tmp_path / f"{number}.txt").write_text("\n".join(lines))
    look()
    assert checked["guaranteed"] >= checked["asked"] / 4  # the rest is refused
    assert checked["trained"] > 2  # more than the examples above


# --- what a guarantee takes to be public -----------------------------------------------------------------------------


def promise(*overrides: str, data: FederatedData | None = None) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        private = build(load_config(None, [*BASE, *GAUSSIAN, *overrides]), data=data).private
    assert private is not None
    return private.statement


def test_what_was_worked_out_from_everybody_is_said_to_be_public(tmp_path: Path) -> None:
    """A feature's mean over all clients is in every client's examples: no noise hides what one client adds to it."""
    words = "{} over all clients are taken to be public".format
    assert "public" not in promise("data.name=digits", "data.clients=8")
    assert promise("data.name=breast_cancer", "data.clients=8").endswith(
        words("the mean and deviation of each feature")
    )
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["x,y,label", *(f"{i * i % 7},{i % 5},{i % 3}" for i in range(60))]))
    csv = ("data.name=csv", f"data.path={table}", "data.clients=5")
    assert promise(*csv).endswith(words("the mean and deviation of each feature"))
    written = save(tmp_path / "store", build(load_config(None, [*BASE[:4], *csv])).data)
    assert open_store(written).pooled == ("the mean and deviation of each feature",)
    assert promise("data.name=store", f"data.path={written}").endswith(words("the mean and deviation of each feature"))
    dials = ("heterogeneity.affine=0.5", "heterogeneity.missing=0.5")
    assert promise(*dials, data=federation()).endswith(words("the deviation of each column, the mean of each column"))


def test_sizes_that_enter_a_guarantee_are_said_to_be_public() -> None:
    words = "numbers of examples are taken to be public"
    assert words not in promise(data=federation())
    assert words in promise("privacy.weight_cap=6", data=federation())
    assert words in promise("privacy.mechanism=local_gaussian", data=federation())


def test_examples_that_are_passed_on_have_no_guarantee() -> None:
    drift = ("heterogeneity.drift=prior", "heterogeneity.drift_round=3")
    with pytest.raises(InputError) as error:
        promise(*drift, data=federation())
    one_line(error, "heterogeneity.drift: prior passes examples on to other clients", "privacy.guarantee=none")
    assert promise(*drift, "privacy.guarantee=none", data=federation()).startswith("no privacy guarantee")
