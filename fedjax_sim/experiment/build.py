"""From a configuration to the things it names: data, federation, model, algorithm."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from fedjax_sim._validate import InputError
from fedjax_sim.algorithms import ALGORITHMS
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.message import chain
from fedjax_sim.data import PARTITIONS, SOURCES, FederatedData, federate
from fedjax_sim.experiment import config as settings
from fedjax_sim.experiment.config import Config
from fedjax_sim.experiment.explain import look_up
from fedjax_sim.models import MODELS, Model, build_model
from fedjax_sim.privacy import bare_laplace, laplace

_COMMON = ("name", "learning_rate", "momentum", "server_learning_rate")  # the other keys of [algorithm] are options


class Experiment(NamedTuple):
    """What a configuration stands for."""

    config: Config  # with the algorithm's own defaults filled in
    data: FederatedData
    model: Model
    algorithm: Algorithm


def build(config: Config) -> Experiment:
    """Loads the data, deals it out, and builds model and algorithm.

    Raises:
      InputError: a name or option that does not exist, data that cannot be read, or a federation that cannot be made.
    """
    look_up("data.name", config.data.name, SOURCES)
    look_up("data.partition", config.data.partition, PARTITIONS)
    look_up("model.name", config.model.name, MODELS)
    config = _with_defaults(config)
    data = _data(config.data)
    model = _model(config, data)
    return Experiment(config, data, model, _algorithm(config, model))


def _data(data: settings.Data) -> FederatedData:
    load, split = SOURCES[data.name], PARTITIONS[data.partition]
    try:
        dataset = load(**_known(load, data))
        parts = split(dataset.train["labels"], data.clients, **_known(split, data))
    except InputError as error:
        known = str(error).partition(":")[0] in type(data).model_fields
        raise InputError(f"data.{error}") from None if known else error
    return federate(dataset, parts)


def _known(function: Callable[..., Any], section: settings.Section) -> dict[str, Any]:
    """Those settings that are keywords of `function`."""
    parameters = inspect.signature(function).parameters
    return {name: getattr(section, name) for name in type(section).model_fields if name in parameters}


def _model(config: Config, data: FederatedData) -> Model:
    model, seed = config.model, config.training.seed
    return build_model(model.name, data.input_shape, data.classes or 2, hidden=model.hidden, seed=seed)


def _options(algorithm: settings.Algorithm) -> dict[str, Any]:
    """The algorithm's own options with its defaults, overridden by those given."""
    factory = look_up("algorithm.name", algorithm.name, ALGORITHMS)
    parameters = inspect.signature(factory).parameters
    options = {}
    for option in type(algorithm).model_fields:
        if option in _COMMON:
            continue
        given = getattr(algorithm, option)
        if option in parameters:
            options[option] = parameters[option].default if given is None else given
        elif given is not None:
            raise InputError(f"algorithm.{option}: {algorithm.name} has no such option; leave it out")
    return options


def _with_defaults(config: Config) -> Config:
    algorithm = config.algorithm.model_copy(update=_options(config.algorithm))
    return config.model_copy(update={"algorithm": algorithm})


def _algorithm(config: Config, model: Model) -> Algorithm:
    given, privacy = config.algorithm, config.privacy
    try:
        algorithm = ALGORITHMS[given.name](
            model.loss_fn,
            client_tx=optax.sgd(given.learning_rate, momentum=given.momentum or None),
            server_tx=optax.sgd(given.server_learning_rate),
            **_options(given),
        )
    except InputError as error:
        raise InputError(f"algorithm.{error}") from None
    if privacy.mechanism == "none":
        return algorithm
    if privacy.mechanism == "laplace":
        noise = laplace(epsilon=privacy.epsilon, clip_norm=privacy.clip_norm)
    else:
        noise = bare_laplace(privacy.epsilon)
    return algorithm._replace(transform=chain(algorithm.transform, noise))
