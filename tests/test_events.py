"""Asynchronous schedules, and who can be reached when: by hand, and by what they promise."""

from itertools import islice
from typing import Any

import numpy as np
import pytest
from conftest import one_line
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedjax_sim import InputError
from fedjax_sim import network as net
from fedjax_sim.data.sampling import custom
from fedjax_sim.network import events

FREE = 1e30  # bits a second: transfers take no time


def trained(seconds, **options) -> net.Profiles:
    """Clients that differ in the seconds of their one local step alone."""
    return net.make_profiles(np.full(len(seconds), FREE), FREE, seconds_per_step=seconds, **options)


def schedule(profiles, count, **options) -> list[net.ServerStep]:
    defaults: dict[str, Any] = {"seed": 0, "steps": 1, "downlink_bits": 0, "uplink_bits": 0}
    return list(islice(net.asynchronous(profiles, **(defaults | options)), count))


def in_turn(clients):
    """Candidates 0, 1, 2, ... over and over."""
    return lambda seed, turn: np.arange(clients)


def assert_consistent(steps: list[net.ServerStep], buffer: int) -> None:
    """Every message was begun once, from the version that its staleness tells, and arrives once."""
    version_of, client_of, clock = {}, {}, 0.0
    for number, step in enumerate(steps, 1):
        assert step.version == number
        assert step.seconds >= clock
        clock = step.seconds
        for client, ticket in zip(step.begun.tolist(), step.begun_tickets.tolist(), strict=True):
            assert ticket not in version_of
            version_of[ticket], client_of[ticket] = number - 1, client
        assert len(step.arrived) == len(step.tickets) == len(step.staleness) == buffer
        for client, ticket, staleness in zip(step.arrived, step.tickets.tolist(), step.staleness, strict=True):
            assert client_of.pop(ticket) == client
            assert number - 1 - version_of[ticket] == staleness


def test_fedasync_by_hand():
    """Steps of 2, 3 and 10 s, two at work: 0 and 1 begin; 2 at 2 s, 0 at 3 s, 1 at 5 s, ..."""
    steps = schedule(trained([2, 3, 10]), 5, concurrency=2, buffer=1, draw=in_turn(3))
    assert [s.seconds for s in steps] == [2, 3, 5, 8, 10]
    assert [s.arrived.tolist() for s in steps] == [[0], [1], [0], [1], [0]]
    assert [s.begun.tolist() for s in steps] == [[0, 1], [2], [0], [1], [0]]
    assert [s.staleness.tolist() for s in steps] == [[0], [1], [0], [0], [0]]
    assert [s.begun_tickets.tolist() for s in steps] == [[0, 1], [2], [3], [4], [5]]
    assert_consistent(steps, 1)


def test_fedbuff_by_hand():
    """Four clients, three at work, a buffer of two: 0 at 1 s, then 3 begins from the old version."""
    steps = schedule(trained([1, 2, 5, 3]), 3, concurrency=3, buffer=2, draw=in_turn(4))
    # 1 s: 0 arrives, 3 begins.  2 s: 1 arrives, step; 0 begins.  3 s: 0.  1 begins.  4 s: 3, step; it is 2's turn, who
    # is at work, so 3 begins.  5 s: 2 and 1 in the order in which they began, step
    assert [s.seconds for s in steps] == [2, 4, 5]
    assert [s.arrived.tolist() for s in steps] == [[0, 1], [0, 3], [2, 1]]
    assert [s.begun.tolist() for s in steps] == [[0, 1, 2, 3], [0, 1], [3]]
    assert [s.staleness.tolist() for s in steps] == [[0, 0], [0, 1], [2, 1]]
    assert_consistent(steps, 2)


def test_a_full_buffer_of_equal_clients_is_synchronous():
    steps = schedule(trained([0.1] * 20), 50, concurrency=6, buffer=6)
    assert_consistent(steps, 6)
    for number, step in enumerate(steps, 1):
        assert step.seconds == pytest.approx(0.1 * number)
        assert not step.staleness.any()
        assert step.arrived.tolist() == step.begun.tolist()
        assert len(set(step.arrived.tolist())) == 6


def test_ties_end_in_the_order_in_which_they_began():
    steps = schedule(trained([1] * 5), 4, concurrency=4, buffer=2, draw=in_turn(5))
    assert [s.seconds for s in steps] == [1, 1, 2, 2]
    assert [s.arrived.tolist() for s in steps] == [[0, 1], [2, 3], [4, 0], [1, 2]]
    assert [s.staleness.tolist() for s in steps] == [[0, 0], [1, 1], [0, 0], [1, 1]]
    assert [s.begun.tolist() for s in steps] == [[0, 1, 2, 3], [], [4, 0, 1, 2], []]


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**31), st.sampled_from([0.0, 0.3]), st.booleans())
@settings(max_examples=25, deadline=None)
def test_every_schedule_is_consistent_and_repeatable(concurrency, buffer, seed, dropout, sleepy):
    profiles = net.lognormal(12, 3, dropout=dropout)
    options = {"concurrency": concurrency, "buffer": buffer, "seed": seed, "steps": 5, "uplink_bits": 1e6,
               "availability": net.diurnal(0.3, 1, period_seconds=20) if sleepy else None}  # fmt: skip
    steps = schedule(profiles, 30, **options)
    assert_consistent(steps, buffer)
    for a, b in zip(steps[:10], schedule(profiles, 10, **options), strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
    if concurrency > 2 and not sleepy:  # otherwise two seeds may agree
        others = schedule(profiles, 30, **(options | {"seed": seed + 1}))
        assert any(a.arrived.tolist() != b.arrived.tolist() for a, b in zip(steps, others, strict=True))


def test_failures_free_their_places_and_are_told():
    steps = schedule(trained([1.0] * 50, dropout=0.25), 500, concurrency=10, buffer=5)
    assert_consistent(steps, 5)
    lost = sum(len(s.dropped) for s in steps)
    assert stats.binomtest(lost, lost + 2500, 0.25).pvalue > 1e-3


def test_candidates_are_uniform():
    arrived = np.concatenate([s.arrived for s in schedule(trained([1.0] * 20), 400, concurrency=10, buffer=10)])
    assert stats.chisquare(np.bincount(arrived, minlength=20)).pvalue > 1e-3


def test_a_sampler_gives_the_candidates():
    steps = schedule(trained([1.0] * 8), 20, concurrency=2, buffer=2, draw=custom(lambda s, t: [5, 2, 7], 8, 4).draw)
    assert [s.arrived.tolist() for s in steps[:3]] == [[5, 2], [7, 5], [2, 7]]


@pytest.mark.parametrize("looks", [(1, 1), (2, 30), (2000,)])
def test_how_far_it_looks_ahead_changes_nothing(looks, monkeypatch):
    """Unless too few were looked at to find anybody, the candidates are taken in their order."""
    profiles = net.lognormal(12, 3, dropout=0.1)
    options = {"concurrency": 3, "buffer": 2, "availability": net.diurnal(0.9, 1, period_seconds=5)}
    whole = schedule(profiles, 60, **options)
    monkeypatch.setattr(events, "_LOOKS", (*looks, 1024))
    for a, b in zip(whole, schedule(profiles, 60, **options), strict=True):
        assert a.arrived.tolist() == b.arrived.tolist()
        assert a.seconds == b.seconds


def test_nobody_available_lets_time_pass_and_says_so():
    """Client 0 is there from 0 to 1 and 100 to 101 s, client 1 from 50 to 52 s, of every 200 s."""
    there = net.intervals([[(0, 1), (100, 101)], [(50, 52)]], period_seconds=200)
    steps = schedule(trained([2.0, 1.5]), 6, concurrency=2, buffer=1, availability=there)
    assert [s.arrived.tolist() for s in steps] == [[0], [1], [1], [0], [0], [1]]
    assert [s.seconds for s in steps] == pytest.approx([2, 51.5, 53, 102, 202, 251.5])
    assert [s.waited_seconds for s in steps] == pytest.approx([0, 48, 0, 47, 98, 48])


def test_a_place_that_is_free_is_taken_when_somebody_wakes():
    """Client 1 wakes at 3 s, while 0 is at work until 10 s and then away."""
    there = net.intervals([[(0, 1)], [(3, 20)]])
    steps = schedule(trained([10.0, 4.0]), 3, concurrency=2, buffer=1, availability=there)
    assert [s.seconds for s in steps] == [7, 10, 11]
    assert [s.arrived.tolist() for s in steps] == [[1], [0], [1]]
    assert all(s.waited_seconds == 0 for s in steps)


@pytest.mark.parametrize(("call", "parts"), [
    (lambda: schedule(trained([1, 1]), 1, concurrency=3, buffer=1), ("concurrency", "3", "2 clients")),
    (lambda: schedule(trained([1, 1]), 1, concurrency=1, buffer=0), ("buffer", "0")),
    (lambda: schedule(trained([1, 1]), 1, concurrency=1, buffer=1, seed=-1), ("seed", "-1")),
    (lambda: schedule(trained([1], dropout=1.0), 1, concurrency=1, buffer=1), ("dropout",)),
    (lambda: schedule(trained([1, 1]), 1, concurrency=1, buffer=1, draw=lambda s, t: np.array([5])), ("client 5",)),
    (lambda: schedule(trained([1, 1]), 1, concurrency=1, buffer=1, draw=lambda s, t: np.array([-1])), ("draw",)),
    (lambda: schedule(trained([1]), 9, concurrency=1, buffer=1, availability=net.intervals([[(0, 3)]])),
     ("availability", "3.0 s")),
    (lambda: net.diurnal(0, 1), ("share", "0")),
    (lambda: net.periodic(1.5, 1, 1), ("probability", "1.5")),
    (lambda: net.intervals([[(0, 1)], [(3, 2)]]), ("client 1", "3.0")),
    (lambda: net.intervals([[(0, 2), (1, 3)]]), ("client 0", "overlap")),
    (lambda: net.intervals([[(0, 2)]], period_seconds=1), ("client 0", "1.0")),
    (lambda: net.intervals([]), ("per_client",)),
])  # fmt: skip
def test_bad_input_is_one_line(call, parts):
    with pytest.raises(InputError) as error:
        call()
    one_line(error, *parts)


# --- availability ----------------------------------------------------------------------------------------------------

KINDS = {
    "always": net.always(),
    "periodic": net.periodic(0.4, 0.7, 5),
    "diurnal": net.diurnal(0.35, 5, period_seconds=3.1),
    "intervals": net.intervals([[(0.1 * i, 0.1 * i + 0.05), (2, 2.3)] for i in range(20)]),
    "repeating": net.intervals([[(0.1 * i, 0.1 * i + 0.05)] if i % 3 else [] for i in range(20)], period_seconds=2.5),
}


@pytest.mark.parametrize("kind", list(KINDS))
@given(st.floats(0, 1e4), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_the_following_moment_is_the_first(kind, t, seed):
    there, ids = KINDS[kind], np.random.default_rng(seed).permutation(20)
    t = t / 1000 if kind == "intervals" else t
    mask, following = there(ids, t), there.following(ids, t)
    np.testing.assert_array_equal(mask, following == t)
    for i, when, now in zip(ids, following, mask, strict=True):
        assert there(np.array([i]), t)[0] == now  # by itself as among others
        if np.isfinite(when):
            assert there(np.array([i]), float(when))[0]
            for between in np.linspace(t, when, 9, endpoint=False):
                assert between > when - 1e-9 or not there(np.array([i]), float(between))[0]


def test_shares_of_time():
    ids, moments = np.arange(2000), np.linspace(0, 40, 20, endpoint=False) + 0.01
    for there, share in ((KINDS["periodic"], 0.4), (KINDS["diurnal"], 0.35)):
        masks = np.array([there(np.arange(2000), t) for t in moments])
        assert masks.mean() == pytest.approx(share, abs=0.01)
        assert masks.any(axis=0).mean() > 0.99  # not always the same clients
    as_rounds = net.by_round(KINDS["diurnal"], 60.0)
    np.testing.assert_array_equal(as_rounds(ids, 3), KINDS["diurnal"](ids, 180.0))


@given(st.integers(0, 2**31 - 2), st.floats(0, 1e7), st.floats(0.01, 1))
def test_one_client_is_there_when_an_array_says_so(client, seconds, share):
    for there in (net.periodic(share, 700.0, 3), net.diurnal(share, 3)):
        assert there.one is not None
        assert there.one(client, seconds) == there(np.array([client]), seconds)[0]
