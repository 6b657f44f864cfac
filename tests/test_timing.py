"""Seconds: shared links, rounds, policies and recorded links against clocks computed by hand and brute force."""

import numpy as np
import pytest
from conftest import one_line
from hypothesis import given, settings
from hypothesis import strategies as st
from test_network import published

from fedjax_sim import InputError
from fedjax_sim import network as net
from fedjax_sim.network.link import fair_rates, shared_finish

# three clients; 1000 bits down, 600 up, 4 steps: downloads 2, 3, 11; training 4, 2, 0; uploads 4, 2, 7
THREE = net.make_profiles([1000, 500, 100], [200, 600, 100], latency_s=[1, 1, 1], seconds_per_step=[1, 0.5, 0])


def three(**options) -> net.Times:
    return net.round_times(THREE, np.array([0, 1, -1, 2]), 4, 1000, 600, **options)


def same(outcome: net.Outcome, arrived, steps, late, seconds):
    np.testing.assert_array_equal(outcome.arrived, arrived)
    np.testing.assert_array_equal(outcome.steps, steps)
    np.testing.assert_array_equal(outcome.late, np.array(late, bool))
    assert outcome.seconds == pytest.approx(seconds, rel=1e-12)


def test_times_by_hand():
    times = three()
    np.testing.assert_allclose(times.download, [2, 3, 0, 11])
    np.testing.assert_allclose(times.compute, [4, 2, 0, 0])
    np.testing.assert_allclose(times.upload, [4, 2, 0, 7])
    np.testing.assert_allclose(times.total, [10, 7, 0, 18])
    np.testing.assert_allclose(three(pipelined=True).total, [4, 3, 0, 11])


def test_a_shared_link_by_hand():
    """Both may take 100 bit/s of a link of 100: alone for 1 s, then half each, then the other alone."""
    np.testing.assert_allclose(shared_finish([0, 1], [300, 100], [100, 100], 100), [4, 3])
    np.testing.assert_allclose(shared_finish([0, 0, 0], [30, 205, 205], [10, 1000, 1000], 110), [3, 4, 4])
    np.testing.assert_allclose(shared_finish([5, 0], [0, 10], [1, np.inf], 10), [5, 1])
    np.testing.assert_allclose(fair_rates(np.array([10, 1000, 40.0]), 110), [10, 60, 40])
    two = net.make_profiles([100, 100], [100, 100], latency_s=1, seconds_per_step=1)
    times = net.round_times(two, [0, 1], [1, 3], 100, 100, server_bps=100)
    np.testing.assert_allclose(times.download, [3, 3])  # 50 bit/s each
    np.testing.assert_allclose(times.upload, [2, 2])  # in the link from 5 to 6 s and from 7 to 8 s, each alone
    times = net.round_times(two, [0, 1], [1, 3], 100, 200, server_bps=100, pipelined=True)
    np.testing.assert_allclose(times.upload, [5, 5])
    alone = net.round_times(THREE, [0, 1, 2], 4, 1000, 600, server_bps=1e12)
    np.testing.assert_allclose(alone.total, [10, 7, 18])


def stepped(starts, bits, caps, server_bps, tick):
    """Processor sharing with caps, one small step after another, filled up round by round."""
    left, finish, t = bits.copy(), starts.copy(), 0.0
    while (left > 0).any():
        here = np.flatnonzero((left > 0) & (starts <= t + 1e-12))
        rates, room = np.zeros(len(here)), server_bps
        open_ = np.arange(len(here))
        while len(open_) and room > 1e-9:
            share = min(room / len(open_), (caps[here][open_] - rates[open_]).min())
            rates[open_] += share
            room -= share * len(open_)
            open_ = open_[rates[open_] < caps[here][open_] - 1e-9]
        left[here] -= rates * tick
        t += tick
        finish[here[left[here] <= 0]] = t
    return finish


@given(st.integers(1, 6), st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_a_shared_link_against_small_steps(transfers, seed):
    rng = np.random.default_rng(seed)
    starts, bits = rng.uniform(0, 2, transfers), rng.uniform(1, 20, transfers)
    caps, server = rng.uniform(5, 30, transfers), float(rng.uniform(10, 40))
    exact = shared_finish(starts, bits, caps, server)
    np.testing.assert_allclose(exact, stepped(starts, bits, caps, server, 2e-3), atol=0.02)
    order = rng.permutation(transfers)
    np.testing.assert_allclose(shared_finish(starts[order], bits[order], caps[order], server), exact[order], rtol=1e-9)


def test_waiting_for_all_by_hand():
    ids = np.array([0, 1, -1, 2])
    same(net.wait_for_all()(ids, three(), 4), [0, 1, -1, 2], [4, 4, 0, 4], [0, 0, 0, 0], 18)
    same(net.wait_for_all()(ids, three(pipelined=True), 4), [0, 1, -1, 2], [4, 4, 0, 4], [0, 0, 0, 0], 11)
    failed = np.array([False, False, False, True])  # noticed after the download and the training, 11 s
    same(net.wait_for_all()(ids, three(), 4, failed), [0, 1, -1, -1], [4, 4, 0, 0], [0, 0, 0, 0], 11)
    nobody = net.wait_for_all()(ids, three(), 4, np.ones(4, bool))
    same(nobody, [-1] * 4, [0] * 4, [0] * 4, 11)
    assert nobody.dropped.tolist() == [True, True, False, True]
    same(net.wait_for_all()(np.full(4, -1), three(), 4), [-1] * 4, [0] * 4, [0] * 4, 0)


def test_deadlines_by_hand():
    ids = np.array([0, 1, -1, 2])
    same(net.deadline(10)(ids, three(), 4), [0, 1, -1, -1], [4, 4, 0, 0], [0, 0, 0, 1], 10)
    same(net.deadline(20)(ids, three(), 4), [0, 1, -1, 2], [4, 4, 0, 4], [0, 0, 0, 0], 18)
    same(net.deadline(5)(ids, three(), 4), [-1] * 4, [0] * 4, [1, 1, 0, 1], 5)
    same(net.deadline(5)(np.full(4, -1), three(), 4), [-1] * 4, [0] * 4, [0] * 4, 5)
    failed = np.array([True, False, False, False])
    same(net.deadline(20)(ids, three(), 4, failed), [-1, 1, -1, 2], [0, 4, 0, 4], [0, 0, 0, 0], 20)
    # client 0 has 2 + 4 s of transfers and 1 s a step, client 1 has 3 + 2 s and half a second a step
    same(net.deadline(8, partial=True)(ids, three(), 4), [0, 1, -1, -1], [2, 4, 0, 0], [0, 0, 0, 1], 8)
    same(net.deadline(6.5, partial=True)(ids, three(), 4), [-1, 1, -1, -1], [0, 3, 0, 0], [1, 0, 0, 1], 6.5)
    piped = three(pipelined=True)._replace(compute=np.array([6.0, 2, 0, 0]), total=np.array([6.0, 3, 0, 11]))
    same(net.deadline(4.6, partial=True)(ids, piped, 4), [0, 1, -1, -1], [3, 4, 0, 0], [0, 0, 0, 1], 4.6)
    everybody = net.deadline(12, partial=True)(ids[:2], net.round_times(THREE, ids[:2], 9, 1000, 600), 9)
    same(everybody, [0, 1], [6, 9], [0, 0], 12)


def test_over_selection_by_hand():
    ids = np.array([0, 1, -1, 2])
    same(net.over_select(1, keep=2)(ids, three(), 4), [0, 1, -1, -1], [4, 4, 0, 0], [0, 0, 0, 1], 10)
    same(net.over_select(2, keep=1)(ids, three(), 4), [-1, 1, -1, -1], [0, 4, 0, 0], [1, 0, 0, 1], 7)
    failed = np.array([False, True, False, False])
    same(net.over_select(0, keep=3)(ids, three(), 4, failed), [0, -1, -1, 2], [4, 0, 0, 4], [0, 0, 0, 0], 18)
    tied = net.Times(np.ones(3), np.ones(3), np.ones(3), np.ones(3))
    for order in ([2, 0, 1], [0, 1, 2]):  # the smaller id, wherever its slot
        outcome = net.over_select(1, keep=2)(np.array(order), tied, 1)
        assert sorted(outcome.arrived.tolist()) == [-1, 0, 1]


@pytest.mark.parametrize(("call", "parts"), [
    (lambda: net.round_times(THREE, [3], 1, 1, 1), ("ids", "client 3")),
    (lambda: net.round_times(THREE._replace(uplink_bps=np.array([1, 1, -1.0])), [2], 1, 1, 1), ("client 2", "-1.0")),
    (lambda: net.round_times(THREE, [0], 1.5, 1, 1), ("steps", "1.5")),
    (lambda: net.round_times(THREE, [0], 1, -1, 1), ("downlink_bits", "-1")),
    (lambda: net.round_times(THREE, [0], 1, 1, 1, server_bps=0), ("server_bps", "0")),
    (lambda: net.deadline(0), ("seconds", "0")),
    (lambda: net.over_select(1, keep=0), ("keep", "0")),
    (lambda: net.over_select(0, keep=2)([0, 1, -1, 2], three(), 4), ("over_select", "3 clients")),
    (lambda: net.wait_for_all()([0, 1], three(), 4), ("download", "[4]")),
    (lambda: net.wait_for_all()([0, 1, -1, 2], three(), 4, [0, 0, 0, 1]), ("dropped", "bool")),
    (lambda: net.make_trace([0, 1, 1], [1, 1]), ("1.0 s comes after 1.0 s",)),
    (lambda: net.make_trace([0, 1], [-1]), ("-1.0 bit/s",)),
    (lambda: net.make_trace([0, 1], [0]), ("nothing is ever sent",)),
    (lambda: net.make_trace([0, 1], [1, 2]), ("trace",)),
    (lambda: net.make_trace([0, 1], [8]).seconds_to_send(-1), ("bits", "-1")),
    (lambda: net.make_trace([0, 1], [8], repeats=False).seconds_to_send(9), ("bits", "9", "8 left", "repeat")),
    (lambda: net.make_trace([0, 1], [8], repeats=False).seconds_to_send(1, 2), ("start", "2.0 s", "repeat")),
])  # fmt: skip
def test_bad_input_is_one_line(call, parts):
    with pytest.raises(InputError) as error:
        call()
    one_line(error, *parts)


# --- traces ----------------------------------------------------------------------------------------------------------


def test_a_trace_by_hand():
    trace = net.make_trace([10, 12, 13, 15], [100, 0, 50])  # 200 bits, a pause of 1 s, 100 bits: 300 in 5 s
    assert trace.mean_bps == 60
    sent = trace.seconds_to_send([0, 100, 200, 201, 300, 301, 900], 0)
    np.testing.assert_allclose(sent, [0, 1, 2, 3.02, 5, 5.01, 15])
    np.testing.assert_allclose(trace.seconds_to_send(100, [0, 1.5, 2, 2.5, 4, 5, 12.5]), [1, 2.5, 3, 2.5, 1.5, 1, 2.5])
    once = trace._replace(repeats=False)
    np.testing.assert_allclose(once.seconds_to_send([300, 100], [0, 3]), [5, 2])
    rows = net.round_times(
        net.make_profiles([1, 1], 1, seconds_per_step=2), [1, -1, 0], 1, 100, 200, traces=[trace, trace], start=1.0
    )
    np.testing.assert_allclose(rows.download, [1, 0, 1])
    np.testing.assert_allclose(rows.upload, [2.5, 0, 2.5])  # from 4 s: 50 bits to the end at 5 s, 150 at 100 bit/s
    with pytest.raises(InputError) as error:
        net.round_times(net.make_profiles(1, 1), [0], 1, 1, 1, traces=[trace], server_bps=1.0)
    one_line(error, "traces", "server_bps")


@given(st.integers(1, 8), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_a_trace_against_brute_force(pieces, seed):
    rng = np.random.default_rng(seed)
    edges = np.concatenate([[0], np.cumsum(rng.uniform(0.1, 1, pieces))])
    bps = rng.uniform(1, 20, pieces) * (rng.random(pieces) < 0.7)
    bps[rng.integers(pieces)] = 5.0
    bits, start = rng.uniform(0.1, 60), rng.uniform(0, 3 * edges[-1])
    end = start + float(net.make_trace(edges, bps).seconds_to_send(bits, start))

    def through(until):  # bits up to then, piece by piece
        laps = np.arange(int(until / edges[-1]) + 2)[:, None] * edges[-1]
        overlap = np.minimum(edges[1:] + laps, until) - np.maximum(edges[:-1] + laps, start)
        return float((np.maximum(overlap, 0) * bps).sum())

    assert through(end) == pytest.approx(bits, rel=1e-9)
    assert through(end - 1e-6) < bits * (1 - 1e-12)


def test_trace_files(tmp_path):
    path = tmp_path / "trace"
    path.write_text("5.0\t9.0\n6.0\t1.0\n\n8.0\t2.5\n")
    trace = net.read_trace(path)
    np.testing.assert_allclose(trace.edges, [0, 1, 3])
    np.testing.assert_allclose(trace.bps, [1e6, 2.5e6])
    for text, parts in (("1 2\n2 x\n", ("line 2", "2 x")), ("1 2\n", ("at least two",)), ("2 1\n1 1\n", ("1.0 s",))):
        path.write_text(text)
        with pytest.raises(InputError) as error:
            net.read_trace(path)
        one_line(error, str(path), *parts)
    with pytest.raises(InputError) as error:
        net.read_trace(tmp_path / "absent")
    one_line(error, "absent")


def test_published_traces():
    files = sorted((published("bandwidth") / "cooked_3gp").iterdir())
    traces = [net.read_trace(file) for file in files]
    assert len(traces) == 80
    means = np.array([trace.mean_bps for trace in traces])
    assert np.median(means) == pytest.approx(1.08e6, rel=0.01)
    assert np.log(means).std(ddof=1) == pytest.approx(0.43, rel=0.02)
    for trace in traces[::8]:
        np.testing.assert_allclose(trace.seconds_to_send(trace.mean_bps * trace.edges[-1], [0, 7, 50]), trace.edges[-1])
