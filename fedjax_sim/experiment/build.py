"""From a configuration to the things it names: data, federation, model, algorithm."""

import inspect
from typing import Any, NamedTuple

import optax

from fedjax_sim._validate import InputError
from fedjax_sim.algorithms import ALGORITHMS
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.message import chain
from fedjax_sim.data import FederatedData, Phase
from fedjax_sim.data.sampling import Sampler
from fedjax_sim.experiment import config as settings
from fedjax_sim.experiment.config import Config
from fedjax_sim.experiment.explain import look_up
from fedjax_sim.experiment.federation import make_federation
from fedjax_sim.models import MODELS, Model, build_model
from fedjax_sim.privacy import bare_laplace, laplace

_COMMON = ("name", "learning_rate", "momentum", "server_learning_rate")  # the other keys of [algorithm] are options


class Experiment(NamedTuple):
    """What a configuration stands for."""

    config: Config  # with everything filled in that was left to the data or the algorithm
    phases: tuple[Phase, ...]  # the clients' data, which may change at some round
    sampler: Sampler
    model: Model
    algorithm: Algorithm

    @property
    def data(self) -> FederatedData:
        """The clients' data in the first round."""
        return self.phases[0].data


def build(config: Config) -> Experiment:
    """Loads the data, deals it out, and builds model and algorithm.

    Raises:
      InputError: a name or option that does not exist, data that cannot be read, or a federation that cannot be made.
    """
    look_up("model.name", config.model.name, MODELS)
    config, phases, sampler = make_federation(_with_defaults(config))
    model = _model(config, phases[0].data)
    return Experiment(config, phases, sampler, model, _algorithm(config, model))


def _model(config: Config, data: FederatedData) -> Model:
    model, seed = config.model, config.training.seed
    if data.classes is None or {"inputs", "labels"} - data.examples.keys():
        raise InputError(
            f"data.name: {data.source} has fields {sorted(data.examples)} and {data.classes or 'no'} classes; "
            'a classifier needs "inputs", "labels" and the number of classes'
        )
    return build_model(model.name, data.input_shape, data.classes, hidden=model.hidden, seed=seed)


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
