"""Runs on a simulated clock and with compressed messages: what they write, and what is refused."""

import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import assert_equal, one_line
from runs import QUICK, Run, of_round, trained

from fedjax_sim import InputError
from fedjax_sim.experiment.build import build
from fedjax_sim.experiment.clock import adacomm
from fedjax_sim.experiment.config import load_config
from fedjax_sim.experiment.trials import Program

BITS = 650 * 32  # of logistic regression on digits
CLOCK = ("network.profiles=constant", "network.downlink_bps=65000", "network.uplink_bps=32500", "network.latency_s=0.1",
         "network.seconds_per_step=0.25", "training.local_steps=4")  # fmt: skip
ROUND = 0.1 + BITS / 65000 + 4 * 0.25 + 0.1 + BITS / 32500  # seconds, by hand: 2.16
SLOW = (*CLOCK, "network.slow_clients=[3]", "network.slowdown=10", "training.sampling=all")
TIMES = ("elapsed_seconds",)


def rows_of(found: Run):
    return [{name: value for name, value in row.items() if name not in TIMES} for row in found.rows]


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(tmp_path_factory.mktemp("runs") / "waiting", *SLOW)


def test_every_round_says_who_was_asked_and_how_long_it_took(waiting: Run) -> None:
    slow = 0.2 + 10 * (ROUND - 0.2)
    for number, row in enumerate(waiting.rows, 1):
        assert row["round_seconds"] == pytest.approx(slow, rel=1e-5)
        assert row["simulated_seconds"] == pytest.approx(number * slow, rel=1e-5)
        assert (row["asked"], row["late"], row["dropped"], row["stalest"], row["slowest"]) == (20, 0, 0, 0, 3)
        assert row["uplink_bits"] == row["downlink_bits"] == 20 * BITS
        each = of_round(waiting.table, number)
        assert (each["asked"], each["staleness"], sorted(each["client"])) == ([1] * 20, [0] * 20, list(range(20)))
    assert waiting.written["slowest"] == {"client": 3, "rounds": 4}
    assert waiting.written["simulated_seconds"] == pytest.approx(4 * slow, rel=1e-5)
    assert "That took 79.2 s on the clients' links and devices; client 3 came last in 4 of 4 rounds." in waiting.lines
    assert "the server waits for all; a round takes a client 2.16 to 19.8 s, median 2.16" in waiting.lines[0]


def test_a_deadline_leaves_the_slow_client_out_as_if_it_were_not_there(tmp_path: Path, waiting: Run) -> None:
    with pytest.warns(UserWarning, match=r"network.deadline_seconds: 1 of 20 clients never make 3 s"):
        found = trained(tmp_path / "deadline", *SLOW, "network.policy=deadline", "network.deadline_seconds=3")
    for row in found.rows:
        assert (row["asked"], row["clients"], row["late"], row["round_seconds"]) == (20, 19, 1, 3.0)
        here = found.table[found.table["round"] == row["round"]]
        assert here["client"][here["late"] == 1].tolist() == here["client"][~here["counted"]].tolist() == [3]
        assert (row["uplink_bits"], row["downlink_bits"]) == (20 * BITS, 20 * BITS)  # the late message was sent, too
    # the others' training is that of a federation in which 3 is never sampled: their losses in the first round agree
    first, before = (dict(zip(*(of_round(run.table, 1)[name] for name in ("client", "loss_after")), strict=True))
                     for run in (found, waiting))  # fmt: skip
    assert first == {client: loss for client, loss in before.items() if client != 3}


def test_partial_work_and_stale_messages_keep_the_slow_client(tmp_path: Path) -> None:
    limit = ("network.policy=deadline", "network.deadline_seconds=12.5")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it never makes the deadline with all its steps
        partial = trained(tmp_path / "partial", *SLOW, *limit, "network.partial=true")
        stale = trained(tmp_path / "stale", *SLOW, *limit, "network.late=stale", "network.discount=none")
    for row in partial.rows:
        each = of_round(partial.table, row["round"])
        steps = dict(zip(each["client"], each["steps"], strict=True))
        assert steps == {client: 1 if client == 3 else 4 for client in range(20)}  # 9.8 s of transfers, 2.5 s a step
    assert [row["clients"] for row in stale.rows] == [19, 19, 19, 19]
    assert [row["stalest"] for row in stale.rows] == [0, 0, 0, 0]  # rounds without it last 2.16 s: not there yet
    assert [row["asked"] for row in stale.rows] == [20, 19, 19, 19]


def test_a_full_buffer_of_equal_clients_gives_the_history_of_federated_averaging(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", *CLOCK)
    buffered = trained(tmp_path / "buffered", *CLOCK, "network.policy=asynchronous", "network.buffer=10")
    for one, other in zip(rows_of(plain), rows_of(buffered), strict=True):
        assert other["loss_before"] == pytest.approx(one["loss_before"], rel=1e-5)
        for name in ("clients", "asked", "steps", "uplink_bits", "downlink_bits", "stalest", "test_class_accuracy"):
            assert other[name] == one[name]
        assert other["simulated_seconds"] == pytest.approx(one["simulated_seconds"], rel=1e-6)


@pytest.mark.parametrize("disk", [("execution.client_memory=disk",), pytest.param((), marks=pytest.mark.slow)])
def test_streamed_population_and_memory_on_disk_change_nothing(tmp_path: Path, disk: tuple[str, ...]) -> None:
    common = ("network.profiles=lognormal", "network.policy=deadline", "network.deadline_seconds=2.0",
              "network.partial=true", "network.dropout=0.2", "algorithm.name=scaffold")  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        resident = trained(tmp_path / "resident", *common)
        other = trained(tmp_path / "streamed", *common, "execution.memory=stream", *disk)
    assert any(row["dropped"] for row in resident.rows)
    for one, same in zip(rows_of(resident), rows_of(other), strict=True):
        for name, value in one.items():
            expected = value if not isinstance(value, float) else pytest.approx(value, rel=1e-5)
            assert same[name] == expected, name
    for name in ("round", "client", "steps", "asked", "late", "dropped", "staleness"):
        assert other.table[name].tolist() == resident.table[name].tolist()


def test_nobody_available_makes_the_server_wait_and_say_so(tmp_path: Path) -> None:
    table = tmp_path / "behaviour.csv"
    table.write_text("client,active,inactive\n" + "".join(f"{i},0,3\n" for i in range(20)))
    found = trained(tmp_path / "waits", *CLOCK, "network.availability=trace", f"network.availability_path={table}",
                    "network.availability_seconds=3600")  # fmt: skip
    assert [row["waited_seconds"] for row in found.rows] == pytest.approx([0, 0, 3600 - 2 * ROUND, 0], abs=1e-3)
    assert found.rows[-1]["simulated_seconds"] == pytest.approx(3600 + 2 * ROUND)
    assert any("with nobody to reach" in line for line in found.lines)


def test_compressed_messages_count_what_they_take(tmp_path: Path) -> None:
    found = trained(tmp_path / "small", "compression.uplink=sign", "compression.feedback=ef21",
                    "compression.downlink=half", "compression.lazy=0.9")  # fmt: skip
    sign = 1 + 650 + 2 * 32  # one bit says that something comes; two arrays have a scale each
    assert found.rows[0]["uplink_bits"] == 10 * sign
    assert all(row["uplink_bits"] % sign <= 10 for row in found.rows)  # others send one bit
    assert all(row["downlink_bits"] == 10 * 650 * 16 for row in found.rows)


def test_local_steps_follow_the_loss(tmp_path: Path) -> None:
    assert adacomm(10, 10, 2.0, 0.5) == 5  # a fourth of the loss, half of the steps
    assert adacomm(10, 4, 2.0, 0.5) == 2  # no fewer than before: half of those
    assert adacomm(10, 1, 2.0, 3.0) == 1
    found = trained(tmp_path / "adapted", *CLOCK, "training.adapt_steps=adacomm", "training.adapt_every=2")
    losses = [row["loss_before"] for row in found.rows]
    most = adacomm(4, 4, losses[0], losses[1])
    assert most < 4
    assert [row["steps"] for row in found.rows] == [40, 40, 10 * most, 10 * most]
    assert found.rows[-1]["most_steps"] == most
    assert found.rows[-1]["round_seconds"] == pytest.approx(ROUND - 0.25 * (4 - most))
    without = trained(tmp_path / "no_clock", "training.local_steps=4", "training.adapt_steps=adacomm",
                      "training.adapt_every=2")  # fmt: skip
    assert [row["steps"] for row in without.rows] == [row["steps"] for row in found.rows]
    assert_equal([row["loss_after"] for row in without.rows], [row["loss_after"] for row in found.rows])


def test_schedules_do_not_depend_on_how_often_one_looks() -> None:
    experiment = build(load_config(None, [*QUICK, "network.profiles=lognormal", "network.dropout=0.3"]))
    assert experiment.simulation is not None
    from fedjax_sim.experiment.clock import Clock

    at_once = Clock(experiment.simulation.schedule(None)).ahead(0, 9)
    clock, parts = Clock(experiment.simulation.schedule(None)), []
    for first, count in ((0, 2), (2, 3), (5, 4)):
        clock.ahead(first, min(count + 1, 9 - first))  # looks further than it goes
        parts += clock.ahead(first, count)
        assert clock.seconds == (parts[first - 1].seconds if first else 0.0)
    for one, other in zip(at_once, parts, strict=True):
        assert one.seconds == other.seconds
        assert np.array_equal(one.arrived, other.arrived)


# --- what is refused --------------------------------------------------------------------------------------------------

LOGNORMAL, DP = "network.profiles=lognormal", (
    "privacy.mechanism=gaussian", "privacy.clip_norm=1.0", "privacy.noise_multiplier=1.0", "training.sampling=poisson"
)  # fmt: skip
LATE = ("network.policy=deadline", "network.deadline_seconds=1e9", "network.late=stale")
UNIFORM = ("training.sampling=uniform",)
WAIT_OUT = ("network.policy=deadline", "network.deadline_seconds=1e9", "network.wait_out=true")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("network.uplink_bps=5",), ("network.uplink_bps", "5", "network.profiles")),
        (("network.profiles=wifi",), ("network.profiles", "'wifi'", "choose")),
        ((LOGNORMAL, "network.uplink_bps=0"), ("network.uplink_bps", "over 0")),
        ((LOGNORMAL, "network.path=x.csv"), ("network.path", "x.csv", "leave it out")),
        (("network.profiles=csv",), ("network.path", "missing")),
        (("network.profiles=csv", "network.path=/nowhere.csv"), ("/nowhere.csv",)),
        (("network.profiles=constant", "network.sigma_uplink=1"), ("network.sigma_uplink", "constant")),
        ((LOGNORMAL, "network.policy=deadline"), ("network.deadline_seconds", "missing")),
        ((LOGNORMAL, "network.deadline_seconds=4"), ("network.deadline_seconds", "'wait'")),
        ((LOGNORMAL, "network.late=stale"), ("network.late", "'wait'")),
        ((LOGNORMAL, "network.policy=over_select", "network.extra=11"), ("network.extra", "11", "20")),
        ((LOGNORMAL, "network.policy=over_select", "training.sampling=poisson"), ("training.sampling", "poisson")),
        ((LOGNORMAL, "network.policy=asynchronous", "network.concurrency=21"), ("network.concurrency", "21")),
        ((LOGNORMAL, "network.policy=asynchronous", "network.buffer=21"), ("network.buffer", "21")),
        ((LOGNORMAL, "network.policy=asynchronous", "network.pipelined=true"), ("network.pipelined",)),
        ((LOGNORMAL, "network.policy=asynchronous", "execution.memory=stream"), ("execution.memory",)),
        ((LOGNORMAL, "network.policy=asynchronous", "algorithm.name=mime"), ("algorithm.name", "twice")),
        ((LOGNORMAL, "network.policy=asynchronous", "training.adapt_steps=adacomm"), ("training.adapt_steps",)),
        ((LOGNORMAL, "network.discount=hinge"), ("network.discount", "stale")),
        ((LOGNORMAL, *LATE, "network.slope=2"), ("network.slope", "polynomial")),
        ((LOGNORMAL, "network.slow_clients=[20]"), ("network.slow_clients", "20", "19")),
        ((LOGNORMAL, "network.availability=trace"), ("network.availability_path", "missing")),
        ((LOGNORMAL, "network.availability_share=0.5"), ("network.availability_share", "'always'")),
        ((LOGNORMAL, *DP, *LATE), ("network.late", "stale", "accounted")),
        ((LOGNORMAL, *DP, "network.policy=asynchronous"), ("network.policy", "asynchronous")),
        ((LOGNORMAL, *DP[:3], *WAIT_OUT, *UNIFORM, "network.availability=diurnal"), ("training.sampling", "'uniform'")),
        (("compression.uplink=zip",), ("compression.uplink", "'zip'")),
        (("compression.uplink=qsgd", "compression.rank=3"), ("compression.rank", "qsgd")),
        (("compression.fraction=0.1",), ("compression.fraction", "0.1")),
        (("compression.feedback=ef21",), ("compression.feedback", "ef21")),
        (("compression.uplink=half", "compression.dtype=int8"), ("compression.dtype", "int8")),
        (("compression.uplink=half", "algorithm.name=fedavg_topk"), ("algorithm.name", "already")),
        (
            ("compression.downlink=half", "algorithm.name=fedper", "algorithm.personal=kernel"),
            ("algorithm.name", "part"),
        ),
        (("training.adapt_steps=adacomm", *DP), ("training.adapt_steps", "noise")),
    ],
)
def test_what_does_not_fit_is_one_line(overrides: tuple[str, ...], words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as error:
        build(load_config(None, [*QUICK, *overrides]))
    one_line(error, *words)


def test_settings_without_a_guarantee_warn() -> None:
    for overrides, words in (
        (("compression.uplink=top_k",), "top_k is biased"),
        (("compression.uplink=qsgd", "compression.feedback=ef21"), "qsgd may enlarge"),
    ):
        with pytest.warns(UserWarning, match=words):
            build(load_config(None, [*QUICK, *overrides]))


SENT = {  # asked, late, failed in a round, and messages that were sent in it
    "over-selection": ("network.policy=over_select", "network.extra=8"),
    "deadline": ("network.policy=deadline", "network.deadline_seconds=3", "network.slow_clients=[0, 1, 2, 3, 4, 5]",
                 "network.slowdown=10"),
    "failures": ("network.policy=deadline", "network.deadline_seconds=3", "network.slow_clients=[0, 1, 2, 3, 4, 5]",
                 "network.slowdown=10", "network.dropout=0.3"),
}  # fmt: skip


@pytest.mark.parametrize(
    "policy", [pytest.param(policy, marks=pytest.mark.slow) if policy == "deadline" else policy for policy in SENT]
)
def test_messages_that_come_too_late_were_sent_and_who_failed_sent_nothing(tmp_path: Path, policy: str) -> None:
    """In a run, and in the same run as part of a sweep."""
    settings = (*CLOCK, *SENT[policy])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that some never make the deadline
        found = trained(tmp_path / "run", *settings)
        program = Program(build(load_config(None, [*QUICK, *settings])), (), jax.devices()[:1], slots=1)
        program.load([{}])
        swept = [*program][-1]
    assert sum(row["late"] for row in found.rows) > 0
    assert any(row["dropped"] for row in found.rows) == (policy == "failures")
    for row in found.rows:
        assert row["asked"] == row["clients"] + row["late"] + row["dropped"]
        assert row["uplink_bits"] == (row["clients"] + row["late"]) * BITS
        assert row["downlink_bits"] == row["asked"] * BITS
    if policy == "over-selection":
        assert found.written["uplink_bits"] == found.written["downlink_bits"] == 4 * 18 * BITS
    assert swept.sent_bits[0] == found.written["uplink_bits"] + found.written["downlink_bits"]


def test_a_stale_message_counts_once_in_the_round_that_takes_it(tmp_path: Path) -> None:
    stale = ("network.policy=deadline", "network.deadline_seconds=12.5", "network.late=stale", "training.rounds=12")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = trained(tmp_path / "run", *SLOW, *stale)
    assert sum(row["late"] for row in found.rows) > 0
    assert any(row["stalest"] for row in found.rows)
    assert [row["uplink_bits"] for row in found.rows] == [row["clients"] * BITS for row in found.rows]
