"""Hugging Face data sets: saved to disk, in local files, or from the hub. Needs the package `datasets`."""

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim._validate import InputError, shown
from fedjax_sim.data.convert import as_bytes, pixels, tell_of_pixels, to_float32
from fedjax_sim.data.federated import Dataset
from fedjax_sim.data.sources.prepare import Table, assemble, classes_of, column_roles, facts_of, rows_held, split_table

BUILDERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test",
          "evaluation": "test", "validation": "validation", "valid": "validation", "val": "validation",
          "dev": "validation"}  # fmt: skip
SPLIT_WORD = re.compile(rf"(?<![a-z])({'|'.join(SPLITS)})(?![a-z])", re.IGNORECASE)
SHARD = re.compile(r"-?\d+-of-\d+$")  # "-00000-of-00002", one of the files of a table
HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?")
IMAGE_MODES = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB", "RGBA": "RGBA"}  # Pillow's mode -> the one it is read in


def huggingface(
    *, path: str = "", label: str = "label", client: str = "client", test_fraction: float = 0.2, seed: int = 0
) -> Dataset:
    """A data set of the package `datasets`.

    Inputs are the one column of images, uint8 [n, height, width, channels]; else the one column of arrays, uint8 as
    stored or float32, where [n, height, width] gets a channel axis; else all columns of single numbers, standardised as
    in `csv`. With images or arrays, the columns of single values are facts; else those whose name begins with "@".
    Arrays that are images of whole numbers from 0 to 255 become uint8, as a warning tells.

    Rows of the split "test" are the test rows. Those of "validation" are trained on, too, and the column "split" tells
    them apart; where there is no "test", they are the test rows. A warning says so, and names splits that are left out.

    Args:
      path: a folder from `save_to_disk`, a file of CSV, JSON or Parquet, a folder of such files, or a name on the hub,
        "owner/name" or "owner/name:config", which needs the network unless it is cached. In a folder, train, test,
        validation and the like as whole words in the files' names say what is which; the files of one table, such as
        x-00000-of-00002.parquet, need no such word. Code that a data set brings is never run.
      label: the column of labels: class labels, integers or strings.
      client: the column that says whose each row is; the data may lack it under its default name.
      test_fraction: share of test rows that is drawn where there is only one split, as in `csv`.
      seed: what they are drawn from.

    Raises:
      InputError: `datasets` is not installed, the data cannot be loaded, files whose split is not known, a value is
        missing, images or arrays differ in size, or there is no column to train on.
    """
    try:
        import datasets
    except ImportError:
        raise InputError(
            "data.name: huggingface needs datasets, which is not installed; run: pip install 'fedjax-sim[datasets]'"
        ) from None

    if not path:
        raise InputError("data.path: it is empty; give a folder from save_to_disk, a file, or a name on the hub")
    try:
        loaded = _load(datasets, path)
    except InputError:
        raise
    except Exception as error:  # whatever the package and its file readers raise
        reason = " ".join((str(error) or type(error).__name__).split())[:160]
        raise InputError(f"data.path: {path!r} cannot be loaded ({reason}); mend it, or give another") from None
    parts, tested = _splits(path, loaded)
    if any(len(part) == 0 for part in parts.values()):
        raise InputError(f"data.path: {path!r} has no rows, or a split without any; give at least two rows")
    rows = _joined(datasets, path, list(parts.values()))
    training = None if tested is None else len(rows) - len(parts[tested])
    dataset = _dataset(datasets, rows, training, path, label, client, test_fraction, seed)
    if len(parts) < 3 or "split" in dataset.columns:
        return dataset
    split = np.repeat(["train", "validation"], [len(parts["train"]), len(parts["validation"])])
    return dataset._replace(columns={**dataset.columns, "split": split})


def _load(datasets: Any, path: str) -> Any:
    place = Path(path)
    if place.is_dir() and any((place / name).is_file() for name in ("dataset_dict.json", "dataset_info.json")):
        return datasets.load_from_disk(path)
    if place.exists():
        files = _files(place) if place.is_dir() else [place]
        kinds = {BUILDERS.get(file.suffix, "") for file in files}
        if len(kinds) != 1 or "" in kinds:
            raise InputError(f"data.path: {path!r} is or holds no files of one kind; give {', '.join(BUILDERS)} files")
        chosen = _by_split(place, files) if place.is_dir() else {"train": [path]}
        return datasets.load_dataset(kinds.pop(), data_files=chosen)
    if not (on_hub := HUB_NAME.fullmatch(path)):
        raise InputError(f"data.path: {path!r} does not exist and is no name on the hub; give owner/name, say")
    return datasets.load_dataset(on_hub["name"], on_hub["config"])


def _files(folder: Path) -> list[Path]:
    """The files of a folder, and of folders in it that are called as a split."""
    inner = [place for place in folder.iterdir() if place.is_dir() and place.name.lower() in SPLITS]
    return sorted(file for place in (folder, *inner) for file in place.iterdir() if file.suffix in BUILDERS)


def _by_split(folder: Path, files: list[Path]) -> dict[str, list[str]]:
    """The names of the files of each split; of "train" alone where all are one table."""
    found: dict[str, list[str]] = {}
    for file in files:
        words = SPLIT_WORD.findall(str(file.relative_to(folder).with_suffix("")))
        splits = {SPLITS[word.lower()] for word in words}
        found.setdefault(splits.pop() if len(splits) == 1 else "", []).append(str(file))
    unknown = found.get("", [])
    tables = {SHARD.sub("", Path(name).stem) for name in unknown}
    if unknown and (len(found) > 1 or len(tables) > 1):
        listed = shown(", ".join(Path(name).name for name in unknown))[1:-1]
        raise InputError(
            f"data.path: {str(folder)!r} holds {listed}, of which it is not known whether to train or to test on them; "
            "put train, test or validation into the names, or give one file"
        )
    return {"train": unknown} if unknown else found


def _splits(path: str, loaded: Any) -> tuple[dict[str, Any], str | None]:
    """The rows of "train", "validation" and "test", the last for testing, and the name of these; None if drawn."""
    if not isinstance(loaded, dict) or len(loaded) == 1:
        return {"train": next(iter(loaded.values())) if isinstance(loaded, dict) else loaded}, None
    called: dict[str, str] = {}  # the split -> what the data call it; of two with one meaning the first
    for name in loaded:
        called.setdefault(SPLITS.get(str(name).lower(), ""), name)
    known = {split: loaded[name] for split, name in called.items()}
    if "train" not in known:
        raise InputError(f"data.path: {path!r} has the splits {', '.join(loaded)}, but no train; give one that has")
    parts = {name: known[name] for name in ("train", "validation", "test") if name in known}
    others = [str(name) for name in loaded if name not in [called[split] for split in parts]]
    *trained, tested = parts if len(parts) > 1 else (*parts, None)
    if others or "validation" in parts:
        text = f"data.path: {path!r}: {' and '.join(trained)} rows are trained on, "
        text += "test rows are drawn from them" if tested is None else f"{tested} rows are the test set"
        warnings.warn(text + (f"; {', '.join(others)} left out" if others else ""), stacklevel=3)
    return parts, tested


def _joined(datasets: Any, path: str, parts: list[Any]) -> Any:
    if any(part.features != parts[0].features for part in parts):
        raise InputError(f"data.path: {path!r} has other columns or types in one split than another; write them alike")
    rows = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
    names = [name.strip() for name in rows.column_names]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"data.path: {path!r} has column {twice[0]!r} twice; give each column a name of its own")
    return rows if names == rows.column_names else rows.rename_columns(dict(zip(rows.column_names, names, strict=True)))


def _dataset(
    datasets: Any, rows: Any, training: int | None, path: str, label: str, client: str, test_fraction: float, seed: int
) -> Dataset:
    images = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    single = [name for name, kind in rows.features.items() if isinstance(kind, (datasets.Value, datasets.ClassLabel))]
    arrays = [name for name in rows.features if name not in images and name not in single]
    named = rows.features.get(label)
    classes = named.num_classes if isinstance(named, datasets.ClassLabel) else None
    where, source = f"data set {path!r}", f"Hugging Face data set {path}"
    table = Table(where, {name: _values(rows[name][:]) for name in single}, _row, training, classes)
    inputs = images or arrays
    if not inputs:
        return split_table(table, label, client, test_fraction, seed, source)
    if len(inputs) > 1:
        raise InputError(f"data.path: {path!r} has several inputs, {', '.join(inputs)}; keep one of them")
    if inputs[0] == label:
        raise InputError(f"data.label: {label!r} is the column of inputs; give the column of labels")
    roles = column_roles(table, label, client)
    codes, count = classes_of(table, label)
    facts = facts_of(table, roles.facts + roles.features, client)
    held = rows_held(table, codes, facts.get("client"), test_fraction, seed)
    stacked = (_images if images else _arrays)(rows, inputs[0], where)
    return assemble(stacked[~held], stacked[held], codes, count, facts, held, source)


def _row(index: int) -> str:
    return f"row {index + 1}"


def _values(listed: list[Any]) -> Any:
    """Numbers as an array; text, and whatever has a value missing, as the list it is."""
    array = np.asarray(listed)
    return array if array.dtype.kind in "biuf" else listed


def _images(rows: Any, name: str, where: str) -> np.ndarray:
    """uint8 [n, height, width, channels]."""
    stacked: np.ndarray | None = None
    for i, image in enumerate(rows[name]):
        at = f"{where}, {_row(i)}, column {name!r}"
        if image is None:
            raise InputError(f"{at}: the image is missing; remove the row")
        if image.mode not in IMAGE_MODES:
            raise InputError(f"{at}: an image of mode {image.mode}; convert it to grey, RGB or RGBA of 8 bits")
        pixels = np.asarray(image.convert(IMAGE_MODES[image.mode]), np.uint8)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if stacked is None:
            stacked = np.empty((len(rows), *pixels.shape), np.uint8)
        if pixels.shape != stacked.shape[1:]:
            raise InputError(f"{at}: {list(pixels.shape)}, not {list(stacked.shape[1:])}; give images of one size")
        stacked[i] = pixels
    assert stacked is not None  # there is at least one row
    return stacked


def _arrays(rows: Any, name: str, where: str) -> np.ndarray:
    """uint8 as stored, or float32; [n, height, width] gets a channel axis."""
    array = np.asarray(rows.with_format("numpy")[name][:])
    if array.dtype.kind not in "biuf" or array.ndim < 2 or 0 in array.shape:
        raise InputError(f"{where}, column {name!r}: its rows are no arrays of numbers of one shape; make them so")
    if array.dtype.kind == "f" and (wrong := np.argwhere(~np.isfinite(array))).size:
        raise InputError(f"{where}, {_row(int(wrong[0][0]))}, column {name!r}: NaN or infinite; remove such values")
    array = array[..., None] if array.ndim == 3 else array
    if "uint8" in str(rows.features[name]):  # NumPy's format widens integers
        return array.astype(np.uint8)
    at = f"{where}, column {name!r}"
    if pixels([array]):
        tell_of_pixels(at, array.dtype)
        return as_bytes(at, array)
    return to_float32(at, array)
