"""One federation on several processes, on one machine or on many: all run the same program over the devices of all.

JAX starts them, connects them and notices when one is lost (`jax.distributed`). Here is how they find each other, and
what they tell each other on the host: what depends on a clock, a signal or a file is decided by one and heard by all,
and an error in one ends all. Without several processes everything here does nothing.
"""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fedjax_sim import _validate
from fedjax_sim._validate import InputError
from fedjax_sim.core.devices import AXIS, mesh

LONGEST = 2000  # bytes of what a process says at once
PATIENCE_SECONDS = 300.0  # for process 0 to start
_CONNECTION = ("gloo", "nccl", "connection", "coordination service", "socket closed", "heartbeat")  # in JAX's errors


class Agreed(InputError):  # noqa: N818
    """An error of one process that all of them raise, so that none is left waiting; its cause is where it happened."""


class Lost(RuntimeError):  # noqa: N818
    """Another process cannot be reached any more; nothing can be computed without its devices."""


def initialize(address: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Joins this process with others that run the same program, so that `jax.devices()` are the devices of all.

    It comes before JAX starts, and each process calls it. Without arguments JAX finds the others where Slurm, Open MPI,
    Kubernetes or a TPU pod started them, or the variable JAX_COORDINATOR_ADDRESS and so on say.

    Args:
      address: host and port of process 0, "10.0.0.1:1234" say, at which it can be reached by all.
      processes: how many there are.
      process: which of them this is, from 0.

    Raises:
      InputError: nothing is detected, an argument is missing or malformed, or the others cannot be reached.
      RuntimeError: JAX has started already.
    """
    if joined():
        raise InputError("distributed: this process has joined others already; call initialize once")
    given = {"address": address, "processes": processes, "process": process}
    if missing := [name for name, value in given.items() if value is None]:
        if len(missing) < len(given):
            raise InputError(
                f"{missing[0]}: it is missing; say where process 0 is, how many there are and which this is"
            )
    else:
        host, port = _parsed(address)
        processes = _validate.whole("processes", processes)
        process = _validate.whole("process", process, least=0)
        if process >= processes:
            raise InputError(f"process: {process} is not below the {processes} processes; count from 0")
        _await(host, port, answers=process > 0)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(address, processes, process)
    except jax.errors.JaxRuntimeError as error:
        raise InputError(f"address: {_said(error)}; give one at which process 0 can be reached") from error
    except ValueError as error:
        raise InputError(
            f"address: no processes that were started together are detected ({' '.join(str(error).split())}); start "
            "them with Slurm, Open MPI or Kubernetes, or say where process 0 is, how many there are and which this is"
        ) from error


def _parsed(address: Any) -> tuple[str, int]:
    host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise InputError(f"address: {_validate.shown(address)} is not HOST:PORT; give 10.0.0.1:1234, say")
    return host.strip("[]"), int(port)


def _await(host: str, port: int, *, answers: bool) -> None:
    """The host is known and, if it has to, answers; JAX would end this process without an exception.

    Raises:
      InputError: it is not, or does not within PATIENCE_SECONDS.
    """
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            socket.getaddrinfo(host, port)
            if answers:
                socket.create_connection((host, port), timeout=max(0.1, end - time.monotonic())).close()
            return
        except OSError as error:
            if isinstance(error, socket.gaierror) or time.monotonic() >= end:
                reason = error.strerror or "it does not answer"
                raise InputError(f"address: {host}:{port} ({reason}); start process 0 there, or correct it") from None
        time.sleep(0.1)


def joined() -> bool:
    """Whether `initialize` was called, and `finish` not yet."""
    return jax.distributed.is_initialized()


def finish() -> None:
    """Ends what `initialize` began once all processes have come here; JAX does so, too, when a program ends."""
    jax.distributed.shutdown()


def several() -> bool:
    """Whether this process works together with others."""
    return joined() and jax.process_count() > 1


def is_primary() -> bool:
    """Whether this process is the one that decides, writes and reports: process 0, or the only one."""
    return not several() or jax.process_index() == 0


def all_gather(value: Any = None) -> list[Any]:
    """The values of all processes, in their order; all have to call this, and wait for each other here.

    Args:
      value: what JSON can hold, of up to LONGEST bytes.

    Raises:
      Agreed: a process has failed.
      KeyboardInterrupt: a process has been interrupted.
      Lost: a process cannot be reached.
    """
    if not several():
        return [value]
    heard = _exchange({"value": value})
    if any("interrupted" in each for each in heard):
        raise KeyboardInterrupt
    for number, each in enumerate(heard):
        if "error" in each:
            raise Agreed(f"process {number}: {each['error']}")
    return [each["value"] for each in heard]


def decided(value: Any) -> Any:
    """The value of the primary process, for all; raises as `all_gather`."""
    return all_gather(value if is_primary() else None)[0]


def same(what: str, value: Any) -> Any:
    """The value, which has to be that of every process; raises as `all_gather`.

    Raises:
      InputError: it is not.
    """
    heard = all_gather(value)
    for number, other in enumerate(heard):
        if other != heard[0]:
            raise InputError(f"{what}: process {number} sees others than process 0 does; give all the same files")
    return value


@contextmanager
def announced() -> Iterator[None]:
    """Has the other processes know of an error within. They hear of it when they next wait for this one in
    `all_gather`, which has to be the next thing that they do together."""
    try:
        yield
    except (Agreed, Lost):
        raise
    except BaseException as error:
        if not several():
            raise
        if isinstance(error, KeyboardInterrupt):
            _exchange({"interrupted": True})
            raise
        _exchange({"error": _said(error)})
        if not isinstance(error, Exception):
            raise
        raise Agreed(_said(error)) from error


@contextmanager
def together() -> Iterator[None]:
    """Processes leave this when all have come to its end; an error in one is raised in all, where each does its part.

    Raises:
      Agreed: one has failed, and so on, as `all_gather`.
    """
    with announced():
        yield
    all_gather()


@contextmanager
def linked() -> Iterator[None]:
    """Errors of JAX within that tell of a lost process are `Lost`."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if several() and any(word in str(error).lower() for word in _CONNECTION):
            _lose(error)
        raise


def _lose(error: Exception) -> NoReturn:
    raise Lost(
        f"another process is lost, and what its devices held ({_said(error)[:200]}); a run goes on from its last "
        "checkpoint with fedjax-sim resume"
    ) from error


def _said(error: BaseException) -> str:
    """An error on one line."""
    if isinstance(error, OSError):
        return _validate.os_reason(error)
    text = " ".join(str(error).split()) or "no reason is given"
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"


def _exchange(message: dict[str, Any]) -> list[dict[str, Any]]:
    """What every process says, over a device of each."""
    text = json.dumps({name: value[:300] if name == "error" else value for name, value in message.items()}).encode()
    if len(text) > LONGEST:
        raise InputError(f"value: {len(text)} bytes are too many to be told to other processes; give {LONGEST} at most")
    first = {device.process_index: device for device in reversed(jax.devices())}
    among = mesh([first[number] for number in sorted(first)])
    mine = np.frombuffer(text.ljust(LONGEST), np.uint8)[None]
    split, whole = NamedSharding(among, PartitionSpec(AXIS)), NamedSharding(among, PartitionSpec())
    try:
        said = jax.make_array_from_callback((len(first), LONGEST), split, lambda _: mine)
        heard = np.asarray(jax.jit(lambda x: x, out_shardings=whole)(said))
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        _lose(error)
    return [json.loads(row.tobytes()) for row in heard]
