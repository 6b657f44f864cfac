"""Advances a federation by some rounds, with the population on the device or streamed by cohort: equal results."""

import mmap
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from fedjax_sim import distributed
from fedjax_sim._validate import InputError
from fedjax_sim.core.cohort import select
from fedjax_sim.core.compile import tuned
from fedjax_sim.core.devices import for_every_host, replicate, span_processes
from fedjax_sim.core.host import HostMemory, memory_bytes, with_host_memory
from fedjax_sim.core.simulate import make_rounds
from fedjax_sim.core.types import Cohort, PyTree, RoundMetrics
from fedjax_sim.data import FederatedData, phase_at, stream
from fedjax_sim.experiment.build import Experiment
from fedjax_sim.experiment.federation import held_out_examples, majority, validation_examples
from fedjax_sim.experiment.history import History
from fedjax_sim.experiment.plan import Plan, algorithm_with, rates, round_of, start

SLICE_BYTES = 32e6  # about how much is handed over at once
MEMORY_BYTES = 4e9  # of all that clients remember, from which on it is kept on disk
STREAM_BYTES = 1e9  # of a federation on disk, from which on it is not loaded whole


class Driver:
    """Holds what lies on the devices between calls; the state of training is the caller's."""

    def __init__(
        self,
        experiment: Experiment,
        devices: list[Any],
        *,
        block: int = 1,
        watch: Callable[..., tuple[PyTree, PyTree]] | None = None,
        proceed: Callable[[PyTree], Any] | None = None,
        memory: HostMemory | None = None,
        history: History | None = None,
    ):
        """Prepares for the rounds after those of `history`, `block` at once at most, after each of which `watch` looks
        and `proceed` says whether to go on; `use_lanes` comes before the first."""
        self.experiment, self.devices, self.block, self.memory = experiment, devices, block, memory
        self.watch, self.proceed = watch, proceed
        self.seed = experiment.config.training.seed
        past = () if history is None else history.every("most_steps").tolist()
        self.plan = Plan(experiment, experiment.sampler, experiment.simulation, self.seed, past=past)
        self.slots = self.plan.slots
        self.place = partial(replicate, devices=devices)
        self.placing: dict[str, Any] = {"place": self.place, "devices": devices if span_processes(devices) else None}
        self.key = self.place(jax.random.key(self.seed))
        self.given = {name: np.float32(value) for name, value in rates(experiment).items()}, np.uint32(self.seed)
        self.streams = _streams(experiment)
        self.start = -1  # of the phase that is loaded
        self.population: Any = None
        self.cohorts: Iterator[Cohort] = iter(())
        self.steps: deque[np.ndarray] = deque()  # of the clients in cohorts to come
        self.held: Any = None  # streamed examples of some rounds
        self.held_from = self.held_until = 0
        self.held_out: dict[str, Any] = {}  # what models are measured on, "test" and "validation" as far as they are
        self.majority: dict[str, float] = {}
        if self.streams and experiment.config.training.adapt_steps != "none":
            raise InputError(
                "training.adapt_steps: a streamed population is planned ahead; set execution.memory=device"
            )

    def start_state(self) -> Any:
        """The state before the first round, on the devices."""
        experiment, rows = self.experiment, None if self.memory is None else self.slots
        return self.place(
            start(experiment, experiment.algorithm, experiment.model.params, places=self.slots, rows=rows)
        )

    def round_fn(self, lanes: int | None) -> Callable[..., Any]:
        """The round with this width."""
        return round_of(self.experiment, self.experiment.algorithm, self.devices, lanes)

    def use_lanes(self, lanes: int | None) -> None:
        """Goes on with another width."""
        training = self.experiment.config.training
        if self.memory is not None:
            self.hosted = with_host_memory(self.round_fn(lanes), self.memory)
            self.look = tuned(self.watch or (lambda *given: ((), ())))
        uniform = training.sampling == "uniform" and training.adapt_steps == "none" and self.plan.clock is None
        self.drawn_on_device = uniform and not self.streams and self.memory is None  # the same cohorts as on the host
        slots = self.slots if self.drawn_on_device else None

        def program(given: tuple[dict[str, Any], Any], *arguments: Any) -> tuple[Any, PyTree, RoundMetrics, PyTree]:
            round_fn = round_of(self.experiment, algorithm_with(self.experiment, *given), self.devices, lanes)
            how: dict[str, Any] = {"watch": self.watch, "proceed": self.proceed}
            found = make_rounds(round_fn, cohort_size=slots, max_rounds=self.block, **how)(*arguments)
            return for_every_host(found, self.devices)

        self.program = tuned(program, donate_argnums=(1, 2))

    def advance(self, state: Any, kept: PyTree, done: int, due: np.ndarray) -> tuple[Any, PyTree, RoundMetrics, PyTree]:
        """As many more rounds as `due` bool[rounds], all of one phase: state, what `watch` keeps, and as host arrays
        with a leading axis metrics and what it saw."""
        self._load(done)
        if self.memory is not None:
            return self._advance_hosted(state, kept, done, due)
        if self.streams:
            return self._advance_streamed(state, kept, done, due)
        rounds = len(due)
        ids = most = turn = None
        if not self.drawn_on_device:
            ids, most, turn = self.place(self.plan.tables(done, rounds).padded(self.block))
        state, kept, metrics, seen = self._call(state, kept, self.population, due, (ids, most, turn))
        metrics, seen = jax.tree.map(lambda m: m[:rounds], jax.device_get((metrics, seen)))
        return state, kept, metrics, seen

    def _call(
        self, state: Any, kept: PyTree, source: Any, due: np.ndarray, tables: tuple[Any, ...], first: int = 0
    ) -> tuple[Any, PyTree, RoundMetrics, PyTree]:
        """Rounds of one slice of the population, whose tables begin at row `first`."""
        watched = self.held_out, np.pad(due, (0, self.block - len(due)))
        return self.program(self.given, state, kept, source, self.key, len(due), tables, first, *watched)

    def _advance_hosted(
        self, state: Any, kept: PyTree, done: int, due: np.ndarray
    ) -> tuple[Any, PyTree, RoundMetrics, PyTree]:
        """Round by round, for the rows on disk change hands between them."""
        parts = []
        for number, now in enumerate(due.tolist(), done):
            if self.streams:
                if number >= self.held_until:
                    self._hold(number)
                indices, now_at = self.held._replace(examples=()), number - self.held_from
                cohort = jax.tree.map(lambda x, at=now_at: x[at], indices)._replace(examples=self.held.examples)
            else:
                table = jax.tree.map(lambda rows: self.place(rows[0]), self.plan.tables(number, 1))
                cohort = select(self.population, table.ids)._replace(most_steps=table.most_steps)
            state, metrics = self.hosted(state, cohort, self.key)
            kept, seen = self.look(state, metrics, kept, self.held_out, np.asarray(now))
            parts.append(jax.device_get((metrics, seen)))
            if self.proceed is not None and not self.proceed(kept):
                break
        return state, kept, *jax.tree.map(lambda *m: np.stack(m), *parts)

    def _advance_streamed(
        self, state: Any, kept: PyTree, done: int, due: np.ndarray
    ) -> tuple[Any, PyTree, RoundMetrics, PyTree]:
        parts, last = [], done + len(due)
        while done < last:
            if done >= self.held_until:
                self._hold(done)
            now = min(last, self.held_until) - done
            none = (None, None, None)
            state, kept, metrics, seen = self._call(state, kept, self.held, due[:now], none, done - self.held_from)
            parts.append(jax.tree.map(lambda m, now=now: m[:now], (metrics, seen)))
            done, due = done + now, due[now:]
            if self.proceed is not None and not self.proceed(kept):
                break
        return state, kept, *jax.tree.map(lambda *m: np.concatenate(m), *jax.device_get(parts))

    def _hold(self, first: int) -> None:
        """Takes the next slice of examples, which begins with this round."""
        self.held = next(self.cohorts)
        if self.plan.clock is not None:
            self.held = self.held._replace(most_steps=self.place(self.steps.popleft()))
        self.held_from, self.held_until = first, first + self.held.ids.shape[0]

    def sample_cohort(self, round: int) -> tuple[Cohort, Any]:
        """Some cohort to time rounds with, and the key."""
        ids = self.experiment.sampler.draw(self.seed, round)
        if not self.streams:
            return select(self.population, self.place(ids)), self.key
        data = phase_at(self.experiment.phases, round).data
        return next(iter(stream(data, [ids], **self.placing))), self.key

    def _load(self, round: int) -> None:
        phase = phase_at(self.experiment.phases, round)
        if phase.start == self.start:
            return
        self.start = phase.start
        parts = {"test": held_out_examples(phase.data), "validation": validation_examples(phase.data)}
        self.held_out = {on: self.place(part) for on, part in parts.items() if part is not None}
        self.majority = {on: majority(part["labels"]) for on, part in parts.items() if part is not None}
        if self.streams:
            self.steps = deque()  # another one, for the tables of the phase before may still be read ahead
            self.cohorts = stream(phase.data, self._tables(round, phase.data, self.steps), **self.placing)
            self.held_until = round
        else:
            self.population = None  # frees the one before first
            self.population = phase.data.population(self.place)

    def _tables(self, first: int, data: FederatedData, steps: deque[np.ndarray]) -> Iterator[np.ndarray]:
        """The cohorts from a round on, some rounds at a time: as many as a slice of moderate size has room for. What
        each client does at most goes into `steps`."""
        last, experiment = self.experiment.config.training.rounds, self.experiment
        plan = Plan(experiment, experiment.sampler, experiment.simulation, self.seed)  # further on than the rounds are
        width = sum(array[:1].nbytes for array in data.examples.values())
        one = width * self.slots * int(data.offsets[-1]) / data.num_clients
        rounds = int(min(max(1, SLICE_BYTES // max(one, 1)), self.block))
        for begin in range(first, last, rounds):
            now = min(rounds, last - begin)
            ids, most, _ = plan.tables(begin, now)
            rest = np.full((rounds - now, self.slots), -1, np.int32)
            if most is not None:
                steps.append(np.concatenate([most, rest]))
            yield np.concatenate([ids, rest])


def keeps_on_disk(experiment: Experiment) -> bool:
    """Whether what the clients remember is kept on disk."""
    asked = experiment.config.execution.client_memory
    if experiment.simulation is not None and experiment.simulation.turns is not None:
        return False
    one = memory_bytes(experiment.algorithm, experiment.model.params, experiment.data.num_clients)
    return one > 0 and (asked == "disk" or (asked == "auto" and one * experiment.data.num_clients > MEMORY_BYTES))


def refuse_on_several(experiment: Experiment) -> None:
    """Several processes can run it, where there are several.

    Raises:
      InputError: they cannot.
    """
    if distributed.several() and keeps_on_disk(experiment):
        raise InputError(
            "execution.client_memory: several processes cannot share what clients remember on disk; set it to device, "
            "or run one process"
        )


def _streams(experiment: Experiment) -> bool:
    asked, data = experiment.config.execution.memory, experiment.data
    if experiment.simulation is not None and experiment.simulation.turns is not None:
        return False
    if asked != "auto":
        return asked == "stream"
    on_disk = sum(array.nbytes for array in data.examples.values() if isinstance(array.base, mmap.mmap))
    return on_disk >= STREAM_BYTES
