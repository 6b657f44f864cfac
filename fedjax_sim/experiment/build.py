"""From a configuration to the things it names: data, federation, model, algorithm."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax

from fedjax_sim import _memory
from fedjax_sim._validate import InputError
from fedjax_sim.attacks import DATA_ATTACKS, attacked, malicious
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.round import init
from fedjax_sim.core.types import RoundState
from fedjax_sim.data import SOURCES, FederatedData, Phase
from fedjax_sim.data.fingerprint import fingerprint
from fedjax_sim.data.sampling import Sampler
from fedjax_sim.experiment.clock import Simulation, make_simulation
from fedjax_sim.experiment.compress import compressed, with_downlink
from fedjax_sim.experiment.config import Config, Privacy
from fedjax_sim.experiment.covered import Spent, earlier, left_out
from fedjax_sim.experiment.federation import Change, Source, make_cohorts, make_federation
from fedjax_sim.experiment.names import look_up, of_kind
from fedjax_sim.experiment.recipe import SEED_MARK, attack_options, make_model, message_attack, recipe, with_defaults
from fedjax_sim.models import Model
from fedjax_sim.privacy import MECHANISMS, Adaptive, Private, privatize, privatize_examples

DP_SGD, _OF_DP_SGD = "dp_sgd", ("epsilon", "delta", "noise_multiplier", "clip_norm")


class Experiment(NamedTuple):
    """What a configuration stands for."""

    config: Config  # with everything filled in that was left to the data or the algorithm
    phases: tuple[Phase, ...]  # the clients' data, which may change at some round
    sampler: Sampler
    model: Model
    algorithm: Algorithm
    private: Private | None
    simulation: Simulation | None  # on a clock
    before: Spent | None = None  # by the run whose model training starts from, of the same clients' privacy

    @property
    def data(self) -> FederatedData:
        """The clients' data in the first round."""
        return self.phases[0].data


class Changes(NamedTuple):
    """What is done to the clients' data beside what a configuration says."""

    dealt: tuple[Change, ...] = ()  # before the dials of [heterogeneity] are turned
    last: tuple[Change, ...] = ()  # after attacks, to what is trained on


def build(
    config: Config,
    changes: Changes = Changes(),
    data: FederatedData | None = None,
    sources: Mapping[str, Source] = SOURCES,
) -> Experiment:
    """Loads the data, deals it out, and builds model and algorithm.

    Args:
      config: which may leave out what the data or the algorithm know.
      changes: to the clients' data.
      data: the clients' data, instead of those that [data] names.
      sources: by name, what reads data sets.

    Raises:
      InputError: a name or option that does not exist, data that cannot be read, or a federation that cannot be made.
    """
    asked, dealt = with_defaults(config), dict[str, str]()
    if asked.model.start and asked.privacy.mechanism != "none":
        changes = changes._replace(dealt=(partial(_look, dealt), *changes.dealt))
    config, phases, sampler = make_federation(asked, changes.dealt, data, sources)
    phases = _poisoned(config, phases)
    data = phases[0].data
    for change in changes.last:
        data = change(data)
    if changes.last:
        config, sampler = make_cohorts(config.model_copy(update={"training": asked.training}), data)
        phases = (Phase(0, data), *phases[1:])
    model = make_model(config, data, config.training.seed)
    factory, options = recipe(config)
    algorithm = _made(config.algorithm.name, factory, model, options)
    of_examples = config.privacy.mechanism == DP_SGD  # which makes the algorithm anew
    algorithm = algorithm if of_examples else compressed(config.compression, algorithm)
    private = _private(config, model, data, algorithm, factory, options)
    before = None
    if private is not None:
        if private.spending is not None:
            start = config.model.start.replace(SEED_MARK, str(config.training.seed))
            before = earlier(config, private, start, dealt)
            private = private._replace(uncovered=left_out(config, data, private, before))
        if private.spending is not None and data.pooled:
            public = ", ".join(data.pooled)
            private = private._replace(
                statement=f"{private.statement}; {public} over all clients are taken to be public"
            )
        algorithm, sampler = private.algorithm, private.sampler
    algorithm = compressed(config.compression, algorithm) if of_examples else algorithm
    algorithm = with_downlink(config.compression, algorithm, config.training.seed)
    algorithm = _with_attack(config, algorithm, data.num_clients)
    try:
        state = jax.eval_shape(lambda p: init(algorithm, p, data.num_clients, memory_rows=1), model.params)
    except InputError as error:  # what compression refuses
        raise InputError(f"algorithm.name{str(error).removeprefix('algorithm')}") from None
    _refuse_huge(config, state, data.num_clients)
    drifts = tuple(phase.start for phase in phases[1:])
    config, simulation = make_simulation(config, data, algorithm, model.params, sampler, drifts)
    if private is not None and private.spending is not None and simulation is not None:
        _refuse_a_clock_that_undoes_it(config, simulation)
    return Experiment(config, phases, sampler, model, algorithm, private, simulation, before)


def _look(found: dict[str, str], data: FederatedData) -> FederatedData:
    found |= fingerprint(data)
    return data


def _refuse_huge(config: Config, state: RoundState, clients: int) -> None:
    """What the server keeps fits in memory, and what clients remember, where that is to be there.

    Raises:
      InputError: it does not, on this machine.
    """
    remembered = _bytes((state.clients, state.messages))
    kept, name = _bytes(state) - remembered, config.algorithm.name
    lower = "lower algorithm.clusters" if (config.algorithm.clusters or 1) > 1 else "take a smaller model"
    _memory.require(f"algorithm.name: what the server of {name} keeps needs", kept, lower)
    if config.execution.client_memory == "device":
        _memory.require(f"execution.client_memory: what {clients:,} clients of {name} remember needs",
                        kept + clients * remembered, "set it to disk, or lower data.clients")  # fmt: skip


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def assemble(config: Config, model: Model, num_clients: int, traced: Mapping[str, Any], seed: Any) -> Algorithm:
    """The algorithm of a settled configuration without privacy, with settings and the run's seed that may be traced."""
    factory, options = recipe(config, traced, seed)
    algorithm = compressed(config.compression, factory(model.loss_fn, **options))
    return _with_attack(config, with_downlink(config.compression, algorithm, seed), num_clients)


def _made(name: str, factory: Callable[..., Algorithm], model: Model, options: dict[str, Any]) -> Algorithm:
    try:
        algorithm = of_kind("name", name, factory(model.loss_fn, **options), Algorithm)
        algorithm.client.init(model.params)  # which tells whether a pattern finds any leaves
    except InputError as error:
        raise InputError(f"algorithm.{error}") from None
    return algorithm


def _private(config: Config, model: Model, data: FederatedData, algorithm: Algorithm,
             factory: Callable[..., Algorithm], made_with: dict[str, Any]) -> Private | None:  # fmt: skip
    """The algorithm made private, with the sampler that its guarantee is for."""
    privacy, training = config.privacy, config.training
    if privacy.mechanism == "none":
        return None
    look_up("privacy.mechanism", privacy.mechanism, dict.fromkeys(("none", *MECHANISMS, DP_SGD)))
    bare = privacy.mechanism == "laplace_bare"
    if privacy.guarantee != "none":
        _refuse_what_undoes_it(config)
    for name, missing in (("epsilon", privacy.epsilon is None and (bare or privacy.noise_multiplier is None)),
                          ("clip_norm", privacy.clip_norm is None and not bare)):  # fmt: skip
        if missing:
            other = ", or privacy.noise_multiplier" if name == "epsilon" and not bare else ""
            raise InputError(
                f"privacy.{name}: missing, and mechanism {privacy.mechanism!r} needs it; set it, to 1.0 say{other}"
            )
    options = {name: value for name, value in privacy.model_dump().items() if value is not None}
    if options.pop("adaptive", False):
        options["adaptive"] = Adaptive()
    common = {"sampling": training.sampling, "cohort_size": training.clients_per_round or 1, "sizes": data.sizes,
              "rounds": training.rounds, "seed": training.seed}  # fmt: skip
    try:
        if options["mechanism"] == DP_SGD:
            work = {name: getattr(training, name) for name in ("batch_size", "local_epochs", "local_steps")}
            known = {name: options.pop(name) for name in _OF_DP_SGD if name in options}
            if unknown := options.keys() - {"mechanism", "guarantee"}:
                raise InputError(f"{min(unknown)}: {DP_SGD} has no such option; leave it out")
            known["guarantee"] = privacy.guarantee
            return privatize_examples(factory, model.loss_fn, **made_with, **work, **common, **known)
        if bare and (unknown := options.keys() - {"mechanism", "guarantee", "epsilon"}):
            raise InputError(f"{min(unknown)}: laplace_bare has no such option; leave it out")
        private = privatize(algorithm, num_clients=data.num_clients, params=model.params, **common,
                            **{"clip_norm": 1.0, **options})  # fmt: skip
        jax.eval_shape(lambda p: init(private.algorithm, p, data.num_clients), model.params)  # what it refuses to start
        return private
    except InputError as error:
        field = str(error).partition(":")[0]
        if field == "algorithm":
            raise InputError(f"algorithm.name{str(error).removeprefix('algorithm')}") from None
        section = "training." if field in ("sampling", "rounds") else "privacy." * (field in Privacy.model_fields)
        raise InputError(f"{section}{error}") from None


def _refuse_what_undoes_it(config: Config) -> None:
    """Settings outside [privacy] under which a guarantee would not hold."""
    mechanism, attack, drift = config.privacy.mechanism, config.attack.name, config.heterogeneity.drift
    forged = message_attack(config)
    if forged is not None and forged.whole and mechanism != DP_SGD and not mechanism.startswith("local_"):
        raise InputError(
            f"attack.name: {attack} makes messages out of honest ones before noise hides them; take another attack, "
            'a local mechanism, or privacy.guarantee "none"'
        )
    if forged is not None and mechanism == "discrete_gaussian" and attack != "nan_sender":
        raise InputError(
            f"attack.name: {attack} comes after the clipping and the share of noise that discrete noise leaves to each "
            'client; take another mechanism, or privacy.guarantee "none"'
        )
    if drift == "prior":
        raise InputError(
            "heterogeneity.drift: prior passes examples on to other clients, and what the two send of them adds up; "
            "take another drift, or set privacy.guarantee=none"
        )


def _refuse_a_clock_that_undoes_it(config: Config, simulation: Simulation) -> None:
    """Links and devices under which a guarantee would not hold."""
    if config.privacy.mechanism == "discrete_gaussian" and not simulation.all_arrive:
        raise InputError(
            "network.profiles: discrete noise counts on its clients, who might not arrive here; take another mechanism"
        )
    if simulation.uncounted is not None:
        raise InputError(simulation.uncounted)
    sampling = config.training.sampling
    if config.network.availability != "always" and sampling in ("uniform", "by_size"):
        raise InputError(
            f"training.sampling: {sampling!r} cohorts of those who can be reached hold each of them more often than "
            "the accountant counts; take poisson, round_robin or all"
        )


def _with_attack(config: Config, algorithm: Algorithm, num_clients: int) -> Algorithm:
    attack = message_attack(config)
    if attack is None:
        return algorithm
    return attacked(algorithm, attack, malicious(num_clients, config.attack.fraction, config.data.seed))


def _poisoned(config: Config, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
    """The clients' data after an attack on data, if there is one."""
    attack = DATA_ATTACKS.get(config.attack.name)
    if attack is None:
        return phases
    options = attack_options(config.attack, attack)
    who = malicious(phases[0].data.num_clients, config.attack.fraction, config.data.seed)
    return tuple(phase._replace(data=attack(phase.data, who, **options)) for phase in phases)
