"""Shakespeare's plays, role by role: the next character (McMahan et al. 2017; LEAF, Caldas et al. 2018)."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedjax_sim import _validate
from fedjax_sim._text import parse_json
from fedjax_sim._validate import InputError, shown
from fedjax_sim.data.federated import Dataset
from fedjax_sim.data.sources.places import existing, find

WINDOW = 80  # characters that the next one is predicted from
LEAST_CHARACTERS = 1000  # of a role that is kept
LEAST_OCCURRENCES = 50  # of a character that has a code of its own
TRAINING_SHARE = 0.8
INVISIBLE = "\u2060"  # word joiner, which the edition is strewn with


class _Role(NamedTuple):
    name: str  # PLAY / ROLE
    play: str
    train: str
    test: str


def shakespeare(*, path: str = "", stride: int = 20) -> Dataset:
    """Next-character prediction over Shakespeare's plays; every role with at least 1,000 characters is a client.

    A role's speeches are joined with newlines; the first 80 % of them are for training and the rest for testing. Where
    that leaves a side without a window, the role's text is cut at 80 % of its characters. Windows of 80 characters are
    taken every `stride` characters. The alphabet is every character that occurs at least 50 times, sorted; all others
    share one further code, the last.

    Args:
      path: a file of JSON lines {"play": ..., "role": ..., "speeches": [...]}, or the folder that holds it as
        roles.jsonl; by default $FEDJAX_SIM_DATA/shakespeare. 39 plays make 671 roles and, at the default stride,
        165,529 training and 43,107 test windows: 17 MB, and 60 MB for the columns.
      stride: characters from one window to the next. LEAF takes 1, which makes 20 times as many.

    Returns:
      Inputs uint8 [n, 80] of codes, labels the code of the next character; columns "client", "PLAY / ROLE", and "play".

    Raises:
      InputError: the file is missing, a line is damaged, no role is long enough, or there are too many characters.
    """
    _validate.whole("data.stride", stride)
    place = existing(path or str(find("shakespeare", can_fetch=False)), "the file roles.jsonl")
    file = place / "roles.jsonl" if place.is_dir() else place
    roles = _roles(file)
    if not roles:
        raise InputError(f"{file}: no role has {LEAST_CHARACTERS} characters; give whole plays")
    counts = Counter("".join(role.train + role.test for role in roles))
    alphabet = sorted(character for character, count in counts.items() if count >= LEAST_OCCURRENCES)
    classes = len(alphabet) + (len(alphabet) < len(counts))
    if classes > 256:
        raise InputError(f"{file}: {classes} different characters do not fit in uint8; give a text with fewer")
    codes = {character: code for code, character in enumerate(alphabet)}
    train, columns = _windows([(role, role.train) for role in roles], codes, stride)
    test, test_columns = _windows([(role, role.test) for role in roles], codes, stride)
    source = f"Shakespeare's roles in {file}"
    return Dataset(train, test, classes, (WINDOW,), source, columns, test_columns, vocabulary=classes)


def _roles(file: Path) -> list[_Role]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InputError(f"{file}: it cannot be read ({error.strerror}); give another data.path") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: byte {error.start} is not UTF-8; fetch the file again") from None
    roles: dict[str, _Role] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            role = _role(line, f"{file}, line {number}")
            if role.name in roles:
                raise InputError(f"{file}, line {number}: {role.name!r} is there twice; join its speeches")
            roles[role.name] = role
    return [role for role in roles.values() if role.train]


def _role(line: str, where: str) -> _Role:
    """One line's role; without any text where it is too short."""
    try:
        content = parse_json(line)
        play, role, speeches = content["play"], content["role"], content["speeches"]
    except (ValueError, KeyError, TypeError) as error:
        reason = f"there is no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:120]
        raise InputError(f"{where}: it is damaged ({reason}); give an object with play, role and speeches") from None
    texts = [play, role, *speeches] if isinstance(speeches, list) else [None]
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"{where}: {shown(content)} has something else than text; give strings and a list of them")
    speeches = [speech.replace(INVISIBLE, "") for speech in speeches]
    text, name = "\n".join(speeches), f"{play} / {role}"
    if len(text) < LEAST_CHARACTERS:
        return _Role(name, play, "", "")
    cut = int(TRAINING_SHARE * len(speeches))
    train, test = "\n".join(speeches[:cut]), "\n".join(speeches[cut:])
    if min(len(train), len(test)) <= WINDOW:
        cut = int(TRAINING_SHARE * len(text))
        train, test = text[:cut], text[cut:]
    return _Role(name, play, train, test)


def _windows(
    texts: list[tuple[_Role, str]], codes: dict[str, int], stride: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Examples and columns of all roles' windows."""
    parts = []
    for _, text in texts:
        coded = np.array([codes.get(character, len(codes)) for character in text], np.uint8)
        parts.append(np.lib.stride_tricks.sliding_window_view(coded, WINDOW + 1)[::stride])
    sizes = [len(part) for part in parts]
    windows = np.concatenate(parts)
    columns = {
        "client": np.repeat([role.name for role, _ in texts], sizes),
        "play": np.repeat([role.play for role, _ in texts], sizes),
    }
    inputs = np.ascontiguousarray(windows[:, :WINDOW])
    return {"inputs": inputs, "labels": windows[:, WINDOW].astype(np.int32)}, columns
