"""Optuna studies on disk: opened, asked for batches of trials and told what became of them.

A process may be killed at any moment, and the study is then taken up where it was. For that, a study remembers which
trials are a batch and, before they are told one by one, the results of a group of them. So a batch that was begun is
the same batch afterwards: sampler and pruner see what they would have seen.
"""

import sqlite3
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_sim._validate import InputError, shown
from fedjax_sim.experiment.folder import record
from fedjax_sim.experiment.space import Choice, Range, Space

SAMPLERS = ("tpe", "gp", "random")
SEARCH = "fedjax_sim_search"  # attribute of a study: what is searched, and how
BATCH = "fedjax_sim_batch"  # another: the latest `Batch`


class Result(NamedTuple):
    """What became of a trial."""

    number: int
    value: float | None  # none of a trial that was stopped on the way, or was never within its budget
    reports: list[tuple[int, float]]  # rounds, and the value after them
    beside: dict[str, Any]  # what is shown with the value


class Batch(NamedTuple):
    """Trials that are asked for together."""

    trials: list[int]  # their numbers
    results: list[Result]  # of those that ended last, which may not all have been told


@contextmanager
def storage_at(path: Path) -> Iterator[Any]:
    """Where a study is kept, closed at the end. It is opened as a file: a URL would read ?, % and # in its name.

    Raises:
      InputError: the file is damaged or cannot be written.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    storage = None
    try:
        if path.exists():
            with closing(sqlite3.connect(path)) as database:
                found = str(database.execute("PRAGMA quick_check(1)").fetchone()[0])
            if found != "ok":
                raise sqlite3.DatabaseError(found)
        opened = {"creator": lambda: sqlite3.connect(path), "poolclass": NullPool}
        storage = optuna.storages.RDBStorage("sqlite://", engine_kwargs=opened)
        yield storage
    except (sqlite3.Error, SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())[:120]
        raise InputError(f"{path}: the study cannot be read or written ({reason}); give another folder") from None
    finally:
        if storage is not None:
            storage.remove_session()
            storage.engine.dispose()


def study_in(storage: Any, path: Path, name: str, pruner: Any, search: dict[str, Any]) -> Any:
    """The study of this name in `storage`, made or gone on with.

    Raises:
      InputError: it was begun as another search, or is damaged.
    """
    import optuna

    try:
        study = optuna.create_study(
            storage=storage, study_name=name, direction="maximize", load_if_exists=True, pruner=pruner
        )
        kept, trials = study.user_attrs.get(SEARCH), study.get_trials(deepcopy=False)
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, IndexError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise InputError(f"{path}: the study in it is damaged ({reason}); give another folder") from None
    if kept is None and not trials:
        study.set_user_attr(SEARCH, search)
    elif kept != search:
        kept = kept if isinstance(kept, dict) else {}
        name = next((name for name, value in search.items() if kept.get(name) != value), "space")
        was = shown(kept[name]) if name in kept else "not known"
        raise InputError(
            f"{path}: its {name} was another ({was}, now {shown(search[name])}); give another folder, or what it was"
        )
    return study


def sampler_named(name: str, seed: int, batch: int) -> Any:
    """Seeded by how far the study is, so that one that goes on does not repeat itself."""
    import optuna

    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "tpe":  # those that are being tried count as bad, so that a batch spreads out
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=batch, constant_liar=True, multivariate=True)
        try:
            import torch  # noqa: F401  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise InputError(
                "sampler: 'gp' needs PyTorch, which is not installed; run: pip install torch, or take tpe"
            ) from None
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=batch)


def taken_up(storage: Any, study: Any, path: Path) -> list[Any]:
    """The trials of the latest batch where some are not done, as Optuna's FrozenTrials; none where all are.

    What they had come to is told. Trials of no batch, of a process that was killed while it asked, count for nothing.

    Raises:
      InputError: what the study remembers of its batch is damaged.
    """
    from optuna.trial import TrialState

    kept = study.user_attrs.get(BATCH)
    try:
        batch = Batch([], []) if kept is None else record(Batch, kept)
    except ValueError as error:
        raise InputError(f"{path}: the study in it is damaged ({BATCH}: {error}); give another folder") from None
    known = {trial.number for trial in study.get_trials(deepcopy=False)}
    if not known >= {*batch.trials, *(result.number for result in batch.results)}:
        raise InputError(f"{path}: the study in it is damaged ({BATCH}: trials are missing); give another folder")
    _tell(storage, study, batch.results)
    trials = study.get_trials()
    for trial in trials:
        if trial.state == TrialState.RUNNING and trial.number not in batch.trials:
            study.tell(trial.number, state=TrialState.FAIL)
    mine = [trial for trial in trials if trial.number in batch.trials]
    return [] if all(trial.state.is_finished() for trial in mine) else mine


def ask(study: Any, space: Space, sampler: Any, count: int) -> list[Any]:
    """A batch of so many new trials, as Optuna's FrozenTrials."""
    study.sampler = sampler
    asked = [study.ask() for _ in range(count)]
    for trial in asked:
        for path, entry in space.items():
            _suggest(trial, path, entry)
    numbers = [trial.number for trial in asked]
    _remember(study, Batch(numbers, []))
    return [trial for trial in study.get_trials() if trial.number in numbers]


def tell(storage: Any, study: Any, batch: Sequence[int], results: Sequence[Result]) -> None:
    """Results of some trials of a batch, so that all of them are told, sooner or later, once this is begun."""
    _remember(study, Batch([*batch], [*results]))
    _tell(storage, study, results)


def _remember(study: Any, batch: Batch) -> None:
    study.set_user_attr(BATCH, batch._asdict() | {"results": [result._asdict() for result in batch.results]})


def _tell(storage: Any, study: Any, results: Sequence[Result]) -> None:
    """Trials that are done already stay as they are."""
    from optuna.trial import TrialState

    inside = storage.get_study_id_from_name(study.study_name)
    done = {trial.number for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()}
    for result in results:
        if result.number not in done:
            trial = storage.get_trial_id_from_study_id_trial_number(inside, result.number)
            for rounds, value in result.reports:
                storage.set_trial_intermediate_value(trial, rounds, value)
            for name, value in result.beside.items():
                storage.set_trial_user_attr(trial, name, value)
            state = TrialState.PRUNED if result.value is None else TrialState.COMPLETE
            study.tell(result.number, result.value, state=state)


def _suggest(trial: Any, path: str, entry: Choice | Range) -> None:
    if isinstance(entry, Choice):
        trial.suggest_categorical(path, list(entry.values))
    elif entry.whole:
        trial.suggest_int(path, int(entry.low), int(entry.high), log=entry.log)
    else:
        trial.suggest_float(path, entry.low, entry.high, log=entry.log)
