"""Sweeps: a grid or a random sample of settings, over seeds; what is done stays done when one is stopped."""

import json
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim._text import parse_json
from fedjax_sim._validate import InputError, shown
from fedjax_sim.experiment.build import build
from fedjax_sim.experiment.choosing import CALLED, measure
from fedjax_sim.experiment.config import Config
from fedjax_sim.experiment.covered import SHARED, Spent, share_noise, together
from fedjax_sim.experiment.federation import majority
from fedjax_sim.experiment.folder import append_lines, record, studied, whole_lines
from fedjax_sim.experiment.origin import Marks
from fedjax_sim.experiment.space import refuse_many
from fedjax_sim.experiment.spent import spent_by
from fedjax_sim.experiment.swept import tried_out
from fedjax_sim.experiment.trials import SEED, STATE_BYTES, Program, Progress, Settings, state_bytes, with_settings

RESULTS = "sweep.jsonl"


class Done(NamedTuple):
    """One trial."""

    settings: dict[str, Any]
    rounds: list[int]  # after which it was tested
    accuracy: list[float | None]
    loss: list[float | None]
    sent_bits: int  # by clients and server
    seconds: float  # on the simulated clock, if there is one
    balanced_accuracy: Sequence[float | None] = ()  # likewise; mean of the accuracies on each class
    auc: Sequence[float | None] = ()  # of two classes
    majority: float | None = None  # of the test set: what always answering its most frequent class reaches
    by: str = "accuracy"  # what settings on these data are compared by
    spent: Spent | None = None  # of the clients' privacy, where something is guaranteed

    def plain(self) -> dict[str, Any]:
        """As it is written."""
        return self._asdict() | {"spent": self.spent and self.spent._asdict()}


class Line(NamedTuple):
    """One setting over its seeds."""

    settings: dict[str, Any]  # without the seed
    seeds: int
    last: float  # mean accuracy at the end
    spread: float  # its standard deviation over seeds, NaN for one
    best: float  # mean over seeds of the best accuracy on the way
    balanced_accuracy: float  # at the end; NaN where it is not known, like the next two
    auc: float
    majority: float
    by: str  # what settings are compared by
    epsilon: float | None = None  # of the run that spent most, where all guarantee something


def over_seeds(trials: Sequence[Settings], first: int, seeds: int) -> list[dict[str, Any]]:
    """Each trial with seeds from `first` on; trials that name their seeds keep them.

    Raises:
      InputError: seeds for trials that have their own, or more trials than can be waited for.
    """
    refuse_many("--seeds", len(trials), seeds)
    if seeds > 1 and any(SEED in trial for trial in trials):
        raise InputError(f"--seeds: {seeds}, but --over {SEED} says which seeds are run; leave one of them out")
    return [{SEED: first + i, **trial} for trial in trials for i in range(seeds)]


def sweep(
    config: Config,
    trials: Sequence[Settings],
    folder: Path,
    devices: list[Any],
    *,
    width: int | None = None,
    told: Callable[[int, int, int, int], None] = lambda done, trials, rounds, total: None,
) -> list[Done]:
    """Runs all trials that `folder` has no result of yet, and returns all, in their order.

    Trials that differ in seeds and in numbers of [algorithm] alone are one compiled program.

    Args:
      config: what all have in common.
      trials: settings by path.
      folder: for `sweep.jsonl`, a line a trial, written as soon as its group has ended, and found again by its
        settings, the data and files that it read, and the version.
      devices: the trials are dealt to them.
      width: as in `make_many`.
      told: how it goes: trials done, of how many, and rounds done of the group that runs, of how many.

    Raises:
      InputError: a trial that does not fit or a setting that makes no difference, before any is trained; a folder that
        cannot be made or is in use, or results of other settings.
    """
    trials, marks = [_normal(config, settings) for settings in trials], Marks()
    keys = [_key(settings, marks(with_settings(config, settings))) for settings in trials]
    wanted = dict(zip(keys, trials, strict=True))  # each once
    names, wants = [*wanted], [*wanted.values()]
    begun = (folder / RESULTS).exists()
    groups, first_of_all = ([], None) if begun else tried_out(config, wants)
    with studied(folder, config) as keep:
        found = _read(folder / RESULTS)
        known = {place for place, name in enumerate(names) if name in found}
        done = len(trials) - (len(wants) - len(known))
        if begun:
            groups, first_of_all = tried_out(config, wants, known)
        for group in groups:
            experiment, first_of_all = first_of_all or build(group.config), None
            most = max(1, int(STATE_BYTES // max(state_bytes(experiment), 1)))
            slots = min(most, len(group.places))  # whatever is known of them: a sweep goes on as the same program
            program = Program(experiment, group.varied, devices, slots=slots, width=width)
            missing = [place for place in group.places if place not in known]
            for first in range(0, len(missing), most):
                places = missing[first : first + most]
                program.load([wants[place] for place in places])
                progress = []
                for reached in program:
                    progress.append(reached)
                    told(done, len(trials), reached.rounds, experiment.config.training.rounds)
                labels = program.grounds[0].test["labels"]
                spent = spent_by(experiment, experiment.config.training.rounds)
                how = majority(labels), measure(experiment.data, labels), spent
                seeds = [wants[place].get(SEED, config.training.seed) for place in places]
                results = {names[place]: _result(wants[place], seeds[i], progress, i, *how)
                           for i, place in enumerate(places)}  # fmt: skip
                keep()
                lines = (json.dumps({"run": key, **result.plain()}) for key, result in results.items())
                append_lines(folder / RESULTS, lines)
                found |= results
                done += len(results)
    results = [found[key] for key in keys]
    _warn_of_equals(results)
    return results


def _normal(config: Config, settings: Settings) -> dict[str, Any]:
    """The settings as the configuration has them: a learning rate of 1 is 1.0."""
    parsed = with_settings(config, settings)
    found = {path: getattr(getattr(parsed, path.partition(".")[0]), path.partition(".")[2]) for path in settings}
    return {path: list(value) if isinstance(value, tuple) else value for path, value in found.items()}


def _warn_of_equals(results: Sequence[Done]) -> None:
    """Says where different settings have trained the very same, which mostly means that one of them is not used."""
    seen: dict[str, Done] = {}
    for result in results:
        numbers = [result.settings.get(SEED), *result[1:]]
        first = seen.setdefault(json.dumps(numbers), result)
        different = [path for path, value in result.settings.items() if first.settings.get(path) != value]
        if different and result.loss[-1] is not None:
            values = " and ".join(shown(each.settings.get(different[0])) for each in (first, result))
            text = f"--over {different[0]}: {values} gave the very same numbers; does anything depend on it here?"
            warnings.warn(text, stacklevel=3)
            return


def _result(
    settings: Settings, seed: int, progress: Sequence[Progress], place: int, majority: float, by: str,
    spent: Spent | None,
) -> Done:  # fmt: skip
    return Done(
        dict(settings),
        [p.rounds for p in progress],
        [_finite(p.accuracy[place]) for p in progress],
        [_finite(p.loss[place]) for p in progress],
        int(progress[-1].sent_bits[place]),
        float(progress[-1].seconds[place]),
        [_finite(p.balanced_accuracy[place]) for p in progress],
        [_finite(p.auc[place]) for p in progress],
        majority,
        by,
        spent and spent._replace(seeds=(seed,)),
    )


def composed(results: Sequence[Done]) -> str:
    """What the trials spend of the clients' privacy together, in a sentence; nothing where none guarantees anything."""
    runs = len(results)
    if not any(result.spent for result in results):
        return ""
    text = "Epsilon is of one run, and what is chosen by these numbers depends on all of them"
    spent = [result.spent for result in results if result.spent is not None]
    if share_noise(spent):
        return f"{text}. On the same clients, {SHARED}."
    if any(path.startswith(("data.", "heterogeneity.")) for path in results[0].settings):
        return f"{text}: runs on the same clients spend more."
    whole = together(spent) if len(spent) == runs else None
    if whole is None:
        return f"{text}: {runs} runs on the same clients, whose guarantees differ, give none together that is known."
    return f"{text}: {runs} runs on the same clients spend up to {whole.sentence()}."


def table(results: Sequence[Done]) -> list[Line]:
    """Means over seeds, the best first: by AUC or balanced accuracy where classes are rare."""
    lines: dict[str, dict[Any, Done]] = {}
    for result in results:
        rest = {path: value for path, value in result.settings.items() if path != SEED}
        lines.setdefault(_key(rest), {})[result.settings.get(SEED)] = result  # each seed once
    found = []
    for mine in (list(of_seeds.values()) for of_seeds in lines.values()):
        last = np.array([math.nan if r.accuracy[-1] is None else r.accuracy[-1] for r in mine])
        best = np.array([max((a for a in r.accuracy if a is not None), default=math.nan) for r in mine])
        settings = {path: value for path, value in mine[0].settings.items() if path != SEED}
        spread = float(last.std(ddof=1)) if len(mine) > 1 else math.nan
        others = (_mean([r.balanced_accuracy[-1:] for r in mine]), _mean([r.auc[-1:] for r in mine]),
                  _mean([[r.majority] for r in mine]), mine[0].by)  # fmt: skip
        epsilon = max(r.spent.epsilon for r in mine if r.spent) if all(r.spent for r in mine) else None
        found.append(Line(settings, len(mine), float(last.mean()), spread, float(best.mean()), *others, epsilon))
    return sorted(found, key=_worth, reverse=True)


def _worth(line: Line) -> float:
    value = line.last if line.by == "accuracy" else getattr(line, line.by)
    return -1.0 if math.isnan(value) else value


def _mean(values: Sequence[Sequence[float | None]]) -> float:
    """NaN where any is missing."""
    return float(np.mean([math.nan if not each or each[0] is None else each[0] for each in values]))


def _key(settings: Settings, mark: str = "") -> str:
    """Equal for equal settings of what has this mark."""
    return f"{mark} {json.dumps(dict(sorted(settings.items())), default=list)}"


def _finite(value: Any) -> float | None:
    return float(f"{float(value):.7g}") if math.isfinite(value) else None


def _read(path: Path) -> dict[str, Done]:
    """Results by what made them: their settings, data, files and version."""
    found = {}
    try:
        for line in whole_lines(path):
            tree = parse_json(line)
            if not isinstance(tree, dict):
                raise ValueError(f"{shown(tree)} is no table")
            key = str(tree.pop("run", ""))  # which results of earlier versions lack
            found[key] = done = record(Done, tree, "rounds", "accuracy", "loss")
            if done.by not in CALLED:
                raise ValueError(f"by: {shown(done.by)} is unknown")
    except ValueError as error:
        raise InputError(f"{path}: it holds no results of a sweep ({error}); give another folder") from None
    return found
