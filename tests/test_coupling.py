"""Whether one client decides what becomes of others, told from the parts of a schedule, and what is done about it."""

import itertools
import re
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest
from conftest import one_line

from fedjax_sim import InputError
from fedjax_sim import network as net
from fedjax_sim.data.sampling import make_sampler
from fedjax_sim.experiment.build import build
from fedjax_sim.experiment.config import load_config

CLIENTS, ROUNDS = 12, 25
LIMITS = (2.5, 4.0, 10.0)  # seconds
NEIGHBOURS = ((False, 1.0), (False, 40.0), (False, 1e-4), (True, 1.0))  # client 3 gone, or slower by as much
POLICIES: dict[str, Callable[[float], net.Policy]] = {
    "wait": lambda limit: net.wait_for_all(),
    "deadline": net.deadline,
    "partial": lambda limit: net.deadline(limit, partial=True),
    "wait_out": lambda limit: net.deadline(limit, partial=True, wait_out=True),
    "own": lambda limit: net.Policy(net.deadline(limit, wait_out=True).decide),
}
TRACES = [net.make_trace(np.arange(0, 41, 2.0), np.linspace(1e4, 1e6, 20) ** power) for power in (1.0, 0.9)]
PARTS = {
    "late": ("drop", "stale"),
    "availability": (None, net.periodic(0.6, 5.0, 1)),
    "server_bps": (None, 6e5),
    "traces": (None, TRACES),
}


def schedule(policy: net.Policy, gone: bool, slow: float, parts: dict[str, Any], seed: int = 1) -> list[net.ServerStep]:
    """Of a federation whose client 3 is `slow` times slower, or gone."""
    links: dict[str, Any] = {"median_downlink_bps": 4e5, "median_uplink_bps": 3e5, "median_seconds_per_step": 0.3}
    spread: dict[str, Any] = {f"sigma_{name}": 0.3 for name in ("downlink", "uplink", "seconds_per_step")}
    profiles = net.lognormal(CLIENTS, 0, dropout=0.02, **links, **spread)
    for client, times in ((5, 4.0), (6, 3.2), (7, 2.6), (3, slow)):
        profiles = net.slowed(profiles, [client], times)

    def draw(available: Any) -> Any:
        inner = make_sampler("poisson", np.arange(CLIENTS + 1), 6, available=available)
        return lambda seed, round: np.where(gone & (inner.draw(seed, round) == 3), -1, inner.draw(seed, round))

    given: dict[str, Any] = {"seed": seed, "draw": draw, "steps": 4, "downlink_bits": 1e5, "uplink_bits": 2e5}
    return list(islice(net.synchronous(profiles, policy=policy, **given, **parts), ROUNDS))


def of_others(steps: list[net.ServerStep]) -> list[Any]:
    """What becomes of everybody but client 3, round by round."""
    return [
        (*(sorted(set(ids.tolist()) - {3}) for ids in (step.asked, step.arrived, step.dropped, step.late)),
         sorted(pair for pair in zip(step.begun.tolist(), step.begun_steps.tolist(), strict=True) if pair[0] != 3))
        for step in steps
    ]  # fmt: skip


def combinations() -> list[Any]:
    found = []
    for policy, values in itertools.product(POLICIES, itertools.product(*PARTS.values())):
        parts = dict(zip(PARTS, values, strict=True))
        stale = parts["late"] == "stale"
        if (
            policy == "over_select"
            or (parts["server_bps"] and parts["traces"])
            or (stale and policy in ("wait", "own"))
        ):
            continue
        there = [name for name in parts if parts[name] not in (None, "drop")]
        found.append(pytest.param(policy, parts, id="-".join([policy, *there])))
    return found


@pytest.mark.parametrize(("policy", "parts"), combinations())
def test_who_is_told_to_couple_nobody_does_not(policy: str, parts: dict[str, Any]) -> None:
    """A client that is slow, quick or gone changes nothing for the others, or it is said to."""
    found, changed = net.coupling(POLICIES[policy](1.0), **parts), False
    if policy == "own":  # says nothing of itself, which is taken for the worst
        assert found is not None
        return
    for seed, limit in itertools.product(range(1 if found is None else 5), LIMITS):
        chosen = POLICIES[policy](limit)
        first, *others = (of_others(schedule(chosen, gone, slow, parts, seed)) for gone, slow in NEIGHBOURS)
        changed |= any(one != first for one in others)
        if changed:
            break
    assert found is not None or not changed
    assert found is None or changed, f"refused for nothing: {found}"


@pytest.mark.parametrize("policy", [None, net.over_select(2, keep=4), POLICIES["own"](1.0), lambda *_: None])
def test_what_does_not_say_what_it_depends_on_couples(policy: Any) -> None:
    assert net.coupling(policy) is not None


def test_rounds_that_wait_the_deadline_out_last_equally_long() -> None:
    policy = net.deadline(3.0, wait_out=True)
    away = net.intervals([[[6.0, 7.0]]] * CLIENTS)
    steps = schedule(policy, False, 1.0, {"availability": away})
    assert np.allclose([step.seconds for step in steps], 3.0 * np.arange(1, ROUNDS + 1))
    assert [len(step.asked) > 0 for step in steps][:5] == [False, False, True, False, False]
    assert not any(step.waited_seconds for step in steps)
    in_time = [len(step.arrived) for step in schedule(net.deadline(3.0), False, 1.0, {})]
    assert [len(step.arrived) for step in schedule(policy, False, 1.0, {})] == in_time


# --- under a guarantee -----------------------------------------------------------------------------------------------

PRIVATE = ("privacy.mechanism=gaussian", "privacy.noise_multiplier=1.0", "privacy.clip_norm=1", "data.clients=20",
           "training.sampling=poisson", "training.rounds=5", "training.clients_per_round=10", "model.name=logistic",
           "network.profiles=constant", "network.seconds_per_step=0.0001")  # fmt: skip
DEADLINE = ("network.policy=deadline", "network.deadline_seconds=0.42")
AWAY = ("network.availability=periodic", "network.availability_share=0.5", "network.availability_seconds=3")
SHARED = ("network.server_bps=1e6",)
OVER = ("network.policy=over_select", "training.sampling=uniform")
NOBODY_ELSE = "one client's presence decides which others count"
REFUSED: dict[str, tuple[str, ...]] = {
    "network.server_bps: with 1000000.0 transfers share the server's link": (*DEADLINE, *SHARED),
    "network.availability: with 'periodic' a round lasts": (*AWAY, "network.slow_clients=[7]"),
    "network.availability: with 'periodic' a round lasts as": (*AWAY, *DEADLINE, *SHARED),
    "network.late: with 'stale' a round lasts": (*DEADLINE, "network.late=stale"),
    "network.late: with 'stale' a message counts": (*DEADLINE, "network.late=stale", "network.wait_out=true"),
    "network.policy: with 'over_select' the server goes on": OVER,
    "network.policy: with 'asynchronous' the server": ("network.policy=asynchronous", "training.sampling=uniform"),
    "network.availability: with 'periodic' a": (*DEADLINE, *AWAY, "training.sampling=uniform"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_guarantee_that_others_could_undo_is_refused_with_what_holds(message: str) -> None:
    """Whatever the error recommends is followed, one recommendation after another, and a guarantee comes out."""
    overrides = [*PRIVATE, *REFUSED[message]]
    with pytest.raises(InputError) as error:
        build(load_config(None, overrides))
    one_line(error, "that is not accounted for", "privacy.guarantee=none")
    assert str(error.value).startswith(message)
    cures = [cure for cure in str(error.value).rpartition("; ")[2].split(", or ") if "guarantee" not in cure]
    assert cures
    for cure in cures:
        private, simulation = followed(overrides, cure)
        assert private is not None
        assert private.spending is not None
        assert simulation is not None
        assert simulation.uncounted is None
    assert build(load_config(None, [*overrides, "privacy.guarantee=none"])).private is not None


def followed(overrides: list[str], cure: str) -> tuple[Any, Any]:
    """The guarantee after what an error recommends."""
    dropped = re.findall(r"leave (network\.\w+) out", cure)
    given = re.findall(r"network\.\w+=\w+", cure)
    dropped += ["network.deadline_seconds", "network.wait_out"] if "network.policy=wait" in given else []
    if "network.policy=deadline" in given and not any("deadline_seconds" in text for text in overrides):
        given.append("network.deadline_seconds=60")
    if "network.availability" in dropped:
        dropped += ["network.availability_share", "network.availability_seconds"]
    kept = [text for text in overrides if text.partition("=")[0] not in dropped]
    if "training.sampling=uniform" in kept and any("availability=" in text for text in kept):
        with pytest.raises(InputError) as error:
            build(load_config(None, [*kept, *given]))
        one_line(error, "training.sampling: 'uniform' cohorts of those who can be reached", "take poisson")
        given.append("training.sampling=poisson")
    experiment = build(load_config(None, [*kept, *given]))
    return experiment.private, experiment.simulation


@pytest.mark.parametrize("overrides", [DEADLINE, SHARED, (*DEADLINE, "network.wait_out=true", *AWAY)])
def test_what_couples_nobody_is_allowed(overrides: tuple[str, ...]) -> None:
    private = build(load_config(None, [*PRIVATE, *overrides])).private
    assert private is not None
    assert private.spending is not None


def test_discrete_noise_wants_everybody_to_arrive(tmp_path: Any) -> None:
    discrete = [
        *PRIVATE[:-1],
        "privacy.mechanism=discrete_gaussian",
        "training.sampling=uniform",
        "network.profiles=csv",
    ]
    path = tmp_path / "links.csv"
    for dropout, refused in ((0.0, False), (0.2, True)):
        rows = [f"1e6,1e6,0,0.1,{dropout}" for _ in range(20)]
        path.write_text("\n".join(["downlink_bps,uplink_bps,latency_s,seconds_per_step,dropout", *rows]))
        config = load_config(None, [*discrete, f"network.path={path}"])
        if refused:
            with pytest.raises(InputError) as error:
                build(config)
            one_line(error, "network.profiles: discrete noise counts on its clients", "take another mechanism")
        else:
            assert build(config).private is not None
