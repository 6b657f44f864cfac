"""Synchronous rounds on a clock, and the arrays made of schedules: by hand, and by what they promise."""

from itertools import islice
from typing import Any

import numpy as np
import pytest
from conftest import one_line
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_sim import InputError
from fedjax_sim import network as net
from fedjax_sim.data.sampling import make_sampler
from fedjax_sim.network.turns import extent, rows

FREE = 1e30  # bits a second: transfers take no time


def drawing(name, clients, cohort):
    offsets = np.arange(clients + 1)
    return lambda available: make_sampler(name, offsets, cohort, available=available).draw


def schedule(seconds, count, *, cohort=None, name="round_robin", dropout=0.0, **options) -> list[net.ServerStep]:
    """Clients that differ in the seconds of their one local step alone."""
    profiles = net.make_profiles(np.full(len(seconds), FREE), FREE, seconds_per_step=seconds, dropout=dropout)
    defaults: dict[str, Any] = {"seed": 0, "steps": 1, "downlink_bits": 0, "uplink_bits": 0}
    draw = drawing(name, len(seconds), cohort or len(seconds))
    return list(islice(net.synchronous(profiles, draw=draw, **(defaults | options)), count))


def lists(steps, field):
    return [sorted(getattr(step, field).tolist()) for step in steps]


def test_the_clock_by_hand():
    """1 Mbit down at 1 Mbit/s, 2 steps of 3 s, 1 Mbit up at 0.5 Mbit/s, twice 0.25 s of latency: 9.5 s; or 20 of it."""
    profiles = net.make_profiles([1e6, 1e9], [5e5, 1e9], latency_s=[0.25, 0.0], seconds_per_step=[3.0, 1.0])
    given: Any = {"seed": 0, "draw": drawing("all", 2, 2), "downlink_bits": 1e6, "uplink_bits": 1e6}
    first, second = islice(net.synchronous(profiles, steps=lambda round: 2 + round, **given), 2)
    assert first.seconds == pytest.approx(0.25 + 1 + 6 + 0.25 + 2)
    assert second.seconds == pytest.approx(first.seconds + 0.25 + 1 + 9 + 0.25 + 2)  # a step more
    assert first.arrived.tolist() == [1, 0]  # in order of arrival
    assert second.begun_steps.tolist() == [3, 3]
    pipelined, _ = islice(net.synchronous(profiles, steps=2, pipelined=True, **given), 2)
    assert pipelined.seconds == pytest.approx(6.0)  # the longest of its stages


def test_a_slow_client_is_waited_for_left_out_or_taken_later():
    seconds = [1, 2, 10]
    waiting = schedule(seconds, 3)
    assert [step.seconds for step in waiting] == [10, 20, 30]
    assert lists(waiting, "arrived") == [[0, 1, 2]] * 3
    dropping = schedule(seconds, 3, policy=net.deadline(4))
    assert [step.seconds for step in dropping] == [4, 8, 12]
    assert lists(dropping, "arrived") == lists(dropping, "begun") == [[0, 1]] * 3
    assert lists(dropping, "asked") == [[0, 1, 2]] * 3
    assert lists(dropping, "late") == [[2]] * 3
    stale = schedule(seconds, 5, policy=net.deadline(4), late="stale")
    # 2 is at work from 0 to 10 s; without it rounds last 2 s: 4, 6, 8, 10 s, where its message has arrived, too
    assert [step.seconds for step in stale] == [4, 6, 8, 10, 14]
    assert lists(stale, "asked") == [[0, 1, 2], [0, 1], [0, 1], [0, 1], [0, 1, 2]]
    assert lists(stale, "arrived") == [[0, 1], [0, 1], [0, 1], [0, 1, 2], [0, 1]]
    assert stale[3].staleness.tolist() == [0, 0, 3]
    assert lists(stale, "begun") == lists(stale, "asked")
    over = schedule(seconds, 3, policy=net.over_select(1, keep=2))
    assert [step.seconds for step in over] == [2, 4, 6]
    assert lists(over, "late") == [[2]] * 3


def test_partial_work_reaches_the_device_as_fewer_steps():
    steps = schedule([1, 2, 10], 2, steps=4, policy=net.deadline(6, partial=True))
    assert dict(zip(steps[0].begun.tolist(), steps[0].begun_steps.tolist(), strict=True)) == {0: 4, 1: 3}
    assert lists(steps, "late") == [[2], [2]]  # not one step of 10 s


def test_who_fails_is_said_and_never_trains():
    steps = schedule([1.0] * 40, 30, cohort=20, dropout=0.3)
    share = sum(len(step.dropped) for step in steps) / 600
    assert 0.23 < share < 0.37
    for step in steps:
        assert set(step.dropped.tolist()) | set(step.arrived.tolist()) == set(step.asked.tolist())
        assert step.begun.tolist() == step.arrived.tolist()


def test_a_server_that_reaches_nobody_waits_and_says_for_how_long():
    """Everybody is there for the first 10 s of each 100."""
    there = net.intervals([[[0, 10]]] * 3, period_seconds=100)
    steps = schedule([6.0] * 3, 4, availability=there)
    assert [step.seconds for step in steps] == [6, 12, pytest.approx(106), pytest.approx(112)]
    assert [step.waited_seconds for step in steps] == [0, 0, pytest.approx(88), 0]
    gone = net.intervals([[[0, 10]]] * 3)
    with pytest.raises(InputError) as error:
        schedule([6.0] * 3, 4, availability=gone)
    one_line(error, "availability", "12.0 s", "repeats")


def test_with_nobody_to_ask_a_late_message_ends_the_round():
    steps = schedule([1, 10], 3, policy=net.deadline(2), late="stale", name="all",
                     availability=net.intervals([[[0, 1]], [[0, 1]]], period_seconds=1000))  # fmt: skip
    assert lists(steps, "arrived") == [[0], [1], [0]]
    assert [step.seconds for step in steps] == [2, 10, pytest.approx(1002)]
    assert steps[1].staleness.tolist() == [1]
    assert steps[2].waited_seconds == pytest.approx(990)


def test_without_a_clock_to_mind_cohorts_are_the_samplers():
    for name in ("uniform", "poisson", "by_size"):
        steps = schedule([1.0] * 12, 5, cohort=4, name=name, seed=3)
        sampler = make_sampler(name, np.arange(13), 4)
        for number, step in enumerate(steps):
            ids = sampler.draw(3, number)
            assert step.asked.tolist() == ids[ids >= 0].tolist()


def test_unavailable_clients_are_not_asked():
    half = net.diurnal(0.5, 1, period_seconds=50)
    clock = 0.0
    for step in schedule([1.0] * 30, 60, cohort=6, name="uniform", availability=half):
        assert half(step.asked, step.seconds - 1).all()
        assert step.seconds > clock
        clock = step.seconds


def test_recorded_bandwidths_go_on_from_round_to_round():
    """1 bit/s for 10 s, then 10: the first message of 10 bits takes 10 s, the next one 1."""
    profiles, trace = net.make_profiles([1.0], [1.0]), net.make_trace([0, 10, 100], [1, 10])
    given: Any = {"seed": 0, "draw": drawing("all", 1, 1), "steps": 0, "downlink_bits": 0, "uplink_bits": 10}
    steps = islice(net.synchronous(profiles, traces=[trace], **given), 2)
    assert [step.seconds for step in steps] == [10, 11]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"late": "later"}, ("late", "later")), ({"seed": -1}, ("seed", "-1")), ({"steps": -2}, ("steps", "-2"))],
)
def test_bad_settings_are_one_line(options, words):
    with pytest.raises(InputError) as error:
        schedule([1.0, 2.0], 1, **options)
    one_line(error, *words)


# --- arrays -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 5), st.integers(1, 6), st.booleans())
def test_everybody_trains_once_in_time_from_the_right_version(seed, concurrency, buffer, versions, stale):
    profiles = net.lognormal(7, seed, sigma_seconds_per_step=1.5, dropout=0.2)
    given: Any = {"seed": seed, "steps": np.arange(1, 8), "downlink_bits": 1e5, "uplink_bits": 1e6}
    if stale:
        found = net.synchronous(profiles, draw=drawing("uniform", 7, concurrency), policy=net.deadline(1.0),
                                late="stale", **given)  # fmt: skip
    else:
        found = net.asynchronous(profiles, concurrency=concurrency, buffer=buffer, **given)
    steps, until = list(islice(found, 25)), {9, 17}
    places, arrivals = extent(steps)
    if not stale:
        assert places <= concurrency + buffer - 1
        assert arrivals == buffer
    began, trained, held = {}, set(), {}
    for number, (step, row) in enumerate(
        zip(steps, rows(iter(steps), places=places, arrivals=arrivals, versions=versions, until=until), strict=True)
    ):
        for client, ticket, many in zip(step.begun, step.begun_tickets, step.begun_steps, strict=True):
            began[ticket] = (client, many, number)
        here = row.ids >= 0
        for client, many, place, version in zip(*(table[here] for table in row[:4]), strict=True):
            waiting = [t for t, entry in began.items() if entry == (client, many, version) and t not in trained]
            assert len(waiting) == 1
            assert number - version < versions  # its broadcast is still kept
            assert place not in held.values()
            trained.add(waiting[0])
            held[waiting[0]] = place
        places_of = [held.pop(ticket) for ticket in step.tickets]  # trained by now
        assert row.arrived[row.arrived >= 0].tolist() == places_of
        if number + 1 in until:
            assert trained == set(began)
