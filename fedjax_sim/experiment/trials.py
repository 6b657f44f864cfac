"""Trials: one experiment under many settings and seeds, those that share a structure as one compiled program."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim import _memory
from fedjax_sim._validate import InputError
from fedjax_sim.core.calibrate import make_calibration
from fedjax_sim.core.cohort import select
from fedjax_sim.core.devices import deal, replicate
from fedjax_sim.core.evaluate import make_evaluation
from fedjax_sim.core.host import memory_bytes
from fedjax_sim.core.many import make_many
from fedjax_sim.core.round import init, make_round, wire_bits
from fedjax_sim.core.types import Population, PyTree
from fedjax_sim.data.federated import FederatedData, offsets_of
from fedjax_sim.data.sampling import Sampler, draw_rounds
from fedjax_sim.experiment.build import Experiment, assemble, continuous, make_model
from fedjax_sim.experiment.clock import make_simulation
from fedjax_sim.experiment.config import Config, parse_config
from fedjax_sim.experiment.federation import held_out_examples

STATE_BYTES = 2e9  # of the states of the runs that are advanced together, at most
SEED = "training.seed"
MEASURED = ("accuracy", "balanced_accuracy", "auc", "loss", "train_loss")
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
    """What is trained on, and what the global model is tested on."""

    data: FederatedData
    sampler: Sampler
    test: dict[str, Any]


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
    test = held_out_examples(experiment.data)
    if test is None:
        raise InputError("data: there is nothing to test on; give a test set, or set data.local_test_fraction")
    return Ground(experiment.data, experiment.sampler, test)


def state_bytes(experiment: Experiment) -> float:
    """About how much one run takes."""
    model, clients = experiment.model.params, experiment.data.num_clients
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(model))
    return memory_bytes(experiment.algorithm, model, clients) * clients + 4.0 * size


def refuse_slots(experiment: Experiment, slots: int) -> None:
    """The states of so many runs fit in memory.

    Raises:
      InputError: they do not.
    """
    fix = "lower --batch or --seeds, or take a smaller model"
    _memory.require(f"trials: {slots:,} at once need", int(slots * state_bytes(experiment)), fix)


def together(federations: Sequence[FederatedData], rows: int) -> Population:
    """The clients of all federations, one after another. Each federation has `rows` rows and a client more, which owns
    those that are nobody's."""
    padding = [rows - int(data.offsets[-1]) for data in federations]
    examples = {
        field: np.concatenate([part for data, more in zip(federations, padding, strict=True)
                               for part in (data.examples[field], np.zeros((more, *array.shape[1:]), array.dtype))])
        for field, array in federations[0].examples.items()
    }  # fmt: skip
    sizes = [np.append(data.sizes, more) for data, more in zip(federations, padding, strict=True)]
    return federations[0]._replace(examples=examples, offsets=offsets_of(np.concatenate(sizes).tolist())).population()


def refuse_changes(experiment: Experiment) -> None:
    """What changes on the way is not advanced as one program with others.

    Raises:
      InputError: data that change over rounds, messages that may be stale, or steps that follow the loss.
    """
    if len(experiment.phases) > 1:
        raise InputError("heterogeneity.drift: runs whose data change are not swept as one; leave it out")
    if experiment.simulation is not None and experiment.simulation.turns is not None:
        raise InputError("network.policy: runs whose messages may be stale are not swept as one; take another")
    if experiment.config.training.adapt_steps != "none":
        raise InputError("training.adapt_steps: runs whose steps follow their loss are not swept; leave it out")


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
          InputError: what `refuse_changes` refuses.
        """
        refuse_changes(experiment)
        self.experiment, self.varied, self.devices = experiment, tuple(varied), devices
        self.slots = -(-slots // len(devices)) * len(devices)
        refuse_slots(experiment, self.slots)
        training, model, clients = experiment.config.training, experiment.model, experiment.data.num_clients
        self.block = min(training.evaluate_every, training.rounds)
        evaluate = make_evaluation(model.metric_fn, classes=experiment.data.classes)
        calibrate = make_calibration(model.logits_fn) if experiment.data.classes == 2 else lambda params, test: {}
        private = experiment.private
        work: dict[str, Any] = {name: getattr(training, name) for name in ("batch_size", "local_epochs", "local_steps")}
        work |= {"lanes": 1 if devices[0].platform == "cpu" else None, "devices": [jax.local_devices()[0]]}
        work |= {"local_sampling": private.local_sampling if private else "epochs"}

        def algorithm(values: dict[str, Any], seed: Any) -> Any:
            return experiment.algorithm if private else assemble(experiment.config, model, clients, values, seed)

        def advance(state: Any, given: Any, shared: Any) -> tuple[Any, Any]:
            values, seed, key, where, cohorts, most_steps = given
            population, tests, rounds = shared
            round_fn = make_round(algorithm(values, seed), **work)

            def one(i: Any, carry: Any) -> Any:
                state, _, sent = carry
                ids = cohorts[i]
                found = select(population, jnp.where(ids >= 0, ids + where * (clients + 1), -1))
                cohort = found._replace(ids=ids, rows=jnp.maximum(ids, 0), most_steps=most_steps[i])
                state, metrics = round_fn(state, cohort, key)
                weight = metrics.examples / jnp.maximum(metrics.examples.sum(), 1)
                bits = metrics.uplink_bits
                sent += jnp.stack([(bits >> 16).sum(), (bits & 0xFFFF).sum()])  # exact, where one sum would overflow
                return state, jnp.sum(weight * metrics.loss_before), sent

            start = (state, jnp.float32(0), jnp.zeros(2, jnp.uint32))
            state, loss, sent = jax.lax.fori_loop(0, rounds, one, start)
            test = jax.tree.map(lambda x: x[where], tests)
            scores = evaluate(state.params, test) | calibrate(state.params, test)
            scores |= {"balanced_accuracy": jnp.nanmean(scores["class_accuracy"]), "train_loss": loss, "sent": sent}
            return state, {name: scores.get(name, jnp.float32(jnp.nan)) for name in (*MEASURED, "sent")}

        self.start = jax.jit(jax.vmap(lambda params, values, seed: init(algorithm(values, seed), params, clients)))
        self.many = make_many(advance, devices=devices, width=width)
        self.tables: dict[tuple[int, int], Iterator[Any]] = {}
        grounds = list(grounds) or [own_ground(experiment)]
        self.room, self.rows = len(grounds), max(rows, *(int(ground.data.offsets[-1]) for ground in grounds))
        self.move(grounds)

    def move(self, grounds: Sequence[Ground]) -> None:
        """Other grounds for runs to come, no more of them than at first and none larger; nothing is compiled anew."""
        self.grounds = [*grounds, *[grounds[-1]] * (self.room - len(grounds))]
        tests = jax.tree.map(lambda *each: jnp.stack(each), *(ground.test for ground in self.grounds))
        data = together([ground.data for ground in self.grounds], self.rows)
        self.shared = replicate((data, tests), self.devices)

    def release(self) -> None:
        """The grounds leave the devices; `move` is needed before runs to come."""
        self.shared = ()

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
        self.states = deal(self.start(params, values, seeds), self.devices)  # as they will be after rounds
        self.given = (values, seeds, jax.vmap(jax.random.key)(seeds), np.array(places, np.int32))
        self.turns = list(zip(places, self.seeds, strict=True))
        self.tables = {turn: self._rounds(*turn) for turn in dict.fromkeys(self.turns)}
        self.done, self.sent, self.seconds = 0, np.zeros(self.slots, np.int64), np.zeros(self.slots)

    def _params(self, seed: int) -> PyTree:
        """The initial model, which no trial of another seed shares."""
        experiment = self.experiment
        if seed == experiment.config.training.seed:
            return jax.tree.map(np.asarray, experiment.model.params)
        return jax.tree.map(np.asarray, make_model(experiment.config, experiment.data, seed).params)

    def _rounds(self, place: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray, int, float]]:
        """Who trains in each round, their steps at most, bits sent beside their messages, and the clock after it."""
        experiment, most, ground = self.experiment, np.iinfo(np.int32).max, self.grounds[place]
        if experiment.simulation is None:
            given = (experiment.algorithm, experiment.model.params, experiment.data.num_clients)
            number, broadcast = 0, wire_bits(*given)[0]
            while True:
                ids = draw_rounds(ground.sampler, seed, number, 1)[0]
                yield ids, np.full(ids.shape, most, np.int32), int((ids >= 0).sum()) * broadcast, 0.0
                number += 1
        config = with_settings(experiment.config, {SEED: seed})
        given = (ground.data, experiment.algorithm, experiment.model.params, ground.sampler, ())
        _, simulation = make_simulation(config, *given)
        assert simulation is not None
        for step in simulation.schedule(None):
            ids, steps = np.full(simulation.slots, -1, np.int32), np.zeros(simulation.slots, np.int32)
            ids[: len(step.begun)], steps[: len(step.begun)] = step.begun, step.begun_steps
            yield ids, steps, sum(simulation.beside_bits(step)), step.seconds

    def advance(self) -> Progress:
        """Up to the next evaluation; runs that were dropped stay where they are."""
        rounds = min(self.block, self.rounds - self.done)
        drawn = {turn: list(islice(table, rounds)) for turn, table in self.tables.items()}
        ids, steps, beside, clock = zip(*([*zip(*drawn[turn], strict=True)] for turn in self.turns), strict=True)
        tables = tuple(np.pad(np.array(t, np.int32), ((0, 0), (0, self.block - rounds), (0, 0)), constant_values=-1)
                       for t in (ids, steps))  # fmt: skip
        shared = (*self.shared, jnp.int32(rounds))
        self.states, found = self.many(self.states, (*self.given, *tables), shared, self.active)
        found = jax.tree.map(np.asarray, found)
        self.done += rounds
        more = np.array([sum(each) for each in beside], np.int64)
        self.sent += np.where(self.active, found["sent"].astype(np.int64) @ np.array([2**16, 1]) + more, 0)
        self.seconds = np.where(self.active, [each[-1] for each in clock], self.seconds)
        arrays = (*(found[name] for name in MEASURED), self.sent, self.seconds)
        return Progress(self.done, *(array[self.seats] for array in arrays))

    def drop(self, places: Sequence[int]) -> None:
        """Ends these runs, by their places among those that were loaded."""
        self.active[self.seats[list(places)]] = False

    def __iter__(self) -> Iterator[Progress]:
        while self.done < self.rounds and self.active.any():
            yield self.advance()
