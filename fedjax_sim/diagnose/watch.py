"""What a person sees of a diagnosis at work: a bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fedjax_sim._text import say
from fedjax_sim.diagnose.laboratory import Told

LEAST_SECONDS = 5.0  # between two plain lines of one stage


@contextmanager
def watching(console: Console) -> Iterator[Callable[[Told], None]]:
    """What `diagnose` is given to tell."""
    if not console.is_terminal:
        yield _plain(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[runs]}"), TimeElapsedColumn(),
               TextColumn("{task.fields[left]}"))  # fmt: skip
    with Progress(*columns, console=console) as bar:
        tasks, began = {}, {}

        def tell(told: Told) -> None:
            if told.stage not in tasks:
                for task in tasks.values():
                    bar.update(task, completed=1.0, total=1.0, left="")
                tasks[told.stage] = bar.add_task(told.stage, total=1.0, runs="", left="")
                began[told.stage] = time.monotonic()
            share = told.share
            left = _left(time.monotonic() - began[told.stage], share)
            bar.update(tasks[told.stage], completed=share, runs=_runs(told), left=left and f"{left} left")

        yield tell


def _plain(console: Console) -> Callable[[Told], None]:
    stages: list[str] = []
    began, printed = [0.0], [0.0]

    def tell(told: Told) -> None:
        now = time.monotonic()
        fresh = told.stage not in stages[-1:]
        if fresh:
            stages.append(told.stage)
            began[0] = now
        if fresh or now - printed[0] >= LEAST_SECONDS:
            printed[0] = now
            left = _left(now - began[0], told.share)
            text = f"{told.stage}: {_runs(told)}, round {told.rounds}/{told.all_rounds} of {told.running}"
            say(console, f"{text}{left and f', {left} left'}")

    return tell


def _runs(told: Told) -> str:
    return f"{told.done}/{told.total} runs"


def _left(seconds: float, share: float) -> str:
    return f"{seconds * (1 - share) / share:.0f} s" if share > 0 else ""
