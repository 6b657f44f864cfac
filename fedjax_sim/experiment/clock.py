"""From a configuration to a simulated clock: links and devices, whom the server waits for, and the schedule of it."""

import math
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim import network
from fedjax_sim._validate import InputError
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.buffered import Discount, hinge, polynomial, undiscounted
from fedjax_sim.core.round import wire_bits
from fedjax_sim.core.types import PyTree
from fedjax_sim.data import FederatedData, make_sampler
from fedjax_sim.data.sampling import Available, Sampler
from fedjax_sim.experiment.communication import Network
from fedjax_sim.experiment.config import Config
from fedjax_sim.experiment.counted import Parts, all_arrive, uncounted
from fedjax_sim.experiment.names import look_up
from fedjax_sim.network import Availability, Policy, Profiles, ServerStep
from fedjax_sim.network.turns import Row, extent, rows

Cap = Callable[[int], int | None]  # round (from 0) -> local steps of a client at most
VERSIONS = 8  # broadcasts kept for clients that train later, together with others


class Simulation(NamedTuple):
    """How a federation runs on the clock."""

    schedule: Callable[[Cap | None], Iterator[ServerStep]]  # from the first round on
    slots: int  # clients in a round at most, of those whose messages arrive
    bits: tuple[int, int]  # that a client receives, and sends at most
    turns: Callable[[Iterator[ServerStep], tuple[int, int]], Iterator[Row]] | None  # of that schedule in this extent,
    # where messages may be stale
    extent: tuple[int, int]  # messages on their way and those that arrive in a round at most, where they may be stale
    discount: Discount
    mixing: bool
    statement: str

    def beside_bits(self, step: ServerStep) -> tuple[int, int]:
        """Bits sent in a round beside the messages that are aggregated: by the server to whoever was asked, and by
        clients in vain. A message that comes too late to be taken was sent whole, for nobody tells its client to stop;
        its size is the largest that a message has. Who fails does so before it sends. A stale message counts in the
        round that takes it."""
        return self.bits[0] * len(step.asked), 0 if self.turns is not None else self.bits[1] * len(step.late)

    uncounted: str | None  # why no guarantee of privacy holds on this clock, and what to do; None where one does
    all_arrive: bool  # whoever is asked, and as many are as are drawn


class Clock:
    """The steps of a schedule as rounds come up, those before them forgotten."""

    def __init__(self, schedule: Iterator[ServerStep]):
        self._schedule, self._first, self._held = schedule, 0, list[ServerStep]()
        self.seconds = 0.0  # when the last round that was passed had ended

    def ahead(self, first: int, count: int) -> list[ServerStep]:
        """The steps of `count` rounds from round `first` (from 0), which never goes back."""
        self._held += islice(self._schedule, max(0, first + count - self._first - len(self._held)))
        if passed := self._held[: first - self._first]:
            self.seconds = passed[-1].seconds
        self._held, self._first = self._held[first - self._first :], first
        return self._held[:count]


def planned(config: Config, data: FederatedData) -> np.ndarray:
    """Local steps of each client in a round, int64[N]."""
    training, sizes = config.training, np.asarray(data.sizes, np.int64)
    whole = -(-sizes // training.batch_size) * training.local_epochs
    steps = np.full(len(sizes), training.local_steps) if training.local_steps else whole
    return np.where(sizes > 0, steps, 0)


def make_simulation(
    config: Config,
    data: FederatedData,
    algorithm: Algorithm,
    params: PyTree,
    sampler: Sampler,
    changes: tuple[int, ...],
) -> tuple[Config, Simulation | None]:
    """The configuration with its defaults filled in, and the clock; None without one.

    Args:
      config: settled but for [network].
      data: the clients' data.
      algorithm: whose messages are sent.
      params: the model.
      sampler: who is asked, if everybody can be reached.
      changes: rounds (from 0) before which clients' data change.

    Raises:
      InputError: one line that names the setting, or the file.
    """
    if config.network.profiles == "none":
        return config, None
    config = config.model_copy(update={"network": _settled(config, sampler)})
    given = config.network
    profiles = _profiles(config, data.num_clients)
    availability, steps = _availability(given, data.num_clients, config.data.seed), planned(config, data)
    try:
        bits = wire_bits(algorithm, params, data.num_clients)
        make = _asynchronous if given.policy == "asynchronous" else _synchronous
        schedule, parts = make(config, data, profiles, availability, steps, bits, sampler)
        stale = given.policy == "asynchronous" or given.late == "stale"
        if stale and algorithm.survey is not None:
            name = config.algorithm.name
            raise InputError(f"algorithm.name: {name}'s clients answer twice a round; take one whose clients send once")
        needed = (0, 0)
        if given.policy == "asynchronous":
            assert given.concurrency is not None
            assert given.buffer is not None
            needed = given.concurrency + given.buffer - 1, given.buffer
        elif stale:
            needed = extent(islice(schedule(None), config.training.rounds))
        next(schedule(None))  # what it refuses
    except InputError as error:
        field = str(error).partition(":")[0]
        raise InputError(f"network.{error}" if field in type(given).model_fields else str(error)) from None

    def turns(steps: Iterator[ServerStep], extent: tuple[int, int]) -> Iterator[Row]:
        return rows(steps, places=extent[0], arrivals=extent[1], versions=VERSIONS, until=changes)

    slots = (config.training.clients_per_round or 1) if given.policy == "over_select" else sampler.slots
    text = _statement(given, profiles, steps, bits)
    return config, Simulation(
        schedule, slots, bits, turns if stale else None, needed, _discount(given), bool(given.mixing), text,
        uncounted(given, parts), all_arrive(parts, profiles),
    )  # fmt: skip


def _settled(config: Config, sampler: Sampler) -> Network:
    given, cohort, sampling = config.network, config.training.clients_per_round or 1, config.training.sampling
    update: dict[str, Any] = {}
    if given.policy == "over_select":
        update["extra"] = math.ceil(0.3 * cohort) if given.extra is None else given.extra
    if given.policy == "asynchronous":
        update["concurrency"] = given.concurrency or cohort
        update["buffer"] = given.buffer or max(1, update["concurrency"] // 2)
        update["mixing"] = bool(given.mixing)
    if given.policy in ("over_select", "asynchronous") and sampling not in ("uniform", "by_size", "round_robin"):
        raise InputError(
            f"training.sampling: {sampling!r} does not go with network.policy {given.policy!r}; take uniform, "
            "by_size or round_robin"
        )
    if given.policy == "asynchronous" or given.late == "stale":
        update["discount"] = given.discount or "polynomial"
        if config.training.adapt_steps != "none":
            raise InputError("training.adapt_steps: it needs rounds whose clients all begin at once; leave it out")
        if config.execution.client_memory == "disk" or config.execution.memory == "stream":
            raise InputError(
                "execution.memory: stale messages need population and client memory on the device; leave both at auto"
            )
    if given.policy == "deadline":
        update |= {"partial": bool(given.partial), "wait_out": bool(given.wait_out)}
    return given.model_copy(update=update)


def _profiles(config: Config, clients: int) -> Profiles:
    given, seed = config.network, config.data.seed
    shared = {"latency_s": given.latency_s, "dropout": given.dropout, "completeness": given.completeness}
    links = {"downlink_bps": given.downlink_bps, "uplink_bps": given.uplink_bps}
    speed = {"seconds_per_step": given.seconds_per_step}
    medians = {f"median_{name}": value for name, value in {**links, **speed}.items()}
    spread = {name: getattr(given, name) for name in ("sigma_downlink", "sigma_uplink", "sigma_seconds_per_step")}
    work = {"batch_size": config.training.batch_size}
    paced = {"median_seconds_per_step": given.seconds_per_step}
    some = {name: shared[name] for name in ("latency_s", "dropout")}
    makers: dict[str, tuple[Callable[..., Profiles], dict[str, Any], tuple[Any, ...]]] = {
        "constant": (network.constant, {**links, **speed, **shared}, (clients,)),
        "lognormal": (network.lognormal, {**medians, **spread, **shared}, (clients, seed)),
        "csv": (lambda path: network.from_csv(path, num_clients=clients, seed=seed), {}, (given.path,)),
        "devices": (network.from_devices, {**paced, **some}, (given.path, clients, seed)),
        "capacity": (
            lambda path, **more: network.device_capacity(
                path, num_clients=clients, seed=seed, passes=3.0, **work, **more
            ),
            some,
            (given.path,),
        ),
        "gml": (network.from_gml, {**speed, "dropout": given.dropout}, (given.path,)),
    }
    make, known, first = look_up("network.profiles", given.profiles, makers)
    for name, value in {**links, **speed, **spread, **shared}.items():
        if value is not None and name not in known and f"median_{name}" not in known:
            raise InputError(f"network.{name}: {given.profiles} profiles bring their own; leave it out")
    if given.path and given.path not in first:
        raise InputError(
            f"network.path: {given.path!r} is not used, for {given.profiles} profiles read none; leave it out"
        )
    if not given.path and "" in first:
        raise InputError(f"network.path: missing, and profiles {given.profiles!r} need it; give the file or folder")
    profiles = make(*first, **{name: value for name, value in known.items() if value is not None})
    found = len(profiles.downlink_bps)
    if found != clients:
        raise InputError(
            f"network.path: {given.path} has {found} sites for {clients} clients; set data.clients={found}"
        )
    if not given.slow_clients:
        return profiles
    try:
        return network.slowed(profiles, given.slow_clients, given.slowdown)
    except InputError as error:
        raise InputError(f"network.slow_clients{str(error).removeprefix('ids')}") from None


def _availability(given: Network, clients: int, seed: int) -> Availability | None:
    if given.availability == "always":
        return None
    if given.availability == "trace":
        return network.availability_trace(
            given.availability_path, num_clients=clients, seed=seed, period_seconds=given.availability_seconds
        )
    share, period = given.availability_share or 0.5, given.availability_seconds or 86_400.0
    if given.availability == "periodic":
        return network.periodic(share, period, seed)
    return network.diurnal(share, seed, period_seconds=period)


def _synchronous(
    config: Config, data: FederatedData, profiles: Profiles, availability: Availability | None, steps: np.ndarray,
    bits: tuple[int, int], sampler: Sampler,
) -> tuple[Callable[[Cap | None], Iterator[ServerStep]], Parts]:  # fmt: skip
    given, training = config.network, config.training
    cohort = training.clients_per_round or 1
    policy: Policy = network.wait_for_all()
    if given.policy == "deadline":
        policy = network.deadline(
            given.deadline_seconds or 1.0, partial=bool(given.partial), wait_out=bool(given.wait_out)
        )
    if given.policy == "over_select":
        policy = network.over_select(given.extra or 0, keep=cohort)
        if cohort + (given.extra or 0) > data.num_clients:
            raise InputError(
                f"extra: {given.extra} beyond {cohort} clients a round are more than the {data.num_clients}; lower it"
            )
    traces = network.read_traces(given.bandwidth_path) if given.bandwidth_path else None
    asked = cohort + (given.extra or 0)

    def draw(available: Available | None) -> Callable[[int, int], np.ndarray]:
        if available is None and not given.extra:
            return sampler.draw
        assert training.sampling is not None
        return make_sampler(training.sampling, data.offsets, asked, available=available).draw

    def schedule(cap: Cap | None) -> Iterator[ServerStep]:
        def planned(round: int) -> np.ndarray:
            most = cap(round) if cap is not None else None
            return steps if most is None else np.minimum(steps, most)

        return network.synchronous(
            profiles, seed=training.seed, draw=draw, steps=planned, downlink_bits=bits[0], uplink_bits=bits[1],
            policy=policy, late=given.late, availability=availability, pipelined=given.pipelined,
            server_bps=given.server_bps, traces=traces,
        )  # fmt: skip

    return schedule, Parts(policy, given.late, availability, given.server_bps, traces)


def _asynchronous(
    config: Config, data: FederatedData, profiles: Profiles, availability: Availability | None, steps: np.ndarray,
    bits: tuple[int, int], sampler: Sampler,
) -> tuple[Callable[[Cap | None], Iterator[ServerStep]], Parts]:  # fmt: skip
    given, training = config.network, config.training
    managed = network.managed_steps(profiles, np.arange(data.num_clients), steps)

    def schedule(cap: Cap | None) -> Iterator[ServerStep]:
        return network.asynchronous(
            profiles, seed=training.seed, concurrency=given.concurrency or 1, buffer=given.buffer or 1, steps=managed,
            downlink_bits=bits[0], uplink_bits=bits[1], availability=availability, draw=sampler.draw,
        )  # fmt: skip

    return schedule, Parts(None, given.late, availability, None, None)


def _discount(given: Network) -> Discount:
    if given.discount == "polynomial":
        return polynomial(0.5 if given.exponent is None else given.exponent)
    if given.discount == "hinge":
        return hinge(10.0 if given.slope is None else given.slope, 4.0 if given.delay is None else given.delay)
    return undiscounted()


def _statement(given: Network, profiles: Profiles, steps: np.ndarray, bits: tuple[int, int]) -> str:
    """Whom the server waits for, and how long a round takes a client, in one line; a warning if that is hopeless."""
    everybody = np.arange(len(steps))
    managed = network.managed_steps(profiles, everybody, steps)
    took = network.round_times(profiles, everybody, managed, *bits, pipelined=given.pipelined).total
    took = took[steps > 0]
    limit = given.deadline_seconds
    if limit is not None and not given.partial and not given.bandwidth_path and given.server_bps is None:
        late = int((took > limit).sum())
        if late:
            text = f"network.deadline_seconds: {late} of {len(took)} clients never make {limit:g} s"
            warnings.warn(f"{text}; what they hold is never learned from unless late=stale", stacklevel=2)
    waits = {
        "wait": "the server waits for all",
        "deadline": f"the server waits {limit} s",
        "over_select": f"the server asks {given.extra} more than it waits for",
        "asynchronous": f"asynchronous, {given.concurrency} at work, steps at every {given.buffer} messages",
    }[given.policy]
    low, middle, high = np.quantile(took, [0, 0.5, 1]) if len(took) else (0.0, 0.0, 0.0)
    return f"{waits}; a round takes a client {low:.3g} to {high:.3g} s, median {middle:.3g}"


def adacomm(first_steps: int, before: int, first_loss: float, loss: float) -> int:
    """Local steps of the rounds to come, so that communication gets rarer only while it does no harm: `first_steps`
    times the square root of how far the loss has fallen, or half as many as before where that would be no fewer
    (AdaComm, Wang and Joshi 2019, "Adaptive communication strategies", equations 17 and 18).

    Args:
      first_steps: at the start.
      before: of the rounds just done.
      first_loss: of the initial model.
      loss: of the model now.

    Returns:
      At least 1.
    """
    if before <= 1 or not (loss > 0 and first_loss > 0):
        return max(before, 1)
    wanted = math.ceil(math.sqrt(loss / first_loss) * first_steps)
    return max(1, wanted if wanted < before else before // 2)
