"""What single clients did: a table that grows, that killed writers leave whole, and that nothing in it can break."""

import os
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import one_line
from runs import trained

from fedjax_sim import InputError
from fedjax_sim.core.types import RoundMetrics
from fedjax_sim.experiment.history import History, Rows, batched, first_not_finite, read_history, rows_from
from fedjax_sim.experiment.per_client import ENTRY, FILE, Table, entries, read_table
from fedjax_sim.network import ServerStep


def some(rounds: range, seed: int = 0) -> np.ndarray:
    found = np.zeros(3 * len(rounds), ENTRY)
    found["round"], found["client"] = np.repeat(rounds, 3), np.tile(range(3), len(rounds))
    found["loss_before"] = np.random.default_rng(seed).random(len(found))
    return found


def test_entries_are_appended_and_cut_and_numpy_reads_them(tmp_path: Path) -> None:
    table = Table(tmp_path / FILE)
    for rounds in (range(1, 3), range(3, 3), range(3, 200)):
        table.append(some(rounds))
    table.close()
    whole = np.load(tmp_path / FILE)
    assert whole.tolist() == np.concatenate([some(range(1, 3)), some(range(3, 200))]).tolist()
    again = Table(tmp_path / FILE, 100)  # as a run does that is resumed
    assert np.load(tmp_path / FILE).tolist() == whole[:300].tolist()
    again.append(whole[300:])
    again.close()
    assert np.load(tmp_path / FILE).tolist() == whole.tolist()


@pytest.mark.parametrize("torn", [1, ENTRY.itemsize, ENTRY.itemsize + 5])
def test_what_a_killed_writer_left_behind_the_last_entry_is_not_read(tmp_path: Path, torn: int) -> None:
    table = Table(tmp_path / FILE)
    table.append(some(range(1, 5)))
    table.close()
    with open(tmp_path / FILE, "ab") as file:  # killed before the header says that there are more
        file.write(os.urandom(torn))
    assert read_table(tmp_path / FILE).tolist() == some(range(1, 5)).tolist()  # pyright: ignore[reportOptionalMemberAccess]
    Table(tmp_path / FILE, 3).close()
    assert np.load(tmp_path / FILE).tolist() == some(range(1, 5))[:9].tolist()
    assert (tmp_path / FILE).stat().st_size == 9 * ENTRY.itemsize + (tmp_path / FILE).read_bytes().index(b"\n") + 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not an array"),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: np.save(path, np.zeros(3)),
        lambda path: np.save(path, np.array([{}], object)),
        lambda path: path.write_bytes(path.read_bytes().replace(b"(6,)", b"((((")),
    ],
)
def test_a_damaged_table_is_named(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    table = Table(tmp_path / FILE)
    table.append(some(range(1, 3)))
    table.close()
    damage(tmp_path / FILE)
    for use in (read_table, lambda path: Table(path, 1)):
        with pytest.raises(InputError) as error:
            use(tmp_path / FILE)
        one_line(error, str(tmp_path / FILE))


def test_a_full_disk_leaves_the_entries_before(tmp_path: Path) -> None:
    table = Table(tmp_path / FILE)
    table.append(some(range(1, 3)))
    full = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    table.file, real = full, table.file
    with pytest.raises((InputError, OSError)):
        table.append(some(range(3, 5)))
    full.close()
    real.close()
    assert np.load(tmp_path / FILE).tolist() == some(range(1, 3)).tolist()


def test_entries_say_who_was_asked_late_and_dropped() -> None:
    numbers = np.array([0.5, np.nan, 0.25, 0.0], np.float32)
    whole = np.array([7, 8, 9, 0], np.int32)
    ids = np.array([4, 2, 9, -1], np.int32)
    values = dict.fromkeys(RoundMetrics._fields, numbers) | {"ids": ids, "examples": whole, "steps": whole}
    metrics = RoundMetrics(**{**values, "rejected": np.array([False, True, False, False])})
    metrics = jax.tree.map(lambda x: np.stack([x, x]), metrics)
    nobody = np.zeros(0, np.int32)
    step = ServerStep(
        3, 1.0, np.array([2, 9, 4], np.int32), np.arange(3), np.array([0, 1, 2]), nobody, nobody,
        np.array([5, 5, 6], np.int32), 0.0, nobody, np.array([5, 5, 6, 2, 1], np.int32), np.array([1], np.int32),
    )  # fmt: skip
    two = entries(metrics, 3, [step, step])
    assert two["round"].tolist() == [3] * 6 + [4] * 6
    found = two[6:]
    assert found["client"].tolist() == [4, 2, 9, 1, 5, 6]
    assert found["counted"].tolist() == [True] * 3 + [False] * 3
    assert found["asked"].tolist() == [0, 1, 0, 1, 2, 1]
    assert found["late"].tolist() == [0, 0, 0, 1, 0, 0]
    assert found["dropped"].tolist() == [0, 0, 0, 0, 2, 1]
    assert found["staleness"].tolist() == [2, 0, 1, 0, 0, 0]
    assert found["examples"].tolist() == [7, 8, 9, 0, 0, 0]
    np.testing.assert_array_equal(found["drift"], np.array([0.5, np.nan, 0.25, 0, 0, 0], np.float32))
    assert found["rejected"].tolist() == [False, True, False, False, False, False]
    alone = entries(metrics, 3)
    assert alone["client"].tolist() == [4, 2, 9] * 2
    assert alone["asked"].tolist() == [1] * 6
    assert alone[["round", "counted", "examples"]].tolist() == [(r, True, n) for r in (3, 4) for n in (7, 8, 9)]


@pytest.mark.parametrize(("clients", "kept"), [(100, True), (101, False)])
def test_large_cohorts_are_not_kept_unless_asked_for(tmp_path: Path, clients: int, kept: bool) -> None:
    large = ("data.clients=101", "data.partition=iid", f"training.clients_per_round={clients}", "training.rounds=1")
    trained(tmp_path / "run", *large, "training.local_steps=1", "training.evaluate_every=1")
    assert (tmp_path / "run" / FILE).exists() == kept
    assert "per_client" not in read_history(tmp_path / "run" / "history.jsonl")[0]


# --- histories as columns --------------------------------------------------------------------------------------------


def of_rounds(**changed) -> RoundMetrics:
    """Of two rounds of three slots, in the first of which one client is rejected, and in the second nobody came."""
    table = np.array([[0.5, np.inf, 0.25], [0, 0, 0]], np.float32)
    whole = np.array([[6, 8, 2], [0, 0, 0]], np.int32)
    values = dict.fromkeys(RoundMetrics._fields, table) | {"examples": whole, "steps": whole, "extra": {}}
    values |= {name: whole.astype(np.uint32) << 28 for name in ("uplink_bits", "downlink_bits")}
    values |= dict.fromkeys(("aggregate_norm", "gradient_diversity", "effective_clients"), np.ones(2, np.float32))
    ids, rejected = np.array([[4, 2, 9], [-1, -1, -1]], np.int32), np.array([[False, True, False], [False] * 3])
    return RoundMetrics(**{**values, "ids": ids, "rejected": rejected, **changed})


def test_rows_are_sums_and_means_over_those_that_count() -> None:
    first, second = rows_from(of_rounds(extra={"clipped": np.array([0.5, np.nan])}), 7, elapsed_seconds=1.23456)
    assert (first["round"], first["clients"], first["examples"], first["rejected"]) == (7, 3, 16, 1)
    assert first["uplink_bits"] == 16 << 28  # more than 32 bits hold
    assert first["loss_before"] == pytest.approx((6 * 0.5 + 2 * 0.25) / 8)
    assert first["drift"] == pytest.approx(0.375)
    assert (first["elapsed_seconds"], first["clipped"], first["aggregate_norm"]) == (1.235, 0.5, 1.0)
    assert (second["round"], second["clients"], second["loss_before"], second["drift"]) == (8, 0, None, None)
    assert second["clipped"] is None
    assert first.keys() == second.keys() >= {"test_accuracy", "best_round"}


def test_the_first_round_that_is_not_finite_and_its_first_metric() -> None:
    assert first_not_finite(of_rounds()) is None  # who is rejected does not count
    broken = np.array([[0, 0, 0], [0, np.nan, 0]], np.float32)
    assert first_not_finite(of_rounds(drift=broken, loss_after=broken)) == (1, "loss_after")
    later = np.array([1.0, np.inf], np.float32)
    assert first_not_finite(of_rounds(loss_before=broken, aggregate_norm=later[::-1])) == (0, "aggregate_norm")


def test_columns_of_a_history(tmp_path: Path) -> None:
    rows = [{"round": 1, "a": 1, "b": True, "c": None}, {"round": 2, "c": 10**400, "l": [1]}, {"round": 3, "a": 2.5}]
    history = History(rows[:2])
    history.add(rows[2:])
    assert (len(history), history.first, history.last) == (3, rows[0], rows[2])
    np.testing.assert_array_equal(history.every("a"), [1, np.nan, 2.5])
    assert [values.tolist() for values in history.column("a")] == [[1, 3], [1, 2.5]]
    assert history.lists("l") == ([2], [[1]])
    for name in ("b", "c", "nothing"):
        assert np.isnan(history.every(name)).all()
        assert history.column(name)[0].tolist() == []
    path = tmp_path / "history.jsonl"
    path.write_text('{"round": 1}\n{"round": 2}\n{"round": 3}\n{"rou')
    past = Rows(path, 2)
    assert [list(past), list(past)] == [[{"round": 1}, {"round": 2}]] * 2  # as often as one likes
    assert [len(each) for each in batched(range(7), 3)] == [3, 3, 1]  # pyright: ignore[reportArgumentType]


def test_a_history_takes_numbers_and_not_rows() -> None:
    """8 bytes a number, where a row as a dict takes thousands."""
    import tracemalloc

    def rows(count: int):
        return ({"round": i, **{f"quantity {j}": i + j / 10 for j in range(20)}} for i in range(count))

    tracemalloc.start()
    try:
        history = History(rows(5000))
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(history) == 5000
    assert taken < 5000 * 21 * 8 * 2


def test_no_table_is_none(tmp_path: Path) -> None:
    assert read_table(tmp_path / FILE) is None
