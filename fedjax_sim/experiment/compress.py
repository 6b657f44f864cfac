"""From a configuration to compressed messages and broadcasts."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any

from fedjax_sim._validate import InputError
from fedjax_sim.core.algorithm import Algorithm
from fedjax_sim.core.message import Transform
from fedjax_sim.experiment.communication import Compression
from fedjax_sim.experiment.names import function, of_kind
from fedjax_sim.messages import COMPRESSORS, compressed_broadcast, compressed_messages, ef21, error_feedback, lazy

OPTIONS = ("fraction", "levels", "rank", "dtype")
DEFAULT_FRACTION = 0.05
BIASED = ("top_k", "sign", "power_sgd")  # half loses too little to speak of
ENLARGING = ("qsgd", "ternary")  # may send what is larger than the message, which feedback would build upon


def compressed(given: Compression, algorithm: Algorithm) -> Algorithm:
    """`algorithm` with the uplink that [compression] asks for."""
    _check_options(given)
    compressor = _compressor(given, "uplink")
    if given.feedback != "none":
        assert compressor is not None
        if given.uplink in ENLARGING:
            warnings.warn(
                f"compression.feedback: {given.uplink} may enlarge a message, and feedback then runs away; leave "
                "it out, or watch the update norms",
                stacklevel=2,
            )
        compressor = (error_feedback if given.feedback == "classic" else ef21)(compressor)
    elif given.uplink in BIASED:
        warnings.warn(
            f"compression.uplink: {given.uplink} is biased, and what it leaves out is lost; set compression.feedback",
            stacklevel=2,
        )
    if given.lazy is not None:
        compressor = lazy(given.lazy, compressor)
    return algorithm if compressor is None else compressed_messages(algorithm, compressor)


def with_downlink(given: Compression, algorithm: Algorithm, seed: Any) -> Algorithm:
    """`algorithm` with the downlink that [compression] asks for."""
    compressor = _compressor(given, "downlink")
    return algorithm if compressor is None else compressed_broadcast(algorithm, compressor, seed=seed)


def _compressor(given: Compression, side: str) -> Transform | None:
    name = getattr(given, side)
    if name == "none":
        return None
    factory = _factory(given, side)
    parameters = inspect.signature(factory).parameters
    options = {option: getattr(given, option) for option in OPTIONS if option in parameters}
    options = {option: value for option, value in options.items() if value is not None}
    if "fraction" in parameters:
        options.setdefault("fraction", DEFAULT_FRACTION)
    if "unbiased" in parameters:  # where what is left out is made up for, scaling up would only make it run away
        options["unbiased"] = not (given.feedback != "none" or side == "downlink")
    try:
        return of_kind(side, name, factory(**options), Transform)
    except InputError as error:
        raise InputError(f"compression.{error}") from None


def _factory(given: Compression, side: str) -> Callable[..., Transform]:
    return function(f"compression.{side}", getattr(given, side), {"none": None, **COMPRESSORS}, "compressors")


def _check_options(given: Compression) -> None:
    factories = [_factory(given, side) for side in ("uplink", "downlink") if getattr(given, side) != "none"]
    known = {option for factory in factories for option in inspect.signature(factory).parameters}
    for option in OPTIONS:
        if getattr(given, option) is not None and option not in known:
            names = " and ".join(name for name in (given.uplink, given.downlink) if name != "none")
            raise InputError(f"compression.{option}: {names} has no such option; leave it out")
