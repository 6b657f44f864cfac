"""Bayesian optimization of settings with Optuna, in batches that are one compiled program each.

The objective is the accuracy of the global model on clients that are held out, neither trained on nor of the test set;
where classes are rare, its AUC of two classes or its balanced accuracy of several.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim._validate import InputError
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.sampling import Sampler, make_sampler
from fedjax_sim.experiment.build import Experiment, build
from fedjax_sim.experiment.choosing import CALLED, measure
from fedjax_sim.experiment.config import Config, to_toml
from fedjax_sim.experiment.federation import majority
from fedjax_sim.experiment.folder import studied, write_whole
from fedjax_sim.experiment.origin import Marks
from fedjax_sim.experiment.record import marked
from fedjax_sim.experiment.space import Choice, Range, Space, refuse_many
from fedjax_sim.experiment.study import SAMPLERS, Result, ask, sampler_named, storage_at, study_in, taken_up, tell
from fedjax_sim.experiment.swept import tried_out
from fedjax_sim.experiment.trials import SEED, Ground, Program, Progress, Settings, grouped, refuse_slots, with_settings

CHOSEN = "# chosen on clients that were held out, without noise: no epsilon of a run with these settings covers that"
STUDY, BEST = "study.db", "best.toml"
HELD_OUT = 0.2  # of the clients


class Budget(NamedTuple):
    """What a trial may cost, beside the rounds of the configuration; what it reached within that counts."""

    bits: float = math.inf  # sent by clients and server
    seconds: float = math.inf  # on the simulated clock


class Tuned(NamedTuple):
    """What a study has found."""

    best: dict[str, Any]  # settings by path
    value: float  # accuracy on held-out clients, or what `by` says
    complete: int  # trials
    pruned: int
    file: Path  # a configuration with the best settings
    by: str  # "accuracy", or where classes are rare "balanced_accuracy" or "auc"
    accuracy: float | None  # of the best trial on those clients
    majority: float | None  # of those clients' examples: what always answering their most frequent class reaches

    def said(self) -> str:
        """How good the best trial is, and what there is to compare with."""
        value = f"AUC {self.value:.3f}" if self.by == "auc" else f"{CALLED[self.by]} {self.value:.1%}"
        accuracy = "" if self.accuracy is None or self.by == "accuracy" else f", accuracy {self.accuracy:.1%}"
        constant = "" if self.majority is None else f", constant answer {self.majority:.1%}"
        return f"{value} (a mean over seeds{accuracy}{constant})"


def held_out_clients(experiment: Experiment, share: float = HELD_OUT, cohort: int | None = None) -> Ground:
    """Cohorts of the other clients, and the examples of a random share of them, at least one, to test on.

    Args:
      experiment: whose clients they are.
      share: of the clients that are held out.
      cohort: clients in a round, where they were asked for; else as many as the experiment has, or all of the rest.

    Raises:
      InputError: fewer than two clients, or cohorts that the rest cannot fill.
    """
    data, training = experiment.data, experiment.config.training
    if data.num_clients < 2:
        raise InputError("data.clients: 1 cannot be trained on and held out; give at least 2")
    order = np.random.default_rng(experiment.config.data.seed).permutation(data.num_clients)
    count = max(1, min(round(share * data.num_clients), data.num_clients - 1))
    held, rest = np.sort(order[:count]), np.sort(order[count:])
    offsets = np.concatenate([[0], np.cumsum(np.asarray(data.sizes)[rest])])
    if training.sampling != "all" and (cohort or 0) > len(rest):
        raise InputError(
            f"training.clients_per_round: {cohort} are more than the {len(rest)} clients that {count} held-out ones "
            "leave; lower it"
        )
    cohort = min(training.clients_per_round or 1, len(rest))
    network = experiment.config.network
    if experiment.private is not None:
        raise InputError("privacy.mechanism: its noise counts on all clients, and tuning holds some out; leave it out")
    if network.availability != "always" or network.policy == "over_select":
        raise InputError(
            "network.availability: who can be reached is drawn of all, and tuning holds some out; leave it out, and "
            "over-selection too"
        )
    assert training.sampling is not None
    inner = make_sampler(training.sampling, offsets, cohort)

    def draw(seed: int, round: int) -> np.ndarray:
        ids = inner.draw(seed, round)
        return np.where(ids >= 0, rest[np.maximum(ids, 0)], -1).astype(np.int32)

    def test(data: FederatedData) -> dict[str, np.ndarray]:
        rows = np.concatenate([np.arange(int(data.offsets[i]), int(data.offsets[i + 1])) for i in held])
        return {field: np.asarray(array[rows]) for field, array in data.examples.items()}

    tests = tuple(test(phase.data) for phase in experiment.phases)
    return Ground(experiment.phases, Sampler(inner.slots, draw), tests)


def tune(
    config: Config,
    space: Space,
    folder: Path,
    devices: list[Any],
    *,
    trials: int,
    batch: int = 8,
    seeds: int = 1,
    sampler: str = "tpe",
    seed: int = 0,
    prune: bool = True,
    budget: Budget | None = None,
    told: Callable[[int, int, float], None] = lambda done, trials, best: None,
) -> Tuned:
    """Searches for settings, and goes on where an earlier search in the same folder ended.

    Args:
      config: what all trials have in common.
      space: what is searched.
      folder: for `study.db`, which Optuna's own tools read, and `best.toml`; it has a study for each state of the
        data and files that are read.
      devices: the runs are dealt to them.
      trials: that the study is to have in the end, pruned ones included.
      batch: asked for together and run as one program, as far as they share a structure.
      seeds: runs of each trial, from `training.seed` on, whose mean counts.
      sampler: "tpe", "gp" (which needs PyTorch) or "random".
      seed: of the sampler.
      prune: stop trials that are worse than the median of those before them, at each evaluation.
      budget: what a trial may cost.
      told: how it goes: trials done, of how many, and the best value so far.

    Raises:
      InputError: a setting that does not fit, a sampler that is not there, or a folder with another or a damaged study.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    budget = budget or Budget()
    _check(space, sampler)
    for option, value in (("--trials", trials), ("--batch", batch), ("--seeds", seeds)):
        refuse_many(option, value)
    refuse_many("--batch times --seeds", batch, seeds)
    probes, marks = _probes(space), Marks()
    _, experiment = tried_out(config, probes)
    if experiment is not None:
        refuse_slots(experiment, batch * seeds)
    mark = marked([to_toml(config), sorted({marks(with_settings(config, probe)) for probe in probes})])
    texts = {path: [f"{part!r}" for part in entry] if isinstance(entry, Range) else [*entry.values]
             for path, entry in space.items()}  # fmt: skip
    search = {"space": texts, "sampler": sampler, "seeds": seeds, "budget": [f"{part!r}" for part in budget]}
    pruner = optuna.pruners.MedianPruner(n_startup_trials=batch) if prune else optuna.pruners.NopPruner()
    with studied(folder, config) as keep, storage_at(folder / STUDY) as storage:
        study = study_in(storage, folder / STUDY, f"fedjax_sim {mark}", pruner, search)
        asked = taken_up(storage, study, folder / STUDY)
        programs: dict[Any, Program] = {}
        ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        while (done := len(study.get_trials(deepcopy=False, states=ended))) < trials:
            asked = asked or ask(study, space, sampler_named(sampler, seed + done, batch), min(batch, trials - done))
            settings = [{path: trial.params[path] for path in space} for trial in asked]
            for group in grouped(config, settings):
                mine = [asked[place] for place in group.places]
                if all(trial.state.is_finished() for trial in mine):
                    continue  # before a kill
                runs = [{**settings[p], SEED: config.training.seed + s} for p in group.places for s in range(seeds)]
                key = repr(
                    (group.varied, {k: v for k, v in settings[group.places[0]].items() if k not in group.varied})
                )
                if key not in programs:
                    experiment, cohort = build(group.config), group.config.training.clients_per_round
                    ground, slots = held_out_clients(experiment, cohort=cohort), max(batch, len(asked)) * seeds
                    programs[key] = Program(experiment, group.varied, devices, slots=slots, grounds=[ground])
                results = _run(study, programs[key], mine, runs, seeds, budget)
                keep()
                tell(storage, study, [trial.number for trial in asked], results)
            asked = []
            told(len(study.get_trials(deepcopy=False, states=ended)), trials, _best(study))
        if _best(study) == -math.inf:
            raise InputError(f"{folder}: no trial came to an end within its budget; raise the budget")
        best = {path: _native(study.best_params[path]) for path in space}
        write_whole(folder / BEST, f"{CHOSEN}\n\n{to_toml(with_settings(config, best))}")
        states = [trial.state for trial in study.get_trials(deepcopy=False)]
        seen = study.best_trial.user_attrs
        how = (seen.get("by", "accuracy"), seen.get("accuracy"), seen.get("majority"))
        return Tuned(best, study.best_value, states.count(ended[0]), states.count(ended[1]), folder / BEST, *how)


def _run(
    study: Any, program: Program, asked: Sequence[Any], runs: Sequence[Settings], seeds: int, budget: Budget
) -> list[Result]:
    """Trains, drops what is hopeless or has spent its budget, and returns what there is to tell. The study is read
    alone: until a group has ended it is as if it had not begun, so that one that is killed may be done again."""
    program.load(runs)
    labels = program.grounds[0].test["labels"]
    by, constant = measure(program.experiment.data, labels), majority(labels)
    results = [Result(trial.number, None, [], {}) for trial in asked]
    open_trials = set(range(len(asked)))
    for reached in program:
        for i in sorted(open_trials):
            lanes = slice(i * seeds, (i + 1) * seeds)
            if _cost(reached, lanes, budget) > 1:
                open_trials.discard(i)
            else:
                value = float(np.nan_to_num(getattr(reached, by)[lanes]).mean())
                accuracy = float(np.nan_to_num(reached.accuracy[lanes]).mean())
                reports = [*results[i].reports, (reached.rounds, value)]
                beside = {"by": by, "accuracy": accuracy, "majority": constant}
                results[i] = Result(asked[i].number, value, reports, beside)
                asked[i].intermediate_values = dict(reports)
                last = reached.rounds >= program.experiment.config.training.rounds
                if not last and study.pruner.prune(study, asked[i]):
                    open_trials.discard(i)
                    results[i] = results[i]._replace(value=None)
            if i not in open_trials:
                program.drop(range(lanes.start, lanes.stop))
    return results


def _cost(reached: Progress, lanes: slice, budget: Budget) -> float:
    """As a share of the budget."""
    return max(reached.sent_bits[lanes].mean() / budget.bits, reached.seconds[lanes].mean() / budget.seconds)


def _check(space: Space, sampler: str) -> None:
    if sampler not in SAMPLERS:
        raise InputError(f"sampler: {sampler!r} is unknown; choose one of {', '.join(SAMPLERS)}")
    if not space:
        raise InputError("--over: nothing to search; give one, algorithm.learning_rate=log:1e-3..1 say")
    for path, entry in space.items():
        if path == SEED:
            raise InputError(f"--over {path}: a seed is no setting to tune; leave it out, and set seeds")
        if isinstance(entry, Choice) and any(isinstance(value, (list, dict)) for value in entry.values):
            raise InputError(f"--over {path}: lists cannot be searched; sweep over them instead")


def _probes(space: Space) -> list[dict[str, Any]]:
    """Settings in which every choice and both ends of every range occur."""
    ends = {path: _ends(entry) for path, entry in space.items()}
    first = {path: values[0] for path, values in ends.items()}
    return [first, *({**first, path: value} for path, values in ends.items() for value in values[1:])]


def _ends(entry: Choice | Range) -> list[Any]:
    if isinstance(entry, Choice):
        return list(entry.values)
    return [int(end) if entry.whole else end for end in (entry.low, entry.high)]


def _native(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _best(study: Any) -> float:
    try:
        return float(study.best_value)
    except ValueError:
        return -math.inf
