"""Trains worlds: those that share a structure as one compiled program, each over several seeds, none twice."""

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_sim._text import parse_json
from fedjax_sim._validate import InputError, shown
from fedjax_sim.attacks import DATA_ATTACKS
from fedjax_sim.data import SOURCES, FederatedData
from fedjax_sim.data.fingerprint import fingerprint
from fedjax_sim.diagnose.worlds import World, remembering
from fedjax_sim.experiment.build import Experiment
from fedjax_sim.experiment.config import Config, Training
from fedjax_sim.experiment.drive import keeps_on_disk
from fedjax_sim.experiment.folder import append_lines, record, whole_lines
from fedjax_sim.experiment.history import History, rows_of
from fedjax_sim.experiment.loop import Loop
from fedjax_sim.experiment.per_client import ENTRY, read_table
from fedjax_sim.experiment.per_client import FILE as TABLE
from fedjax_sim.experiment.plan import federation
from fedjax_sim.experiment.recipe import continuous
from fedjax_sim.experiment.record import marked
from fedjax_sim.experiment.trials import SEED, STATE_BYTES, Ground, Program, Progress, own_ground, state_bytes

FILE = "worlds.jsonl"
GROUND_BYTES, GROUNDS = 1e9, 4  # what federations that are on the device together may take, and how many they are
LIGHT_BYTES = 5e7  # of federations that stay on the device while their program rests
KEPT_BYTES = 1e9  # of worlds that are remembered as they were built, and of the data set that was read last
ALONE = "alone"
VARIED = ("learning_rate", "server_learning_rate", "mu")
LAST = 0.2  # the share of the evaluations, the last ones, over which an accuracy is averaged


class Course(NamedTuple):
    """How one run went."""

    rounds: list[int]  # after which it was tested
    accuracy: list[float | None]
    loss: list[float | None]
    train_loss: list[float | None]  # mean over clients, on their first batches of the round
    sent_bits: int
    seconds: float  # on the simulated clock, if there is one

    @property
    def ended(self) -> float:
        """Mean accuracy over the last evaluations, a fifth of them."""
        return float(np.mean([accuracy or 0.0 for accuracy in self._last(self.accuracy)]))

    @property
    def fitted(self) -> float:
        """Mean training loss over the same time; infinite where it was not finite."""
        return float(np.mean([math.inf if loss is None else loss for loss in self._last(self.train_loss)]))

    def _last(self, values: list[float | None]) -> list[float | None]:
        return values[-max(1, round(LAST * len(values))) :]


class Seen(NamedTuple):
    """What a run recorded."""

    history: History
    clients: np.ndarray  # what single ones did in each round, in the columns of `per_client`


NOT_SEEN = Seen(History(), np.zeros(0, ENTRY))


def finished(folder: Path, rounds: int) -> Seen | None:
    """What the run in `folder` recorded, if it did all these rounds and kept every client's values; None otherwise."""
    path = folder / "history.jsonl"
    history = History(rows_of(path)) if path.is_file() else History()
    clients = read_table(folder / TABLE) if len(history) == rounds else None
    return None if clients is None else Seen(history, clients)


class Told(NamedTuple):
    """How far the work is, for whoever watches."""

    stage: str
    done: int  # runs of this stage
    total: int
    running: int  # those that are trained now
    rounds: int  # that they have done
    all_rounds: int

    @property
    def share(self) -> float:
        """Of the stage, by runs and what those under way have done."""
        return min(1.0, (self.done + self.running * self.rounds / max(self.all_rounds, 1)) / max(self.total, 1))


class Laboratory:
    """Where worlds are trained. What is in the folder already is not trained again."""

    def __init__(
        self,
        folder: Path,
        devices: list[Any],
        *,
        data: FederatedData | None = None,
        mark: str = "",
        keep: Callable[[], None] = lambda: None,
        told: Callable[[Told], None] = lambda told: None,
    ):
        """Opens a laboratory.

        Args:
          folder: for `worlds.jsonl`, a line for each run as soon as it has ended.
          devices: runs are dealt to them.
          data: the clients' data, instead of what configurations name.
          mark: of what runs depend on beside their settings, see `Marks`; only runs with the same are known again.
          keep: called before anything is written into the folder.
          told: who watches.
        """
        self.folder, self.devices, self.data, self.told, self.stage = folder, devices, data, told, ""
        self.mark, self.keep = mark or marked({} if data is None else fingerprint(data)), keep
        self.sources = {name: remembering(load, KEPT_BYTES) for name, load in SOURCES.items()}
        self.known = _read(folder / FILE)
        self.trained, self.rounds, self.compiled, self.seconds = 0, 0, 0, 0.0  # of this process
        self.programs: dict[str, Program] = {}
        self.held: dict[str, list[str]] = {}  # which federations are in each program
        self.built: dict[str, Experiment] = {}
        self.structures: dict[str, tuple[str, Config]] = {}  # of every world that was built, with what it is settled on

    @contextmanager
    def work(self, stage: str) -> Iterator[None]:
        """What `told` calls the runs inside."""
        self.stage, before = stage, self.stage
        yield
        self.stage = before

    def experiment(self, world: World) -> Experiment:
        """The world built, with the first training seed; the last ones are remembered.

        Raises:
          InputError: it cannot be.
        """
        key = world.key()
        if key not in self.built:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the user has seen those of the run itself
                built = world.build(self.data, self.sources)
            while self.built and _bytes(built) * (len(self.built) + 1) > KEPT_BYTES:
                del self.built[next(iter(self.built))]
            self.built[key] = built
            self.structures[key] = _structure(built), built.config
        return self.built[key]

    def _known(self, world: World) -> tuple[str, Config]:
        key = world.key()
        if key not in self.structures:
            self.experiment(world)
        return self.structures[key]

    def train(self, worlds: Sequence[World], seeds: Sequence[int]) -> list[list[Course]]:
        """Every world under every seed.

        Raises:
          InputError: a world that cannot be built.
        """
        keys = [world.key() for world in worlds]
        missing = {(key, seed): world for key, world in zip(keys, worlds, strict=True) for seed in seeds
                   if self._line(key, seed) not in self.known}  # fmt: skip
        began, self.total, self.done = time.perf_counter(), len(missing), 0
        groups: dict[str, list[tuple[World, int]]] = {}
        for (_, seed), world in missing.items():
            groups.setdefault(self._known(world)[0], []).append((world, seed))
        for structure, runs in groups.items():
            train = self._alone if structure == ALONE else self._as_one
            train(structure, runs)
        self.seconds += time.perf_counter() - began
        return [[self.known[self._line(key, seed)] for seed in seeds] for key in keys]

    def _as_one(self, structure: str, runs: list[tuple[World, int]]) -> None:
        grounds: dict[str, Ground] = {}
        for world, _ in runs:
            key = _data_key(world)
            if key not in grounds:
                grounds[key] = own_ground(self.experiment(world))
        program = self._program(structure, runs[0][0], list(grounds.values()))
        room = program.room
        names, slots = list(grounds), program.slots
        for first in range(0, len(names), room):
            here = names[first : first + room]
            mine = [run for run in runs if _data_key(run[0]) in here]
            if self.held.get(structure) != here:
                program.move([grounds[name] for name in here])
                self.held[structure] = here
            for start in range(0, len(mine), slots):
                part = mine[start : start + slots]
                trials = [{**_traced(self._known(world)[1], program.varied), SEED: seed}
                          for world, seed in part]  # fmt: skip
                program.load(trials, [here.index(_data_key(world)) for world, _ in part])
                progress = []
                for reached in program:
                    progress.append(reached)
                    self.told(Told(self.stage, self.done, self.total, len(part), reached.rounds, program.rounds))
                self._keep([(world, seed, _course(progress, i)) for i, (world, seed) in enumerate(part)])
        if room * _bytes(self.experiment(runs[0][0])) > LIGHT_BYTES:
            program.release()
            del self.held[structure]

    def _program(self, structure: str, world: World, grounds: list[Ground]) -> Program:
        """The program of this structure, compiled when it first runs."""
        rows = max(ground.rows for ground in grounds)
        known = self.programs.get(structure)
        if known is not None and known.rows >= rows:
            return known
        experiment = self.experiment(world)
        room = _room(experiment)
        varied = [f"algorithm.{name}" for name in _varied(experiment.config)]
        slots = int(min(16 * len(self.devices), max(1, STATE_BYTES // max(state_bytes(experiment), 1))))
        self.programs[structure] = Program(
            experiment, varied, self.devices, slots=slots, grounds=[grounds[0]] * room, rows=rows
        )
        self.held.pop(structure, None)
        self.compiled += 1
        return self.programs[structure]

    def _alone(self, structure: str, runs: list[tuple[World, int]]) -> None:
        """Runs whose clients' memory is kept on disk, one by one."""
        for world, seed in runs:
            seen = self._watched(world.set({SEED: seed}), clients=False)
            self._keep([(world, seed, _told_by(seen.history, world.config.training))])

    def states(self, world: World, seeds: Sequence[int]) -> list[Any]:
        """What a federation remembers at the end, under each seed, on the host. Trained each time it is asked for.

        Raises:
          InputError: a world that is not swept.
        """
        structure, config = self._known(world)
        if structure == ALONE:
            raise InputError("execution.client_memory: states of runs that keep it on disk are not kept; leave it out")
        ground = own_ground(self.experiment(world))
        program = self._program(structure, world, [ground])
        program.move([ground])
        self.held.pop(structure, None)
        found = []
        for first in range(0, len(seeds), program.slots):
            part = seeds[first : first + program.slots]
            program.load([{**_traced(config, program.varied), SEED: seed} for seed in part])
            for reached in program:
                self.told(Told(self.stage, first, len(seeds), len(part), reached.rounds, program.rounds))
            states = federation(program.states)
            states = jax.tree.map(lambda x, seats=program.seats: np.asarray(x)[seats], states)
            found += [jax.tree.map(lambda x, i=i: x[i], states) for i in range(len(part))]
            self.trained += len(part)
        return found

    def observed(self, world: World) -> Seen:
        """The world's history, with every client's values, of its own seed."""
        self.done, self.total = 0, 1
        return self._watched(world, clients=True)

    def _watched(self, world: World, *, clients: bool) -> Seen:
        """Trains as `run` does, but leaves nothing behind."""
        rounds = world.config.training.rounds
        off: dict[str, Any] = {"output.checkpoint_every": rounds + 1, "execution.lanes": None}
        config = world.set({**off, "output.per_client": clients, "execution.client_memory": "device"})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            experiment = config.build(self.data, self.sources)
        history, entries = History(), [NOT_SEEN.clients]
        loop = Loop(experiment, self.devices[:1], None, self.folder, history)
        for step in loop.steps(lambda: False):
            history.add(step.rows)
            entries += [] if step.entries is None else [step.entries]
            self.told(Told(self.stage, self.done, self.total, 1, len(history), rounds))
        return Seen(history, np.concatenate(entries))

    def _line(self, key: str, seed: int) -> str:
        return f"{self.mark} {seed} {key}"

    def _keep(self, results: list[tuple[World, int, Course]]) -> None:
        lines = {self._line(world.key(), seed): course for world, seed, course in results}
        self.keep()
        texts = (json.dumps({"run": line, **course._asdict()}) for line, course in lines.items())
        append_lines(self.folder / FILE, texts)
        self.known |= lines
        self.done += len(results)
        self.trained += len(results)
        self.rounds += sum(course.rounds[-1] for course in lines.values())


def _structure(experiment: Experiment) -> str:
    """Equal for worlds of one compiled program and so many rounds; "alone" for those that are trained by themselves."""
    config = experiment.config
    if keeps_on_disk(experiment):
        return ALONE
    tree = config.model_dump(exclude={"output", "execution", "data", "heterogeneity"})
    tree["training"].pop("seed")
    if config.attack.name in DATA_ATTACKS or config.attack.name == "none":
        tree.pop("attack")
    for name in _varied(config):
        tree["algorithm"].pop(name)
    data = experiment.data
    ground = own_ground(experiment)
    shapes = {name: [(field, str(array.dtype), array.shape[1:]) for field, array in sorted(part.items())]
              for name, part in (("train", data.examples), ("test", ground.test))}  # fmt: skip
    counts = [data.num_clients, experiment.sampler.slots, _room(experiment)]
    counts += [
        (phase.start, len(next(iter(test.values())))) for phase, test in zip(ground.phases, ground.tests, strict=True)
    ]
    return json.dumps([tree, shapes, counts], sort_keys=True, default=list)


def _varied(config: Config) -> list[str]:
    """Settings of [algorithm] that worlds of one program may differ in; under privacy none, which fixes them."""
    free = frozenset() if config.privacy.mechanism != "none" else continuous(config)
    return [name for name in VARIED if name in free and getattr(config.algorithm, name) is not None]


def _traced(config: Config, varied: Sequence[str]) -> dict[str, float]:
    return {path: getattr(config.algorithm, path.partition(".")[2]) for path in varied}


def _data_key(world: World) -> str:
    """Equal for worlds whose clients have the same data and cohorts."""
    config = world.config
    tree = config.model_dump(include={"data", "heterogeneity", "attack"})
    changes = [change.name for change in world.changes]
    return json.dumps([tree, changes], sort_keys=True, default=list)


def _room(experiment: Experiment) -> int:
    """Federations of this size that are held at once."""
    return int(min(GROUNDS, max(1, GROUND_BYTES // _bytes(experiment))))


def _bytes(experiment: Experiment) -> int:
    return 1 + sum(array.nbytes for array in experiment.data.examples.values())


def _course(progress: Sequence[Progress], place: int) -> Course:
    last = progress[-1]
    accuracy, loss, train_loss = (
        [_finite(getattr(p, name)[place]) for p in progress] for name in ("accuracy", "loss", "train_loss")
    )
    rounds, sent, seconds = [p.rounds for p in progress], int(last.sent_bits[place]), float(last.seconds[place])
    return Course(rounds, accuracy, loss, train_loss, sent, seconds)


def _told_by(history: History, training: Training) -> Course:
    """The course of a run by its history. One that ended early, diverged say, stays as it was last tested."""
    every = min(training.evaluate_every, training.rounds)
    rounds = [*range(every, training.rounds, every), training.rounds]
    columns = {name: history.every(name) for name in ("test_accuracy", "test_loss", "loss_before")}
    values: list[tuple[float | None, ...]] = []
    for number in rounds:
        known = values[-1] if values else (0.0, None, None)
        tested = number <= len(history) and not math.isnan(columns["test_accuracy"][number - 1])
        values.append(tuple(_finite(column[number - 1]) for column in columns.values()) if tested else known)
    accuracy, loss, train_loss = (list(each) for each in zip(*values, strict=True))
    sent = sum(int(history.column(f"{way}_bits")[1].sum()) for way in ("uplink", "downlink"))
    return Course(rounds, accuracy, loss, train_loss, sent, (history.last or {}).get("simulated_seconds") or 0.0)


def _finite(value: Any) -> float | None:
    return float(f"{float(value):.7g}") if math.isfinite(value) else None


def _read(path: Path) -> dict[str, Course]:
    """Runs that are done."""
    found = {}
    try:
        for line in whole_lines(path):
            tree = parse_json(line)
            if not isinstance(tree, dict):
                raise ValueError(f"{shown(tree)} is no table")
            name = str(tree.pop("run", ""))
            found[name] = record(Course, tree, "rounds", "accuracy", "loss", "train_loss")
    except ValueError as error:
        raise InputError(f"{path}: it holds no runs of a diagnosis ({error}); give another folder") from None
    return found
