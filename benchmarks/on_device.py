"""The measurements of `benchmarks.accelerator`: each section gives names, and functions that measure and give a row."""

import gzip
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.throughput import make_program, prepare
from benchmarks.workloads import LEARNING_RATE, WORKLOADS, Workload, client_sizes, cohorts, layers, needed_flops
from fedjax_sim import fedavg, make_round, make_simulation, select
from fedjax_sim.core.compile import options
from fedjax_sim.core.many import make_many

Row = dict[str, Any]
SLOW_SECONDS = 5.0
Measurements = Iterator[tuple[str, Callable[[], Row]]]


class Setting(NamedTuple):
    """What is measured, and how long."""

    device: Any
    workloads: tuple[str, ...]
    seconds: float  # to repeat a measurement for, at most
    tiny: bool = False

    @property
    def on_cpu(self) -> bool:
        return self.device.platform == "cpu"

    def workload(self, name: str) -> Workload:
        """The one of that name, with fewer clients where it is only tried out."""
        whole = WORKLOADS[name]
        if self.tiny:
            return whole._replace(population=6, cohort=3, hidden=tuple(4 for _ in whole.hidden))
        return whole._replace(cohort=min(whole.cohort, 10)) if self.on_cpu and name == "cnn" else whole

    def forms(self, name: str) -> tuple[bool | None, ...]:
        """Values of `rewrite` worth measuring."""
        return (None,) if name != "cnn" else (True,) if self.on_cpu else (True, False)


def median_seconds(call: Callable[[], Any], seconds: float, least: int = 3) -> float:
    """Of a call that is waited for, the first one apart; a slow one is repeated once."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    least = 1 if time.perf_counter() - start > SLOW_SECONDS else least
    found, end = [], time.perf_counter() + seconds
    while len(found) < least or (time.perf_counter() < end and len(found) < 1000):
        start = time.perf_counter()
        jax.block_until_ready(call())
        found.append(time.perf_counter() - start)
    return float(np.median(found))


# --- ceilings --------------------------------------------------------------------------------------------------------


def ceilings(setting: Setting) -> Measurements:
    yield "copy", lambda: {"gigabytes_per_second": bandwidth(setting)}
    for precision, dtype in (("highest", jnp.float32), ("default", jnp.float32), ("default", jnp.bfloat16)):
        name = f"product, {jnp.dtype(dtype).name} at {precision} precision"
        yield name, lambda p=precision, d=dtype: {"teraflops_per_second": product_rate(setting, p, d)}
    for kind, given in variants(setting).items():
        yield f"an iteration of a loop, {kind} options", partial(_loop_iteration, setting, given)
    yield "a call that is waited for", lambda: {"microseconds": 1e6 * median_seconds(
        partial(jax.jit(lambda x: x + 1), jnp.zeros(())), setting.seconds / 4)}  # fmt: skip


def bandwidth(setting: Setting) -> float:
    """Gigabytes read and written in a second."""
    x = jnp.ones(1 << (12 if setting.tiny else 24 if setting.on_cpu else 28), jnp.float32)
    double = jax.jit(lambda x: 2 * x + 1)
    return 2 * x.nbytes / median_seconds(lambda: double(x), setting.seconds / 4) / 1e9


def product_rate(setting: Setting, precision: str, dtype: Any) -> float:
    """TFLOP/s of a square product."""
    side = 64 if setting.tiny else 1024 if setting.on_cpu else 8192
    x = jax.random.normal(jax.random.key(0), (side, side)).astype(dtype)
    product = jax.jit(partial(jnp.dot, precision=precision))
    return 2 * side**3 / median_seconds(lambda: product(x, x), setting.seconds / 4) / 1e12


def variants(setting: Setting) -> dict[str, dict[str, str | bool] | None]:
    """Compiler options to compare."""
    found = options(setting.device)
    return {"own": found, "default": None} if found else {"default": None}


def _loop_iteration(setting: Setting, given: Any) -> Row:
    """Of a loop whose length the program is told, about a dozen small kernels long."""
    x, trips = jnp.linspace(0, 1, 300), 20 if setting.tiny else 1000

    def body(_: Any, x: jax.Array) -> jax.Array:
        for _ in range(4):
            x = jnp.cumsum(jnp.sin(x)) / (1 + jnp.max(jnp.abs(x)))
        return x

    found = {}
    for name, length in (("told_length", jnp.int32(trips)), ("known_length", None)):
        loop = jax.jit(lambda x, n: jax.lax.fori_loop(0, trips if n is None else n, body, x), compiler_options=given)
        seconds = median_seconds(lambda loop=loop, length=length: loop(x, length), setting.seconds / 4)
        found[f"microseconds_{name}"] = 1e6 * seconds / trips
    return found


# --- workloads -------------------------------------------------------------------------------------------------------


def workloads(setting: Setting) -> Measurements:
    ceiling: dict[str, float] = {}
    for name in setting.workloads:
        for form in setting.forms(name):
            for kind, given in variants(setting).items():
                yield f"{name}{_titled(form)}, {kind} options", partial(
                    _workload, setting, name, form, kind, given, ceiling)  # fmt: skip


def _titled(rewrite: bool | None) -> str:
    return "" if rewrite is None else ", rewritten" if rewrite else ", as written"


def _workload(setting: Setting, name: str, form: bool | None, kind: str, given: Any, ceiling: dict[str, float]) -> Row:
    if not ceiling:
        ceiling |= {"flops": 1e12 * product_rate(setting, "default", jnp.float32), "bytes": 1e9 * bandwidth(setting)}
    found = rounds(setting, setting.workload(name), rewrite=form, given=given)
    rate = found["rounds_per_second"]
    return {"workload": name, "options": kind, "rewrite": form, **found,
            "share_of_peak": found["flops_per_round"] * rate / ceiling["flops"],
            "share_of_bandwidth": found["bytes_per_round"] * rate / ceiling["bytes"]}  # fmt: skip


def rounds(
    setting: Setting, workload: Workload, *, lanes: int | None = None, rewrite: bool | None = None, given: Any = None
) -> Row:
    """Rounds per second of a program of several, and what a round needs: FLOPs, and the bytes of clients' parameters,
    read and written once a step."""
    count = 1 if setting.tiny or workload.model == "cnn" else 5
    setup, key = prepare(workload, [setting.device], rounds=count), jax.random.key(0)
    program = make_program(workload, setup.model, [setting.device], lanes, rewrite)
    start = time.perf_counter()
    arguments = jax.device_put((setup.state, setup.population, setup.cohorts, key), setting.device)
    compiled = program.lower(*arguments).compile(compiler_options=given)
    compile_seconds = time.perf_counter() - start
    seconds = median_seconds(lambda: compiled(*arguments), setting.seconds)
    sizes = client_sizes(workload)[cohorts(workload, count)]
    parameters = sum(int(np.prod(shape)) + shape[-1] for shape in layers(workload))
    steps = int((-(-sizes // workload.batch_size)).sum())
    memory = compiled.memory_analysis()
    return {
        "rounds_per_second": count / seconds,
        "clients": workload.cohort,
        "lanes": lanes or "default",
        "compile_seconds": compile_seconds,
        "flops_per_round": needed_flops(workload, int(sizes.sum())) / count,
        "bytes_per_round": 8.0 * parameters * steps / count,
        "temporary_gigabytes": getattr(memory, "temp_size_in_bytes", 0) / 1e9,
    }


def large(setting: Setting) -> Measurements:
    """The convolutional network with 1,000 clients a round; fewer where it is only tried out."""
    clients = 3 if setting.tiny else 40 if setting.on_cpu else 1000
    workload = WORKLOADS["cnn"]._replace(cohort=clients, population=max(clients, 6))
    for form in setting.forms("cnn") if "cnn" in setting.workloads else ():
        for lanes in (2,) if setting.on_cpu else (32, 64, 256):
            yield f"cnn, {clients} clients{_titled(form)}, {lanes} lanes", lambda form=form, lanes=lanes: rounds(
                setting, workload, lanes=lanes, rewrite=form, given=options(setting.device) or None)  # fmt: skip


def lanes(setting: Setting) -> Measurements:
    for name in setting.workloads:
        workload, width = setting.workload(name), 1
        widths = [workload.cohort]
        while width < workload.cohort:
            widths.append(width)
            width *= 2 if setting.on_cpu else 4
        for width in sorted(widths)[: 4 if setting.on_cpu else None]:
            yield f"{name}, {width} lanes", lambda workload=workload, width=width: rounds(
                setting, workload, lanes=width, rewrite=setting.forms(workload.name)[0],
                given=options(setting.device) or None)  # fmt: skip


# --- what happens between rounds -------------------------------------------------------------------------------------


def gaps(setting: Setting) -> Measurements:
    for name in setting.workloads:
        yield name, partial(_gaps, setting, name)


def _gaps(setting: Setting, name: str) -> Row:
    """Calls of one round and of several, waited for and not."""
    workload, several = setting.workload(name), 2 if name == "cnn" or setting.tiny else 10
    setup = prepare(workload, [setting.device], rounds=several)
    algorithm = fedavg(setup.model.loss_fn, client_tx=optax.sgd(LEARNING_RATE))
    round_fn = make_round(
        algorithm, batch_size=workload.batch_size, devices=[setting.device], rewrite=setting.forms(name)[0]
    )
    simulate, key = make_simulation(round_fn, max_rounds=several), jax.random.key(0)
    held = [setup.state]

    def call(count: int) -> Any:
        held[0], metrics = simulate(held[0], setup.population, key, count, setup.cohorts)
        return metrics

    together = median_seconds(lambda: call(several), setting.seconds) / several
    alone = median_seconds(lambda: call(1), setting.seconds / 2)
    ahead = median_seconds(lambda: [call(1) for _ in range(several)][-1], setting.seconds / 2) / several
    found: Row = {"milliseconds_a_round": 1e3 * together, "in_calls_of_one": 1e3 * alone, "not_waited_for": 1e3 * ahead,
                  "idle_in_calls_of_one": max(0.0, 1 - together / alone)}  # fmt: skip
    return found if setting.on_cpu else found | traced(lambda: call(several))


def traced(call: Callable[[], Any]) -> Row:
    """What a profiler saw of the device's streams during two calls."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(2):
                jax.block_until_ready(call())
        files = sorted(Path(folder).rglob("*.trace.json.gz"))
        if not files:
            return {"trace": "none was written"}
        with gzip.open(files[-1], "rt", encoding="utf-8") as file:
            return idle(json.load(file)["traceEvents"])


def idle(events: list[dict[str, Any]]) -> Row:
    """Busy time of a GPU's streams in the events of a Chrome trace, and the longest gaps between kernels."""
    named = {"process_name": {}, "thread_name": {}}
    for event in events:
        if event.get("ph") == "M" and event.get("name") in named:
            place = (event["pid"], event["tid"] if event["name"] == "thread_name" else None)
            named[event["name"]][place] = event["args"]["name"]
    gpus = {pid for (pid, _), name in named["process_name"].items() if "GPU" in name}
    streams = {place for place, name in named["thread_name"].items() if place[0] in gpus and "Stream" in name}
    kernels = [event for event in events if event.get("ph") == "X" and (event["pid"], event["tid"]) in streams]
    spans = sorted((kernel["ts"], kernel["ts"] + kernel.get("dur", 0.0), kernel["name"]) for kernel in kernels)
    if not spans:
        return {"trace": "no streams of a GPU"}
    busy, end, holes, by_kernel = 0.0, spans[0][0], [], {}
    for start, stop, name in spans:
        if start > end:
            holes.append(start - end)
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
        by_kernel[name] = by_kernel.get(name, 0.0) + stop - start
    most = sorted(by_kernel, key=lambda name: -by_kernel[name])[:8]
    return {
        "window_milliseconds": (end - spans[0][0]) / 1e3,
        "idle_in_trace": 1 - busy / max(end - spans[0][0], 1e-9),
        "kernels": len(spans),
        "copies": sum("emcpy" in name for *_, name in spans),
        "longest_gaps_microseconds": [round(hole, 1) for hole in sorted(holes, reverse=True)[:8]],
        "most_microseconds": {name[:60]: round(by_kernel[name], 1) for name in most},
    }


# --- others ----------------------------------------------------------------------------------------------------------


def rows(setting: Setting) -> Measurements:
    for name in [name for name in setting.workloads if name != "cnn"][:2]:
        for count in (1, 2) if setting.tiny else (1, 4, 32) if setting.on_cpu else (1, 2, 4, 8, 16, 32):
            yield f"{name}, {count} rows", partial(_rows, setting, name, count)


def _rows(setting: Setting, name: str, count: int) -> Row:
    """Runs with learning rates of their own as one program."""
    workload, several = setting.workload(name), 1 if setting.tiny else 5
    setup = prepare(workload, [setting.device], rounds=several)

    def advance(state: Any, rate: jax.Array, shared: Any) -> tuple[Any, jax.Array]:
        population, ids, key = shared
        algorithm = fedavg(setup.model.loss_fn, client_tx=optax.sgd(rate))
        round_fn = make_round(algorithm, batch_size=workload.batch_size, devices=[setting.device])
        state, metrics = jax.lax.scan(lambda state, ids: round_fn(state, select(population, ids), key), state, ids)
        return state, metrics.loss_after

    many = make_many(advance, devices=[setting.device])
    states = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], count, 0), setup.state)
    rates, shared = jnp.linspace(0.01, 0.1, count), (setup.population, setup.cohorts, jax.random.key(0))
    held = [states]

    def call() -> Any:
        held[0], losses = many(held[0], rates, shared, np.ones(count, bool))
        return losses

    return {"row_rounds_per_second": count * several / median_seconds(call, setting.seconds)}


def equal(setting: Setting) -> Measurements:
    """Distances from the CPU's model over its length."""
    reference: dict[str, np.ndarray] = {}
    for name in [name for name in setting.workloads if name != "cnn"][:2]:
        for precision in ("default", "float32"):
            for width in (1, None):
                title = f"{name}, {precision} precision, {width or 'default'} lanes"
                yield title, partial(_equal, setting, name, precision, width, reference)


def _equal(setting: Setting, name: str, precision: str, width: int | None, reference: dict[str, np.ndarray]) -> Row:
    def model(device: Any, lanes: int | None) -> np.ndarray:
        setup = prepare(setting.workload(name), [device], rounds=1 if setting.tiny else 5)
        program = make_program(setting.workload(name), setup.model, [device], lanes)
        state = program(*jax.device_put((setup.state, setup.population, setup.cohorts, jax.random.key(0)), device))
        return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(state.params)])

    if name not in reference:
        cpu = jax.local_devices(backend="cpu")[0]
        with jax.default_device(cpu):
            reference[name] = model(cpu, 1)
    with jax.default_matmul_precision(precision):
        found = model(setting.device, width)
    return {"distance": float(np.linalg.norm(found - reference[name]) / np.linalg.norm(reference[name]))}


def peers(setting: Setting) -> Measurements:
    from benchmarks.peers import vmapped

    for name in setting.workloads:
        if name != "cnn" or not setting.on_cpu:
            yield f"{name}, vmap by hand, padded", partial(_peer, setting, name, vmapped.with_jax)
    if find_spec("torch") is None:
        return
    from benchmarks.peers import torch_device

    for name in setting.workloads:
        for way, run in (("loop", torch_device.loop), ("vmap", torch_device.vmapped)):
            if way == "loop" or not setting.on_cpu:
                yield f"{name}, PyTorch, {way}", partial(_peer, setting, name, run)


def _peer(setting: Setting, name: str, run: Callable[[Workload, Any, int], Callable[[], Any]]) -> Row:
    count = 1 if setting.tiny or name == "cnn" else 2
    call = run(setting.workload(name), setting.device, count)
    return {"rounds_per_second": count / median_seconds(call, setting.seconds, least=1)}
