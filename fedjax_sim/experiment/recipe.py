"""What the names and numbers of [model], [algorithm] and [attack] make: which function, with which options."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import optax

from fedjax_sim._validate import InputError
from fedjax_sim.algorithms import ALGORITHMS
from fedjax_sim.attacks import DATA_ATTACKS, MESSAGE_ATTACKS, Attack
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.data import FederatedData
from fedjax_sim.experiment import sections
from fedjax_sim.experiment.config import Config
from fedjax_sim.experiment.federation import validation_share
from fedjax_sim.experiment.names import (
    function,
    look_up,
    of_kind,
    option_names,
    options_of,
    recordable,
    refuse_unknown,
    traceable,
)
from fedjax_sim.experiment.section import Section
from fedjax_sim.models import MODELS, Model, build_model, freeze, load_leaves, lora, train_only, warm_start

# The other keys of these tables are options of what their names stand for.
_COMMON = ("name", "learning_rate", "momentum", "server_learning_rate", "server_schedule")
_GIVEN = ("client_tx", "server_tx", "seed")  # parameters that are made from those, and the run's seed
_KNOWN = ("name", "input_shape", "classes", "hidden", "seed", "dtype", "vocabulary")  # that a model is given
_ATTACK_COMMON = ("name", "fraction")
SEED_MARK = "{seed}"  # in model.start, for the training seed


def make_model(config: Config, data: FederatedData, seed: int) -> Model:
    """The model of [model], with initial parameters of this seed.

    Raises:
      InputError: an unknown name, data that it does not fit, or leaves that are not there.
    """
    given = config.model
    if data.classes is None or {"inputs", "labels"} - data.examples.keys():
        raise InputError(
            f"data: {data.source or 'they'} have fields {sorted(data.examples)} and {data.classes or 'no'} classes; "
            'a classifier needs "inputs", "labels" and the number of classes (from_clients(..., classes=2) say)'
        )
    known = {"input_shape": data.input_shape, "classes": data.classes, "hidden": given.hidden, "seed": seed,
             "dtype": data.examples["inputs"].dtype, "vocabulary": data.vocabulary}  # fmt: skip
    if given.name in MODELS:
        model = build_model(given.name, **known)
    else:
        factory = _model_factory(given)
        asked = inspect.signature(factory).parameters
        known = {name: value for name, value in known.items() if name in asked}
        model = of_kind("model.name", given.name, factory(**known, **_model_options(given, factory)), Model)
    chosen = [name for name in ("freeze", "train_only", "lora_rank") if getattr(given, name) is not None]
    lost = [
        name for name in ("lora_pattern", "lora_also") if getattr(given, name) is not None and given.lora_rank is None
    ]
    if len(chosen) > 1:
        raise InputError(f"model.{chosen[1]}: beside model.{chosen[0]}, which says what is trained; leave one out")
    if lost or (given.skip is not None and not given.start):
        name, needed = (lost[0], "lora_rank") if lost else ("skip", "start")
        raise InputError(f"model.{name}: {getattr(given, name)!r} has no effect without model.{needed}; set that too")
    setting = "start"
    try:
        if given.start:
            model = warm_start(model, load_leaves(given.start.replace(SEED_MARK, str(seed))), skip=given.skip)
        setting = chosen[0] if chosen else ""
        if given.freeze is not None:
            model = freeze(model, given.freeze)
        if given.train_only is not None:
            model = train_only(model, given.train_only)
        if given.lora_rank is not None:
            model = lora(model, given.lora_rank, pattern=given.lora_pattern or "", also=given.lora_also)
    except InputError as error:
        raise InputError(f"model.{setting}: {error}") from None
    return model


def with_defaults(config: Config) -> Config:
    """The configuration with the options of model, algorithm and attack filled in where they were left out."""
    given, of_model = config.algorithm, _model_factory(config.model)
    factory = _factory(given)
    settled = recordable(_own_options(given))
    if given.server_learning_rate is None:
        default = inspect.signature(factory).parameters.get("server_learning_rate")
        settled["server_learning_rate"] = 1.0 if default is None else default.default
    attack, choices = config.attack, {"none": none, **DATA_ATTACKS, **MESSAGE_ATTACKS}
    harm = recordable(attack_options(attack, look_up("attack.name", attack.name, choices)))
    training = config.training.model_copy(update={"validation_fraction": validation_share(config)})
    update = {"algorithm": given.model_copy(update=settled), "attack": attack.model_copy(update=harm)}
    shape = recordable(_model_options(config.model, of_model))
    update |= {"training": training, "model": config.model.model_copy(update=shape)}
    return config.model_copy(update=update)


def _factory(given: sections.Algorithm) -> Callable[..., Algorithm]:
    factory = function("algorithm.name", given.name, ALGORITHMS, "algorithms")
    parameters = inspect.signature(factory).parameters
    if "client_tx" not in parameters:
        raise InputError(
            f"algorithm.name: {given.name} takes no client_tx; give a function (loss_fn, *, client_tx) -> Algorithm"
        )
    if taken := parameters.keys() & {*_COMMON} - {"server_learning_rate"}:
        raise InputError(
            f"algorithm.name: {given.name} has an option {min(taken)}, which is a setting of every algorithm; rename it"
        )
    return factory


def _own_options(given: sections.Algorithm) -> dict[str, Any]:
    """Those that the algorithm alone has, besides the loss, optimizers and the seed, and rates that it takes itself."""
    return _options(given, "algorithm", _factory(given), (*_GIVEN, *_COMMON), common=_COMMON, skip=1)


def _model_factory(given: sections.Model) -> Callable[..., Model]:
    return build_model if given.name in MODELS else function("model.name", given.name, MODELS, "models")


def _model_options(given: sections.Model, factory: Callable[..., Model]) -> dict[str, Any]:
    """Those that a model of the user's own has, besides what is known of the data, the widths and the seed."""
    return _options(given, "model", factory, _KNOWN, common=type(given).model_fields)


def attack_options(given: sections.Attack, factory: Callable[..., Any]) -> dict[str, Any]:
    """An attack's options, without the clients' data and who attacks, which come first in attacks on data."""
    skip = 2 if given.name in DATA_ATTACKS else 0
    return _options(given, "attack", factory, ("seed", *_ATTACK_COMMON), common=_ATTACK_COMMON, skip=skip)


def _options(
    section: Section, path: str, factory: Callable[..., Any], given: Iterable[str], *, common: Iterable[str],
    skip: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """As `options_of`; nothing else is set in the section but the settings that are `common`."""
    refuse_unknown(section, path, {*option_names(factory, given, skip), *common})
    return options_of(section, path, factory, given, skip=skip)


def none() -> None:
    """No attack."""


def _server_rate(config: Config) -> Any:
    rate, rounds = config.algorithm.server_learning_rate or 1.0, config.training.rounds
    if config.algorithm.server_schedule == "cosine":
        return optax.cosine_decay_schedule(rate, rounds)
    return optax.linear_schedule(rate, 0.0, rounds) if config.algorithm.server_schedule == "linear" else rate


def recipe(
    config: Config, traced: Mapping[str, Any] | None = None, seed: Any = None
) -> tuple[Callable[..., Algorithm], dict[str, Any]]:
    """The factory of the algorithm, and all that it is given beside the loss.

    Args:
      config: settled.
      traced: settings of [algorithm] that are taken from here instead, such as `learning_rate`; they may be traced.
      seed: of the run, which may be traced; that of the configuration by default.
    """
    given, factory, traced = config.algorithm, _factory(config.algorithm), traced or {}
    rate = traced.get("server_learning_rate", _server_rate(config))
    own = "server_tx" not in inspect.signature(factory).parameters
    server = {"server_learning_rate": rate} if own else {"server_tx": optax.sgd(rate)}
    momentum = traced.get("momentum", given.momentum or None)
    client_tx = optax.sgd(traced.get("learning_rate", given.learning_rate), momentum=momentum)
    chosen = _own_options(given)
    chosen |= {name: value for name, value in traced.items() if name in chosen}
    if "seed" in inspect.signature(factory).parameters:  # of what the algorithm draws at its start
        chosen["seed"] = config.training.seed if seed is None else seed
    return factory, {"client_tx": client_tx, **server, **chosen}


def continuous(config: Config) -> frozenset[str]:
    """Settings of [algorithm] that `recipe` takes traced: numbers that change no shape."""
    factory = _factory(config.algorithm)
    constant = {"server_learning_rate"} if config.algorithm.server_schedule == "constant" else set()
    own = traceable(factory) & {*option_names(factory, _GIVEN, skip=1)}
    return frozenset((own - {"server_learning_rate"}) | {"learning_rate", "momentum"} | constant)


def message_attack(config: Config) -> Attack | None:
    factory = MESSAGE_ATTACKS.get(config.attack.name)
    return None if factory is None else factory(**attack_options(config.attack, factory))
