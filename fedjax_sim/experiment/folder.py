"""Run folders: how they are named, who may write into them, and what says where a run was made."""

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from shlex import quote
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

import fedjax_sim
from fedjax_sim import distributed
from fedjax_sim._text import whole_characters
from fedjax_sim._validate import InputError, about_file
from fedjax_sim.experiment.config import Config, Output, to_toml

Recorded = TypeVar("Recorded")
CONFIG, HISTORY, SUMMARY, CLIENTS = "config.toml", "history.jsonl", "summary.json", "clients.jsonl"
LOCK, RECORD, PARTIAL = ".lock", "run.json", ".partial"


def make_folder(config: Config) -> Path:
    """Makes the run folder, named after the time unless `output.name` is set, and returns it.

    Raises:
      InputError: it exists and is not empty, or cannot be made.
    """
    output: Output = config.output
    stamp = f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{_named(config)}"
    folder = Path(output.folder) / (output.name or stamp)
    try:
        if output.name:
            folder.mkdir(parents=True, exist_ok=True)
            refuse_used(output)
            return folder
        for number in range(1, 1000):
            try:
                folder.mkdir(parents=True)
                return folder
            except FileExistsError:
                folder = folder.with_name(f"{stamp}_{number + 1}")
    except OSError as error:
        raise InputError(f"output.folder: {str(folder)!r} cannot be made ({error.strerror}); give another") from None
    raise InputError(f"output.folder: {output.folder!r} holds a thousand runs of this second; give output.name")


@contextmanager
def unless_nothing_comes_of_it(folder: Path) -> Iterator[None]:
    """The folder of a new run goes again where an error ends it before its first round is written."""
    try:
        yield
    except Exception:
        history = folder / HISTORY
        if not history.is_file() or history.stat().st_size == 0:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def refuse_used(output: Output) -> None:
    """The folder that is asked for by name is free: nothing is in it but what a process has left that was killed before
    it had written down what to do.

    Raises:
      InputError: it is not.
    """
    folder = Path(output.folder) / output.name
    left = (LOCK, RECORD)
    if output.name and folder.is_dir() and any(p.name not in left and p.suffix != PARTIAL for p in folder.iterdir()):
        begun = f"go on with it by fedjax-sim resume {quote(str(folder))}, " if (folder / CONFIG).is_file() else ""
        raise InputError(f"output.name: {str(folder)!r} is not empty; {begun}give another output.name, or remove it")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Nobody else writes into the folder. The lock goes with the process, however it ends.

    Raises:
      InputError: another process is at work there.
    """
    try:
        import fcntl
    except ImportError:  # not on this system: two processes would have to be kept apart by hand
        yield
        return
    path = folder / LOCK
    while True:
        with open(path, "a", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(f"{folder}: another process is at work in it; wait for that, or stop it") from None
            if not _is_at(file.fileno(), path):  # whoever held it has removed it since it was opened
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(descriptor: int, path: Path) -> bool:
    """An open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def studied(folder: Path, config: Config) -> Iterator[Callable[[], None]]:
    """A folder for trials of `config`, made or gone on with; nobody else writes into it.

    Yields:
      What is to be called before a result is written there: from then on the folder is this configuration's. Where no
      result comes, nothing is left behind.

    Raises:
      InputError: it cannot be made, is in use, or holds trials of another configuration.
    """
    if distributed.several():
        raise InputError("distributed: many runs are made by one process; start it alone, or give each a part of them")
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: it cannot be made ({error.strerror}); give another folder") from None
    path, text = folder / CONFIG, to_toml(config)

    def keep() -> None:
        if not path.exists():
            write_whole(path, text)

    try:
        with locked(folder):
            before = set(folder.iterdir())
            if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
                raise InputError(
                    f"{path}: the trials there had another configuration; give another folder, or that one's"
                )
            try:
                yield keep
            finally:
                for left in () if path.exists() else set(folder.iterdir()) - before:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
    finally:
        if made:
            with suppress(OSError):  # something is in it
                folder.rmdir()


def study_folder(kind: str, config: Config) -> Path:
    """A folder for trials of this configuration, the same whenever it is asked for: output.folder, and a name that
    tells configurations apart."""
    mark = hashlib.sha256(to_toml(config).encode()).hexdigest()[:8]
    return Path(config.output.folder) / f"{kind}_{_named(config)}_{mark}"


def _named(config: Config) -> str:
    """Algorithm and data in a file's name; of code of the user's own, what comes after the colon."""
    return "_".join(name.rpartition(":")[2] for name in (config.algorithm.name, config.data.name))


def record(kind: type[Recorded], tree: Any, *alike: str) -> Recorded:
    """What a line of a file holds, as a NamedTuple.

    Args:
      kind: of the tuple.
      tree: its fields by name.
      alike: fields that are lists of one length, at least 1.

    Raises:
      ValueError: fields that are missing, unknown or of another type; the message is one line.
    """
    try:
        found = TypeAdapter(kind).validate_python(tree)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))[:80]}: {first['msg']}") from None
    lengths = {len(getattr(found, name)) for name in alike}
    if alike and (len(lengths) > 1 or 0 in lengths):
        raise ValueError(f"{', '.join(alike)} are lists of lengths {sorted(lengths)}")
    return found


def whole_lines(path: Path) -> list[str]:
    """The lines of a file, none where there is no such file; a last one cut off in the writing is taken off it."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(lines):
        write_whole(path, "".join(whole))
    return whole


def environment(devices: list[Any], config: Config) -> dict[str, Any]:
    """What a run's numbers depend on beside its configuration."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "fedjax_sim": fedjax_sim.__version__,
        **{package: version(package) for package in packages},
        "python": platform.python_version(),
        "system": platform.platform(),
        "platform": devices[0].platform,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "seed": config.training.seed,
        "data_seed": config.data.seed,
    }


def header(environment: dict[str, Any]) -> str:
    """The environment as comments."""
    return "".join(f"# {name} {value}\n" for name, value in environment.items()) + "\n"


def read_header(text: str) -> dict[str, str]:
    """What `header` wrote, as text."""
    lines = [line[2:].partition(" ") for line in text.splitlines() if line.startswith("# ")]
    return {name: value for name, _, value in lines}


def write_json(path: Path, value: Any) -> None:
    """Writes `value` so that the file is there whole or not at all."""
    write_whole(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_whole(path: Path, content: str | bytes) -> Path:
    """Writes a file so that it is there whole or not at all, after a power cut, too; returns `path`. Halves of
    characters in a text, which UTF-8 cannot hold, are replaced.

    Raises:
      OSError: with the file's name; what was there before still is.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        with about_file(path), open(partial, "wb") as file:
            file.write(whole_characters(content).encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)  # what there is of it takes up room
        raise
    return path


def remove(path: Path) -> None:
    """Removes a folder with all that is in it, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)


def synced(path: Path) -> None:
    """What was written into a file is on the disk when this returns."""
    with about_file(path), open(path, "r+b") as file:
        os.fsync(file.fileno())


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Adds lines to a file, each whole or not at all; they have left this process when the call returns.

    Raises:
      OSError: with the file's name; the lines before stand.
    """
    with open(path, "ab", buffering=0) as file:
        for line in lines:
            append_line(file, line)


def append_line(file: Any, line: str) -> None:
    """`append_lines` for a file that is open for writing without a buffer, which would write a broken line again."""
    whole, rest = file.seek(0, os.SEEK_END), memoryview(f"{line}\n".encode())
    try:
        with about_file(file.name):
            while len(rest):
                rest = rest[file.write(rest) :]
    except OSError:
        file.truncate(whole)
        raise
