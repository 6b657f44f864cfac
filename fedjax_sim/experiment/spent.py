"""What a run that was changed on the way has spent of its clients' privacy: what is spent already stays spent."""

import warnings
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from fedjax_sim._validate import InputError
from fedjax_sim.data import draw_rounds
from fedjax_sim.experiment.build import Experiment, build
from fedjax_sim.experiment.config import parse_config
from fedjax_sim.experiment.covered import Spent, left_out, refuse_same_noise, spent_in
from fedjax_sim.experiment.folder import HISTORY
from fedjax_sim.experiment.history import rows_of
from fedjax_sim.experiment.record import Ingredients, Origin
from fedjax_sim.privacy import Ledger, Private
from fedjax_sim.privacy.composition import Past, refuse_unknown


def remember(folder: Path, origin: Origin, done: int, experiment: Experiment) -> Origin:
    """The record of a private run with how many rounds it has done, written down before the rows of those that have no
    checkpoint are removed."""
    if experiment.private is None:
        return origin
    written = sum(1 for _ in rows_of(folder / HISTORY)) if (folder / HISTORY).exists() else 0
    if written > max(done, origin.reached):
        origin = origin._replace(reached=written)
        origin.write(folder)
    return origin


def spent(origin: Origin, experiment: Experiment, done: int, *, changing: bool) -> list[Past]:
    """What rounds before the last change were done under; nothing where all were under the same privacy as those to
    come, and counting goes on.

    Args:
      origin: of the run, with the change that is to be made.
      experiment: what rounds to come are done under.
      done: rounds of the checkpoint.
      changing: whether there is such a change.

    Raises:
      InputError: a change after which nothing could be said of the privacy of the whole run.
    """
    stages = origin.stages()
    ends = [start for start, _ in stages[1:]]
    earlier = [(start, end, _built(stage)) for (start, stage), end in zip(stages, ends, strict=False) if end > start]
    private = [*(each.private for *_, each in earlier), experiment.private]
    guaranteed = [each is not None and each.spending is not None for each in private]
    if not earlier or not any(guaranteed):
        return []
    if not all(guaranteed):
        raise InputError(
            "privacy: rounds with a guarantee and rounds without one give none together; leave it as it was, or start "
            "another run"
        )
    if any(change.data for change in origin.changes):
        raise InputError(
            "data: what is guaranteed is guaranteed of the data that the run was begun with; put them back, or start "
            "another run"
        )
    if changing and done < origin.reached:
        raise InputError(
            f"privacy: rounds {done + 1} to {origin.reached} were done, and would be done again from the last "
            "checkpoint with the same noise under other settings, which shows what it hides; resume the run as it is, "
            "stop it with Ctrl-C, and change it then"
        )
    if all(_counts_alike(start, end, each, experiment) for start, end, each in earlier):
        return []
    past = []
    for start, end, each in earlier:
        assert each.private is not None
        assert each.private.spending is not None
        turns = np.zeros(each.data.num_clients, np.int64)
        for ids in _asked(each, start, end):
            turns[ids[ids >= 0]] += 1
        past.append(Past(each.private.spending, end - start, turns, each.private.statement))
    assert experiment.private is not None
    assert experiment.private.spending is not None
    refuse_unknown([*(part.spending for part in past), experiment.private.spending])
    return past


def as_begun(experiment: Experiment, origin: Origin) -> Experiment:
    """The experiment with what was spent before the run as that was known when it was begun: the model that training
    started from is not read again.

    Raises:
      InputError: the record of it is damaged.
    """
    private = experiment.private
    if private is None or private.spending is None or origin.before is None:
        return experiment
    try:
        before = TypeAdapter(Spent).validate_python(origin.before)
    except ValidationError:
        raise InputError("run.json: spent_before is damaged; start another run") from None
    refuse_same_noise(before, experiment.config.training.seed)
    private = private._replace(uncovered=left_out(experiment.config, experiment.data, private, before))
    return experiment._replace(before=before, private=private)


def spent_by(experiment: Experiment, rounds: int) -> Spent | None:
    """What so many rounds spend that are not stopped by the budget; None without a guarantee.

    Raises:
      InputError: more than the budget.
    """
    private, epsilon = experiment.private, 0.0
    if private is None or private.spending is None:
        return None
    ledger = Ledger(private, experiment.data.num_clients)
    for ids in _asked(experiment, 0, rounds - 1):
        ledger.count(ids)
    for ids in _asked(experiment, rounds - 1, rounds):
        epsilon = ledger.spend(ids)
    if private.budget is not None and epsilon is not None and epsilon > private.budget:
        raise InputError(
            f"privacy.epsilon: {private.budget:g}, but {rounds} rounds of this noise spend {epsilon:.3g}, and trials "
            "do all their rounds; leave privacy.noise_multiplier out, or lower training.rounds"
        )
    return spent_in(private, epsilon, [experiment.config.training.seed])


def promise(private: Private | None, past: Sequence[Past]) -> str | None:
    """What is guaranteed, in words, or that nothing is; None without privacy."""
    if private is None:
        return None
    before = [f", after {part.rounds} rounds of {part.statement}" for part in past]
    return f"{private.statement}{''.join(before)}{', composed' if before else ''}"


def _built(stage: Ingredients) -> Experiment:
    """What rounds were done under.

    Raises:
      InputError: it cannot be built any more, or not as it was.
    """
    tree: dict[str, dict[str, object]] = {}
    for path, value in stage.settings.items():
        section, _, key = path.partition(".")
        tree.setdefault(section, {})[key] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they were heard when it was begun
        experiment = build(parse_config(tree))
    noise = None if experiment.private is None else experiment.private.noise_multiplier
    if stage.noise is not None and noise != stage.noise:
        raise InputError(
            f"privacy.noise_multiplier: it was {stage.noise}, and this version works out {noise}; start another run"
        )
    return experiment


def _asked(experiment: Experiment, start: int, end: int) -> list[np.ndarray]:
    """The clients that were asked in rounds from `start` up to `end`, counted from 0."""
    if experiment.simulation is not None:
        return [step.asked for step in islice(experiment.simulation.schedule(None), start, end)]
    return list(draw_rounds(experiment.sampler, experiment.config.training.seed, start, end - start))


def _counts_alike(start: int, end: int, before: Experiment, now: Experiment) -> bool:
    """Whether rounds from `start` up to `end` count for the same under both: equal mechanisms, and the same clients."""
    first, second = before.private, now.private
    if first is None or second is None or first.spending is None or second.spending is None:
        return False
    same = (first.noise_multiplier, first.statement) == (second.noise_multiplier, second.statement)
    same &= all(first.spending.epsilon(times) == second.spending.epsilon(times) for times in {1, end - start})
    asked = zip(_asked(before, start, end), _asked(now, start, end), strict=True)
    return same and all(np.array_equal(*ids) for ids in asked)
