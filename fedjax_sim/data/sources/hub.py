"""Hugging Face data sets: saved to disk, in local files, or from the hub. Needs the package `datasets`."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim._validate import InputError
from fedjax_sim.data.federated import Dataset
from fedjax_sim.data.sources.prepare import Table, assemble, classes_of, column_roles, facts_of, rows_held, split_table

BUILDERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?")
IMAGE_MODES = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB", "RGBA": "RGBA"}  # Pillow's mode -> the one it is read in


def huggingface(
    *, path: str = "", label: str = "label", client: str = "client", test_fraction: float = 0.2, seed: int = 0
) -> Dataset:
    """A data set of the package `datasets`.

    Inputs are the one column of images, uint8 [n, height, width, channels]; else the one column of arrays, uint8 as
    stored or float32, where [n, height, width] gets a channel axis; else all columns of single numbers, standardised as
    in `csv`. With images or arrays, the columns of single values are facts; else those whose name begins with "@".

    Args:
      path: a folder from `save_to_disk`, a file or folder of CSV, JSON or Parquet files (those with "test" in their
        name are the test rows), or a name on the hub, "owner/name" or "owner/name:config", which needs the network
        unless it is cached. Code that a data set brings is never run.
      label: the column of labels: class labels, integers or strings.
      client: the column that says whose each row is; the data may lack it under its default name.
      test_fraction: share of test rows that is drawn where there is no split "test", as in `csv`.
      seed: what they are drawn from.

    Raises:
      InputError: `datasets` is not installed, the data cannot be loaded, a value is missing, images or arrays differ in
        size, or there is no column to train on.
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
    train, test = _splits(path, loaded)
    joined = train if test is None else _joined(datasets, path, train, test)
    if len(joined) == 0 or (test is not None and 0 in (len(train), len(test))):
        raise InputError(f"data.path: {path!r} has no rows, or a split without any; give at least two rows")
    return _dataset(datasets, joined, None if test is None else len(train), path, label, client, test_fraction, seed)


def _load(datasets: Any, path: str) -> Any:
    place = Path(path)
    if place.is_dir() and any((place / name).is_file() for name in ("dataset_dict.json", "dataset_info.json")):
        return datasets.load_from_disk(path)
    if place.exists():
        files = sorted(file for file in place.iterdir() if file.suffix in BUILDERS) if place.is_dir() else [place]
        kinds = {BUILDERS.get(file.suffix, "") for file in files}
        if len(kinds) != 1 or "" in kinds:
            raise InputError(f"data.path: {path!r} is or holds no files of one kind; give {', '.join(BUILDERS)} files")
        tests = [str(file) for file in files if "test" in file.stem] if place.is_dir() else []
        trains = [str(file) for file in files if str(file) not in tests]
        chosen = {"train": trains, "test": tests}
        return datasets.load_dataset(kinds.pop(), data_files={name: names for name, names in chosen.items() if names})
    if not (on_hub := HUB_NAME.fullmatch(path)):
        raise InputError(f"data.path: {path!r} does not exist and is no name on the hub; give owner/name, say")
    return datasets.load_dataset(on_hub["name"], on_hub["config"])


def _splits(path: str, loaded: Any) -> tuple[Any, Any]:
    """Training and test rows; no test rows where they are to be drawn."""
    if not isinstance(loaded, dict):
        return loaded, None
    if "train" in loaded:
        return loaded["train"], loaded.get("test")
    if len(loaded) == 1:
        return next(iter(loaded.values())), None
    raise InputError(f"data.path: {path!r} has the splits {', '.join(loaded)}, but no train; give one that has")


def _joined(datasets: Any, path: str, train: Any, test: Any) -> Any:
    if train.features != test.features:
        raise InputError(f"data.path: {path!r} has other columns or types in test than in train; write them alike")
    return datasets.concatenate_datasets([train, test])


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
    bytes_stored = "uint8" in str(rows.features[name])  # NumPy's format widens integers
    array = array.astype(np.uint8 if bytes_stored else np.float32)
    return array[..., None] if array.ndim == 3 else array
