"""Compiler options that programs of many rounds gain from, for each platform, and no global setting."""

import re
import warnings
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

# What XLA may put into CUDA graphs: all that it does by default, and loops and conditions, without which the host asks
# the device after every local step whether to go on. Versions know different ones; the first list that is known counts.
GRAPHS = (
    "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE",
    "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,CONDITIONAL,WHILE",
)
LEAST_CUDA = 12_030  # whose graphs have loops and conditions
Options = dict[str, str | bool]


def options(device: Any) -> Options:
    """What to give `jax.jit` as `compiler_options` for programs on such a device: what is known to help there.

    On a CPU with AVX-512, vectors of 512 bits. On an NVIDIA GPU with CUDA 12.3 or later, loops and conditions inside
    CUDA graphs, so that a program of many rounds is launched once; else a warning says that they are not.
    `python -m benchmarks.accelerator` measures what they give.
    """
    return dict(_options(device.platform, str(getattr(device.client, "platform_version", ""))))


@cache
def _options(platform: str, version: str) -> tuple[tuple[str, str], ...]:
    if platform == "cpu":
        return _accepted(platform, "xla_cpu_prefer_vector_width", ("512",)) if _has_wide_vectors() else ()
    cuda = re.search(r"\bcuda (\d+)", version)
    if cuda is None:
        return ()
    recent = int(cuda[1]) >= LEAST_CUDA
    graphs = _accepted(platform, "xla_gpu_enable_command_buffer", GRAPHS) if recent else ()
    if not graphs:
        warnings.warn(
            f"loops are not part of CUDA graphs with {cuda[0]} and jax {jax.__version__}, and small models train more "
            "slowly than they could; take CUDA 12.3 or later, and the jax that is tested with this version",
            stacklevel=4,
        )
    return graphs


def _has_wide_vectors() -> bool:
    """Whether the processor at hand has AVX-512, by what NumPy found when it was imported."""
    found: Any = np.show_config(mode="dicts")
    names = [name for kind in ("baseline", "found") for name in found.get("SIMD Extensions", {}).get(kind, ())]
    return any(name.startswith("AVX512") or name == "X86_V4" for name in names)


def _accepted(platform: str, name: str, values: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """The first of the values that the compiler takes; not every version knows every option."""
    device = jax.local_devices(backend=platform)[0]
    argument = jax.ShapeDtypeStruct((), np.float32, sharding=jax.sharding.SingleDeviceSharding(device))
    for value in values:
        try:
            jax.jit(lambda x: x).lower(argument).compile(compiler_options={name: value})
        except jax.errors.JaxRuntimeError:
            continue
        return ((name, value),)
    return ()


def tuned(function: Callable[..., Any], **jit: Any) -> Callable[..., Any]:
    """`jax.jit(function, **jit)` with the options of the platform that its arguments lie on.

    Inside another program it is a plain `jax.jit`, for options are the outermost one's.
    """
    plain, programs = jax.jit(function, **jit), {}

    @wraps(function)
    def call(*args: Any) -> Any:
        arrays = [leaf for leaf in jax.tree.leaves(args) if isinstance(leaf, jax.Array)]
        if any(isinstance(array, Tracer) for array in [*arrays, _probe()]):
            return plain(*args)
        found = options(next(iter(arrays[0].devices())) if arrays else jax.local_devices()[0])
        key = tuple(found.items())
        if key not in programs:
            programs[key] = jax.jit(function, compiler_options=found, **jit) if found else plain
        return programs[key](*args)

    return call


_probe = jax.jit(lambda: 0)  # gives a tracer where a program is being traced, whatever that is given
