"""What results are made from: the settings, data and files of a run, compared with those that it was begun with."""

import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import fedjax_sim
from fedjax_sim._validate import InputError, shown
from fedjax_sim.algorithms import ALGORITHMS
from fedjax_sim.data import PARTITIONS, SOURCES, FederatedData
from fedjax_sim.data.fingerprint import fingerprint, of_path
from fedjax_sim.experiment.build import Changes, Experiment
from fedjax_sim.experiment.config import Config, load_config
from fedjax_sim.experiment.explain import settings
from fedjax_sim.experiment.federation import STORE, THEIRS, dealt
from fedjax_sim.experiment.folder import CONFIG
from fedjax_sim.experiment.names import source_file
from fedjax_sim.experiment.recipe import SEED_MARK
from fedjax_sim.experiment.record import (
    Change,
    Ingredients,
    Origin,
    difference,
    differences,
    flat,
    marked,
    read_origin,
    unequal,
)
from fedjax_sim.experiment.section import READ
from fedjax_sim.messages import COMPRESSORS
from fedjax_sim.models import MODELS

DATA = ("data", "heterogeneity")  # tables that say what the data are
OUTPUT = ("output.folder", "output.name")
CODE = {  # settings that may name code of the user's own: what it is, and names that are none
    "algorithm.name": ("algorithms", ALGORITHMS), "model.name": ("models", MODELS),
    "data.name": ("sources", {STORE, *SOURCES}),
    "data.partition": ("partitions", {"auto", *THEIRS, *PARTITIONS}),
    "compression.uplink": ("compressors", {"none", *COMPRESSORS}),
    "compression.downlink": ("compressors", {"none", *COMPRESSORS}),
}  # fmt: skip
BEGINNING = ("model.start", "model.skip")  # which only the first round depends on


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
        return Ingredients(flat(config), self.data, _files_beside_data(config), noise)


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
    """Checksums of the files and folders that settings name, and of those with code of the user's own, by setting.

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
    for path, (kind, table) in CODE.items():
        section, _, key = path.partition(".")
        name = getattr(getattr(config, section), key)
        if name not in table and (file := source_file(path, name, kind)) is not None:
            known |= {} if str(file) in known else {str(file): of_path(str(file))}
            found[path] = known[str(file)]
    return found


def _files_beside_data(config: Config) -> dict[str, str]:
    """Checksums of the files that settings name, but for those of the data, whose content has a fingerprint."""
    return {path: found for path, found in input_files(config).items() if not path.startswith("data.")}


def asked(folder: Path, origin: Origin, overrides: Sequence[str]) -> Config:
    """The configuration to go on with: that of the record, with what `overrides` ask for.

    Raises:
      InputError: `config.toml` is not as the record has it, in one line that lists the differences; or a
        change that could have no effect.
    """
    named = given(overrides)
    try:
        written = load_config(folder / CONFIG)
    except InputError as error:
        text = str(error)
        raise InputError(text if str(folder) in text else f"{folder / CONFIG}: {text}") from None
    if place := named & {*OUTPUT}:
        raise InputError(f"--set {min(place)}: a run stays where it is; leave it out")
    if edited := {path: pair for path, pair in differences(origin.now, flat(written)).items() if path not in named}:
        listed = ", ".join(difference(path, *pair) for path, pair in edited.items())
        raise InputError(
            f"{folder / CONFIG}: it is not what the run was begun with ({listed}); put it back, or ask for a change "
            f"with fedjax-sim resume {folder} --set {next(iter(edited))}=VALUE"
        )
    config = load_config(folder / CONFIG, overrides)
    if late := [path for path in differences(origin.now, flat(config)) if path in BEGINNING]:
        raise InputError(
            f"{late[0]}: what a run starts from has no effect once it has begun; leave --set {late[0]} out, or start "
            "another run"
        )
    return config


def changed(folder: Path, origin: Origin, done: int, now: Ingredients, overrides: Sequence[str]) -> Change | None:
    """What is to be changed after `done` rounds; None where everything is as before.

    Raises:
      InputError: data or files that are not those of the record, and were not asked for, or no round to train.
    """
    named, before = given(overrides), origin.now
    if origin.changes and done < origin.changes[-1].round:
        raise InputError(
            f"{folder}: its settings were changed after round {origin.changes[-1].round}, and the last whole "
            f"checkpoint is that of round {done}; start another run"
        )
    settings = differences(before, now.settings)
    rounds = now.settings["training.rounds"]
    if "training.rounds" in named and "training.rounds" in settings and rounds <= done:
        raise InputError(f"training.rounds: {rounds}, and {done} rounds are done; give more")
    parts = unequal(before.data, now.data)
    files = unequal(before.files, now.files)
    asked_data = any(path.partition(".")[0] in DATA for path in named)
    if parts and not asked_data:
        path, privacy = "data.path" if now.settings.get("data.path") else "data.name", "privacy.mechanism"
        guaranteed = now.settings[privacy] != "none" and now.settings["privacy.guarantee"] != "none"
        value = now.settings[path]
        further = f", or go on with the data as they are now with --set {path}={value}"
        raise InputError(
            f"{path}: {shown(value)} does not give the data that {folder} was begun with ({', '.join(parts)}); put "
            f"them back, or start another run{'' if guaranteed else further}"
        )
    meant = {*named, *settings, *(files if "training.seed" in named else [])}
    if unasked := [path for path in files if path not in meant]:
        raise InputError(
            f"{unasked[0]}: {shown(now.settings.get(unasked[0]))} is not what it was when {folder} was begun; put it "
            "back, or start another run"
        )
    if settings and not overrides:
        listed = ", ".join(difference(path, *pair) for path, pair in settings.items())
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
    now = Ingredients(flat(config), Marks().data(config), _files_beside_data(config))
    return not origin.changes and origin.version == fedjax_sim.__version__ and origin.begun.mark() == now.mark()


def given(overrides: Sequence[str]) -> set[str]:
    """The settings that overrides give."""
    return {override.partition("=")[0].strip() for override in overrides}
