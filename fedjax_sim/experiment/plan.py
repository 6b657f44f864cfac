"""Who trains in each round of a run, and when: made on the host, as tables that the rounds are given."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, tee
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.buffered import BufferedState, Turn, init_buffered, make_buffered_round
from fedjax_sim.core.round import init, make_round
from fedjax_sim.core.types import PyTree, RoundState
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.sampling import Sampler, draw_rounds
from fedjax_sim.experiment.build import Experiment, assemble
from fedjax_sim.experiment.clock import VERSIONS, Clock, Simulation, adacomm, planned
from fedjax_sim.experiment.recipe import continuous
from fedjax_sim.network import ServerStep
from fedjax_sim.network.turns import Row

RATES = ("learning_rate", "server_learning_rate")
_ALL = np.iinfo(np.int32).max  # steps, of a client that nothing limits


class Tables(NamedTuple):
    """Some rounds, a row each."""

    ids: np.ndarray  # int32[R, C], the clients that train, -1 for an empty slot
    most_steps: np.ndarray | None  # int32[R, C], what each does at most; None where nothing limits them
    turn: Turn | None  # arrays [R, ...], where messages may be stale

    def padded(self, rounds: int) -> "Tables":
        """With the last row repeated up to so many."""
        missing = rounds - len(self.ids)

        def longer(table: np.ndarray) -> np.ndarray:
            return np.concatenate([table, np.repeat(table[-1:], missing, axis=0)])

        most, turn = self.most_steps, self.turn
        return Tables(longer(self.ids), None if most is None else longer(most), turn and Turn(*map(longer, turn)))


class Plan:
    """The rounds to come of one run; those that were passed are forgotten."""

    def __init__(
        self,
        experiment: Experiment,
        sampler: Sampler,
        simulation: Simulation | None,
        seed: int,
        *,
        data: FederatedData | None = None,
        past: Sequence[float] = (),
        extent: tuple[int, int] | None = None,
    ):
        """Begins with the round after those of `past`.

        Args:
          experiment: what the run is.
          sampler: who takes part, if everybody can be reached.
          simulation: its clock, if it has one.
          seed: of the run.
          data: the clients' data, if not the experiment's.
          past: local steps of a client at most in each of the rounds done, NaN where nothing limited them.
          extent: as of `Simulation`, where others' runs have to have room in the same arrays.
        """
        training = experiment.config.training
        self.sampler, self.simulation, self.seed = sampler, simulation, seed
        self.slots = sampler.slots if simulation is None else simulation.slots
        self.adapts = training.adapt_steps != "none"
        self.every, self.longest = training.adapt_every, int(planned(experiment.config, data or experiment.data).max())
        self._ends = [*(phase.start for phase in experiment.phases), training.rounds]
        self.most: int | None = None  # local steps of a client at most, from now on
        self._past = [None if math.isnan(most) else int(most) for most in past]
        self.clock: Clock | None = None
        self._rows: Iterator[Row] | None = None
        if simulation is not None:
            steps = simulation.schedule(lambda round: self._past[round] if round < len(self._past) else self.most)
            if simulation.turns is not None:
                self.slots = (extent or simulation.extent)[0]
                steps, again = tee(steps)
                self._rows = islice(simulation.turns(again, extent or simulation.extent), len(self._past), None)
            self.clock = Clock(steps)

    @property
    def stale(self) -> bool:
        """Whether messages may be."""
        return self._rows is not None

    def steps(self, first: int, rounds: int) -> list[ServerStep]:
        """What happens on the clock in rounds from `first` (from 0) on; nothing without one. It never goes back."""
        return [] if self.clock is None else self.clock.ahead(first, rounds)

    def asked(self, first: int, rounds: int) -> list[np.ndarray]:
        """The clients that are asked in these rounds, arrived or not."""
        if self.clock is None:
            return list(draw_rounds(self.sampler, self.seed, first, rounds))
        return [step.asked for step in self.steps(first, rounds)]

    def tables(self, first: int, rounds: int) -> Tables:
        """Who trains in rounds from `first` on. Where messages may be stale, those after the ones asked for last."""
        if self._rows is not None:
            table = [np.stack(column) for column in zip(*islice(self._rows, rounds), strict=True)]
            row = Row(*table)
            return Tables(row.ids, row.most_steps, Turn(row.places, row.versions, row.arrived))
        if self.clock is None:
            ids = draw_rounds(self.sampler, self.seed, first, rounds)
            return Tables(ids, np.full(ids.shape, self.most or _ALL, np.int32) if self.adapts else None, None)
        ids, most = np.full((rounds, self.slots), -1, np.int32), np.zeros((rounds, self.slots), np.int32)
        for i, step in enumerate(self.steps(first, rounds)):
            ids[i, : len(step.begun)], most[i, : len(step.begun)] = step.begun, step.begun_steps
        return Tables(ids, most, None)

    def unchanged(self, done: int) -> int:
        """Rounds until the data or the local steps may change, or training ends."""
        limits = [end - done for end in self._ends if end > done]
        return min(limits + [self.every - done % self.every] * self.adapts)

    def adapt(self, done: int, first: float | None, now: float | None) -> None:
        """Sets the local steps of the rounds to come, where that is due after round `done`.

        Args:
          done: rounds done.
          first: mean training loss of the first round; None where it was not finite.
          now: of the last one.
        """
        if self.adapts and done % self.every == 0 and first is not None and now is not None:
            self.most = adacomm(self.longest, self.most or self.longest, first, now)


def start(experiment: Experiment, algorithm: Algorithm, params: PyTree, *, places: int, rows: int | None = None) -> Any:
    """The state before the first round.

    Args:
      experiment: what the run is.
      algorithm: as it trains.
      params: the initial model.
      places: messages on their way at once at most, where they may be stale.
      rows: of the clients' memory that is on the device, if not everybody's.
    """
    clients, simulation = experiment.data.num_clients, experiment.simulation
    if simulation is None or simulation.turns is None:
        return init(algorithm, params, clients, memory_rows=rows)
    return init_buffered(algorithm, params, clients, places=places, versions=VERSIONS, mixing=simulation.mixing)


def rates(experiment: Experiment) -> dict[str, float]:
    """Numbers of [algorithm] that a program is told and does not contain, so that another value compiles nothing."""
    config = experiment.config
    free = frozenset() if experiment.private is not None else continuous(config)
    values = {name: getattr(config.algorithm, name) for name in RATES if name in free}
    return {name: value for name, value in values.items() if value is not None}


def algorithm_with(experiment: Experiment, values: Mapping[str, Any], seed: Any) -> Algorithm:
    """The algorithm with these numbers of [algorithm] and this seed of the run, which may be traced.

    Under privacy, which settles both, it is the experiment's own.
    """
    if experiment.private is not None:
        return experiment.algorithm
    return assemble(experiment.config, experiment.model, experiment.data.num_clients, values, seed)


def federation(state: Any) -> RoundState:
    """A state, without the messages that are on their way."""
    return state.federation if isinstance(state, BufferedState) else state


def round_of(experiment: Experiment, algorithm: Algorithm, devices: list[Any], lanes: int | None) -> Any:
    """The round of an experiment, as its configuration says.

    Args:
      experiment: what the run is.
      algorithm: as it trains.
      devices: where.
      lanes: clients at once on each.
    """
    training, private, simulation = experiment.config.training, experiment.private, experiment.simulation
    work: dict[str, Any] = {
        "batch_size": training.batch_size,
        "local_epochs": training.local_epochs,
        "local_steps": training.local_steps,
        "devices": devices,
        "lanes": lanes,
        "local_sampling": private.local_sampling if private else "epochs",
    }
    if simulation is None or simulation.turns is None:
        return make_round(algorithm, **work)
    return make_buffered_round(algorithm, discount=simulation.discount, mixing=simulation.mixing, **work)
