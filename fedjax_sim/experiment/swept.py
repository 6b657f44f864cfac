"""What a sweep or a search changes is what its runs use: values are tried out before the first of them is trained."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from fedjax_sim._validate import InputError, shown
from fedjax_sim.experiment.build import Experiment, build
from fedjax_sim.experiment.config import Config
from fedjax_sim.experiment.covered import refuse_same_noise
from fedjax_sim.experiment.section import value_of
from fedjax_sim.experiment.spent import spent_by
from fedjax_sim.experiment.trials import SEED, Group, Settings, grouped, with_settings

_WHOLE_RUNS = "trials do all their rounds, whatever it is"
_NEVER_USED = {
    "training.patience": _WHOLE_RUNS,
    "training.min_improvement": _WHOLE_RUNS,
    "training.evaluate_clients": "trials are not tested on single clients",
}


def tried_out(
    config: Config, trials: Sequence[Settings], done: Collection[int] = ()
) -> tuple[list[Group], Experiment | None]:
    """The trials by structure, and what the first group is, when every value that occurs in them can be used.

    One trial is built for each value that was in no other before; numbers that change no shape need none.

    Args:
      config: what they have in common.
      trials: all of them.
      done: places of those that need not be run; groups of nothing else are left out.

    Raises:
      InputError: a trial that does not fit, a setting that makes no difference or is replaced by another value.
    """
    groups, first = [g for g in grouped(config, trials) if not set(g.places) <= set(done)], None
    _refuse_idle(config, trials)
    seen: set[str] = set()
    for group in groups:
        settings = trials[group.places[0]]
        new = {_item(path, value) for path, value in settings.items() if path not in (*group.varied, SEED)}
        if first is None or not new <= seen:
            experiment = build(group.config)
            spent_by(experiment, experiment.config.training.rounds)
            for seed in {trials[place].get(SEED, config.training.seed) for place in group.places}:
                if experiment.before is not None:
                    refuse_same_noise(experiment.before, seed)
            _refuse_replaced(group, settings, experiment.config)
            first = first or experiment
            seen |= new
    return groups, first


def _item(path: str, value: Any) -> str:
    return f"{path}={value!r}"


def _value(config: Config, path: str) -> Any:
    section, _, key = path.partition(".")
    return value_of(getattr(config, section), key)


def _refuse_replaced(group: Group, settings: Settings, resolved: Config) -> None:
    """Every value is found in the configuration that the run itself has."""
    for path in settings:
        wanted, found = _value(group.config, path), _value(resolved, path)
        if path not in group.varied and wanted not in (found, "auto"):
            raise InputError(f"--over {path}: {shown(wanted)} is made {shown(found)} in the run; give values that stay")


def _refuse_idle(config: Config, trials: Sequence[Settings]) -> None:
    """No setting is tried that no trial depends on."""
    for path in dict.fromkeys(path for settings in trials for path in settings):
        mine: Iterable[Settings] = (settings for settings in trials if path in settings)
        reasons = [reason for settings in mine if (reason := _idle(with_settings(config, settings), path)) is not None]
        if len(reasons) == sum(path in settings for settings in trials):
            raise InputError(f"--over {path}: all its values give the same, for {reasons[0]}; leave it out")


def _idle(config: Config, path: str) -> str | None:
    """Why nothing depends on a setting in this configuration, if so."""
    section, _, key = path.partition(".")
    training = config.training
    if section in ("output", "execution"):
        return "results do not depend on where and how wide trials are computed"
    if path == "privacy.epsilon" and config.privacy.noise_multiplier is not None:
        return "privacy.noise_multiplier says how much noise there is, and trials do all their rounds"
    conditions = {
        "training.local_epochs": (training.local_steps is not None, "training.local_steps counts"),
        "training.adapt_every": (training.adapt_steps == "none", "training.adapt_steps is none"),
        "attack": (config.attack.name == "none" and key != "name", "attack.name is none"),
        "heterogeneity.drift_severity": (config.heterogeneity.drift == "none", "heterogeneity.drift is none"),
        "model.hidden": (config.model.name not in ("mlp", "mlp_norm"), f"{config.model.name} has fixed widths"),
        "network.slowdown": (not config.network.slow_clients, "there are no network.slow_clients"),
    }
    idle, reason = conditions.get(path) or conditions.get(section) or (False, "")
    return reason if idle else _NEVER_USED.get(path)
