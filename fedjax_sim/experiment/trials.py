"""Trials: one experiment under many settings and seeds, those that share a structure as one compiled program."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim import _memory
from fedjax_sim._validate import InputError
from fedjax_sim.core.devices import deal, replicate
from fedjax_sim.core.host import memory_bytes
from fedjax_sim.core.many import make_many
from fedjax_sim.core.simulate import make_rounds
from fedjax_sim.core.types import Population, PyTree, RoundMetrics
from fedjax_sim.data import Phase
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.sampling import Sampler
from fedjax_sim.experiment.build import Experiment
from fedjax_sim.experiment.clock import Simulation, make_simulation
from fedjax_sim.experiment.config import Config, parse_config
from fedjax_sim.experiment.federation import held_out_examples
from fedjax_sim.experiment.plan import Plan, algorithm_with, federation, round_of, start
from fedjax_sim.experiment.recipe import continuous, make_model
from fedjax_sim.experiment.watch import make_scores

STATE_BYTES = 2e9  # of the states of the runs that are advanced together, at most
SEED = "training.seed"
MEASURED = ("accuracy", "balanced_accuracy", "auc", "loss")
Settings = Mapping[str, Any]  # by path, `SEED` among them


class Progress(NamedTuple):
    """What trials have reached after some rounds, arrays [T]."""

    rounds: int
    accuracy: np.ndarray
    balanced_accuracy: np.ndarray  # mean of the accuracies on each class
    auc: np.ndarray  # of two classes, else NaN
    loss: np.ndarray
    train_loss: np.ndarray  # mean over clients of the last round, on their first batches
    sent_bits: np.ndarray  # by clients and server, since the start
    seconds: np.ndarray  # on the simulated clock, 0 without one


class Group(NamedTuple):
    """Trials that share a structure."""

    places: list[int]  # in the list of trials
    config: Config  # of the first
    varied: tuple[str, ...]  # settings of [algorithm] that are traced


class Ground(NamedTuple):
    """What is trained on, and what the global model is tested on, from one round until the next phase begins."""

    phases: tuple[Phase, ...]
    sampler: Sampler
    tests: tuple[dict[str, Any], ...]  # of each phase

    @property
    def data(self) -> FederatedData:
        """Of the first phase."""
        return self.phases[0].data

    @property
    def test(self) -> dict[str, Any]:
        """Of the last phase."""
        return self.tests[-1]

    @property
    def rows(self) -> int:
        """Training examples at most."""
        return max(int(phase.data.offsets[-1]) for phase in self.phases)


def with_settings(config: Config, settings: Settings) -> Config:
    """`config` under these settings.

    Raises:
      InputError: one line for the first that does not fit.
    """
    tree = config.model_dump(exclude_none=True)
    for path, value in settings.items():
        section, _, key = path.partition(".")
        tree.setdefault(section, {})[key] = value
    return parse_config(tree)


def grouped(config: Config, trials: Sequence[Settings]) -> list[Group]:
    """Trials by what must be compiled for them: all but seeds and `continuous` settings. Under privacy all settings
    count, for noise is calibrated on the host.

    Raises:
      InputError: a trial that does not fit.
    """
    groups: dict[str, Group] = {}
    for place, settings in enumerate(trials):
        mine = with_settings(config, settings)
        alone = mine.privacy.mechanism != "none"
        free = frozenset() if alone else continuous(mine)
        varied = tuple(sorted(path for path in settings if path.removeprefix("algorithm.") in free))
        rest = {path: value for path, value in settings.items() if path not in varied and (alone or path != SEED)}
        key = repr((sorted(rest.items(), key=lambda item: item[0]), varied))
        groups.setdefault(key, Group([], mine, varied)).places.append(place)
    return list(groups.values())


def own_ground(experiment: Experiment) -> Ground:
    """The experiment's own cohorts, and its test set.

    Raises:
      InputError: it has nothing to test on.
    """
    tests = [held_out_examples(phase.data) for phase in experiment.phases]
    found = tuple(test for test in tests if test is not None)
    if len(found) < len(tests):
        raise InputError("data: there is nothing to test on; give a test set, or set data.local_test_fraction")
    return Ground(experiment.phases, experiment.sampler, found)


def state_bytes(experiment: Experiment) -> float:
    """About how much one run takes."""
    model, clients = experiment.model.params, experiment.data.num_clients
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(model))
    stale = 0 if experiment.simulation is None else experiment.simulation.extent[0]
    return memory_bytes(experiment.algorithm, model, clients) * clients + (4.0 + stale) * size


def refuse_slots(experiment: Experiment, slots: int) -> None:
    """The states of so many runs fit in memory.

    Raises:
      InputError: they do not.
    """
    fix = "lower --batch or --seeds, or take a smaller model"
    _memory.require(f"trials: {slots:,} at once need", int(slots * state_bytes(experiment)), fix)


def together(federations: Sequence[FederatedData], rows: int) -> Population:
    """The examples of all federations, one after another, `rows` rows for each, and where the clients of each have
    theirs: offsets int32[F, N + 1]."""
    examples = {
        field: np.concatenate([part for data in federations for part in (data.examples[field], np.zeros(
            (rows - int(data.offsets[-1]), *array.shape[1:]), array.dtype))])
        for field, array in federations[0].examples.items()
    }  # fmt: skip
    if rows * len(federations) >= 2**31:
        raise InputError(f"data: {rows * len(federations):,} examples do not fit a device; train on fewer")
    offsets = np.stack([np.asarray(data.offsets) + i * rows for i, data in enumerate(federations)])
    arrays = federations[0]._replace(examples=examples).population().examples
    return Population(arrays, offsets.astype(np.int32))


class Program:
    """Runs of one structure, `slots` of them at most, advanced together. Compiled once, however often it is loaded."""

    def __init__(
        self,
        experiment: Experiment,
        varied: Sequence[str],
        devices: list[Any],
        *,
        slots: int,
        width: int | None = None,
        grounds: Sequence[Ground] = (),
        rows: int = 0,
    ):
        """Prepares the functions.

        Args:
          experiment: what the runs have in common.
          varied: settings that differ and are traced.
          devices: the runs are dealt to them.
          slots: runs at once.
          width: as in `make_many`.
          grounds: instead of the experiment's own, one or several to choose from: as many clients, slots and test
            examples in each.
          rows: training examples in a ground at most, if later ones may be larger than these.

        Raises:
          InputError: states of so many runs that they do not fit in memory.
        """
        self.experiment, self.varied, self.devices = experiment, tuple(varied), devices
        self.slots = -(-slots // len(devices)) * len(devices)
        refuse_slots(experiment, self.slots)
        training = experiment.config.training
        self.block = min(training.evaluate_every, training.rounds)
        scores = make_scores(experiment, calibrated=experiment.data.classes == 2)
        lanes = 1 if devices[0].platform == "cpu" else None

        def watch(state: Any, metrics: RoundMetrics, kept: Any, test: Any, due: Any) -> tuple[Any, dict[str, Any]]:
            def look() -> dict[str, Any]:
                found = scores(federation(state).params, test)
                return {name: found.get(name, jnp.float32(jnp.nan)) for name in MEASURED}

            nothing = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), jax.eval_shape(look))
            return kept, jax.lax.cond(due, look, lambda: nothing)

        def advance(state: Any, given: Any, shared: Any) -> tuple[Any, Any]:
            values, seed, key, where, tables = given
            population, tests, rounds, due = shared
            round_fn = round_of(experiment, algorithm_with(experiment, values, seed), [jax.local_devices()[0]], lanes)
            own = population._replace(offsets=population.offsets[where])
            test = jax.tree.map(lambda x: x[where], tests)
            run = make_rounds(round_fn, max_rounds=self.block, watch=watch)
            state, _, metrics, seen = run(state, (), own, key, rounds, tables, 0, test, due)
            counted = (metrics.ids >= 0) & ~metrics.rejected
            weight = jnp.where(counted, metrics.examples, 0)
            weight = weight / jnp.maximum(weight.sum(1, keepdims=True), 1)
            bits = metrics.uplink_bits  # and those of the broadcast, which a clock counts itself
            bits = bits if experiment.simulation is not None else jnp.concatenate([bits, metrics.downlink_bits])
            sent = jnp.stack([(bits >> 16).sum(), (bits & 0xFFFF).sum()])  # exact, where one sum would overflow
            found = {"losses": jnp.sum(weight * jnp.where(counted, metrics.loss_before, 0), 1), "sent": sent}
            return state, found | jax.tree.map(lambda x: x[rounds - 1], seen)

        def begin(params: Any, values: dict[str, Any], seeds: Any, places: int) -> Any:
            def one(params: Any, values: dict[str, Any], seed: Any) -> Any:
                return start(experiment, algorithm_with(experiment, values, seed), params, places=places)

            return jax.vmap(one)(params, values, seeds)

        self.start, self.extent = jax.jit(begin, static_argnums=3), (0, 0)
        self.many = make_many(advance, devices=devices, width=width)
        grounds = list(grounds) or [own_ground(experiment)]
        self.room, self.rows = len(grounds), max(rows, *(ground.rows for ground in grounds))
        self.move(grounds)

    def move(self, grounds: Sequence[Ground]) -> None:
        """Other grounds for runs to come, no more of them than at first and none larger; nothing is compiled anew."""
        self.grounds, self.phase = [*grounds, *[grounds[-1]] * (self.room - len(grounds))], -1
        self._lay(0)

    def _lay(self, phase: int) -> None:
        """Puts the data of this phase on the devices."""
        if phase != self.phase:
            self.shared, self.phase = (), phase  # frees the one before first
            tests = jax.tree.map(lambda *each: jnp.stack(each), *(ground.tests[phase] for ground in self.grounds))
            data = together([ground.phases[phase].data for ground in self.grounds], self.rows)
            self.shared = replicate((data, tests), self.devices)

    def release(self) -> None:
        """The grounds leave the devices; `move` is needed before runs to come."""
        self.shared, self.phase = (), -1

    def load(self, trials: Sequence[Settings], where: Sequence[int] = ()) -> None:
        """Begins runs.

        Args:
          trials: as many as there are slots at most.
          where: the number of each one's ground; the first if left out.
        """
        self.rounds = self.experiment.config.training.rounds
        each, devices = self.slots // len(self.devices), len(self.devices)
        self.seats = np.array([i % devices * each + i // devices for i in range(len(trials))])  # in turn to each device
        taken = np.zeros(self.slots, np.int64)
        taken[self.seats] = np.arange(len(trials))
        padded = [trials[i] for i in taken.tolist()]
        places = [where[i] for i in taken.tolist()] if where else [0] * self.slots
        self.seeds = [int(settings.get(SEED, self.experiment.config.training.seed)) for settings in padded]
        self.active = np.isin(np.arange(self.slots), self.seats)
        names = [path.removeprefix("algorithm.") for path in self.varied]
        values = {name: np.array([s[f"algorithm.{name}"] for s in padded], np.float32) for name in names}
        different = dict.fromkeys(self.seeds)
        models = {seed: self._params(seed) for seed in different}
        params = jax.tree.map(lambda *leaves: np.stack(leaves), *(models[seed] for seed in self.seeds))
        seeds = np.array(self.seeds, np.uint32)
        turns = list(zip(places, self.seeds, strict=True))
        clocks = {turn: self._clock(*turn) for turn in dict.fromkeys(turns)}
        extents = [clock.extent for clock in clocks.values() if clock is not None]
        first, second = zip(self.extent, *extents, strict=True)
        self.extent = max(first), max(second)  # never less than before, so that nothing is compiled anew
        if self.experiment.config.training.adapt_steps != "none":  # each by its own loss
            self.plans = [self._plan(*turn, clocks[turn]) for turn in turns]
        else:
            shared = {turn: self._plan(*turn, clock) for turn, clock in clocks.items()}
            self.plans = [shared[turn] for turn in turns]
        states = self.start(params, values, seeds, self.extent[0])
        self.states = deal(states, self.devices)  # as they will be after rounds
        self.given = (values, seeds, jax.vmap(jax.random.key)(seeds), np.array(places, np.int32))
        self.done, self.sent, self.seconds = 0, np.zeros(self.slots, np.int64), np.zeros(self.slots)
        self.first_losses = np.full(self.slots, np.nan)

    def _params(self, seed: int) -> PyTree:
        """The initial model, which no trial of another seed shares."""
        experiment = self.experiment
        if seed == experiment.config.training.seed:
            return jax.tree.map(np.asarray, experiment.model.params)
        return jax.tree.map(np.asarray, make_model(experiment.config, experiment.data, seed).params)

    def _clock(self, place: int, seed: int) -> Simulation | None:
        experiment, ground = self.experiment, self.grounds[place]
        if experiment.simulation is None:
            return None
        config, changes = with_settings(experiment.config, {SEED: seed}), [phase.start for phase in ground.phases[1:]]
        given = (ground.data, experiment.algorithm, experiment.model.params, ground.sampler, tuple(changes))
        return make_simulation(config, *given)[1]

    def _plan(self, place: int, seed: int, clock: Simulation | None) -> Plan:
        ground = self.grounds[place]
        return Plan(self.experiment, ground.sampler, clock, seed, data=ground.data, extent=self.extent)

    def _beside(self, plan: Plan, rounds: int) -> tuple[int, float]:
        """Bits sent beside the messages in the rounds to come, and the clock after them."""
        if plan.simulation is None:
            return 0, 0.0
        steps = plan.steps(self.done, rounds)
        return sum(sum(plan.simulation.beside_bits(step)) for step in steps), steps[-1].seconds

    def advance(self) -> Progress:
        """Up to the next evaluation; runs that were dropped stay where they are."""
        last = min(self.done - self.done % self.block + self.block, self.rounds)
        starts = [phase.start for phase in self.grounds[0].phases]
        while True:
            self._lay(int(np.searchsorted(starts, self.done, side="right")) - 1)
            rounds = min(last - self.done, self.plans[0].unchanged(self.done))
            found = self._advance(rounds, self.done + rounds == last)
            if self.done == last:
                arrays = (*(found[name] for name in MEASURED), found["losses"][:, rounds - 1], self.sent, self.seconds)
                return Progress(self.done, *(array[self.seats] for array in arrays))

    def _advance(self, rounds: int, due: bool) -> dict[str, np.ndarray]:
        """So many rounds of one phase, and the test after them if it is due."""
        plans = {id(plan): plan for plan in self.plans}  # each once, however many runs share it
        each = {name: plan.tables(self.done, rounds).padded(self.block) for name, plan in plans.items()}
        tables = jax.tree.map(lambda *rows: np.stack(rows), *(each[id(plan)] for plan in self.plans))
        shared = (*self.shared, jnp.int32(rounds), np.arange(self.block) == (rounds - 1 if due else -1))
        self.states, found = self.many(self.states, (*self.given, tables), shared, self.active)
        beside = {name: self._beside(plan, rounds) for name, plan in plans.items()}
        more, seconds = zip(*(beside[id(plan)] for plan in self.plans), strict=True)
        found = jax.device_get(found)
        if self.done == 0:
            self.first_losses = found["losses"][:, 0]
        self.done += rounds
        for plan, first, now in zip(self.plans, self.first_losses, found["losses"][:, rounds - 1], strict=True):
            if np.isfinite(first) and np.isfinite(now):
                plan.adapt(self.done, float(first), float(now))
        sent = found["sent"].astype(np.int64) @ np.array([2**16, 1]) + np.array(more, np.int64)
        self.sent += np.where(self.active, sent, 0)
        self.seconds = np.where(self.active, seconds, self.seconds)
        return found

    def drop(self, places: Sequence[int]) -> None:
        """Ends these runs, by their places among those that were loaded."""
        self.active[self.seats[list(places)]] = False

    def __iter__(self) -> Iterator[Progress]:
        while self.done < self.rounds and self.active.any():
            yield self.advance()
