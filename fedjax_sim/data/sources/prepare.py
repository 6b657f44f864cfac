"""What loaders share: test rows, classes out of labels, standardised features, tables of columns. NumPy alone."""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim import _validate
from fedjax_sim._validate import InputError, shown
from fedjax_sim.data.convert import told_apart
from fedjax_sim.data.federated import Dataset

MISSING = frozenset({"", "?", ".", "-", "na", "n/a", "#n/a", "#na", "nan", "-nan", "<na>", "nat", "null"})  # any case
MISSING_AS_WRITTEN = frozenset({"None"})  # Python's; "none" may be a class, such as no disease
NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf(inity)?)", re.ASCII | re.IGNORECASE)
FEW_CLASSES, FEW_ROWS = 20, 10  # more whole numbers than this, most with fewer rows, are no classes
COUNTED = 20  # so many values that count up by 1 from row to row number the rows, whatever they are called
TOLD_CLASSES = 10  # from more whole numbers on it is told that they are taken as classes
# what pandas calls the index of rows where it has no name
PANDAS_INDEX = re.compile(r"__index_level_\d+__|Unnamed: ?\d+", re.IGNORECASE)
ROW_NUMBER = re.compile(
    r"(.*[\s_.-])?([psu]?id|index|idx|row|nr|no)|row.?(id|no|nr|num|number|index|names?)|(?-i:.*[a-z]I[dD])",
    re.IGNORECASE,
)
LARGEST = float(np.finfo(np.float32).max)


def draw_test_rows(fraction: float, seed: int, groups: np.ndarray, *, stratify: bool) -> np.ndarray:
    """Draws test rows within groups.

    Args:
      fraction: share of the rows, over 0 and under 1.
      seed: what they are drawn from.
      groups: integers [n], the client or the class of each row.
      stratify: take `fraction` of the groups together, each to within one row. Otherwise each group gives its share
        rounded down, so that at least one training row stays in each.

    Returns:
      bool[n], True for a test row.

    Raises:
      InputError: the fraction is out of range, or leaves no test rows or no training rows.
    """
    if not _validate.real("data.test_fraction", fraction, above=0.0) < 1:
        raise InputError(f"data.test_fraction: {fraction!r} is not between 0 and 1; give 0.2, say")
    total = len(groups)
    order = np.lexsort((np.random.default_rng([seed, 0]).permutation(total), groups))
    if stratify:
        marks = np.floor(np.arange(total + 1) * fraction + 0.5)
        taken = np.diff(marks) > 0
    else:
        sizes = np.unique(groups, return_counts=True)[1]
        place = np.arange(total) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        taken = place < np.floor(np.repeat(sizes, sizes) * fraction + 1e-9)
    chosen = np.zeros(total, bool)
    chosen[order[taken]] = True
    if not chosen.any() or chosen.all():
        side = "no test rows" if not chosen.any() else "no training rows"
        raise InputError(f"data.test_fraction: {fraction!r} of {total} rows leaves {side}; give another, or more data")
    return chosen


def encode_labels(
    where: str, values: Sequence[Any] | np.ndarray, *, any_number: bool = True
) -> tuple[np.ndarray, list[Any]]:
    """Classes for labels that are integers, strings of integers, or other strings; blanks around strings do not count.

    Args:
      where: what the error begins with.
      values: one label a row; none may be missing.
      any_number: take whole numbers for classes however many there are. Otherwise more than `FEW_CLASSES` are refused
        if most have fewer than `FEW_ROWS` rows and numbers between them are absent, or half of the rows have one of
        their own: they are numbers to predict. A warning tells where more than `TOLD_CLASSES` are taken as
        classes and are not those from 0 on.

    Returns:
      int32[n] and the labels that the classes stand for: integers in numerical order, other strings sorted.

    Raises:
      InputError: the labels are fractions, or whole numbers that are no classes.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        texts = np.array([str(value).strip() for value in values])
        distinct, place = np.unique(texts, return_inverse=True)
        if not all(NUMBER.fullmatch(text) for text in distinct):
            told_apart(where, distinct.tolist())
            return place.astype(np.int32), [str(name) for name in distinct]
        array = _numbers(distinct.tolist())[place]
    if array.dtype.kind == "f" and (wrong := np.flatnonzero((array != np.rint(array)) | np.isinf(array))).size:
        raise InputError(f"{where}: {shown(float(array[wrong[0]]))} is no class; {_BIN}")
    listed, codes, rows = np.unique(array, return_inverse=True, return_counts=True)
    if not any_number and too_many(listed, rows):
        raise InputError(
            f"{where}: {len(listed)} different whole numbers from {listed[0]} to {listed[-1]} in {len(codes)} rows "
            f"are no classes; {_BIN}"
        )
    if not any_number and len(listed) > TOLD_CLASSES and (listed[0] != 0 or _absent(listed)):
        text = f"{where}: {len(listed)} different whole numbers from {listed[0]} to {listed[-1]} are taken as classes; "
        warnings.warn(text + "if they are a number to predict, put them into ranges first", stacklevel=2)
    return codes.astype(np.int32), [int(value) for value in listed]


def too_many(listed: np.ndarray, rows: np.ndarray) -> bool:
    """Whether whole numbers, ascending, and the rows of each look like an amount rather than like classes."""
    few = np.median(rows) < FEW_ROWS
    return len(listed) > FEW_CLASSES and bool((_absent(listed) and few) or 2 * len(listed) > rows.sum())


def _absent(listed: np.ndarray) -> bool:
    """Some whole number between the first and the last is not there."""
    return int(listed[-1]) - int(listed[0]) >= len(listed)


def _numbers(texts: Sequence[str]) -> np.ndarray:
    """Numbers for texts that are some; whole ones exactly, however long."""
    if not all(re.fullmatch(r"[+-]?\d{1,4000}", text) for text in texts):
        return np.array([float(text) for text in texts])
    return np.array([int(text) for text in texts], np.int64 if max(map(len, texts)) <= 18 else object)


_BIN = (
    "numbers cannot be predicted yet, so put them into ranges, or, if they name classes, write them as text such as c17"
)


STANDARDISED = ("the mean and deviation of each feature",)  # what `standardise` works out of all the training rows


def standardise(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both [n, features] as float32, less the training mean and over its deviation; constant features become 0."""
    train, test = np.asarray(train, np.float64), np.asarray(test, np.float64)
    mean, deviation = train.mean(0), train.std(0)
    divisor = np.where(deviation > 1e-12 * np.abs(mean), deviation, np.inf)
    a, b = (((part - mean) / divisor).astype(np.float32) for part in (train, test))
    return a, b


class Table(NamedTuple):
    """Columns of one length, and how errors call a row."""

    where: str  # what errors begin with: the file, or a name
    columns: Mapping[str, Sequence[Any] | np.ndarray]  # each of numbers or strings
    row: Callable[[int], str]  # "line 7" for row 5
    training: int | None = None  # rows before the test rows, where the data bring their own split
    classes: int | None = None  # how many there are, where labels are classes from 0 already
    index: frozenset[str] = frozenset()  # columns that pandas keeps as the index of the rows


def split_table(table: Table, label: str, client: str, test_fraction: float, seed: int, source: str) -> Dataset:
    """The data set of a table: one column of labels, maybe one of clients, facts, and features.

    Features are float32 [n, features] in the order of the columns, standardised with the training mean and deviation.
    Columns whose name begins with "@" are facts: they are kept under the rest of their name and not trained on.
    Columns that only number the rows are left out, and a warning names them: what pandas keeps as the index, those
    whose values count up by 1 from row to row, and those called id, index, row and the like whose values are whole
    numbers, all different.

    Raises:
      InputError: a column that is not there, no features, a missing value, or text in a feature.
    """
    roles = column_roles(table, label, client)
    codes, classes = classes_of(table, label)
    facts = facts_of(table, roles.facts, client)
    numbering = [name for name in roles.features if _numbers_rows(table, name)]
    names = [name for name in roles.features if name not in numbering]
    if numbering:
        text = (
            f"{table.where}: {', '.join(map(repr, numbering))} number the rows and are left out; rename what is to be "
        )
        warnings.warn(text + "trained on, or begin its name with @ to keep it as a fact", stacklevel=2)
    if not names:
        raise InputError(f"{table.where}: no column is left for features; give at least one besides {label!r}")
    features = np.stack([numbers_of(table, name) for name in names], axis=1)
    held = rows_held(table, codes, facts.get("client"), test_fraction, seed)
    train, test = standardise(features[~held], features[held])
    return assemble(train, test, codes, classes, facts, held, source)._replace(pooled=STANDARDISED)


class Roles(NamedTuple):
    """What each column is for."""

    facts: list[str]
    features: list[str]


def column_roles(table: Table, label: str, client: str) -> Roles:
    """Which columns are facts and which are features.

    Raises:
      InputError: there is no column of labels, or none of clients under a name that was asked for.
    """
    listed = shown(", ".join(table.columns))[1:-1]
    if label not in table.columns:
        raise InputError(f"data.label: {label!r} is no column of {table.where}; it has {listed}")
    if client == label:
        raise InputError(f"data.client: {client!r} is the column of labels too; give another")
    if client not in table.columns and client != "client":
        raise InputError(f"data.client: {client!r} is no column of {table.where}; it has {listed}")
    others = [name for name in table.columns if name not in (label, client)]
    facts = [name for name in others if name.startswith("@")]
    return Roles(facts, [name for name in others if not name.startswith("@")])


def classes_of(table: Table, label: str) -> tuple[np.ndarray, int]:
    """The column of labels as classes int32[n], and how many classes there are.

    Raises:
      InputError: a label is missing or no class.
    """
    values, where = filled(table, label), f"{table.where}, column {label!r}"
    if table.classes is None:
        codes, listed = encode_labels(where, values, any_number=False)
        if len(listed) == 1:
            raise InputError(f"{where}: every row is {shown(listed[0])}; give rows of two classes at least")
        return codes, len(listed)
    codes = np.asarray(values)
    if codes.min() < 0 or codes.max() >= table.classes:
        raise InputError(f"{where}: labels from {codes.min()} to {codes.max()}; give 0 to {table.classes - 1}")
    return codes.astype(np.int32), table.classes


def facts_of(table: Table, names: Sequence[str], client: str) -> dict[str, np.ndarray]:
    """Columns that are kept and not trained on, without their "@"; "client" is among them where it is there."""
    facts = {name.removeprefix("@").strip(): _stripped(filled(table, name)) for name in names}
    if client in table.columns:
        facts["client"] = np.array([str(value).strip() for value in filled(table, client)])
    return facts


def _stripped(values: Sequence[Any] | np.ndarray) -> np.ndarray:
    """Values without the blanks around them, where they are text."""
    if isinstance(values, np.ndarray):
        return values
    return np.asarray([value.strip() if isinstance(value, str) else value for value in values])


def _numbers_rows(table: Table, name: str) -> bool:
    """The column tells rows apart and says nothing else about them."""
    if name in table.index or PANDAS_INDEX.fullmatch(name):
        return True
    values = numbers_of(table, name)
    if len(values) <= 2 or (values != np.rint(values)).any():
        return False
    counted = len(values) >= COUNTED and bool((np.diff(values) == 1).all())
    return counted or (bool(ROW_NUMBER.fullmatch(name)) and len(np.unique(values)) == len(values))


def filled(table: Table, name: str) -> Sequence[Any] | np.ndarray:
    """A column without missing values, or an InputError that names the first of them."""
    values = table.columns[name]
    array = values if isinstance(values, np.ndarray) else None
    if array is not None and array.dtype.kind == "f":
        wrong = np.flatnonzero(np.isnan(array)).tolist()
    elif array is not None and array.dtype.kind in "biu":
        wrong = []
    else:
        wrong = [i for i, value in enumerate(values) if _is_missing(value)]
    if wrong:
        raise InputError(
            f"{table.where}, {table.row(wrong[0])}, column {name!r}: the value is missing ({shown(values[wrong[0]])}); "
            "fill it in or remove the row, or write it in full if it is a name"
        )
    return values


def _is_missing(value: Any) -> bool:
    text = "" if value is None else str(value).strip()
    return text.lower() in MISSING or text in MISSING_AS_WRITTEN


def numbers_of(table: Table, name: str) -> np.ndarray:
    """A column of finite numbers as float64[n].

    Raises:
      InputError: a value is missing, text, or beyond float32.
    """
    values = filled(table, name)
    try:
        array = np.array([float(value) for value in values])
    except (TypeError, ValueError):
        at, text = next((i, value) for i, value in enumerate(values) if not _is_number(value))
        raise InputError(
            f"{table.where}, {table.row(at)}, column {name!r}: {shown(text)} is no number; drop the column, encode it, "
            "or begin its name with @ to keep it as a fact"
        ) from None
    if (wrong := np.flatnonzero(~(np.abs(array) <= LARGEST))).size:
        raise InputError(
            f"{table.where}, {table.row(int(wrong[0]))}, column {name!r}: {array[wrong[0]]} is not finite in float32; "
            "remove or rescale it"
        )
    return array


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def rows_held(
    table: Table, codes: np.ndarray, clients: np.ndarray | None, test_fraction: float, seed: int
) -> np.ndarray:
    """bool[n], True for test rows: those the data bring, or drawn from each client, else from each class."""
    if table.training is not None:
        return np.arange(len(codes)) >= table.training
    groups = codes if clients is None else np.unique(clients, return_inverse=True)[1]
    return draw_test_rows(test_fraction, seed, groups, stratify=clients is None)


def assemble(
    train: np.ndarray,
    test: np.ndarray,
    codes: np.ndarray,
    classes: int,
    facts: Mapping[str, np.ndarray],
    held: np.ndarray,
    source: str,
) -> Dataset:
    """The data set with inputs `train` and `test`; `codes` and `facts` are of all rows, `held` says which are test."""
    return Dataset(
        {"inputs": train, "labels": codes[~held]},
        {"inputs": test, "labels": codes[held]},
        classes,
        train.shape[1:],
        source,
        {name: values[~held] for name, values in facts.items()},
        {name: values[held] for name, values in facts.items()},
    )
