"""What a run was begun with, as the program wrote it down, and what has been changed on purpose since.

`config.toml` in a run folder may be edited; this record, `run.json`, is what `resume` goes by.
"""

import hashlib
import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fedjax_sim
from fedjax_sim._validate import InputError, shown
from fedjax_sim.data import FederatedData
from fedjax_sim.data.fingerprint import LENGTH, fingerprint, of_path
from fedjax_sim.experiment.build import SEED_MARK, Changes, Experiment
from fedjax_sim.experiment.config import Config, load_config
from fedjax_sim.experiment.explain import settings
from fedjax_sim.experiment.federation import dealt
from fedjax_sim.experiment.folder import CONFIG, RECORD, write_json
from fedjax_sim.experiment.history import Row
from fedjax_sim.experiment.section import READ

FORMAT = "fedjax_sim run"
FREE = ("execution", "output")  # tables that results do not depend on
DATA = ("data", "heterogeneity")  # tables that say what the data are
OUTPUT = ("output.folder", "output.name")


class Ingredients(NamedTuple):
    """What rounds are made from."""

    settings: dict[str, Any]  # by path, resolved, as JSON has them
    data: dict[str, str]  # checksums of the parts of the federation as it is dealt out
    files: dict[str, str]  # of files that are read beside the data, by the setting that names them
    noise: float | None = None  # noise multiplier, of a private run; it may have been worked out

    def mark(self) -> str:
        """Equal for equal ingredients, but for settings that results do not depend on."""
        return marked([_results(self.settings), self.data, self.files])


class Change(NamedTuple):
    """What was changed when the run was resumed."""

    round: int  # rounds done before it
    now: Ingredients
    settings: dict[str, list[Any]]  # by path: before and after
    data: list[str]  # parts of the data, and settings whose files changed

    def sentence(self) -> str:
        """The change in words."""
        what = [_difference(path, *pair) for path, pair in self.settings.items()]
        what += [f"other data in {part}" for part in self.data]
        return f"Changed on resuming, from round {self.round + 1} on: {', '.join(what)}."


class Origin(NamedTuple):
    """The record of a run."""

    begun: Ingredients
    changes: tuple[Change, ...] = ()
    version: str = fedjax_sim.__version__  # of the program that began it

    @property
    def now(self) -> Ingredients:
        """What rounds to come are made from."""
        return self.changes[-1].now if self.changes else self.begun

    def stages(self) -> list[tuple[int, Ingredients]]:
        """After how many rounds which ingredients came to hold, the first from 0 on."""
        return [(0, self.begun), *((change.round, change.now) for change in self.changes)]

    def mark_of(self, done: int) -> str:
        """The mark of the ingredients that round `done`, counted from 1, was made from."""
        return [stage.mark() for start, stage in self.stages() if start < max(done, 1)][-1]

    def write(self, folder: Path) -> None:
        """Writes the record, whole or not at all."""
        changes = [{**change._asdict(), "now": change.now._asdict()} for change in self.changes]
        tree = {"format": FORMAT, "fedjax_sim": self.version, "begun": self.begun._asdict()}
        write_json(folder / RECORD, {**tree, "changes": changes})


class Seen:
    """Takes the fingerprint of the data while an experiment is built: `build(config, seen.changes)`."""

    def __init__(self) -> None:
        self.data: dict[str, str] = {}
        self.changes = Changes(dealt=(self._look,))

    def _look(self, data: FederatedData) -> FederatedData:
        self.data = fingerprint(data)
        return data

    def ingredients(self, experiment: Experiment) -> Ingredients:
        """Of the experiment that was built."""
        config, private = experiment.config, experiment.private
        noise = None if private is None or math.isnan(private.noise_multiplier) else float(private.noise_multiplier)
        files = {path: found for path, found in input_files(config).items() if not path.startswith("data.")}
        return Ingredients(flat(config), self.data, files, noise)


def flat(config: Config) -> dict[str, Any]:
    """Settings that have a value, by path, as JSON has them."""
    tree = json.loads(json.dumps(config.model_dump(exclude_none=True)))
    return {f"{section}.{key}": value for section, table in tree.items() for key, value in table.items()}


class Marks:
    """What results that are kept depend on beside their settings, as a mark: the data, the files that settings name,
    and the version. Every data set and file is read once."""

    def __init__(self, given: FederatedData | None = None):
        """Begins to read.

        Args:
          given: the clients' data, instead of what configurations name.
        """
        self.given, self.known, self.files = given, dict[str, dict[str, str]](), dict[str, str]()

    def __call__(self, config: Config, seeds: Sequence[int] = ()) -> str:
        """The mark of results under this configuration, and under these training seeds if there are any.

        Raises:
          InputError: data that cannot be read.
        """
        return marked([fedjax_sim.__version__, self.data(config), input_files(config, seeds, self.files)])

    def data(self, config: Config) -> dict[str, str]:
        """The fingerprint of the data as they are dealt out.

        Raises:
          InputError: they cannot be read.
        """
        key = json.dumps([config.data.model_dump(), config.heterogeneity.imbalance])
        if key not in self.known:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the user sees those of the run itself
                self.known[key] = fingerprint(dealt(config)[1] if self.given is None else self.given)
        return self.known[key]


def input_files(config: Config, seeds: Sequence[int] = (), known: dict[str, str] | None = None) -> dict[str, str]:
    """Checksums of the files and folders that settings name, by setting.

    Args:
      config: whose settings.
      seeds: for `{seed}` in a name, instead of `training.seed`.
      known: checksums by name, which are not taken again, and to which others are added.
    """
    known, found = {} if known is None else known, {}
    for path, field in settings(Config).items():
        section, _, key = path.partition(".")
        given = getattr(getattr(config, section), key)
        if READ in field.metadata and given:
            names = [given.replace(SEED_MARK, str(seed)) for seed in seeds or [config.training.seed]]
            known |= {name: of_path(name) for name in names if name not in known}
            found[path] = " ".join(dict.fromkeys(known[name] for name in names))
    return found


def marked(parts: Any) -> str:
    """Equal for equal parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:LENGTH]


def read_origin(folder: Path) -> Origin:
    """The record of the run in `folder`.

    Raises:
      InputError: there is none, or it is damaged.
    """
    path = folder / RECORD
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        begun, changes = _ingredients(tree["begun"]), tree["changes"]
        read = [Change(int(c["round"]), _ingredients(c["now"]), dict(c["settings"]), list(c["data"])) for c in changes]
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file, so that nobody knows what the run was begun with; run it again, with "
            f"fedjax-sim run {folder}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise InputError(f"{path}: it is damaged ({reason}); run it again, with fedjax-sim run {folder}") from None
    return Origin(begun, tuple(read), str(tree.get("fedjax_sim")))


def _ingredients(tree: dict[str, Any]) -> Ingredients:
    noise = tree.get("noise")
    return Ingredients(
        dict(tree["settings"]), dict(tree["data"]), dict(tree["files"]), None if noise is None else float(noise)
    )


def asked(folder: Path, origin: Origin, overrides: Sequence[str]) -> Config:
    """The configuration to go on with: that of the record, with what `overrides` ask for.

    Raises:
      InputError: `config.toml` is not as the record has it, in one line that lists the differences.
    """
    written, given = load_config(folder / CONFIG), _paths(overrides)
    if place := given & {*OUTPUT}:
        raise InputError(f"--set {min(place)}: a run stays where it is; leave it out")
    if edited := {path: pair for path, pair in _differences(origin.now, flat(written)).items() if path not in given}:
        listed = ", ".join(_difference(path, *pair) for path, pair in edited.items())
        raise InputError(
            f"{folder / CONFIG}: it is not what the run was begun with ({listed}); put it back, or ask for a change "
            f"with fedjax-sim resume {folder} --set {next(iter(edited))}=VALUE"
        )
    return load_config(folder / CONFIG, overrides)


def changed(folder: Path, origin: Origin, done: int, now: Ingredients, overrides: Sequence[str]) -> Change | None:
    """What is to be changed after `done` rounds; None where everything is as before.

    Raises:
      InputError: data or files that are not those of the record, and were not asked for.
    """
    given, before = _paths(overrides), origin.now
    settings = _differences(before, now.settings)
    parts = _unequal(before.data, now.data)
    files = _unequal(before.files, now.files)
    asked_data = any(path.partition(".")[0] in DATA for path in given)
    if parts and not asked_data:
        raise InputError(
            f"{folder}: the data are not those that the run was begun with ({', '.join(parts)}); put them back, or "
            "start another run"
        )
    meant = {*given, *settings, *(files if "training.seed" in given else [])}
    if unasked := [path for path in files if path not in meant]:
        raise InputError(
            f"{unasked[0]}: {shown(now.settings.get(unasked[0]))} is not what it was when {folder} was begun; put it "
            "back, or start another run"
        )
    if settings and not overrides:
        listed = ", ".join(_difference(path, *pair) for path, pair in settings.items())
        raise InputError(f"{folder}: this version makes other settings of it ({listed}); start another run")
    if now.noise != before.noise and not settings:
        raise InputError(
            f"{folder}: its noise multiplier was {before.noise}, and this version works out {now.noise}; start another "
            "run"
        )
    return Change(done, now, settings, [*parts, *files]) if settings or parts or files else None


def still_stands(folder: Path, config: Config) -> bool:
    """Whether the run in `folder` is what this configuration, its own, would give today: nothing was changed on the
    way, and data, files and version are what they were."""
    try:
        origin = read_origin(folder)
    except InputError:
        return False
    files = {path: mark for path, mark in input_files(config).items() if not path.startswith("data.")}
    now = Ingredients(flat(config), Marks().data(config), files)
    return origin == Origin(origin.begun, (), fedjax_sim.__version__) and origin.begun.mark() == now.mark()


def identity(row: Row) -> bytes:
    """What tells a row of a history from others: all that it holds of the whole round."""
    return json.dumps(row).encode()


def _paths(overrides: Sequence[str]) -> set[str]:
    return {override.partition("=")[0].strip() for override in overrides}


def _results(settings: dict[str, Any]) -> dict[str, Any]:
    return {path: value for path, value in settings.items() if path.partition(".")[0] not in FREE}


def _differences(before: Ingredients, now: dict[str, Any]) -> dict[str, list[Any]]:
    """Settings that results depend on and that differ. One that the record does not know had its default."""
    usual = flat(Config())
    then, now = {**usual, **_results(before.settings)}, _results(now)
    return {
        path: [then.get(path), now.get(path)]
        for path in dict.fromkeys([*then, *now])
        if path.partition(".")[0] not in FREE and then.get(path) != now.get(path)
    }


def _unequal(before: dict[str, str], now: dict[str, str]) -> list[str]:
    return [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]


def _difference(path: str, before: Any, after: Any) -> str:
    values = ["not set" if value is None else value if isinstance(value, str) and value else shown(value)
              for value in (before, after)]  # fmt: skip
    return f"{path}: {values[0]} -> {values[1]}"
