"""Advances a federation by some rounds, with the population on the device or streamed by cohort: equal results."""

import math
import mmap
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice, tee
from typing import Any

import jax
import numpy as np

from fedjax_sim._validate import InputError
from fedjax_sim.core.buffered import Turn, init_buffered, make_buffered_round
from fedjax_sim.core.cohort import select
from fedjax_sim.core.devices import replicate
from fedjax_sim.core.host import HostMemory, memory_bytes, with_host_memory
from fedjax_sim.core.round import init, make_round
from fedjax_sim.core.simulate import make_simulation
from fedjax_sim.core.types import Cohort, RoundMetrics, RoundState
from fedjax_sim.data import FederatedData, draw_rounds, phase_at, stream
from fedjax_sim.experiment.build import Experiment
from fedjax_sim.experiment.clock import VERSIONS, Clock
from fedjax_sim.experiment.federation import held_out_examples, majority, validation_examples
from fedjax_sim.experiment.history import History
from fedjax_sim.network import ServerStep

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
        block: int,
        memory: HostMemory | None = None,
        history: History | None = None,
    ):
        """Prepares for the rounds after those of `history`; `use_lanes` comes before the first."""
        self.experiment, self.devices, self.block, self.memory = experiment, devices, block, memory
        self.simulation = simulation = experiment.simulation
        self.slots = experiment.sampler.slots if simulation is None else simulation.places or simulation.slots
        self.most: int | None = None  # local steps of a client at most, from now on
        past = () if history is None else history.every("most_steps").tolist()
        self.past = [None if math.isnan(most) else int(most) for most in past]  # of rounds that a resumed run has done
        self.clock = self.turns = None
        if simulation is not None:
            steps = simulation.schedule(lambda round: self.past[round] if round < len(self.past) else self.most)
            if simulation.turns is not None:
                steps, again = tee(steps)
                self.turns = islice(simulation.turns(again), len(self.past), None)
            self.clock = Clock(steps)
        self.seed = experiment.config.training.seed
        self.place = partial(replicate, devices=devices)
        self.key = self.place(jax.random.key(self.seed))
        self.streams = _streams(experiment)
        self.start = -1  # of the phase that is loaded
        self.population: Any = None
        self.cohorts: Iterator[Cohort] = iter(())
        self.steps: deque[np.ndarray] = deque()  # of the clients in cohorts to come
        self.held: Any = None  # streamed examples of some rounds
        self.held_from = self.held_until = 0
        self.held_out: dict[str, Any] = {}
        self.majority: dict[str, float] = {}
        if self.streams and experiment.config.training.adapt_steps != "none":
            raise InputError(
                "training.adapt_steps: a streamed population is planned ahead; set execution.memory=device"
            )

    def start_state(self) -> Any:
        """The state before the first round, on the devices."""
        experiment = self.experiment
        given = (experiment.algorithm, experiment.model.params, experiment.data.num_clients)
        if self.simulation is not None and self.turns is not None:
            mixing = self.simulation.mixing
            state: Any = init_buffered(*given, places=self.simulation.places, versions=VERSIONS, mixing=mixing)
        else:
            state = init(*given, memory_rows=None if self.memory is None else self.slots)
        return self.place(state)

    def round_fn(self, lanes: int | None) -> Callable[..., Any]:
        """The round with this width."""
        given = work(self.experiment, self.devices, lanes)
        if self.simulation is None or self.turns is None:
            return make_round(self.experiment.algorithm, **given)
        how = {"discount": self.simulation.discount, "mixing": self.simulation.mixing}
        return make_buffered_round(self.experiment.algorithm, **how, **given)

    def use_lanes(self, lanes: int | None) -> None:
        """Goes on with another width."""
        training = self.experiment.config.training
        if self.memory is not None:
            self.hosted = with_host_memory(self.round_fn(lanes), self.memory)
        uniform = training.sampling == "uniform" and training.adapt_steps == "none" and self.simulation is None
        self.drawn_on_device = uniform and not self.streams and self.memory is None  # the same cohorts as on the host
        slots = self.slots if self.drawn_on_device else None
        self.simulate = make_simulation(self.round_fn(lanes), cohort_size=slots, max_rounds=self.block)

    def asked(self, first: int, rounds: int) -> list[np.ndarray]:
        """The clients that are asked in these rounds, arrived or not."""
        if self.clock is None:
            return list(draw_rounds(self.experiment.sampler, self.seed, first, rounds))
        return [step.asked for step in self.clock.ahead(first, rounds)]

    def _drawn(self, steps: list[ServerStep] | None, first: int, rounds: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Who trains in these rounds, int32[rounds, C], and their local steps at most, if anything limits them."""
        if steps is None:
            ids = draw_rounds(self.experiment.sampler, self.seed, first, rounds)
            return ids, None if self.most is None else np.full(ids.shape, self.most, np.int32)
        ids, most = np.full((rounds, self.slots), -1, np.int32), np.zeros((rounds, self.slots), np.int32)
        for i, step in enumerate(steps):
            ids[i, : len(step.begun)], most[i, : len(step.begun)] = step.begun, step.begun_steps
        return ids, most

    def rounds_left_in_phase(self, done: int) -> int:
        """Rounds until the data change."""
        later = [phase.start for phase in self.experiment.phases if phase.start > done]
        return min(later) - done if later else self.experiment.config.training.rounds - done

    def advance(self, state: RoundState, done: int, rounds: int) -> tuple[RoundState, RoundMetrics]:
        """`rounds` more rounds, all of one phase; metrics as host arrays with a leading axis."""
        self._load(done)
        if self.memory is not None:
            return self._advance_hosted(state, done, rounds)
        if self.streams:
            return self._advance_streamed(state, done, rounds)
        if self.turns is not None:
            return self._advance_buffered(state, rounds)
        cohorts = most = None
        if not self.drawn_on_device:
            ids, steps = self._ahead(done, rounds)
            cohorts, most = self._padded(ids), None if steps is None else self._padded(steps)
        state, metrics = self.simulate(state, self.population, self.key, rounds, cohorts, most_steps=most)
        return state, jax.device_get(metrics)

    def _ahead(self, done: int, rounds: int) -> tuple[np.ndarray, np.ndarray | None]:
        return self._drawn(None if self.clock is None else self.clock.ahead(done, rounds), done, rounds)

    def _padded(self, table: np.ndarray) -> Any:
        """A row for each round of a full call, on the devices."""
        return self.place(np.concatenate([table, np.repeat(table[-1:], self.block - len(table), axis=0)]))

    def _advance_buffered(self, state: Any, rounds: int) -> tuple[Any, RoundMetrics]:
        assert self.turns is not None
        table = jax.tree.map(lambda *row: self._padded(np.stack(row)), *islice(self.turns, rounds))
        turns = Turn(table.places, table.versions, table.arrived)
        state, metrics = self.simulate(
            state, self.population, self.key, rounds, table.ids, most_steps=table.most_steps, turns=turns
        )
        return state, jax.device_get(metrics)

    def _advance_hosted(self, state: RoundState, done: int, rounds: int) -> tuple[RoundState, RoundMetrics]:
        """Round by round, for the rows on disk change hands between them."""
        parts = []
        for number in range(done, done + rounds):
            if self.streams:
                if number >= self.held_until:
                    self._hold(number)
                *indices, examples, most = self.held
                ids, starts, sizes, rows = (array[number - self.held_from] for array in indices)
                most = None if most is None else most[number - self.held_from]
                cohort = Cohort(ids, starts, sizes, rows, examples, most)
            else:
                ids, steps = self._ahead(number, 1)
                cohort = select(self.population, self.place(ids[0]))
                cohort = cohort._replace(most_steps=None if steps is None else self.place(steps[0]))
            state, metrics = self.hosted(state, cohort, self.key)
            parts.append(jax.device_get(metrics))
        return state, jax.tree.map(lambda *m: np.stack(m), *parts)

    def _advance_streamed(self, state: RoundState, done: int, rounds: int) -> tuple[RoundState, RoundMetrics]:
        parts, last = [], done + rounds
        while done < last:
            if done >= self.held_until:
                self._hold(done)
            now = min(last, self.held_until) - done
            state, metrics = self.simulate(state, self.held, self.key, now, first=done - self.held_from)
            parts.append(jax.tree.map(lambda m, now=now: m[:now], metrics))
            done += now
        return state, jax.tree.map(lambda *m: np.concatenate(m), *jax.device_get(parts))

    def _hold(self, first: int) -> None:
        """Takes the next slice of examples, which begins with this round."""
        self.held = next(self.cohorts)
        if self.simulation is not None:
            self.held = self.held._replace(most_steps=self.place(self.steps.popleft()))
        self.held_from, self.held_until = first, first + self.held.ids.shape[0]

    def examined(self, round: int) -> dict[str, Any]:
        """What the model of this round is measured on, on the first device: "test" and "validation", as far as there
        are such examples. `majority` has the share of the most frequent class in each."""
        self._load(round)
        return self.held_out

    def sample_cohort(self, round: int) -> tuple[Cohort, Any]:
        """Some cohort to time rounds with, and the key."""
        ids = self.experiment.sampler.draw(self.seed, round)
        if not self.streams:
            return select(self.population, ids), self.key
        data = phase_at(self.experiment.phases, round).data
        return next(iter(stream(data, [ids], place=self.place))), self.key

    def _load(self, round: int) -> None:
        phase = phase_at(self.experiment.phases, round)
        if phase.start == self.start:
            return
        self.start = phase.start
        parts = {"test": held_out_examples(phase.data), "validation": validation_examples(phase.data)}
        self.held_out = {on: jax.device_put(part, self.devices[0]) for on, part in parts.items() if part is not None}
        self.majority = {on: majority(part["labels"]) for on, part in parts.items() if part is not None}
        if self.streams:
            self.cohorts = stream(phase.data, self._tables(round, phase.data), place=self.place)
            self.held_until = round
        else:
            self.population = None  # frees the one before first
            self.population = phase.data.population(self.place)

    def _tables(self, first: int, data: FederatedData) -> Iterator[np.ndarray]:
        """The cohorts from a round on, some rounds at a time: as many as a slice of moderate size has room for."""
        last, simulation = self.experiment.config.training.rounds, self.simulation
        clock = None if simulation is None else Clock(simulation.schedule(None))
        width = sum(array[:1].nbytes for array in data.examples.values())
        one = width * self.slots * int(data.offsets[-1]) / data.num_clients
        rounds = int(min(max(1, SLICE_BYTES // max(one, 1)), self.block))
        for start in range(first, last, rounds):
            now = min(rounds, last - start)
            ids, steps = self._drawn(None if clock is None else clock.ahead(start, now), start, now)
            rest = np.full((rounds - now, self.slots), -1, np.int32)
            if steps is not None:
                self.steps.append(np.concatenate([steps, rest]))
            yield np.concatenate([ids, rest])


def work(experiment: Experiment, devices: list[Any], lanes: int | None) -> dict[str, Any]:
    """What `make_round` is given beside the algorithm."""
    training, private = experiment.config.training, experiment.private
    return {
        "batch_size": training.batch_size,
        "local_epochs": training.local_epochs,
        "local_steps": training.local_steps,
        "devices": devices,
        "lanes": lanes,
        "local_sampling": private.local_sampling if private else "epochs",
    }


def keeps_on_disk(experiment: Experiment) -> bool:
    """Whether what the clients remember is kept on disk."""
    asked = experiment.config.execution.client_memory
    if experiment.simulation is not None and experiment.simulation.turns is not None:
        return False
    one = memory_bytes(experiment.algorithm, experiment.model.params, experiment.data.num_clients)
    return one > 0 and (asked == "disk" or (asked == "auto" and one * experiment.data.num_clients > MEMORY_BYTES))


def _streams(experiment: Experiment) -> bool:
    asked, data = experiment.config.execution.memory, experiment.data
    if experiment.simulation is not None and experiment.simulation.turns is not None:
        return False
    if asked != "auto":
        return asked == "stream"
    on_disk = sum(array.nbytes for array in data.examples.values() if isinstance(array.base, mmap.mmap))
    return on_disk >= STREAM_BYTES
