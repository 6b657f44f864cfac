"""Advances a federation by some rounds, with the population on the device or streamed by cohort: equal results."""

import mmap
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from fedjax_sim.core.cohort import select
from fedjax_sim.core.devices import replicate
from fedjax_sim.core.host import HostMemory, memory_bytes, with_host_memory
from fedjax_sim.core.round import RoundFn, make_round
from fedjax_sim.core.simulate import make_simulation
from fedjax_sim.core.types import Cohort, RoundMetrics, RoundState
from fedjax_sim.data import FederatedData, draw_rounds, phase_at, stream
from fedjax_sim.experiment.build import Experiment
from fedjax_sim.experiment.federation import held_out_examples

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
        lanes: int | None,
        block: int,
        memory: HostMemory | None = None,
    ):
        self.experiment, self.devices, self.block, self.memory = experiment, devices, block, memory
        self.seed = experiment.config.training.seed
        self.place = partial(replicate, devices=devices)
        self.key = self.place(jax.random.key(self.seed))
        self.streams = _streams(experiment)
        self.start = -1  # of the phase that is loaded
        self.population: Any = None
        self.cohorts: Iterator[Cohort] = iter(())
        self.held: Any = None  # streamed examples of some rounds
        self.held_from = self.held_until = 0
        self.held_out: Any = None
        self.use_lanes(lanes)

    def round_fn(self, lanes: int | None) -> RoundFn:
        """The round with this width."""
        training, private = self.experiment.config.training, self.experiment.private
        return make_round(
            self.experiment.algorithm,
            batch_size=training.batch_size,
            local_epochs=training.local_epochs,
            local_steps=training.local_steps,
            devices=self.devices,
            lanes=lanes,
            local_sampling=private.local_sampling if private else "epochs",
        )

    def use_lanes(self, lanes: int | None) -> None:
        """Goes on with another width."""
        uniform = self.experiment.config.training.sampling == "uniform"
        if self.memory is not None:
            self.hosted = with_host_memory(self.round_fn(lanes), self.memory)
        self.drawn_on_device = uniform and not self.streams and self.memory is None  # the same cohorts as on the host
        slots = self.experiment.sampler.slots if self.drawn_on_device else None
        self.simulate = make_simulation(self.round_fn(lanes), cohort_size=slots, max_rounds=self.block)

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
        cohorts = None
        if not self.drawn_on_device:
            ids = draw_rounds(self.experiment.sampler, self.seed, done, rounds)
            cohorts = self.place(np.concatenate([ids, np.repeat(ids[-1:], self.block - rounds, axis=0)]))
        state, metrics = self.simulate(state, self.population, self.key, rounds, cohorts)
        return state, jax.tree.map(np.asarray, metrics)

    def _advance_hosted(self, state: RoundState, done: int, rounds: int) -> tuple[RoundState, RoundMetrics]:
        """Round by round, for the rows on disk change hands between them."""
        parts = []
        for number in range(done, done + rounds):
            if self.streams:
                if number >= self.held_until:
                    self.held = next(self.cohorts)
                    self.held_from, self.held_until = number, number + self.held.ids.shape[0]
                ids, starts, sizes, rows = (array[number - self.held_from] for array in self.held[:4])
                cohort = Cohort(ids, starts, sizes, rows, self.held.examples)
            else:
                cohort = select(self.population, self.place(self.experiment.sampler.draw(self.seed, number)))
            state, metrics = self.hosted(state, cohort, self.key)
            parts.append(jax.tree.map(np.asarray, metrics))
        return state, jax.tree.map(lambda *m: np.stack(m), *parts)

    def _advance_streamed(self, state: RoundState, done: int, rounds: int) -> tuple[RoundState, RoundMetrics]:
        parts, last = [], done + rounds
        while done < last:
            if done >= self.held_until:
                self.held = next(self.cohorts)
                self.held_from, self.held_until = done, done + self.held.ids.shape[0]
            now = min(last, self.held_until) - done
            state, metrics = self.simulate(state, self.held, self.key, now, first=done - self.held_from)
            parts.append(jax.tree.map(lambda m, now=now: m[:now], metrics))
            done += now
        return state, jax.tree.map(lambda *m: np.concatenate([np.asarray(x) for x in m]), *parts)

    def test(self, round: int) -> Any:
        """What the model of this round is tested on, on the first device; None where there is nothing."""
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
        held = held_out_examples(phase.data)
        self.held_out = None if held is None else jax.device_put(held, self.devices[0])
        if self.streams:
            self.cohorts = stream(phase.data, self._tables(round, phase.data), place=self.place)
            self.held_until = round
        else:
            self.population = None  # frees the one before first
            self.population = phase.data.population(self.place)

    def _tables(self, first: int, data: FederatedData) -> Iterator[np.ndarray]:
        """The cohorts from a round on, some rounds at a time: as many as a slice of moderate size has room for."""
        sampler, last = self.experiment.sampler, self.experiment.config.training.rounds
        width = sum(array[:1].nbytes for array in data.examples.values())
        one = width * sampler.slots * int(data.offsets[-1]) / data.num_clients
        rounds = int(min(max(1, SLICE_BYTES // max(one, 1)), self.block))
        for start in range(first, last, rounds):
            ids = draw_rounds(sampler, self.seed, start, min(rounds, last - start))
            yield np.concatenate([ids, np.full((rounds - len(ids), sampler.slots), -1, np.int32)])


def keeps_on_disk(experiment: Experiment) -> bool:
    """Whether what the clients remember is kept on disk."""
    asked = experiment.config.execution.client_memory
    one = memory_bytes(experiment.algorithm, experiment.model.params, experiment.data.num_clients)
    return one > 0 and (asked == "disk" or (asked == "auto" and one * experiment.data.num_clients > MEMORY_BYTES))


def _streams(experiment: Experiment) -> bool:
    asked, data = experiment.config.execution.memory, experiment.data
    if asked != "auto":
        return asked == "stream"
    on_disk = sum(array.nbytes for array in data.examples.values() if isinstance(array.base, mmap.mmap))
    return on_disk >= STREAM_BYTES
