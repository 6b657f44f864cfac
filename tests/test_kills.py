"""Commands killed at every operation on a file, one by one: what is left goes on, to what an unbroken one leaves."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import QUICK, Command, commands
from test_resume import left

RUN = (
    *QUICK, "training.rounds=5", "training.evaluate_every=2", "training.local_steps=2", "training.clients_per_round=3",
    "data.clients=6", "data.local_test_fraction=0.2", "algorithm.name=scaffold", "execution.client_memory=disk",
    "execution.lanes=3", "output.checkpoint_every=1",
)  # fmt: skip


def options(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    with commands(**cache) as run:
        yield run


def operations(folder: Path) -> int:
    return int(folder.with_name(f"{folder.name}.operations").read_text())


def content(folder: Path) -> dict[str, bytes]:
    """The model, bit by bit, and which files there are."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() if path.suffix == ".npy" else b"" for path in files}


def spread(count: int, chosen: int) -> list[int]:
    """So many numbers from 1 to `count`, the first and the last among them."""
    return sorted({1 + round(i * (count - 1) / (chosen - 1)) for i in range(min(chosen, count))})


@pytest.mark.parametrize("chosen", [5, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_run_killed_at_any_operation_on_a_file_ends_as_if_it_never_was(
    tmp_path: Path, command: Command, chosen: int
) -> None:
    """And is killed once more while it is taken up."""
    settings = options(*RUN)
    (tmp_path / "runs").mkdir()
    status, _, err = command(tmp_path, "run", *settings, "--set", "output.name=whole", die_at=0)
    assert (status, err) == (0, "")
    whole, count = tmp_path / "runs" / "whole", operations(tmp_path)
    assert count > 90
    for at in spread(count, chosen):
        folder = tmp_path / "runs" / f"killed{at}"
        begun = ("run", *settings, "--set", f"output.name={folder.name}")
        status, _, err = command(tmp_path, *begun, die_at=at)
        assert (status, err) == (-9, ""), at
        for again in (1 + at % 13, None):
            arguments = ("resume", f"runs/{folder.name}") if (folder / "config.toml").exists() else begun
            status, _, err = command(tmp_path, *arguments, die_at=again)
            if again is None or status != -9:
                nothing_left = status == 2 and "that run has ended (finished); nothing is left to do" in err
                assert (status, err) == (0, "") or nothing_left, (at, again, err)
        assert left(folder) == left(whole), at
        assert content(folder) == content(whole), at
