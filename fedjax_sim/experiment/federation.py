"""From a configuration to the federation it describes: source, class balance, partition, dials, drift."""

import inspect
import mmap
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim._validate import InputError, finite
from fedjax_sim.data import (
    DISAGREEMENTS,
    DRIFTS,
    PARTITIONS,
    SHIFTS,
    SOURCES,
    Dataset,
    FederatedData,
    Phase,
    by_column,
    federate,
    long_tail,
    make_sampler,
    open_store,
)
from fedjax_sim.data.convert import narrowed, unscaled
from fedjax_sim.data.sampling import Sampler
from fedjax_sim.data.sound import check_federation
from fedjax_sim.data.validation import hold_out
from fedjax_sim.experiment.config import Config, Data, sampled
from fedjax_sim.experiment.names import function, look_up, of_kind, option_names, options_of, recordable, refuse_unknown
from fedjax_sim.experiment.section import Section

STORE, COLUMN, GIVEN, OWN = THEIRS = ("store", "column", "given", "own")  # which leave clients as they are
DEFAULT_PARTITION, DEFAULT_CLIENTS, DEFAULT_COHORT = "dirichlet", 20, 10
HELD_OUT = 0.1  # of each client's training examples, where `training.patience` chooses and nothing else is asked for
SHIFTED_BYTES = 4e9  # of a federation on disk, up to which dials copy it into memory

# settings of [data] that are no options of a source or a partition
_COMMON = ("name", "path", "partition", "clients", "local_test_fraction", "seed")


Change = Callable[[FederatedData], FederatedData]
Source = Callable[..., Dataset]  # its options are the function's own


class Federation(NamedTuple):
    """The clients' data over the rounds, and how cohorts are drawn."""

    config: Config  # with everything filled in that was left to the data
    phases: tuple[Phase, ...]  # the first starts in round 0
    sampler: Sampler


def make_federation(
    config: Config,
    changes: Sequence[Change] = (),
    given: FederatedData | None = None,
    sources: Mapping[str, Source] = SOURCES,
) -> Federation:
    """Loads the data, deals it out, and turns the dials.

    Args:
      config: whose settings may leave out what the data or their sources know.
      changes: made to the clients' data before the dials are turned.
      given: the clients' data, instead of those that [data] names.
      sources: by name, what reads data sets.

    Raises:
      InputError: a name or option that does not exist, data that cannot be read, or a federation that cannot be made.
    """
    look_up("heterogeneity.drift", config.heterogeneity.drift, {"none": None, **DRIFTS})
    if given is not None:
        check_federation("data", given)
    settings, data = dealt(config, sources) if given is None else (_settled(config.data, GIVEN, given, {}), given)
    if "inputs" in data.examples and data.vocabulary is None and (trouble := unscaled(data.examples["inputs"])):
        warnings.warn(trouble, stacklevel=3)
    for part, examples in (("test", data.test), ("local_test", data.local_test and data.local_test.examples)):
        finite(f"data, {part}", examples or {})
    for change in changes:
        data = change(data)
    data = _dialled(config, data)
    phases = [Phase(0, data)]
    if config.heterogeneity.drift_round is not None:
        drifted = DRIFTS[config.heterogeneity.drift]
        changed = drifted(data, config.heterogeneity.drift_severity, seed=config.data.seed)
        phases.append(Phase(config.heterogeneity.drift_round - 1, changed))
        if phases[1].start == 0:
            del phases[0]
    phases = [phase._replace(data=_held_out(config, phase.data)) for phase in phases]
    config, sampler = make_cohorts(config, _held_out(config, data) if phases[0].start else phases[0].data)
    return Federation(config.model_copy(update={"data": settings}), tuple(phases), sampler)


def make_cohorts(config: Config, data: FederatedData) -> tuple[Config, Sampler]:
    """The configuration with sampling and the cohort's size filled in, and how cohorts are drawn.

    Raises:
      InputError: a sampling that does not exist, or a cohort that the clients cannot fill.
    """
    config = sampled(config)
    training = config.training
    assert training.sampling is not None
    if training.sampling == "by_size":
        if config.heterogeneity.drift == "prior":
            raise InputError(
                "training.sampling: by_size goes by the first rounds' sizes, which drift moves; use another"
            )
        if config.algorithm.weighting != "uniform":
            text = (
                "training.sampling: by_size and weights by examples count sizes twice; set algorithm.weighting=uniform"
            )
            warnings.warn(text, stacklevel=2)
    cohort = training.clients_per_round or min(DEFAULT_COHORT, data.num_clients)
    if training.sampling == "all":
        cohort = data.num_clients
        if training.clients_per_round not in (None, cohort):
            raise InputError(
                f"training.clients_per_round: {training.clients_per_round}, but all are {cohort}; leave it out"
            )
    try:
        sampler = make_sampler(training.sampling, data.offsets, cohort)
    except InputError as error:
        path = {"sampling": "sampling", "cohort_size": "clients_per_round"}[str(error).partition(":")[0]]
        raise InputError(f"training.{path}:{str(error).partition(':')[2]}") from None
    training = training.model_copy(update={"clients_per_round": cohort})
    return config.model_copy(update={"training": training}), sampler


def dealt(config: Config, sources: Mapping[str, Source] = SOURCES) -> tuple[Data, FederatedData]:
    """The settings of [data] as they were used, and the federation they give."""
    data = config.data
    if data.name == STORE:
        _refuse_unknown(data, [])
        if not data.path:
            raise InputError("data.path: it is empty; give the folder of a federation, as `data write` makes it")
        opened = open_store(data.path)
        return _settled(data, STORE, opened, {}), opened
    if data.partition == GIVEN:
        raise InputError("data.partition: it was run on data of its own; give them to build(config, data=...) again")
    load = function("data.name", data.name, sources, "sources")
    splits = {"auto": None, OWN: None, COLUMN: by_column, **PARTITIONS}
    split = look_up("data.partition", data.partition, splits, "partitions")
    if split is not None:
        _refuse_unknown(data, [load, split])
    more = {"clients": data.clients or _default(load, "clients")}
    dataset = of_kind("data.name", data.name, _called(data, load, more), (Dataset, FederatedData))
    dataset = dataset._replace(source=dataset.source or data.name)
    if isinstance(dataset, FederatedData):
        if split is not None:
            raise InputError(
                f"data.partition: {data.partition}, but {data.name} gives clients of its own; leave it out"
            )
        _refuse_unknown(data, [load])
        check_federation("data", dataset)
        return _settled(data, OWN, dataset, _options(data, load)), dataset
    if data.partition == OWN:
        raise InputError(f"data.partition: {OWN}, but {data.name} gives examples without clients; take another")
    if split is None:
        split = by_column if "client" in dataset.columns else PARTITIONS[DEFAULT_PARTITION]
        _refuse_unknown(data, [load, split])
    dataset = _unbalanced(config, dataset)
    if split is by_column:
        if data.local_test_fraction:
            raise InputError("data.local_test_fraction: clients by column have their own test rows; leave it out")
        dealt = _called(data, split, {}, dataset)
    else:
        clients = data.clients or (DEFAULT_CLIENTS if _default(split, "clients") is inspect.Parameter.empty else None)
        parts = _called(data, split, {}, dataset.train["labels"], clients)
        dealt = federate(dataset, parts, local_test_fraction=data.local_test_fraction, seed=data.seed)
    name = data.partition if data.partition != "auto" else COLUMN if split is by_column else DEFAULT_PARTITION
    return _settled(data, name, dealt, {**_options(data, load), **_options(data, split, skip=1)}), dealt


def _options(data: Data, function: Callable[..., Any], skip: int = 0) -> dict[str, Any]:
    """The options that a function knows: those given, and the function's own defaults for the rest."""
    return options_of(data, "data", function, _COMMON, skip=skip)


def _refuse_unknown(data: Data, functions: Sequence[Callable[..., Any]]) -> None:
    """Nothing is set that would be ignored: a source's options are all of its parameters, a partition's all but the
    labels or the data set, which come first."""
    known = {name for place, each in enumerate(functions) for name in option_names(each, (), skip=min(place, 1))}
    refuse_unknown(data, "data", {*_COMMON, *known}, f"data set {data.name!r} with partition {data.partition!r}")
    if data.path and functions and "path" not in inspect.signature(functions[0]).parameters:
        raise InputError(f"data.path: {data.path!r} is not used, for {data.name} brings its own data; leave it out")


def _default(function: Callable[..., Any], name: str) -> Any:
    parameters = inspect.signature(function).parameters
    return parameters[name].default if name in parameters else None


def _called(data: Data, function: Callable[..., Any], more: dict[str, Any], *given: Any) -> Any:
    """`function(*given, ...)` with the options that it knows, and errors that name the setting."""
    parameters = inspect.signature(function).parameters
    keywords = {"path": data.path, "seed": data.seed, **more, **_options(data, function, skip=len(given))}
    try:
        return function(
            *given, **{name: value for name, value in keywords.items() if name in list(parameters)[len(given) :]}
        )
    except InputError as error:
        named = str(error).partition(":")[0] in type(data).model_fields
        raise (InputError(f"data.{error}") if named else error) from None


def _unbalanced(config: Config, dataset: Dataset) -> Dataset:
    ratio = config.heterogeneity.imbalance
    if ratio == 1:
        return dataset
    rows = long_tail(dataset.train["labels"], ratio, seed=config.data.seed)
    return dataset._replace(
        train={field: array[rows] for field, array in dataset.train.items()},
        columns={name: values[rows] for name, values in dataset.columns.items()},
    )


def _settled(data: Data, partition: str, dealt: FederatedData, options: dict[str, Any]) -> Data:
    if data.clients not in (None, dealt.num_clients):
        raise InputError(
            f"data.clients: {data.clients}, but {dealt.source or 'the federation'} has {dealt.num_clients} of its own; "
            "leave it out"
        )
    return data.model_copy(update={**recordable(options), "partition": partition, "clients": dealt.num_clients})


def _dialled(config: Config, data: FederatedData) -> FederatedData:
    """`data` with every dial turned that is not at 0, feature shifts first."""
    section: Section = config.heterogeneity
    for name, dial in {**SHIFTS, **DISAGREEMENTS}.items():
        if severity := getattr(section, name):
            _refuse_to_copy(f"heterogeneity.{name}", data)
            data = dial(data, severity, seed=config.data.seed)
    return data


def _refuse_to_copy(setting: str, data: FederatedData) -> None:
    held = sum(array.nbytes for array in data.examples.values() if isinstance(array.base, mmap.mmap))
    if held > SHIFTED_BYTES:
        raise InputError(
            f"{setting}: it would copy {held / 1e9:.0f} GB from disk into memory; apply it before writing the "
            "federation"
        )


def validation_share(config: Config) -> float:
    """The share of each client's training examples that is held out to choose the best round by. Of its own accord none
    is under privacy, where a choice on clients' examples would have to be paid for."""
    asked = config.training.validation_fraction
    chooses = config.training.patience is not None and config.privacy.mechanism == "none"
    return (HELD_OUT if chooses else 0.0) if asked == "auto" else asked


def _held_out(config: Config, data: FederatedData) -> FederatedData:
    """`data` without the examples that are held out of training."""
    share = validation_share(config)
    if not share:
        return data
    _refuse_to_copy("training.validation_fraction", data)
    try:
        return hold_out(data, share, config.data.seed)
    except InputError as error:
        raise InputError(f"training.{error}") from None


def tested_on_clients(data: FederatedData) -> bool:
    """Whether the global model is tested on examples that clients keep: there is no other test set, or it has as many
    rows as they keep together, as where it was made of theirs."""
    if data.local_test is None:
        return False
    return data.test is None or len(next(iter(data.test.values()))) == int(data.local_test.offsets[-1])


def held_out_examples(data: FederatedData) -> dict[str, np.ndarray] | None:
    """What the global model is tested on: the global test set, else all that clients keep for testing."""
    held = data.test if data.test is not None or data.local_test is None else data.local_test.examples
    return None if held is None else {field: narrowed(field, array) for field, array in held.items()}


def validation_examples(data: FederatedData) -> dict[str, np.ndarray] | None:
    """What clients hold out of training, to choose on."""
    held = data.validation
    return None if held is None else {field: narrowed(field, array) for field, array in held.items()}


def majority(labels: Any) -> float:
    """The share of the most frequent class: what always answering it reaches."""
    counts = np.bincount(np.asarray(labels, np.int64))
    return float(counts.max() / max(counts.sum(), 1))
