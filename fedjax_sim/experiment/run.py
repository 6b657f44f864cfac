"""Runs an experiment into a folder of its own: config.toml, history.jsonl, summary.json and maybe a figure."""

import json
import os
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import fedjax_sim
from fedjax_sim._validate import InputError
from fedjax_sim.core.buffered import BufferedState
from fedjax_sim.core.devices import replicate
from fedjax_sim.core.evaluate import make_evaluation
from fedjax_sim.core.host import HostMemory
from fedjax_sim.core.tune import candidates, recall, remember, signature, tune_lanes
from fedjax_sim.core.types import RoundState
from fedjax_sim.experiment.build import Experiment, build
from fedjax_sim.experiment.clients import ClientSummary, evaluate_clients
from fedjax_sim.experiment.clock import adacomm, planned
from fedjax_sim.experiment.config import Config, Output, to_toml
from fedjax_sim.experiment.drive import Driver, keeps_on_disk
from fedjax_sim.experiment.history import Row, append, first_not_finite, row_of, speed, with_clock, with_test
from fedjax_sim.privacy import Ledger

TRIAL_PAYS_SECONDS = 60.0  # of training left, from which on trying lane widths is worth their compilations
CALL_SECONDS = 1.0  # about how long one call may run, so that progress is seen and Ctrl-C answered


class Divergence(NamedTuple):
    """Where training left the finite numbers."""

    round: int
    metric: str


class Slowest(NamedTuple):
    """The client whose message came last in most rounds."""

    client: int
    rounds: int


class Reporter(NamedTuple):
    """Who is told how a run goes; all calls come from the thread that called `run`."""

    built: Callable[[Experiment, Path], None]  # data and model are there, compilation follows
    advanced: Callable[[list[Row]], None]  # rounds done since the last call
    stopped: Callable[[], None]  # no more rounds, for whatever reason


class Summary(NamedTuple):
    """What a run reached. Accuracies are shares of the test set."""

    status: str  # "finished", "interrupted", "diverged" or "spent", where the privacy budget allows no other round
    folder: str
    rounds: int  # done
    first_loss: float | None  # mean over clients, of the untrained model in their first local step
    last_loss: float | None  # likewise, of the last round's model
    test_accuracy: float | None  # at the last evaluation
    test_loss: float | None
    best_test_accuracy: float | None
    best_round: int | None
    seconds: float  # of everything after the data were loaded
    start_seconds: float | None  # until the first round was done: mostly compilation
    rounds_per_second: float | None  # after the first round
    uplink_bits: int  # of all clients and rounds
    downlink_bits: int
    simulated_seconds: float | None  # on the clients' links and devices, where there is a clock
    slowest: Slowest | None  # whose message came last in most rounds, where there is a clock
    divergence: Divergence | None
    own_tests: ClientSummary | None  # on the clients' own test rows, if they have any
    epsilon: float | None  # spent, of a private run with a guarantee
    privacy: str | None  # what is guaranteed, or that nothing is
    environment: dict[str, Any]


def run(
    config: Config, reporter: Reporter | None = None, *, draw: Callable[[list[Row], Path], Any] | None = None
) -> Summary:
    """Trains as `config` says, and writes as it goes. Ctrl-C ends it early with what there is.

    Args:
      config: the experiment.
      reporter: who is told of progress; nothing is printed here.
      draw: draws the history into the file `curves.png` of the run folder.

    Returns:
      The summary, which also lies in the run folder as `summary.json`.

    Raises:
      InputError: a setting that does not fit, data that cannot be read, or a run folder that is in use.
    """
    _refuse_used(config.output)  # before the work of building, too
    devices = _devices(config)
    experiment = build(config)
    folder = make_folder(experiment.config)
    reporter = reporter or Reporter(lambda experiment, folder: None, lambda rows: None, lambda: None)
    environment = _environment(devices, config)
    (folder / "config.toml").write_text(_header(environment) + to_toml(experiment.config), encoding="utf-8")

    start, rows = time.perf_counter(), []
    status, divergence, own_tests = "finished", None, None
    last: list[RoundState] = []
    memory, place = _client_memory(experiment, folder)
    with open(folder / "history.jsonl", "x", encoding="utf-8") as file:
        try:
            reporter.built(experiment, folder)
            for new, found in _rounds(experiment, devices, start, last, memory):
                divergence = found
                rows += new
                append(file, new)
                reporter.advanced(new)
            status = "diverged" if divergence else "finished" if len(rows) == config.training.rounds else "spent"
            if divergence is None and rows:
                own_tests = _own_tests(experiment, devices, last[0], memory, folder / "clients.jsonl")
        except KeyboardInterrupt:
            status = "interrupted"
        finally:
            reporter.stopped()
            if place is not None:
                place.cleanup()
    promise = None if experiment.private is None else experiment.private.statement
    seconds = time.perf_counter() - start
    summary = _summary(status, folder, rows, seconds, divergence, own_tests, promise, environment)
    nested = {name: value and value._asdict() for name in ("divergence", "own_tests", "slowest")
              for value in [getattr(summary, name)]}  # fmt: skip
    write_json(folder / "summary.json", {**summary._asdict(), **nested})
    if draw is not None and rows:
        draw(rows, folder / "curves.png")
    return summary


def _client_memory(
    experiment: Experiment, folder: Path
) -> tuple[HostMemory | None, tempfile.TemporaryDirectory[str] | None]:
    """What the clients remember, on disk where there is much of it, and where it lies until the run has ended."""
    if not keeps_on_disk(experiment):
        return None, None
    place = tempfile.TemporaryDirectory(prefix="client_memory_", dir=folder)
    files = Path(place.name) / "files"
    return HostMemory(experiment.algorithm, experiment.model.params, experiment.data.num_clients, files), place


def _own_tests(
    experiment: Experiment, devices: list[Any], state: RoundState, memory: HostMemory | None, file: Path
) -> ClientSummary | None:
    data = experiment.phases[-1].data
    key = replicate(jax.random.key(experiment.config.training.seed), devices)
    return evaluate_clients(experiment, data, state, memory, key, devices, file)


def _rounds(
    experiment: Experiment, devices: list[Any], start: float, last: list[RoundState], memory: HostMemory | None
) -> Iterator[tuple[list[Row], Divergence | None]]:
    """Rows as they come, and at the end the divergence if there is one; the final state is left in `last`."""
    config, training = experiment.config, experiment.config.training
    simulation = experiment.simulation
    slots = experiment.sampler.slots if simulation is None else simulation.places or simulation.slots
    block = min(training.evaluate_every, training.rounds)
    name = signature(
        experiment.model.params,
        devices,
        algorithm=config.algorithm.name,
        batch_size=training.batch_size,
        cohort_size=slots,
    )
    asked = config.execution.lanes
    lanes = recall(name) if asked == "auto" else min(asked, slots)
    undecided = lanes is None and (simulation is None or simulation.turns is None)
    driver = Driver(experiment, devices, lanes=lanes, block=block, memory=memory)
    evaluate = make_evaluation(experiment.model.metric_fn, classes=experiment.data.classes)
    state, private, first_row = driver.start_state(), experiment.private, None
    first_steps = int(planned(config, experiment.data).max())
    ledger = None if private is None else Ledger(private, experiment.data.num_clients)
    done, call, seconds = 0, 1, 0.0  # one round first, for the user to see that it goes
    while done < training.rounds:
        rounds = min(call, training.rounds - done, block - done % block, driver.rounds_left_in_phase(done))
        if training.adapt_steps != "none":
            rounds = min(rounds, training.adapt_every - done % training.adapt_every)
        over, cohorts = False, []  # whether the budget allows no round after these
        if ledger is not None:
            ahead = min(rounds + 1, training.rounds - done)
            cohorts = driver.asked(done, ahead)
            left = ledger.affordable(cohorts)
            over, rounds = left < ahead, min(rounds, left)
            if rounds == 0:
                break
        began = time.perf_counter()
        state, metrics = driver.advance(state, done, rounds)
        if done:
            seconds = (time.perf_counter() - began) / rounds
            call = max(1, int(CALL_SECONDS / seconds))
        elapsed, rows = time.perf_counter() - start, []
        steps = [] if driver.clock is None else driver.clock.ahead(done, rounds)
        for i in range(rounds):
            of_round = jax.tree.map(lambda m, i=i: m[i], metrics)
            per_client = config.output.per_client
            rows.append(row_of(of_round, done + i + 1, per_client=per_client, elapsed_seconds=elapsed))
            if simulation is not None and driver.clock is not None:
                before = steps[i - 1].seconds if i else driver.clock.seconds
                rows[-1] = with_clock(rows[-1], steps[i], before, simulation.bits[0])
            if driver.most is not None:
                rows[-1]["most_steps"] = driver.most
            if ledger is not None:
                epsilon = ledger.spend(cohorts[i])
                rows[-1] |= {"epsilon": epsilon, "guarantee": "none" if epsilon is None else "dp"}
            if metric := first_not_finite(of_round):
                yield rows, Divergence(done + i + 1, metric)
                return
        done += rounds
        divergence = None
        test = driver.test(done - 1) if done % block == 0 or done == training.rounds or over else None
        if test is not None:
            params = jax.device_put(federation(state).params, devices[0])
            values = jax.tree.map(np.asarray, evaluate(params, test))
            values.pop("class_loss", None)
            rows[-1] = with_test(rows[-1], values)
            if not np.isfinite(values["loss"]):
                divergence = Divergence(done, "test_loss")
        first_row = first_row or rows[0]
        yield rows, divergence
        if divergence:
            return
        if training.adapt_steps != "none" and done % training.adapt_every == 0:
            first, now = first_row["loss_before"], rows[-1]["loss_before"]
            if first is not None and now is not None:
                driver.most = adacomm(first_steps, driver.most or first_steps, first, now)
        if (
            undecided and memory is None and seconds * (training.rounds - done) > TRIAL_PAYS_SECONDS
        ):  # what is done is written by now
            undecided = False
            cohort, key = driver.sample_cohort(done - 1)
            widths = candidates(slots, devices)
            tried = tune_lanes(driver.round_fn, state, cohort, key, widths)
            lanes = min(tried, key=lambda n: tried[n])
            remember(name, lanes)
            driver.use_lanes(lanes)
    last.append(federation(state))


def federation(state: Any) -> RoundState:
    """What a round leaves, without the messages that are on their way."""
    return state.federation if isinstance(state, BufferedState) else state


def _devices(config: Config) -> list[Any]:
    available, asked = jax.local_devices(), config.execution.devices
    if asked != "auto" and asked > len(available):
        raise InputError(f'execution.devices: {asked}, but there are {len(available)}; give fewer, or "auto"')
    count = len(available) if asked == "auto" else asked
    return available[: min(count, config.training.clients_per_round or count)]


def make_folder(config: Config) -> Path:
    """Makes the run folder, named after the time unless `output.name` is set, and returns it.

    Raises:
      InputError: it exists and is not empty, or cannot be made.
    """
    output: Output = config.output
    stamp = f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{config.algorithm.name}_{config.data.name}"
    folder = Path(output.folder) / (output.name or stamp)
    try:
        if output.name:
            folder.mkdir(parents=True, exist_ok=True)
            _refuse_used(output)
            return folder
        for number in range(1, 1000):
            try:
                folder.mkdir(parents=True)
                return folder
            except FileExistsError:
                folder = folder.with_name(f"{stamp}_{number + 1}")
    except OSError as error:
        raise InputError(f"output.folder: {str(folder)!r} cannot be made ({error.strerror}); give another") from None
    raise InputError(f"output.folder: {output.folder!r} holds a thousand runs of this second; give output.name")


def _refuse_used(output: Output) -> None:
    folder = Path(output.folder) / output.name
    if output.name and folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"output.name: {str(folder)!r} is not empty; give another output.name, or remove it")


def _environment(devices: list[Any], config: Config) -> dict[str, Any]:
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "fedjax_sim": fedjax_sim.__version__,
        **{package: version(package) for package in packages},
        "python": platform.python_version(),
        "system": platform.platform(),
        "platform": devices[0].platform,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "seed": config.training.seed,
        "data_seed": config.data.seed,
    }


def _header(environment: dict[str, Any]) -> str:
    return "".join(f"# {name} {value}\n" for name, value in environment.items()) + "\n"


def _summary(
    status: str,
    folder: Path,
    rows: list[Row],
    seconds: float,
    divergence: Divergence | None,
    own_tests: ClientSummary | None,
    promise: str | None,
    environment: dict[str, Any],
) -> Summary:
    evaluated = [row for row in rows if row["test_accuracy"] is not None]
    last = evaluated[-1] if evaluated else {"test_accuracy": None, "test_loss": None}
    best = max(evaluated, key=lambda row: row["test_accuracy"], default=None)
    return Summary(
        status=status,
        folder=str(folder),
        rounds=len(rows),
        first_loss=rows[0]["loss_before"] if rows else None,
        last_loss=rows[-1]["loss_before"] if rows else None,
        test_accuracy=last["test_accuracy"],
        test_loss=last["test_loss"],
        best_test_accuracy=best["test_accuracy"] if best else None,
        best_round=best["round"] if best else None,
        seconds=round(seconds, 3),
        start_seconds=rows[0]["elapsed_seconds"] if rows else None,
        rounds_per_second=(rate := speed(rows)) and round(rate, 3),
        uplink_bits=sum(row["uplink_bits"] for row in rows),
        downlink_bits=sum(row["downlink_bits"] for row in rows),
        simulated_seconds=rows[-1].get("simulated_seconds") if rows else None,
        slowest=_slowest(rows),
        divergence=divergence,
        own_tests=own_tests,
        epsilon=rows[-1].get("epsilon") if rows else 0.0 if status == "spent" else None,
        privacy=promise,
        environment=environment,
    )


def _slowest(rows: list[Row]) -> Slowest | None:
    last = Counter(row["slowest"] for row in rows if row.get("slowest") is not None and row["clients"] > 1)
    return Slowest(*last.most_common(1)[0]) if last else None


def write_json(path: Path, value: Any) -> None:
    """Writes `value` so that the file is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
