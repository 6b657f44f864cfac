"""What an experiment is: one frozen tree of settings, read from TOML and overrides. Every error is one line."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError, model_validator

from fedjax_sim._text import parse_toml
from fedjax_sim._validate import InputError, shown
from fedjax_sim.experiment.communication import Compression, Network
from fedjax_sim.experiment.explain import allowed, explain, settings
from fedjax_sim.experiment.section import Section
from fedjax_sim.experiment.sections import (
    Algorithm,
    Attack,
    Data,
    Execution,
    Heterogeneity,
    Model,
    Output,
    Privacy,
    Training,
)


class Config(Section):
    """An experiment."""

    data: Data = Data()
    heterogeneity: Heterogeneity = Heterogeneity()
    model: Model = Model()
    algorithm: Algorithm = Algorithm()
    attack: Attack = Attack()
    training: Training = Training()
    privacy: Privacy = Privacy()
    compression: Compression = Compression()
    network: Network = Network()
    execution: Execution = Execution()
    output: Output = Output()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        data, training, privacy = self.data, self.training, self.privacy
        if (training.clients_per_round or 1) > (data.clients or 1_000_000_000):
            raise InputError(
                f"training.clients_per_round: {training.clients_per_round} is more than the {data.clients} of "
                "data.clients; lower the one or raise the other"
            )
        for section in (self.compression, self.network):
            section.fits_together()
        given = [name for name in Privacy.model_fields if name not in ("mechanism", "guarantee")]
        given = [name for name in given if getattr(privacy, name) is not None]
        if privacy.mechanism == "none" and given:
            raise InputError(
                f"privacy.{given[0]}: {getattr(privacy, given[0])} has no effect with mechanism 'none'; leave it out, "
                "or set privacy.mechanism"
            )
        if training.adapt_steps != "none" and privacy.mechanism != "none":
            raise InputError("training.adapt_steps: it follows losses that no noise hides; leave it out")
        hetero = self.heterogeneity
        if (hetero.drift == "none") != (hetero.drift_round is None):
            raise InputError(
                f"heterogeneity.drift_round: {hetero.drift_round} with drift {hetero.drift!r}; set both or neither"
            )
        if (hetero.drift_round or 1) > training.rounds:
            raise InputError(
                f"heterogeneity.drift_round: {hetero.drift_round} is after the last of {training.rounds} rounds; "
                "lower it"
            )
        if self.output.name in (".", "..") or any(c in self.output.name for c in "/\\\0"):
            raise InputError(
                f"output.name: {self.output.name!r} is no plain name; give one without slashes, "
                "and its place in output.folder"
            )
        return self


def sampled(config: Config) -> Config:
    """`config` with `training.sampling` filled in where it was left out: "uniform" or, with noise that is accounted
    for, what needs the least of it. Poisson sampling amplifies noise on the sum the most; where turns of a client
    count, nobody has fewer at most than in turn."""
    training, mechanism = config.training, config.privacy.mechanism
    if training.sampling is not None:
        return config
    if mechanism in ("none", "laplace_bare") or config.network.policy in ("over_select", "asynchronous"):
        chosen = "uniform"
    else:
        chosen = "poisson" if mechanism in ("gaussian", "laplace") else "round_robin"
    return config.model_copy(update={"training": training.model_copy(update={"sampling": chosen})})


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """The defaults, then the TOML file at `path`, or that of the run whose folder it is, then `overrides` such as
    "training.rounds=50", later ones winning.

    An override's value is read as TOML, and as a plain string where it is none.

    Raises:
      InputError: one line that names the file or setting, the value, and what is allowed.
    """
    tree = _read_tree(Path(path)) if path is not None else {}
    for override in overrides:
        _override(tree, override)
    return parse_config(tree)


def parse_config(tree: Mapping[str, Any]) -> Config:
    """The configuration in a tree of tables.

    Raises:
      InputError: one line for the first thing wrong.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise InputError(explain(error, Config)) from None


def _read_tree(path: Path) -> dict[str, Any]:
    """The file at `path`, or the configuration of the run whose folder it is, to be run again under another name."""
    if not (path / "config.toml").is_file():
        return _read(path)
    tree = _read(path / "config.toml")
    return {**tree, "output": {**tree.get("output", {}), "name": ""}}


def _read(path: Path) -> dict[str, Any]:
    try:
        return parse_toml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give a TOML file, or none for the default configuration") from None
    except OSError as error:
        raise InputError(f"{path}: it cannot be read ({error.strerror}); give a TOML file") from None
    except ValueError as error:
        raise InputError(f"{path}: it is no TOML ({' '.join(str(error).split())}); mend it there") from None


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or len(parts) != 2 or not all(parts):
        raise InputError(f"--set {shown(override)}: not section.key=value; write for example --set training.rounds=50")
    table = tree.setdefault(parts[0], {})
    if not isinstance(table, dict):
        raise InputError(f"{parts[0]}: {shown(table)} is not a table; write [{parts[0]}] and its keys below it")
    try:
        parsed = parse_toml(f"value = {text.strip()}")
        table[parts[1]] = parsed["value"] if parsed.keys() == {"value"} else text.strip()
    except ValueError:
        table[parts[1]] = text.strip()


def to_toml(config: Config, *, comments: bool = False) -> str:
    """`config` as TOML that `load_config` reads back; with `comments`, each setting's meaning beside it,
    and those without a value too, behind a #."""
    lines, meaning = [], settings(Config)
    for section, values in config.model_dump().items():
        lines += [f"[{section}]"]
        for key, value in values.items():
            line = f"# {key} =" if value is None else f"{key} = {_toml_value(value)}"
            if comments:
                known = meaning.get(f"{section}.{key}")
                lines.append(line if known is None else f"{line:<32}# {known.description}")
            elif value is not None:
                lines.append(line)
        lines.append("")
    return "\n".join(lines)


def explained(config: Config) -> str:
    """Every setting with the value that it takes here, its default, what it may be, and its meaning."""
    lines, default, taken = [], sampled(Config()).model_dump(), sampled(config).model_dump()
    for path, field in settings(Config).items():
        section, _, key = path.partition(".")
        value, usual = taken[section][key], default[section][key]
        shown = "not set" if value is None else _toml_value(value)
        also = "" if value == usual else f" (default {'not set' if usual is None else _toml_value(usual)})"
        lines += [f"{path} = {shown}{also}", f"    {allowed(field)}"]
    for section, values in taken.items():
        own = {key: value for key, value in values.items() if f"{section}.{key}" not in settings(Config)}
        for key, value in own.items():
            lines += [f"{section}.{key} = {_toml_value(value)}", f"    an option of {values['name']}"]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, str):  # TOML's basic strings are JSON's, except that DEL must be escaped and \/ does not exist
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_toml_value(v) for v in value)}]"
    return repr(value)
