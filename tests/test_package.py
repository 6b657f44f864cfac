"""The package as a whole: what it imports, in which order it is built, and that it starts nothing on import."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import fedjax_sim as fs

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fedjax_sim"


def python(program: str) -> str:
    """Standard output of a program in a process of its own, run from the root of the repository."""
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    environment |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment.pop("FEDJAX_SIM_DATA", None)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- the simulation needs jax, optax, flax and NumPy alone -----------------------------------------------------------

BARE = """
import sys
import flax.linen, flax.nnx, jax, optax  # flax itself imports some of what is blocked below

BLOCKED = {"pydantic", "pydantic_core", "typer", "click", "rich", "sklearn", "matplotlib", "orbax", "optuna", "pooch",
           "jinja2", "dp_accounting", "jax_privacy", "pandas", "torch", "datasets", "pyarrow"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

for name in list(sys.modules):
    if name.partition(".")[0] in BLOCKED:
        del sys.modules[name]
sys.meta_path.insert(0, Blocker())
try:
    import rich
except ModuleNotFoundError:
    print("blocked")

import fedjax_sim, fedjax_sim.data, fedjax_sim.messages, fedjax_sim.models, fedjax_sim.privacy
import numpy as np

model = fedjax_sim.models.build_model("mlp", (4,), 3, hidden=(5,))
rng = np.random.default_rng(0)
examples = {"inputs": rng.standard_normal((10, 4)).astype(np.float32), "labels": rng.integers(0, 3, 10)}
population = fedjax_sim.Population(jax.tree.map(jax.numpy.asarray, examples), jax.numpy.asarray([0, 3, 10]))
algorithm = fedjax_sim.fedavg(model.loss_fn, client_tx=optax.sgd(0.1))
algorithm = algorithm._replace(transform=fedjax_sim.privacy.laplace(epsilon=1e6, clip_norm=1.0))
simulate = fedjax_sim.make_simulation(fedjax_sim.make_round(algorithm, batch_size=4), cohort_size=2, max_rounds=2)
state, metrics = simulate(fedjax_sim.init(algorithm, model.params, 2), population, jax.random.key(0), 2)
assert state.round == 2 and np.isfinite(metrics.loss_after).all()
print("trained")

from benchmarks.throughput import measure
from benchmarks.workloads import WORKLOADS

workload = WORKLOADS["ragged"]._replace(population=6, cohort=3, hidden=(4,))
row = measure(workload, devices=jax.devices()[:1], seconds=0, lanes=None)
assert row["rounds_per_second"] > 0 and 0 <= row["accuracy_after_5_rounds"] <= 1
print("measured")
assert not [name for name in sys.modules if name.partition(".")[0] in BLOCKED]
"""


def test_simulation_and_benchmark_run_where_everything_else_is_blocked():
    assert python(BARE).split() == ["blocked", "trained", "measured"]


QUIET = """
import fedjax_sim, fedjax_sim.data, fedjax_sim.models, fedjax_sim.privacy
import jax
jax.config.update("jax_num_cpu_devices", 2)  # refused once a backend has started
print(jax.device_count())
"""


def test_importing_the_package_starts_no_backend():
    assert python(QUIET).split() == ["2"]


def test_cpu_devices_may_be_asked_for_after_the_import():
    assert python("import fedjax_sim as fs, jax; print(fs.use_cpu_devices(3), jax.device_count())").split() == [
        "3",
        "3",
    ]


# --- layers ----------------------------------------------------------------------------------------------------------

# From the ground up. A layer is a row of columns; a column lists modules from its bottom to its top, or patterns, whose
# modules are siblings. A module may import from the layers below and from what stands before it in its column; neither
# from another column of its layer, nor from a sibling. A package's `__init__` goes by the package's name, that of the
# whole by "fedjax_sim".
LAYERS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("_text", "_validate", "_arrays", "_memory", "_cache"), ("_interrupt",)),
    (("core",), ("core.types",)),
    (("core.permute",), ("core.devices",), ("core.compile",), ("core.forms", "core.rewrite"), ("core.lanes",)),
    (("core.client",), ("core.message",), ("core.aggregate",)),
    (("core.server",), ("core.execute",)),
    (("core.algorithm",),),
    (("core.measure",), ("core.cohort",), ("core.calibrate",)),
    (("core.collect",),),
    (("core.round",),),
    (("core.buffered",), ("core.many",), ("core.simulate",), ("core.evaluate",), ("core.host",), ("core.tune",)),
    (("distributed",),),
    (
        ("messages.quantize", "messages.*", "messages"),
        ("personal",),
        ("optimizers",),
        (
            "aggregators.finite",
            "aggregators.sorting",
            "aggregators.clipping",
            "aggregators.coordinate",
            "aggregators.geometric",
            "aggregators.selection",
            "aggregators.vote",
            "aggregators",
        ),
        (
            "data.convert",
            "data.federated",
            "data.sound",
            "data.synthetic",
            "data.sources.places",
            "data.sources.prepare",
            "data.sources.*",
            "data.sources",
            "data.owners",
            "data.quantity",
            "data.partition",
            "data.deal",
            "data.validation",
            "data.scanner",
            "data.shift",
            "data.disagreement",
            "data.drift",
            "data.heterogeneity",
            "data.sampling",
            "data.store",
            "data.fingerprint",
            "data.stream",
            "data",
        ),
        (
            "network.draws",
            "network.profiles",
            "network.availability",
            "network.trace",
            "network.link",
            "network.makers",
            "network.recorded",
            "network.gml",
            "network.timing",
            "network.policy",
            "network.coupling",
            "network.events",
            "network.rounds",
            "network.turns",
            "network",
        ),
        (
            "models.layers",
            "models.recurrent",
            "models.resnet",
            "models.transformer",
            "models.classifiers",
            "models.transfer",
            "models",
        ),
    ),
    (
        ("algorithms.*", "algorithms"),
        (
            "privacy.noise",
            "privacy.carried",
            "privacy.central",
            "privacy.local",
            "privacy.discrete",
            "privacy.secure",
            "privacy.laplace",
            "privacy.losses",
            "privacy.accounting",
            "privacy.account",
            "privacy.composition",
            "privacy.plan",
            "privacy.examples",
            "privacy.audit",
            "privacy",
        ),
        ("attacks.clients", "attacks.*", "attacks"),
    ),
    (("_public", "fedjax_sim"),),
    (
        (
            "experiment",
            "experiment.explain",
            "experiment.section",
            "experiment.names",
            "experiment.communication",
            "experiment.sections",
            "experiment.config",
            "experiment.folder",
            "experiment.history",
            "experiment.per_client",
            "experiment.federation",
            "experiment.compress",
            "experiment.counted",
            "experiment.clock",
            "experiment.choosing",
            "experiment.hardware",
            "experiment.record",
            "experiment.covered",
            "experiment.recipe",
            "experiment.build",
            "experiment.plan",
            "experiment.watch",
            "experiment.drive",
            "experiment.clients",
            "experiment.checkpoint",
            "experiment.origin",
            "experiment.summary",
            "experiment.loop",
            "experiment.spent",
            "experiment.tracking",
            "experiment.rehearsal",
            "experiment.recover",
            "experiment.run",
            "experiment.trials",
            "experiment.space",
            "experiment.swept",
            "experiment.sweep",
            "experiment.study",
            "experiment.tune",
            "experiment.progress",
            "experiment.show",
        ),
    ),
    (
        (
            "diagnose.worlds",
            "diagnose.laboratory",
            "diagnose.exchange",
            "diagnose.align",
            "diagnose.annotators",
            "diagnose.game",
            "diagnose.found",
            "diagnose.cause",
            "diagnose.remedies",
            "diagnose.causes.*",
            "diagnose.causes",
            "diagnose.attribution",
            "diagnose.words",
            "diagnose.anchors",
            "diagnose.personal",
            "diagnose.treat",
            "diagnose.diagnosis",
            "diagnose",
            "diagnose.watch",
        ),
    ),
    (
        (
            "plots.style",
            "plots.costs",
            "plots.curves",
            "plots.matrix",
            "plots.portrait",
            "plots.tradeoff",
            "plots.waterfall",
            "plots",
        ),
    ),
    (
        (
            "report",
            "report.read",
            "report.words",
            "report.facts",
            "report.compare",
            "report.figures",
            "report.charts",
            "report.tables",
            "report.page",
            "report.diagnosis",
        ),
    ),
    (("cli.program", "cli.*", "cli.entry", "cli"),),
    (("__main__",),),
)
SIMULATION = (
    "_validate",
    "core*",
    "distributed",
    "messages*",
    "optimizers",
    "personal",
    "models*",
    "data*",
    "aggregators*",
    "algorithms*",
    "attacks*",
    "privacy*",
    "_public",
    "fedjax_sim",
)
NEEDED = {"jax", "optax", "flax", "numpy"}


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "fedjax_sim"


FILES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def place(module: str) -> tuple[int, int, int]:
    """Layer, column and height in the column; a module's own name goes before a pattern."""
    places = [
        (pattern != module, (layer, column, height))
        for layer, columns in enumerate(LAYERS)
        for column, patterns in enumerate(columns)
        for height, pattern in enumerate(patterns)
        if fnmatchcase(module, pattern)
    ]
    assert places, f"{module} has no layer: give it one in LAYERS"
    return min(places)[1]


def may_import(importer: str, imported: str) -> bool:
    (layer, column, height), (other_layer, other_column, other_height) = place(importer), place(imported)
    if layer != other_layer:
        return other_layer < layer
    return column == other_column and other_height < height


def imports(source: str) -> Iterator[tuple[str, ast.stmt]]:
    """Every module that `source` imports, by its full name, whether at the top or inside a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            base = str(node.module)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                submodule = (
                    full.removeprefix("fedjax_sim.") in FILES and base.removeprefix("fedjax_sim.") not in FACADES
                )
                yield (full if submodule else base), node


def exported(file: Path) -> set[str]:
    """Names a package's `__init__` binds; they shadow modules of the same name (`messages.clip` is a function)."""
    return {alias.asname or alias.name for node in ast.parse(file.read_text()).body
            if isinstance(node, ast.ImportFrom) for alias in node.names}  # fmt: skip


# Packages whose names are taken from their `__init__`; of `core` and `experiment` one imports the modules.
FACADES = {name for name, file in FILES.items() if file.name == "__init__.py" and exported(file)} - {"fedjax_sim"}


def own_imports(module: str) -> set[str]:
    found = {name for name, _ in imports(FILES[module].read_text())}
    return {name.removeprefix("fedjax_sim.") for name in found if name.partition(".")[0] == "fedjax_sim"}


@pytest.mark.parametrize("module", list(FILES))
def test_a_file_imports_only_from_lower_layers(module):
    wrong = sorted(name for name in own_imports(module) if not may_import(module, name))
    assert not wrong, f"{module} imports {', '.join(wrong)}, which it may not"


def test_the_rule_itself():
    assert may_import("core.round", "core.client")
    assert not may_import("core.client", "core.round")
    assert not may_import("core.message", "core.client")  # side by side
    assert may_import("messages", "messages.clip")
    assert not may_import("messages.clip", "messages")
    assert not may_import("messages.noise", "messages.clip")  # siblings
    assert not may_import("models.layers", "messages.clip")
    assert not may_import("algorithms.fedavg", "privacy")
    assert may_import("algorithms.fedavg_topk", "messages")
    assert not may_import("algorithms.fedavg", "fedjax_sim")
    assert own_imports("privacy.laplace") == {"_validate", "core.message", "messages"}
    assert own_imports("core.simulate") >= {"_validate", "core.permute", "core.round"}


def test_every_place_is_taken():
    """A layer without a module would be a rule about nothing."""
    for pattern in (p for columns in LAYERS for column in columns for p in column):
        assert any(fnmatchcase(module, pattern) for module in FILES), pattern


@pytest.mark.parametrize("module", [m for m in FILES if any(fnmatchcase(m, pattern) for pattern in SIMULATION)])
def test_the_simulation_imports_nothing_else(module):
    """Data sources, accounting and saved leaves alone reach for more, inside the function that needs it."""
    tree = ast.parse(FILES[module].read_text())
    within = {id(node) for function in ast.walk(tree) if isinstance(function, ast.FunctionDef)
              for node in ast.walk(function)}  # fmt: skip
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and not (
            module.startswith(("data.sources", "privacy", "models.transfer")) and id(node) in within
        ):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [str(node.module)]
            found |= {name.partition(".")[0] for name in names}
    assert found - set(sys.stdlib_module_names) <= NEEDED | {"fedjax_sim"}


# --- files and names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", list(FILES))
def test_no_file_is_longer_than_400_lines_and_each_says_what_it_is(module):
    source = FILES[module].read_text()
    assert len(source.splitlines()) <= 400
    assert module == "__main__" or ast.get_docstring(ast.parse(source))


@pytest.mark.parametrize("name", fs.__all__)
def test_every_public_name_is_documented(name):
    assert name in dir(fs)
    if name == "ALGORITHMS":  # a dictionary: its factories are what is documented
        assert all(factory.__doc__ and name in fs.__all__ for name, factory in fs.ALGORITHMS.items())
        return
    text = getattr(fs, name).__doc__ or ""
    # what a NamedTuple says of itself does not count
    assert len(text.split()) > 3
    assert not text.startswith(f"{name}(")


def test_all_is_sorted_and_complete():
    assert list(fs.__all__) == sorted(fs.__all__)
    found = vars(sys.modules["fedjax_sim._public"]).items()
    public = {name for name, value in found if not name.startswith("_") and not is_module(value)}
    assert public == set(fs.__all__) <= set(dir(fs))
    everything: dict[str, object] = {}
    exec("from fedjax_sim import *", everything)
    assert set(fs.__all__) <= set(everything)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fs.nothing  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ImportError):
        exec("from fedjax_sim import nothing")


LIGHT = """
import sys
import fedjax_sim, fedjax_sim.cli
print([name for name in ("jax", "numpy", "typer") if name in sys.modules])
fedjax_sim.data.FederatedData, fedjax_sim.fedavg
print("jax" in sys.modules)
"""


def test_jax_is_imported_when_a_name_is_asked_for():
    """Before that the command line has to be able to answer Ctrl-C."""
    assert python(LIGHT).splitlines() == ["[]", "True"]


def is_module(value: object) -> bool:
    return type(value) is type(sys)
