"""What a person sees while an experiment runs: a bar on a terminal, a few plain lines elsewhere."""

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from types import FrameType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from fedjax_sim._interrupt import interrupt
from fedjax_sim._text import clean, say
from fedjax_sim.experiment.build import Experiment
from fedjax_sim.experiment.choosing import CALLED, said
from fedjax_sim.experiment.covered import together
from fedjax_sim.experiment.history import Row
from fedjax_sim.experiment.run import Reporter
from fedjax_sim.experiment.summary import Summary
from fedjax_sim.experiment.sweep import Line

LINES, LEAST_SECONDS = 10, 2.0  # about how many plain lines a run prints, and how far apart they are at least
STATUS = {"finished": 0, "plateau": 0, "spent": 0, "diverged": 3, "interrupted": 130}  # exit status of the command


def reporter(console: Console, rounds: int) -> Reporter:
    """Progress of `rounds` rounds on `console`, in the way that suits it."""
    return terminal(console, rounds) if console.is_terminal else plain(console, rounds)


def stopping(told: Reporter, *, shared: bool = False) -> tuple[Reporter, Callable[[], bool]]:
    """Lets Ctrl-C and SIGTERM end a run between two calls, with a checkpoint; before the first round is done, and when
    they come twice, at once. Where the run is shared with other processes, which have to hear of it first, it always
    goes on to the end of a call, and only the second signal ends this process at once.

    Returns the reporter to use, and what to ask."""
    asked, underway = [0], [False]

    def handle(number: int, frame: FrameType | None) -> None:
        asked[0] += 1
        if asked[0] > 1 or not (underway[0] or shared):
            interrupt(frame, again=shared or asked[0] > 2)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)

    def advanced(rows: list[Row]) -> None:
        underway[0] = True
        told.advanced(rows)

    def stopped() -> None:
        underway[0] = False
        told.stopped()

    return Reporter(told.built, advanced, stopped), lambda: asked[0] > 0


def terminal(console: Console, rounds: int) -> Reporter:
    """A bar with rounds, accuracy, rounds per second and the time left."""
    bar = Progress(
        TextColumn("round {task.completed}/{task.total}"),
        BarColumn(bar_width=None),
        TextColumn("accuracy {task.fields[accuracy]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
    )
    task = bar.add_task("", total=rounds, accuracy="-", rate="compiling", start=False)
    seen = _Seen()

    def built(experiment: Experiment, folder: Path) -> None:
        for line in _begun(experiment):
            _print(console, line)
        bar.start()

    def advanced(rows: list[Row]) -> None:
        if not seen.rounds:
            bar.start_task(task)
        seen.add(rows)
        bar.update(task, advance=len(rows), rate=f"{seen.rate()}{seen.clock()}{seen.privacy()}", accuracy=seen.accuracy)

    return Reporter(built, advanced, bar.stop)


def plain(console: Console, rounds: int) -> Reporter:
    """A line after the first round and the last, and about ten between them."""
    seen = _Seen()
    printed = [-LEAST_SECONDS]

    def built(experiment: Experiment, folder: Path) -> None:
        for line in _begun(experiment):
            _print(console, line)

    def advanced(rows: list[Row]) -> None:
        first, before = not seen.rounds, seen.rounds * LINES // rounds
        seen.add(rows)
        now, last = time.monotonic(), seen.rounds == rounds
        enough = seen.rounds * LINES // rounds > before and now - printed[-1] >= LEAST_SECONDS
        if first or last or enough:
            printed.append(now)
            left = "" if first or last else f", {seen.left(rounds):.0f} s left"
            loss = rows[-1]["loss_before"]
            losses = "" if loss is None else f", loss {loss:.3f}"
            rates = f"{seen.rate()}{left}{seen.clock()}{seen.privacy()}"
            _print(console, f"round {seen.rounds}/{rounds}: accuracy {seen.accuracy}{losses}, {rates}")

    return Reporter(built, advanced, lambda: None)


@contextmanager
def counting(console: Console, noun: str) -> Iterator[Callable[[int, int, int, int], None]]:
    """What is told of things done, of how many, and of the rounds of those that run: a line at times."""
    printed, began = [-LEAST_SECONDS], time.monotonic()

    def tell(done: int, total: int, rounds: int, all_rounds: int) -> None:
        now = time.monotonic()
        if now - printed[0] >= LEAST_SECONDS:
            printed[0] = now
            _print(console, f"{noun} {done}/{total}: round {rounds}/{all_rounds}, {now - began:.0f} s")

    yield tell


@contextmanager
def searching(console: Console) -> Iterator[Callable[[int, int, float], None]]:
    """What is told of trials done, of how many, and of the best value: a line each time."""
    began = time.monotonic()

    def tell(done: int, total: int, best: float) -> None:
        spent = time.monotonic() - began
        _print(console, f"trial {done}/{total}: best {best:.1%} on held-out clients, {spent:.0f} s")

    yield tell


def ranking(lines: Sequence[Line]) -> Table:
    """Settings by accuracy, or by what is chosen by where classes are rare, the best first."""
    shown = Table(box=None, padding=(0, 2, 0, 0))
    for path in lines[0].settings:
        shown.add_column(Text(clean(path)), justify="right", overflow="fold")
    beside = [
        name for name in CALLED if name != "accuracy" and not any(math.isnan(getattr(line, name)) for line in lines)
    ]
    private = ["epsilon"] if any(line.epsilon is not None for line in lines) else []
    for name in ("accuracy", "over seeds", "best on the way", *(CALLED[name] for name in beside), *private):
        shown.add_column(name, justify="right")
    for line in lines:
        values = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in line.settings.values()]
        spread = "" if line.seeds == 1 else f"± {line.spread:.1%} of {line.seeds}"
        others = [f"{getattr(line, name):.3f}" if name == "auc" else f"{getattr(line, name):.1%}" for name in beside]
        others += ["none" if line.epsilon is None else f"{line.epsilon:.3g}"] if private else []
        cells = [Text(clean(value)) for value in values]
        shown.add_row(*cells, f"{line.last:.1%}", spread, f"{line.best:.1%}", *others)
    return shown


def how_ranked(lines: Sequence[Line]) -> str:
    """What settings are sorted by, what a constant answer reaches, and how far the best one is to be believed."""
    best = lines[0]
    constant = "" if math.isnan(best.majority) else f" Always answering its most frequent class: {best.majority:.1%}."
    return (
        f"Sorted by {CALLED[best.by]} on the test set, which is optimistic for the best of many; tune chooses on "
        f"held-out clients.{constant}"
    )


@contextmanager
def download() -> Iterator[Callable[[str, int, int | None], None]]:
    """What is told of a download's name, done and total bytes: a bar on a terminal, a line per file elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        seen: set[str] = set()

        def tell(name: str, done: int, total: int | None) -> None:
            if name not in seen:
                seen.add(name)
                _print(console, f"{name}: {(total or 0) / 1e6:.1f} MB")

        yield tell
        return
    tasks: dict[str, TaskID] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console) as bar:

        def show(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=done, total=total)

        yield show


def _begun(experiment: Experiment) -> list[str]:
    """The first lines of a run: who trains what, and what a guarantee leaves out."""
    private = experiment.private
    return [describe(experiment), *([f"{private.uncovered}."] if private is not None and private.uncovered else [])]


def describe(experiment: Experiment) -> str:
    """Who trains what, in one line."""
    config, data = experiment.config, experiment.data
    sizes = data.sizes
    private = f"; {experiment.private.statement}" if experiment.private else ""
    clock = f"; {experiment.simulation.statement}" if experiment.simulation else ""
    return (
        f"{data.source}: {int(sizes.sum())} examples on {data.num_clients} clients ({sizes.min()} to "
        f"{sizes.max()} each, {config.data.partition}), {data.classes} classes; "
        f"{config.algorithm.name}, {config.model.name}, "
        f"{config.training.clients_per_round} clients a round{' on average' * (config.training.sampling == 'poisson')}"
        f"{private}{clock}"
    )


def closing(summary: Summary, asked_rounds: int) -> list[str]:
    """The last lines: what was reached, and where it lies."""
    measured = CALLED.get(summary.chosen_by or "", "accuracy")
    how = {
        "finished": f"Finished {summary.rounds} rounds",
        "spent": f"Stopped after {summary.rounds} of {asked_rounds} rounds, for one more exceeds the privacy budget,",
        "plateau": f"Stopped after {summary.rounds} of {asked_rounds} rounds, for {measured} has stopped improving,",
        "interrupted": f"Interrupted after {summary.rounds} of {asked_rounds} rounds",
        "diverged": f"Stopped after {summary.rounds} of {asked_rounds} rounds",
    }[summary.status]
    rate = f", {summary.rounds_per_second:.3g} rounds/s" if summary.rounds_per_second else ""
    lines = [f"{how} in {summary.seconds:.1f} s{rate}."]
    if summary.divergence:
        lines.append(
            f"The model diverged: {summary.divergence.metric} is not finite in round {summary.divergence.round}; "
            "lower algorithm.learning_rate, or if it is single clients that send such updates, take a robust algorithm."
        )
    elif summary.first_loss and summary.last_loss and summary.last_loss > summary.first_loss:
        lines.append(
            f"The loss rose from {summary.first_loss:.3g} to {summary.last_loss:.3g} on the clients' first batches; "
            "if the model does not learn, lower algorithm.learning_rate, or the noise if there is any."
        )
    if summary.test_accuracy is not None:
        beside = scores(summary.test_balanced_accuracy, summary.test_auc, summary.majority_share)
        line = f"Test accuracy {summary.test_accuracy:.1%}{beside}, {_sent(summary)}."
        if summary.best_test_accuracy is not None:
            chosen = said(summary.chosen_by or "", summary.chosen_on or "", private=summary.not_covered is not None)
            line += f" Best in round {summary.best_round}, {summary.best_test_accuracy:.1%}: {chosen}."
        lines.append(line)
    if summary.simulated_seconds is not None:
        slowest, last = summary.slowest, ""
        if slowest is not None and 3 * slowest.rounds >= summary.rounds:
            last = f"; client {slowest.client} came last in {slowest.rounds} of {summary.rounds} rounds"
        lines.append(f"That took {_duration(summary.simulated_seconds)} on the clients' links and devices{last}.")
    if summary.empty_rounds:
        lines.append(f"In {summary.empty_rounds} of {summary.rounds} rounds no message arrived.")
    if summary.privacy is not None:
        spent = "" if summary.epsilon is None else f"Epsilon {summary.epsilon:.3g} spent. "
        lines.append(f"{spent}{summary.privacy[0].upper()}{summary.privacy[1:]}.")
    if summary.spent is not None and summary.spent_before is not None:
        whole = together([summary.spent, summary.spent_before])
        lines += (
            [] if whole is None else [f"With the runs that its first model comes from: {whole.sentence()} at most."]
        )
    if summary.not_covered:
        lines.append(f"{summary.not_covered}.")
    if (own := summary.own_tests) is not None:
        lines.append(
            f"On the own test examples of {own.clients} clients: the global model {own.global_accuracy:.1%} (worst "
            f"tenth {own.global_worst_tenth:.1%}), personal models {own.personal_accuracy:.1%} (worst tenth "
            f"{own.personal_worst_tenth:.1%})."
        )
    lines += summary.changes
    if summary.status == "interrupted":
        lines.append(f"Go on with: fedjax-sim resume {quote(str(summary.folder))}")
    lines.append(
        f"Results are in {summary.folder}: {', '.join(sorted(p.name for p in Path(summary.folder).iterdir()))}"
    )
    return lines


def _sent(summary: Summary) -> str:
    up, down = (bits / 8e6 for bits in (summary.uplink_bits, summary.downlink_bits))
    return f"{up:,.1f} MB sent by clients, {down:,.1f} MB by the server"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def _print(console: Console, text: str) -> None:
    say(console, text)


def scores(balanced: float | None, auc: float | None, majority: float | None) -> str:
    """What is to be seen beside an accuracy: what the constant answer reaches, and what does not reward that."""
    told = [] if balanced is None else [f"balanced {balanced:.1%}"]
    told += [] if auc is None else [f"AUC {auc:.3f}"]
    told += [] if majority is None else [f"constant answer {majority:.1%}"]
    return f" ({', '.join(told)})" if told else ""


class _Seen:
    """What has been told of a run so far."""

    def __init__(self) -> None:
        self.rounds, self.started, self.waited, self.accuracy = 0, 0.0, 0.0, "-"
        self.last: Row = {}

    def add(self, rows: list[Row]) -> None:
        self.started = self.started if self.rounds else rows[0]["elapsed_seconds"]
        self.rounds, self.last = self.rounds + len(rows), rows[-1]
        self.waited = sum(row.get("waited_seconds") or 0.0 for row in rows)
        tested = [row for row in rows if row["test_accuracy"] is not None]
        if tested:
            beside = (tested[-1].get(f"test_{name}") for name in ("balanced_accuracy", "auc", "majority"))
            self.accuracy = f"{tested[-1]['test_accuracy']:.1%}{scores(*beside)}"

    def clock(self) -> str:
        """The simulated time, and whether the latest rounds had to wait for anybody to be reached."""
        if "simulated_seconds" not in self.last:
            return ""
        nobody = f", {_duration(self.waited)} of it with nobody to reach" if self.waited else ""
        return f", clock {_duration(self.last['simulated_seconds'])}{nobody}"

    def privacy(self) -> str:
        """What a private run has spent so far, or that it guarantees nothing, in every line."""
        if "guarantee" not in self.last:
            return ""
        epsilon = self.last["epsilon"]
        return ", no privacy guarantee" if epsilon is None else f", epsilon {epsilon:.3g}"

    def speed(self) -> float | None:
        """Rounds per second after the first round."""
        seconds = self.last["elapsed_seconds"] - self.started
        return (self.rounds - 1) / seconds if seconds > 0 else None

    def rate(self) -> str:
        rate = self.speed()
        return f"{rate:.3g} rounds/s" if rate else f"started in {self.started:.1f} s"

    def left(self, rounds: int) -> float:
        return (rounds - self.rounds) / (self.speed() or float("inf"))
