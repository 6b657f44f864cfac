"""Heart disease in four hospitals (Janosi et al. 1988), as FLamby's Fed-Heart-Disease (du Terrail et al. 2022)."""

import math
from pathlib import Path

import numpy as np

from fedjax_sim import _validate
from fedjax_sim._validate import InputError, shown
from fedjax_sim.data.federated import Dataset
from fedjax_sim.data.sources.places import existing, find
from fedjax_sim.data.sources.prepare import LARGEST, STANDARDISED, assemble

HOSPITALS = {"cleveland": "cleveland", "hungary": "hungarian", "switzerland": "switzerland", "va": "va"}
FIELDS = 14
LEFT_OUT = (10, 11, 12)  # slope, ca and thal, which most hospitals lack
ONE_HOT = (2, 6)  # kind of chest pain, resting electrocardiogram
STANDARDISE = ("client", "pooled", "none")


def heart_disease(*, path: str = "", standardise: str = "client") -> Dataset:
    """740 patients of four hospitals with 13 features; class 1 is heart disease.

    Three columns are left out, then patients with a missing value; two columns become one-hot without their first
    level, over all hospitals together. Each hospital is split by itself as published, two thirds for training,
    stratified by class but for Switzerland: 199 and 104 patients in Cleveland, 172 and 89 in Hungary, 30 and 16 in
    Switzerland, 85 and 45 of the Veterans Affairs.

    Args:
      path: the folder with processed.cleveland.data, .hungarian, .switzerland and .va; by default
        $FEDJAX_SIM_DATA/heart_disease, or the cache.
      standardise: whose training mean and deviation (with ddof 1, plus 1e-9) features are standardised with: "client",
        each hospital's own, for its test patients too, as in the published training; "pooled", all hospitals' together,
        as in the published pooled test; "none" leaves them as they are.

    Returns:
      Inputs float32 [n, 13]; the column "client" is "cleveland", "hungary", "switzerland" or "va".

    Raises:
      InputError: a file is missing, or a line is damaged.
    """
    _validate.one_of("data.standardise", standardise, STANDARDISE)
    folder = existing(path or str(find("heart_disease")), "the folder with processed.cleveland.data")
    tables = [_read(folder / f"processed.{stem}.data") for stem in HOSPITALS.values()]
    rows = np.concatenate(tables)
    names = np.repeat(list(HOSPITALS), [len(table) for table in tables])
    labels = (rows[:, -1] != 0).astype(np.int32)
    features = _one_hot(rows[:, :-1])
    held = np.concatenate([_published_split(labels[names == name]) for name in HOSPITALS])
    if standardise != "none":
        groups = [names == name for name in HOSPITALS] if standardise == "client" else [np.ones(len(names), bool)]
        for group in groups:
            own = features[group & ~held]
            features[group] = (features[group] - own.mean(0)) / (own.std(0, ddof=1) + 1e-9)
    inputs = features.astype(np.float32)
    source, pooled = f"UCI heart disease in {folder}", STANDARDISED if standardise == "pooled" else ()
    return assemble(inputs[~held], inputs[held], labels, 2, {"client": names}, held, source)._replace(pooled=pooled)


def _read(file: Path) -> np.ndarray:
    """float64 [patients, 11] of those without a missing value; the last column is the diagnosis, 0 to 4."""
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except OSError as error:
        raise InputError(
            f"{file}: it cannot be read ({error.strerror}); put it there or give another data.path"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{file}: it is no text; fetch the file again") from None
    kept = [i for i in range(FIELDS) if i not in LEFT_OUT]
    rows = [_fields(line, f"{file}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    table = np.array(rows, np.float64).reshape(-1, FIELDS)[:, kept]
    table = table[~np.isnan(table).any(1)]
    if len(table) < 3:
        raise InputError(f"{file}: {len(table)} patients without a missing value; fetch the file again")
    return table


def _fields(line: str, where: str) -> list[float]:
    fields = line.split(",")
    if len(fields) != FIELDS:
        raise InputError(f"{where}: {len(fields)} fields, not {FIELDS}; fetch the file again")
    values = []
    for field in fields:
        try:
            value = math.nan if field.strip() == "?" else float(field)
        except ValueError:
            value = math.inf
        if abs(value) > LARGEST or (math.isnan(value) and field.strip() != "?"):
            raise InputError(f"{where}: {shown(field)} is neither a number nor '?'; fetch the file again")
        values.append(value)
    if values[-1] not in (0, 1, 2, 3, 4):
        raise InputError(f"{where}: diagnosis {fields[-1]} is not from 0 to 4; fetch the file again")
    return values


def _one_hot(rows: np.ndarray) -> np.ndarray:
    """The other columns in their order, then one column for each further level of those in `ONE_HOT`."""
    others = [i for i in range(rows.shape[1]) if i not in ONE_HOT]
    levels = [rows[:, i, None] == np.unique(rows[:, i])[1:] for i in ONE_HOT]
    return np.concatenate([rows[:, others], *levels], axis=1)


def _published_split(labels: np.ndarray) -> np.ndarray:
    """bool[n], True for a test patient of one hospital."""
    from sklearn.model_selection import train_test_split

    stratify = labels if np.bincount(labels, minlength=2).min() > 1 else None
    parts = train_test_split(
        np.arange(len(labels)), test_size=0.34, train_size=0.66, random_state=43, shuffle=True, stratify=stratify
    )
    held = np.zeros(len(labels), bool)
    held[parts[1]] = True
    return held
