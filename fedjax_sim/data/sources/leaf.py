"""LEAF's JSON files (Caldas et al. 2018): FEMNIST, Shakespeare, Sent140, Synthetic and others in their layout."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim._text import parse_json, whole_characters
from fedjax_sim._validate import InputError, shown
from fedjax_sim.data.convert import as_bytes, pixels, tell_of_pixels
from fedjax_sim.data.federated import Dataset
from fedjax_sim.data.sources.places import existing
from fedjax_sim.data.sources.prepare import assemble, draw_test_rows, encode_labels

IMAGE_SIDE = 28  # FEMNIST's
TWEET_BYTES, TWEET_TEXT = 140, 4  # x is [id, date, query, user, text], to which LEAF's split adds "training" or "test"
TWEET_ENDS = ("training", "train", "test", "validation", "val", 0, 1, 4, "0", "1", "4")  # splits and labels
BYTES = 256  # codes of a text in UTF-8
FILE_NAME, UNKNOWN = "a file's name", "a list of unknown layout"


class _User(NamedTuple):
    file: Path
    name: str
    hierarchy: str | None
    x: list[Any]
    y: list[Any]

    @property
    def where(self) -> str:
        return f"{self.file}, user {self.name!r}"


def leaf(*, path: str = "", test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """A data set that LEAF prepared: one JSON object a file, with "users", "num_samples" and "user_data".

    What becomes of "x": 784 numbers from 0 to 1 are an image (FEMNIST), float32 [n, 28, 28, 1], and whole ones from 0
    to 255 are one in uint8; other numbers are features, float32 [n, features]; strings of equal length (Shakespeare)
    become uint8 [n, length], the place of each character in the sorted set of all that occur; tweets (Sent140), [id,
    date, query, user, text] and maybe "training" or "test", become the text's first 140 UTF-8 bytes, padded with 0.

    What becomes of "y": single characters, where "x" are strings, are classes of the same set of characters; for
    Sent140, 0 is negative and 1 or 4 positive; other integers and strings are classes in sorted order.

    Args:
      path: the folder with train/*.json and test/*.json, or one with *.json, whose test rows are then drawn.
      test_fraction: share of each user's rows that is drawn for testing, rounded down.
      seed: what they are drawn from.

    Returns:
      The column "client" has the users' names, "hierarchy" their groups if the files have them. Where no test user is
      among the training users, as after LEAF's split by user, the test set is global and has no columns.

    Raises:
      InputError: no files, a damaged file, a user without data or twice, or samples that are ragged, NaN, of mixed
        kinds, lists of another layout, or not as many as "num_samples" says; the file and the user are named.
    """
    folder = existing(path, "the folder with train/*.json and test/*.json")
    own_split = (folder / "train").is_dir()
    train = _users(folder / "train" if own_split else folder)
    test = _users(folder / "test") if own_split else []
    users = train + test
    inputs, codes, classes, vocabulary = _encoded(users)
    sizes = [len(user.y) for user in users]
    facts = {"client": np.repeat(np.array([user.name for user in users]), sizes)}
    if all(user.hierarchy is not None for user in users):
        facts["hierarchy"] = np.repeat(np.array([str(user.hierarchy) for user in users]), sizes)
    if own_split:
        held = np.arange(len(codes)) >= sum(sizes[: len(train)])
    else:
        held = draw_test_rows(test_fraction, seed, np.repeat(np.arange(len(users)), sizes), stratify=False)
    dataset = assemble(inputs[~held], inputs[held], codes, classes, facts, held, f"LEAF files in {folder}")
    dataset = dataset._replace(vocabulary=vocabulary)
    strangers = own_split and not {user.name for user in train} & {user.name for user in test}
    return dataset._replace(test_columns={}) if strangers else dataset


def _users(folder: Path) -> list[_User]:
    """The users of a folder's files that have samples."""
    files = sorted(folder.glob("*.json"))
    if not files:
        inner = sorted({file.parent.name for file in folder.glob("*/*.json")} - {"train", "test"})
        others = f", {' or '.join(inner)} in it say" if inner else ""
        raise InputError(f"{folder}: it holds no .json files; give the folder that LEAF wrote{others}")
    found: dict[str, _User] = {}
    for file in files:
        for user in _read(file):
            if user.name in found:
                raise InputError(f"{user.where}: the user is in {found[user.name].file.name} too; keep one of them")
            found[user.name] = user
    users = [user for user in found.values() if user.y]
    if not users:
        raise InputError(f"{folder}: no user has a sample; give files that hold some")
    return users


def _read(file: Path) -> Iterator[_User]:
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
        users, counts, data = content["users"], content["num_samples"], content["user_data"]
        groups = content.get("hierarchies")
    except OSError as error:
        raise InputError(f"{file}: it cannot be read ({error.strerror}); prepare it again") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"there is no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:120]
        raise InputError(f"{file}: it is not one of LEAF's files ({reason}); prepare it again") from None
    kinds = isinstance(users, list) and isinstance(counts, list) and isinstance(data, dict)
    kinds = kinds and isinstance(groups, (list, type(None)))
    if not kinds or len(counts) != len(users) or (groups is not None and len(groups) != len(users)):
        raise InputError(f'{file}: "users", "num_samples" and "hierarchies" differ in length or kind; prepare it again')
    for i, (name, count) in enumerate(zip(users, counts, strict=True)):
        where, samples = f"{file}, user {name!r}", data.get(name) if isinstance(name, str) else None
        if not isinstance(samples, dict):
            raise InputError(f'{where}: "user_data" has nothing for this user; prepare the file again')
        x, y = samples.get("x"), samples.get("y")
        if not isinstance(x, list) or not isinstance(y, list) or len(x) != len(y) or len(y) != count:
            lengths = [len(part) if isinstance(part, list) else None for part in (x, y)]
            raise InputError(
                f"{where}: {lengths[0]} x and {lengths[1]} y, but num_samples says {shown(count)}; prepare it again"
            )
        yield _User(file, whole_characters(name), None if groups is None else whole_characters(str(groups[i])), x, y)


def _encoded(users: list[_User]) -> tuple[np.ndarray, np.ndarray, int, int | None]:
    """Inputs [n, ...], classes int32[n], how many there are, and how many codes where inputs are such."""
    kind = _kind(users[0].x[0])
    if kind in (FILE_NAME, UNKNOWN):
        raise InputError(
            f"{users[0].where}: x {shown(users[0].x[0])} is {kind}, which is not read; give numbers, strings of one "
            'length, or tweets as [id, date, query, user, text] and maybe "training" or "test"'
        )
    for user in users:
        for x in user.x:
            if _kind(x) != kind:
                raise InputError(f"{user.where}: x {shown(x)} is no {kind}, as the first sample is; give one kind")
    if kind == "text":
        return _characters(users)
    if kind == "tweet":
        texts = [whole_characters(x[TWEET_TEXT]) for user in users for x in user.x]
        padded = [text.encode()[:TWEET_BYTES].ljust(TWEET_BYTES, b"\0") for text in texts]
        inputs = np.frombuffer(b"".join(padded), np.uint8).reshape(-1, TWEET_BYTES)
        return inputs, _sentiments(users), 2, BYTES
    inputs = _numbers(users)
    if inputs.shape[1] == IMAGE_SIDE**2:
        image = inputs.reshape(-1, IMAGE_SIDE, IMAGE_SIDE, 1)
        if pixels([image]):
            tell_of_pixels(str(users[0].file.parent), inputs.dtype)
            inputs = as_bytes(str(users[0].file), image)
        elif inputs.min() >= 0 and inputs.max() <= 1:
            inputs = image
    return inputs, *_classes(users), None


def _kind(x: Any) -> str:
    if isinstance(x, str):
        return FILE_NAME if x.lower().endswith((".jpg", ".png")) else "text"
    if not isinstance(x, list) or not any(isinstance(value, (str, list, dict)) for value in x):
        return "list of numbers"
    known = len(x) == TWEET_TEXT + 1 or (len(x) == TWEET_TEXT + 2 and x[-1] in TWEET_ENDS)
    if known and isinstance(x[TWEET_TEXT], str) and all(isinstance(value, (str, int)) for value in x):
        return "tweet"
    return UNKNOWN


def _numbers(users: list[_User]) -> np.ndarray:
    """float32 [n, features]."""
    parts: list[np.ndarray] = []
    for user in users:
        try:
            part: np.ndarray = np.asarray(user.x, np.float64)
        except (ValueError, TypeError, OverflowError):
            part = np.zeros(0)
        if part.ndim != 2 or part.shape[1] == 0 or (parts and part.shape[1] != parts[0].shape[1]):
            expected = parts[0].shape[1] if parts else "as many"
            raise InputError(f"{user.where}: x are not all lists of {expected} numbers; give samples of one length")
        if not (np.abs(part) <= np.finfo(np.float32).max).all():
            raise InputError(f"{user.where}: x holds NaN or a number beyond float32; remove such samples")
        parts.append(part.astype(np.float32))
    return np.concatenate(parts)


def _characters(users: list[_User]) -> tuple[np.ndarray, np.ndarray, int, int]:
    """As `_encoded`."""
    length = len(users[0].x[0])
    for user in users:
        wrong = next((x for x in user.x if len(x) != length or not x), None)
        if wrong is not None:
            raise InputError(
                f"{user.where}: x {shown(wrong)} has {len(wrong)} characters, not {length}; give one length"
            )
    next_character = all(isinstance(y, str) and len(y) == 1 for user in users for y in user.y)
    texts = "".join("".join(user.x) for user in users)
    labels = "".join("".join(user.y) for user in users) if next_character else ""
    alphabet = np.array(sorted(map(ord, set(texts) | set(labels))), np.uint32)
    if len(alphabet) > 256:
        raise InputError(f"{users[0].file}: {len(alphabet)} different characters do not fit in uint8; give fewer")

    def codes(text: str) -> np.ndarray:
        return np.searchsorted(alphabet, np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4"))

    inputs = codes(texts).astype(np.uint8).reshape(-1, length)
    if not next_character:
        return inputs, *_classes(users), len(alphabet)
    return inputs, codes(labels).astype(np.int32), len(alphabet), len(alphabet)


def _sentiments(users: list[_User]) -> np.ndarray:
    for user in users:
        wrong = [y for y in user.y if str(y) not in ("0", "1", "4")]
        if wrong:
            raise InputError(
                f"{user.where}: y {shown(wrong[0])} is no sentiment; give 0 (negative), or 1 or 4 (positive)"
            )
    return np.array([str(y) != "0" for user in users for y in user.y], np.int32)


def _classes(users: list[_User]) -> tuple[np.ndarray, int]:
    for user in users:
        wrong = [y for y in user.y if isinstance(y, bool) or not isinstance(y, (int, str)) or y == ""]
        if wrong:
            raise InputError(f"{user.where}: y {shown(wrong[0])} is no class; give integers or strings")
    codes, listed = encode_labels(str(users[0].file), [str(y) for user in users for y in user.y])
    return codes, len(listed)
