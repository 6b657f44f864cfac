"""A run as plain data, from the files of its folder; what is missing or broken is noted and left out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim._text import clean, parse_json, parse_toml
from fedjax_sim._validate import InputError
from fedjax_sim.experiment.config import Config
from fedjax_sim.experiment.folder import RECORD
from fedjax_sim.experiment.history import History, is_number, rows_of
from fedjax_sim.experiment.per_client import FILE as TABLE
from fedjax_sim.experiment.per_client import read_table
from fedjax_sim.experiment.record import difference, marked, read_origin, results, unequal


class Run(NamedTuple):
    """What lies in a run folder."""

    folder: str
    name: str
    status: str  # as the summary has it, or "unfinished" where it does not say how the run ended
    history: History
    table: np.ndarray | None  # what single clients did in each round, on disk until it is looked at
    summary: dict[str, Any]  # empty where there is none
    settings: dict[str, Any]  # by "section.key"; empty where they cannot be read
    config: str  # config.toml as it is
    clients: list[dict[str, Any]]  # of clients.jsonl
    notes: list[str]  # what was left out, and why
    data: str = ""  # a mark of the data, where it is known


def read_run(folder: str | Path) -> Run:
    """The run in `folder`.

    Raises:
      InputError: no folder of a run, or a history that cannot be read.
    """
    folder, notes = Path(folder), []
    if not folder.is_dir():
        raise InputError(f"{clean(folder)}: there is no such folder; give a run's, such as runs/NAME")
    if not (folder / "history.jsonl").is_file():
        raise InputError(f"{clean(folder)}: there is no history.jsonl in it; give the folder of a run")
    history, path = History(), folder / "history.jsonl"
    for line, row in enumerate(rows_of(path), start=1):
        if not is_number(row["round"]):
            raise InputError(
                f"{clean(path)}: round {clean(row['round'])!r} in line {line} is no number; remove the line"
            )
        history.add([row])
    if _torn(folder / "history.jsonl"):
        notes.append("The last line of history.jsonl is cut off and left out.")
    summary = _summary(folder / "summary.json", notes)
    config, settings = _config(folder / "config.toml", notes)
    settings, data = _as_recorded(folder, settings, notes)
    name = clean(folder.name or folder.resolve().name)
    status = clean(summary["status"]) if isinstance(summary.get("status"), str) else "unfinished"
    told = number(summary, "rounds")
    if told is not None and told != len(history):
        notes.append(f"summary.json is of {told:,.0f} rounds, the history has {len(history):,}: it may still run.")
    try:
        table = read_table(folder / TABLE)
    except InputError as error:
        table = None
        notes.append(f"Single clients' rounds are left out: {clean(error)}.")
    clients = _clients(folder / "clients.jsonl", notes)
    return Run(clean(folder), name, status, history, table, summary, settings, config, clients, notes, data)


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """The runs in `folders`, of two at least, each once.

    Raises:
      InputError: too few, the same twice, or what `read_run` refuses.
    """
    if len(folders) < 2:
        raise InputError(f"runs: {len(folders)} given; give two folders or more, or take `fedjax-sim report` for one")
    seen: set[Path] = set()
    for folder in folders:
        if Path(folder).resolve() in seen:
            raise InputError(f"{clean(folder)}: it is given twice; leave one out")
        seen.add(Path(folder).resolve())
    return [read_run(folder) for folder in folders]


def number(tree: Any, *path: str) -> float | None:
    """The finite number at `path` in nested tables, None where there is none."""
    for name in path:
        tree = tree.get(name) if isinstance(tree, dict) else None
    found: Any = tree
    return found if is_number(found) else None


def compared(run: Run) -> dict[str, Any]:
    """What tells experiments apart: all settings but what is written where and the seed of the training, and the data
    themselves."""
    settings = {k: v for k, v in run.settings.items() if not k.startswith("output.") and k != "training.seed"}
    return settings | ({"data.content": run.data} if run.data else {})


def defaults() -> dict[str, Any]:
    """The value of every setting that has one, where it is not given."""
    return {k: v for k, v in flat(Config().model_dump()).items() if v is not None}


def flat(tree: dict[str, Any]) -> dict[str, Any]:
    """Settings by "section.key"; lists as tuples, so that they compare."""
    pairs = [(f"{section}.{key}", value) for section, table in tree.items() if isinstance(table, dict)
             for key, value in table.items()]  # fmt: skip
    return {key: tuple(value) if isinstance(value, list) else value for key, value in pairs}


def _as_recorded(folder: Path, settings: dict[str, Any], notes: list[str]) -> tuple[dict[str, Any], str]:
    """The settings that the run was made with, which `config.toml` may have been edited to differ from, and a mark of
    its data."""
    if not (folder / RECORD).exists():
        return settings, ""
    try:
        origin = read_origin(folder)
    except InputError as error:
        notes.append(f"What the run was begun with is not known: {clean(error)}.")
        return settings, ""
    notes += [clean(change.sentence()) for change in origin.changes]
    recorded = {path: tuple(value) if isinstance(value, list) else value for path, value in origin.now.settings.items()}
    edited = [path for path in unequal(results(settings), results(recorded)) if settings]
    if edited:
        listed = ", ".join(difference(path, recorded.get(path), settings.get(path)) for path in edited)
        notes.append(f"config.toml was edited since ({listed}): the settings here are those of the run.")
    return recorded, marked(origin.now.data)[:8]


def _torn(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(0, 2)
        if file.tell() == 0:
            return False
        file.seek(-1, 2)
        return file.read(1) != b"\n"


def _summary(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        notes.append(f"summary.json cannot be read ({_reason(error)}): all numbers are from the history.")
        return {}
    if not isinstance(found, dict):
        notes.append("summary.json is no summary: all numbers are from the history.")
        return {}
    return found


def _config(path: Path, notes: list[str]) -> tuple[str, dict[str, Any]]:
    text = ""
    try:
        text = path.read_text(encoding="utf-8")
        return _printable(text), flat(parse_toml(text))
    except FileNotFoundError:
        notes.append("There is no config.toml: what was trained is not known.")
    except (OSError, ValueError) as error:
        notes.append(f"config.toml cannot be read ({_reason(error)}): settings are left out.")
    return _printable(text), {}


def _clients(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        notes.append(f"clients.jsonl cannot be read ({_reason(error)}): clients' tests are left out.")
        return []
    rows, broken = [], 0
    for line in filter(str.strip, lines):
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and is_number(row.get("client")) and is_number(row.get("global_accuracy")):
            rows.append(row)
        else:
            broken += 1
    if broken:
        notes.append(f"{broken} of {broken + len(rows)} lines of clients.jsonl are no client's test and left out.")
    return rows


def _printable(text: str) -> str:
    return "\n".join(clean(line) for line in text.splitlines())


def _reason(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return clean(" ".join(str(reason or type(error).__name__).split()))[:120]
