"""The benchmark of an accelerator runs on a CPU, keeps to its time, and reads traces rightly."""

import time

import jax
import pytest

from benchmarks.accelerator import SECTIONS, measure, shown
from benchmarks.on_device import Setting, idle
from benchmarks.workloads import WORKLOADS

TINY = Setting(jax.devices()[0], ("logreg",), seconds=0.0, tiny=True)
ALL = TINY._replace(workloads=tuple(WORKLOADS))


def measured(sections, seconds, setting=TINY):
    rows = []
    measure(setting, sections, time.monotonic() + seconds, rows.append)
    return rows


@pytest.fixture(scope="module")
def rows():
    return measured(["workloads", "gaps"], 1e6)


def test_measurements_give_numbers(rows):
    check(rows, ["workloads", "gaps"])


@pytest.mark.slow
def test_all_measurements_give_numbers():
    check(measured(list(SECTIONS), 1e6, ALL), list(SECTIONS))


def check(rows, sections):
    assert list(dict.fromkeys(row["section"] for row in rows)) == sections
    for row in rows:
        assert "failed" not in row, row
        assert all(value >= 0 for value in row.values() if isinstance(value, float))
        assert shown(row).startswith(f"{row['section']:10}{row['name']}")


def test_what_a_round_needs_is_counted_by_hand(rows):
    """Three clients of 100 examples in batches of 20, 7,850 parameters read and written in each of 15 steps."""
    row = next(row for row in rows if row["section"] == "workloads")
    assert row["bytes_per_round"] == 2 * 4 * 7850 * 15
    assert row["flops_per_round"] == 2 * 2 * 7840 * 300
    assert row["rounds_per_second"] > 0
    assert row["share_of_bandwidth"] > 0


def test_what_no_time_is_left_for_is_said():
    rows = measured(list(SECTIONS), 0, ALL)
    assert {row["section"] for row in rows} == set(SECTIONS)
    assert all("skipped" in row for row in rows)


def test_a_failure_costs_no_other_measurement(monkeypatch):
    def sections(setting):
        yield "broken", lambda: {"value": len(2)}  # type: ignore[arg-type]
        yield "whole", lambda: {"value": 1.0}

    monkeypatch.setitem(SECTIONS, "ceilings", sections)
    broken, whole = measured(["ceilings"], 1e6)
    assert broken["failed"].startswith("TypeError")
    assert whole["value"] == 1.0


def test_gaps_are_those_between_the_kernels_of_all_streams():
    def name(kind, pid, tid, text):
        return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": text}}

    def kernel(tid, start, length, text="add", pid=7):
        return {"ph": "X", "pid": pid, "tid": tid, "ts": start, "dur": length, "name": text}

    events = [
        name("process_name", 7, 0, "/device:GPU:0"),
        name("process_name", 8, 0, "/host:CPU"),
        name("thread_name", 7, 1, "Stream #1"),
        name("thread_name", 7, 2, "Stream #2(MemcpyD2H)"),
        name("thread_name", 7, 3, "XLA Ops"),
        name("thread_name", 8, 1, "Stream of the host"),
        kernel(1, 0.0, 10.0),
        kernel(2, 5.0, 10.0, "MemcpyD2H"),
        kernel(1, 20.0, 5.0, "dot"),
        kernel(1, 40.0, 10.0),
        kernel(3, 0.0, 50.0, "the whole program"),
        kernel(1, 0.0, 90.0, "host", pid=8),
    ]
    found = idle(events)
    assert found["window_milliseconds"] == pytest.approx(0.05)
    assert found["idle_in_trace"] == pytest.approx(0.4)  # 15 to 20 and 25 to 40 of 50
    assert found["longest_gaps_microseconds"] == [15.0, 5.0]
    assert (found["kernels"], found["copies"]) == (4, 1)
    assert found["most_microseconds"] == {"add": 20.0, "MemcpyD2H": 10.0, "dot": 5.0}
    assert "trace" in idle(events[:6])
