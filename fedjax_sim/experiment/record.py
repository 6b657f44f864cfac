"""The record in a run folder of what the run was begun with, and of what has been changed on purpose since.

`config.toml` may be edited; this, `run.json`, is what the program wrote down and goes by.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import fedjax_sim
from fedjax_sim._text import clean, parse_json
from fedjax_sim._validate import InputError, shown
from fedjax_sim.experiment.config import Config
from fedjax_sim.experiment.folder import RECORD, write_json
from fedjax_sim.experiment.history import Row

FORMAT = "fedjax_sim run"
FREE = ("execution", "output")  # tables that results do not depend on
MARK_LENGTH = 32  # hexadecimal digits


class Ingredients(NamedTuple):
    """What rounds are made from."""

    settings: dict[str, Any]  # by path, resolved, as JSON has them
    data: dict[str, str]  # checksums of the parts of the federation as it is dealt out
    files: dict[str, str]  # of files that are read beside the data, by the setting that names them
    noise: float | None = None  # noise multiplier, of a private run; it may have been worked out

    def mark(self) -> str:
        """Equal for equal ingredients, but for settings that results do not depend on."""
        return marked([results(self.settings), self.data, self.files])


class Change(NamedTuple):
    """What was changed when the run was resumed."""

    round: int  # rounds done before it
    now: Ingredients
    settings: dict[str, list[Any]]  # by path: before and after
    data: list[str]  # parts of the data, and settings whose files changed

    def sentence(self) -> str:
        """The change in words."""
        what = [difference(path, *pair) for path, pair in self.settings.items()]
        what += [f"other data in {part}" for part in self.data]
        return f"Changed on resuming, from round {self.round + 1} on: {', '.join(what)}."


class Origin(NamedTuple):
    """The record of a run."""

    begun: Ingredients
    changes: tuple[Change, ...] = ()
    version: str = fedjax_sim.__version__  # of the program that began it
    reached: int = 0  # rounds of a private run that were done at some time, though they may have to be done again
    before: dict[str, Any] | None = None  # `covered.Spent` of the run whose model training started from, if any

    @property
    def now(self) -> Ingredients:
        """What rounds to come are made from."""
        return self.changes[-1].now if self.changes else self.begun

    def stages(self) -> list[tuple[int, Ingredients]]:
        """After how many rounds which ingredients came to hold, the first from 0 on."""
        return [(0, self.begun), *((change.round, change.now) for change in self.changes)]

    def seeds(self) -> tuple[int, ...]:
        """Of training, one after another."""
        return tuple(dict.fromkeys(int(stage.settings.get("training.seed", 0)) for _, stage in self.stages()))

    def mark_of(self, done: int) -> str:
        """The mark of the ingredients that round `done`, counted from 1, was made from."""
        return [stage.mark() for start, stage in self.stages() if start < max(done, 1)][-1]

    def write(self, folder: Path) -> None:
        """Writes the record, whole or not at all."""
        changes = [{**change._asdict(), "now": change.now._asdict()} for change in self.changes]
        tree = {"format": FORMAT, "fedjax_sim": self.version, "reached": self.reached, "begun": self.begun._asdict()}
        write_json(folder / RECORD, {**tree, "spent_before": self.before, "changes": changes})


def flat(config: Config) -> dict[str, Any]:
    """Settings that have a value, by path, as JSON has them."""
    tree = json.loads(json.dumps(config.model_dump(exclude_none=True)))
    return {f"{section}.{key}": value for section, table in tree.items() for key, value in table.items()}


def marked(parts: Any) -> str:
    """Equal for equal parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:MARK_LENGTH]


def read_origin(folder: Path) -> Origin:
    """The record of the run in `folder`.

    Raises:
      InputError: there is none, or it is damaged.
    """
    path = folder / RECORD
    try:
        tree = parse_json(path.read_text(encoding="utf-8"))
        begun, changes = _ingredients(tree["begun"]), tree["changes"]
        version, reached, before = str(tree["fedjax_sim"]), int(tree["reached"]), tree.get("spent_before")
        read = [Change(int(c["round"]), _ingredients(c["now"]), {p: [a, b] for p, (a, b) in c["settings"].items()},
                       [str(part) for part in c["data"]]) for c in changes]  # fmt: skip
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file, so that nobody knows what the run was begun with; run it again, with "
            f"fedjax-sim run {folder}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise InputError(f"{path}: it is damaged ({reason}); run it again, with fedjax-sim run {folder}") from None
    return Origin(begun, tuple(read), version, reached, before)


def _ingredients(tree: dict[str, Any]) -> Ingredients:
    noise = tree.get("noise")
    return Ingredients(
        dict(tree["settings"]), dict(tree["data"]), dict(tree["files"]), None if noise is None else float(noise)
    )


def identity(row: Row) -> bytes:
    """What tells a row of a history from others: all that it holds of the whole round."""
    return json.dumps(row).encode()


def results(settings: dict[str, Any]) -> dict[str, Any]:
    """Those settings that results depend on."""
    return {path: value for path, value in settings.items() if path.partition(".")[0] not in FREE}


def differences(before: Ingredients, now: dict[str, Any]) -> dict[str, list[Any]]:
    """Settings that results depend on and that differ. One that the record does not know had its default."""
    then, now = results({**flat(Config()), **before.settings}), results(now)
    return {path: [then.get(path), now.get(path)] for path in unequal(then, now)}


def unequal(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Names whose values differ."""
    return [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]


def difference(path: str, before: Any, after: Any) -> str:
    """How a setting differs, in a few words."""
    values = ["not set" if value is None else value if isinstance(value, str) and value else shown(value)
              for value in (before, after)]  # fmt: skip
    return clean(f"{path}: {values[0]} -> {values[1]}")
