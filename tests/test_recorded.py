"""Devices from tables of recordings, slowed clients and folders of traces: by hand, and what their errors name."""

import pickle
import sys

import numpy as np
import pytest
from conftest import one_line
from scipy import stats

from fedjax_sim import InputError
from fedjax_sim import network as net
from fedjax_sim.network.profiles import Profiles

CAPACITY = "client,communication,computation\nb7,5648,162\n\n3,1000,20.5\n"
BEHAVIOUR = "client,active,inactive\nlate,10,20\n5,0,3\nlate,2,4\n5,3,7\n"


def written(tmp_path, content, name="table.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_capacities_by_hand(tmp_path):
    path = written(tmp_path, CAPACITY)
    two = net.device_capacity(path, batch_size=10, dropout=0.1)
    np.testing.assert_allclose(two.seconds_per_step, [1.62, 0.205])  # 162 ms an example
    for bandwidth in (two.downlink_bps, two.uplink_bps):
        np.testing.assert_allclose(bandwidth, [5_648_000, 1_000_000])
    assert (set(two.latency_s), set(two.dropout), set(two.completeness)) == ({0.05}, {0.1}, {1})
    thrice = net.device_capacity(path, batch_size=10, passes=3)
    np.testing.assert_allclose(thrice.seconds_per_step, [4.86, 0.615])
    # 20 examples' time and 1 Mbit each way: 0.05 + 1 + 0.41 + 0.05 + 1
    assert net.round_times(two, [1], 2, 1e6, 1e6).total[0] == pytest.approx(2.51)


def test_clients_draw_whole_rows_by_seed_and_id(tmp_path):
    path = written(tmp_path, CAPACITY)
    drawn = net.device_capacity(path, batch_size=1, num_clients=4000, seed=1)
    table = net.device_capacity(path, batch_size=1)
    for a, b in zip(drawn, net.resampled(table, 4000, 1), strict=True):
        np.testing.assert_array_equal(a, b)
    assert {(c, s) for c, s in zip(drawn.uplink_bps, drawn.seconds_per_step, strict=True)} == {
        (5_648_000, 0.162), (1_000_000, 0.0205)}  # fmt: skip
    same = net.device_capacity(path, batch_size=1, num_clients=2, seed=1)
    assert same.uplink_bps.tolist() == table.uplink_bps.tolist()


def test_behaviour_by_hand(tmp_path):
    """`late` is client 0 for it appears first, from 2 to 4 and from 10 to 20 s; `5` is client 1, from 0 to 7 s."""
    there, ids = net.availability_trace(written(tmp_path, BEHAVIOUR)), np.arange(2)
    for t, now in ((0, [0, 1]), (2, [1, 1]), (3, [1, 1]), (4, [0, 1]), (7, [0, 0]), (10, [1, 0]), (20, [0, 0])):
        assert there(ids, t).tolist() == now, t
    assert there.following(ids, 4).tolist() == [10, 4]
    assert there.following(ids, 8).tolist() == [10, np.inf]
    repeats = net.availability_trace(written(tmp_path, BEHAVIOUR), period_seconds=25)
    assert repeats.following(ids, 8).tolist() == [10, 25]
    assert repeats(ids, 28).tolist() == [True, True]


def test_clients_follow_a_recorded_one_by_seed_and_id(tmp_path):
    path = written(tmp_path, BEHAVIOUR)
    many = net.availability_trace(path, num_clients=2000, seed=3)
    ids = np.random.default_rng(0).permutation(2000)
    first = many(ids, 0.0)  # those that follow `5`
    assert stats.binomtest(int(first.sum()), 2000).pvalue > 1e-3
    np.testing.assert_array_equal(many(ids, 15.0), ~first)
    np.testing.assert_array_equal(many.following(ids, 8.0), np.where(first, np.inf, 10))
    few = net.availability_trace(path, num_clients=50, seed=3)
    np.testing.assert_array_equal(few(np.arange(50), 0.0), many(np.arange(50), 0.0))
    other = net.availability_trace(path, num_clients=2000, seed=4)
    assert (other(ids, 0.0) != first).any()
    assert net.availability_trace(path, num_clients=2, seed=3)(np.arange(2), 0.0).tolist() == [False, True]
    with pytest.raises(InputError) as error:
        few(np.array([50]), 0.0)
    one_line(error, "client 50", "49")


def test_a_schedule_runs_on_recordings(tmp_path):
    """Client 0 is asked at 2 s and again at 10 s; 1 s for each of its two messages."""
    profiles = net.make_profiles([1e30, 1e30], 1e30, seconds_per_step=[1, 9])
    there = net.availability_trace(written(tmp_path, "client,active,inactive\na,2,3\na,10,10.5\nb,50,60\n"))
    steps = net.asynchronous(profiles, seed=0, concurrency=1, buffer=1, steps=1, downlink_bits=0, uplink_bits=0,
                             availability=there)  # fmt: skip
    assert [next(steps).seconds for _ in range(3)] == [3, 11, 59]


@pytest.mark.parametrize(("text", "parts"), [
    ("", ("empty", "computation")),
    ("computation,communication\n", ("no clients",)),
    ("computation\n1\n", ("communication",)),
    ("computation,communication,flops\n1,2,3\n", ("'flops'", "unknown", "communication")),
    ("computation,communication\n1,2\n3,fast\n", ("line 3", "fast", "numbers")),
    ("computation,communication\n1,2\n\n3\n", ("line 4", "1 cells")),
    ("computation,communication\n1,2\n\n3,0\n", ("line 4", "communication", "0", "over 0")),
    ("computation,communication\n1,nan\n", ("line 2", "communication", "nan")),
    ("computation,communication\n-1,2\n", ("line 2", "computation", "-1", "at least 0")),
    ("computation,communication\ninf,2\n", ("line 2", "computation", "inf")),
    ("client,computation,communication\na,1,2\nb,1,2\na,3,4\n", ("line 4", "line 2", "'a'", "one row")),
])  # fmt: skip
def test_bad_capacities_are_named(tmp_path, text, parts):
    with pytest.raises(InputError) as error:
        net.device_capacity(written(tmp_path, text), batch_size=1)
    one_line(error, "table.csv", *parts)


@pytest.mark.parametrize(("rows", "parts"), [
    (None, ("empty", "active")),
    ("", ("no clients",)),
    ("a,1,soon\n", ("line 2", "soon", "numbers")),
    ("a,1,2\na,4,3\n", ("line 3", "inactive is 3", "after")),
    ("a,1,1\n", ("line 2", "inactive is 1")),
    ("a,-1,1\n", ("line 2", "active is -1")),
    ("a,0,inf\n", ("line 2", "inactive is inf")),
    ("a,0,1000\n", ("line 2", "inactive is 1000", "period_seconds=100")),
    ("a,0,5\nb,0,9\na,4,6\n", ("lines 2 and 4", "'a'", "overlap")),
    ("a,4,6\nb,0,9\na,0,5\n", ("lines 2 and 4", "'a'", "overlap")),
])  # fmt: skip
def test_bad_behaviour_is_named(tmp_path, rows, parts):
    path = written(tmp_path, "" if rows is None else f"client,active,inactive\n{rows}")
    with pytest.raises(InputError) as error:
        net.availability_trace(path, period_seconds=100)
    one_line(error, "table.csv", *parts)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(("read", "part"), [
    (lambda path: net.device_capacity(path, batch_size=1), "computation"),
    (net.availability_trace, "inactive"),
])  # fmt: skip
def test_pickles_are_refused_whatever_their_name(tmp_path, read, part, protocol):
    path = written(tmp_path, pickle.dumps({1: Trap()}, protocol), "client_device_capacity")
    with pytest.raises(InputError) as error:
        read(path)
    one_line(error, "client_device_capacity", "not read", part)


def test_missing_files_and_arguments_are_named(tmp_path):
    path = written(tmp_path, CAPACITY)
    for call, parts in (
        (lambda: net.device_capacity(tmp_path / "none.csv", batch_size=1), ("none.csv",)),
        (lambda: net.device_capacity(path, batch_size=0), ("batch_size", "0")),
        (lambda: net.device_capacity(path, batch_size=1, passes=0), ("passes", "0")),
        (lambda: net.device_capacity(path, batch_size=1, num_clients=0), ("num_clients", "0")),
        (lambda: net.availability_trace(path, num_clients=0), ("num_clients", "0")),
        (lambda: net.availability_trace(path, period_seconds=0), ("period_seconds", "0")),
    ):
        with pytest.raises(InputError) as error:
            call()
        one_line(error, *parts)


def test_parquet_says_what_csv_says(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="Parquet files need pyarrow")
    import pyarrow.parquet as pq

    def parquet(columns):
        pq.write_table(pa.table(columns), tmp_path / "table.parquet")
        return tmp_path / "table.parquet"

    given = parquet({"client": ["b7", "3"], "communication": [5648, 1000], "computation": [162, 20.5]})
    for a, b in zip(net.device_capacity(given, batch_size=10),
                    net.device_capacity(written(tmp_path, CAPACITY), batch_size=10), strict=True):  # fmt: skip
        np.testing.assert_array_equal(a, b)
    there = net.availability_trace(parquet({"client": [9, 4, 9], "active": [10, 0, 2], "inactive": [20, 7, 4]}))
    assert there.following(np.arange(2), 4).tolist() == [10, 4]
    for columns, parts in (
        ({"computation": [1.0], "communication": ["fast"]}, ("row 1", "communication", "fast")),
        ({"computation": [1.0, None], "communication": [1, 2]}, ("row 2", "computation", "missing")),
        ({"computation": [1.0, 2.0], "communication": [1, 0]}, ("row 2", "communication is 0")),
        ({"computation": [1.0]}, ("communication",)),
        ({"computation": pa.array([], "f8"), "communication": pa.array([], "f8")}, ("no clients",)),
    ):
        with pytest.raises(InputError) as error:
            net.device_capacity(parquet(columns), batch_size=1)
        one_line(error, "table.parquet", *parts)
    with pytest.raises(InputError) as error:
        net.device_capacity(written(tmp_path, b"PAR1 and then nothing"), batch_size=1)
    one_line(error, "table.csv", "cannot be read")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError) as error:
        net.device_capacity(written(tmp_path, b"PAR1"), batch_size=1)
    one_line(error, "pip install 'fedjax-sim[datasets]'")


def test_slowed_clients():
    given = net.make_profiles([8, np.inf, 6], [4, 2, 9], latency_s=1, seconds_per_step=[1, 0, 5], dropout=0.5)
    slow = net.slowed(given, [0, 1, 0], 4)
    assert slow.downlink_bps.tolist() == [2, np.inf, 6]
    assert slow.uplink_bps.tolist() == [1, 0.5, 9]
    assert slow.seconds_per_step.tolist() == [4, 0, 5]
    assert given.downlink_bps.tolist() == [8, np.inf, 6]
    for field in ("latency_s", "dropout", "completeness"):
        np.testing.assert_array_equal(getattr(slow, field), getattr(given, field))
    assert isinstance(slow, Profiles)
    assert net.slowed(given, 2, 0.5).uplink_bps.tolist() == [4, 2, 18]
    assert net.slowed(given, [], 2).uplink_bps.tolist() == [4, 2, 9]
    for ids, factor, parts in (
        ([0, 3], 2, ("client 3", "2")),
        ([-1], 2, ("client -1", "0 to 2")),
        ([0.5], 2, ("ids", "whole numbers")),
        ([0], 0, ("factor", "0")),
        ([0], -1, ("factor", "-1")),
        ([0], np.nan, ("factor", "nan")),
    ):
        with pytest.raises(InputError) as error:
            net.slowed(given, ids, factor)
        one_line(error, *parts)


def test_folders_of_traces(tmp_path):
    for name, text in (("b.log", "0 9\n2 3\n"), ("a.log", "0 9\n1 5\n3 2\n"), (".hidden", "not a trace")):
        (tmp_path / name).write_text(text)
    (tmp_path / "folder").mkdir()
    traces = net.read_traces(tmp_path, repeats=False)
    assert [t.bps.tolist() for t in traces] == [[5e6, 2e6], [3e6]]
    assert [t.repeats for t in traces] == [False, False]
    (tmp_path / "c.log").write_text("0 fast\n")
    for folder, parts in (
        (tmp_path, ("c.log", "line 1")),
        (tmp_path / "folder", ("folder", "no files")),
        (tmp_path / "none", ("none",)),
        (tmp_path / "a.log", ("a.log", "folder")),
    ):
        with pytest.raises(InputError) as error:
            net.read_traces(folder)
        one_line(error, *parts)
