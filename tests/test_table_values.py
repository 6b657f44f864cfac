"""What people's own tables hold: row numbers, missing values by any name, blanks, numbers that are no classes."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import one_line
from test_tables import FORMATS, offline, write_csv, write_parquet  # noqa: F401, the fixture keeps off the network

from fedjax_sim import InputError
from fedjax_sim.data import by_column
from fedjax_sim.data.sources import csv, huggingface, parquet
from fedjax_sim.data.sources.prepare import encode_labels

AGES = np.random.default_rng(0).integers(20, 90, 30).astype(float).tolist()
TABLE: dict[str, list] = {"age": AGES, "client": ["A", "B", "C"] * 10, "label": ["yes", "no"] * 15}

# --- row numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(FORMATS))
@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("__index_level_0__", [i * i for i in range(30)]),  # what an exclusion criterion leaves
        ("Unnamed: 0", list(range(30))),
        ("id", [7 * i % 30 for i in range(30)]),
        ("PassengerId", list(range(1, 31))),
        ("Patient_ID", list(range(1, 31))),
        ("row", list(range(1, 31))),
        ("pid", [9000 + 7 * i % 30 for i in range(30)]),
        ("visit", list(range(10_001, 10_031))),  # whatever it is called
    ],
)
def test_columns_that_number_the_rows_are_no_features(
    tmp_path: Path, name: str, column: str, values: list[int]
) -> None:
    load, write = FORMATS[name]
    with pytest.warns(UserWarning, match=f"'{re.escape(column)}' number the rows and are left out"):
        data = load(path=write(tmp_path / "x", {column: values, **TABLE}))
    plain = load(path=write(tmp_path / "plain", TABLE))
    np.testing.assert_array_equal(data.train["inputs"], plain.train["inputs"])
    kept = load(path=write(tmp_path / "kept", {f"@{column}": values, **TABLE}))
    assert sorted(map(int, [*kept.columns[column], *kept.test_columns[column]])) == sorted(values)


@pytest.mark.parametrize(("column", "values"), [("id", [1, 1] * 15), ("no", [0.5 * i for i in range(30)])])
def test_columns_that_only_sound_like_row_numbers_are_features(tmp_path: Path, column: str, values: list) -> None:
    assert csv(path=write_csv(tmp_path / "x", {column: values, **TABLE})).input_shape == (2,)


def test_the_index_of_a_pandas_frame_is_no_feature(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    datasets = pytest.importorskip("datasets")
    frame = pd.DataFrame(TABLE)
    excluded = frame[frame.age > 35]
    excluded.to_parquet(tmp_path / "x.parquet")
    excluded.to_csv(tmp_path / "x.csv")  # a column of names without a name, as R's write.csv has one
    datasets.Dataset.from_pandas(excluded).save_to_disk(tmp_path / "saved")
    for load, path in ((parquet, "x.parquet"), (csv, "x.csv"), (huggingface, "saved")):
        with pytest.warns(UserWarning, match="number the rows"):
            assert load(path=str(tmp_path / path)).input_shape == (1,)
    named = frame.assign(weight=[70.0 + i % 5 for i in range(30)], record=range(0, 60, 2))
    named.set_index(["record", "client"]).to_parquet(tmp_path / "named.parquet")  # pandas reads both back as the index
    with pytest.warns(UserWarning, match="'record' number the rows"):
        data = parquet(path=str(tmp_path / "named.parquet"))
    assert data.input_shape == (2,)
    assert by_column(data).num_clients == 3


def test_a_table_of_row_numbers_alone_has_no_features(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "x", {"id": list(range(30)), "label": ["a", "b"] * 15})
    with pytest.warns(UserWarning, match="'id' number the rows"), pytest.raises(InputError) as error:
        csv(path=path)
    one_line(error, "no column is left for features")


# --- missing values and blanks ---------------------------------------------------------------------------------------

MARKS = ["", "NA", "N/A", "n/a", "#N/A", "None", "null", "NULL", "<NA>", "nan", "NaN", "?", ".", "-", " NA "]


@pytest.mark.parametrize("name", list(FORMATS))
@pytest.mark.parametrize("column", ["label", "client", "@scanner", "age"])
def test_missing_values_go_by_many_names(tmp_path: Path, name: str, column: str) -> None:
    load, write = FORMATS[name]
    table: dict[str, list] = {**TABLE, "@scanner": ["s"] * 30}
    for i, mark in enumerate(MARKS):
        values = [str(value) for value in table[column]]
        path = write(tmp_path / str(i), {**table, column: [*values[:7], mark, *values[8:]]})
        with pytest.raises(InputError) as error:
            load(path=path)
        row = "line 9" if name == "csv" else "row 8"
        one_line(error, f"{row}, column {column!r}: the value is missing ({mark!r})")


@pytest.mark.parametrize("name", list(FORMATS))
def test_blanks_around_values_and_names_do_not_count(tmp_path: Path, name: str) -> None:
    load, write = FORMATS[name]

    def blank(values: list[str]) -> list[str]:
        return [f" {value}" if i % 5 == 0 else f"{value}  " if i % 3 == 0 else value for i, value in enumerate(values)]

    facts = {"@ward ": blank(["north", "south"] * 15)}
    table = {"age ": AGES, " client": blank(TABLE["client"]), "label ": blank(TABLE["label"]), **facts}
    data = load(path=write(tmp_path / "x", table))
    assert (data.classes, data.input_shape) == (2, (1,))
    assert by_column(data).num_clients == 3
    assert by_column(data, "ward").num_clients == 2
    plain = load(path=write(tmp_path / "plain", TABLE))
    np.testing.assert_array_equal(data.test["inputs"], plain.test["inputs"])
    np.testing.assert_array_equal(data.train["labels"], plain.train["labels"])


def test_names_that_differ_in_capitals_alone_are_told(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "x", {**TABLE, "label": ["yes", "no", "Yes", "No", "maybe"] * 6})
    with pytest.warns(UserWarning, match="'No' and 'no', 'Yes' and 'yes' are taken as different ones, 5 in all"):
        assert csv(path=path).classes == 5
    data = csv(path=write_csv(tmp_path / "x", {**TABLE, "client": ["A", "a", "B"] * 10}))
    with pytest.warns(UserWarning, match="clients: 'A' and 'a' are taken as different ones, 3 in all"):
        assert by_column(data).num_clients == 3


def test_none_may_be_a_class(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "x", {**TABLE, "label": ["none", "mild", "severe"] * 10})
    assert csv(path=path).classes == 3


# --- numbers to predict ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(FORMATS))
@pytest.mark.parametrize("kind", [int, float, str])
def test_a_number_to_predict_is_no_class(tmp_path: Path, name: str, kind: Any) -> None:
    load, write = FORMATS[name]
    rng = np.random.default_rng(0)
    hours = rng.normal(175, 25, 120).round().astype(int)
    table = {"bp": rng.normal(size=120).tolist(), "label": [kind(value) for value in hours]}
    with pytest.raises(InputError) as error:
        load(path=write(tmp_path / "x", table))
    one_line(
        error, "column 'label'", f"{len(np.unique(hours))} different whole numbers", "cannot be predicted yet", "c17"
    )
    with pytest.raises(InputError) as error:
        load(path=write(tmp_path / "y", {**table, "label": (hours / 10).tolist()}))
    one_line(error, "is no class", "cannot be predicted yet")
    named = load(path=write(tmp_path / "z", {**table, "label": [f"c{value}" for value in hours]}))
    assert named.classes == len(np.unique(hours))


@pytest.mark.parametrize(
    "labels",
    [
        [i % 62 for i in range(700)],  # FEMNIST's
        [i % 100 for i in range(250)],  # CIFAR-100's, few of each
        list(range(15)),  # few classes, one row each
    ],
)
def test_many_classes_are_classes(labels: list[int]) -> None:
    assert len(encode_labels("x", labels, any_number=False)[1]) == len(set(labels))


@pytest.mark.parametrize("labels", [[10 * (i % 30) for i in range(600)], [18 + i % 70 for i in range(2000)],
                                    [1 + i % 16 for i in range(700)]])  # fmt: skip
def test_numbers_with_many_rows_each_may_be_classes(labels: list[int]) -> None:
    with pytest.warns(UserWarning, match="are taken as classes; if they are a number to predict"):
        assert len(encode_labels("x", labels, any_number=False)[1]) == len(set(labels))


def test_one_class_alone_is_refused_where_it_lies(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        csv(path=write_csv(tmp_path / "x", {**TABLE, "label": ["well"] * 30}))
    one_line(error, "column 'label'", "'well'", "two classes")


def test_a_number_of_its_own_for_each_row_is_no_class() -> None:
    with pytest.raises(InputError) as error:
        encode_labels("x", list(range(40)), any_number=False)
    one_line(error, "40 different whole numbers from 0 to 39 in 40 rows")


def test_labels_are_never_rounded_together() -> None:
    """Whole numbers beyond 53 bits are told apart, and what only Python takes for a number is a name."""
    codes, listed = encode_labels("x", ["12345678901234567891", "12345678901234567890", "7"])
    assert (codes.tolist(), listed) == ([2, 1, 0], [7, 12345678901234567890, 12345678901234567891])
    assert encode_labels("x", ["1_0", "10"])[1] == ["10", "1_0"]
    with pytest.raises(InputError) as error:
        encode_labels("x", ["1", "inf"])
    one_line(error, "x: inf is no class")


# --- Hugging Face splits ---------------------------------------------------------------------------------------------


def rows(first: int, count: int) -> dict[str, list]:
    return {"x": [float(i) for i in range(first, first + count)], "label": [0, 1] * (count // 2)}


def sizes(data: Any) -> tuple[int, int]:
    return len(data.train["labels"]), len(data.test["labels"])


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"latest.csv": 10}, (8, 2)),  # no test set, though "test" is in the name
        ({"contest.csv": 10}, (8, 2)),
        ({"train.csv": 10, "test.csv": 4}, (10, 4)),
        ({"my_Train.csv": 10, "my.test.csv": 4}, (10, 4)),
        ({"train-latest.csv": 10, "test-latest.csv": 4}, (10, 4)),
        ({"a-00000-of-00002.csv": 10, "a-00001-of-00002.csv": 10}, (16, 4)),
        ({"train-00000-of-00002.csv": 10, "train-00001-of-00002.csv": 4, "test-00000-of-00001.csv": 2}, (14, 2)),
        ({"train/a.csv": 10, "train/b.csv": 4, "test/a.csv": 2}, (14, 2)),
    ],
)
def test_only_whole_words_name_a_split(tmp_path: Path, files: dict[str, int], expected: tuple[int, int]) -> None:
    pytest.importorskip("datasets")
    for i, (name, count) in enumerate(files.items()):
        (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        write_csv(tmp_path / "x" / name, rows(100 * i, count))
    assert sizes(huggingface(path=str(tmp_path / "x"))) == expected


@pytest.mark.parametrize(
    "names",
    [["ward_a.csv", "ward_b.csv"], ["train.csv", "latest.csv"], ["data.csv", "test.csv"], ["train_test.csv", "a.csv"]],
)
def test_files_of_no_known_split_are_refused(tmp_path: Path, names: list[str]) -> None:
    pytest.importorskip("datasets")
    for name in names:
        write_csv(tmp_path / name, rows(0, 10))
    with pytest.raises(InputError) as error:
        huggingface(path=str(tmp_path))
    one_line(error, "data.path", "it is not known whether to train or to test")


def test_no_split_is_dropped_without_a_word(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")

    def saved(**counts: int) -> str:
        parts = {name: datasets.Dataset.from_dict(rows(100 * i, n)) for i, (name, n) in enumerate(counts.items())}
        folder = tmp_path / "-".join(counts)
        datasets.DatasetDict(parts).save_to_disk(folder)
        return str(folder)

    with pytest.warns(UserWarning, match="train and validation rows are trained on, test rows are the test set$"):
        data = huggingface(path=saved(train=10, validation=4, test=6))
    assert sizes(data) == (14, 6)
    assert data.columns["split"].tolist() == ["train"] * 10 + ["validation"] * 4
    with pytest.warns(UserWarning, match="train rows are trained on, validation rows are the test set$"):
        assert sizes(huggingface(path=saved(train=10, dev=4))) == (10, 4)
    with pytest.warns(UserWarning, match="test rows are drawn from them; unlabelled, extra left out$"):
        assert sizes(huggingface(path=saved(train=10, unlabelled=2, extra=2))) == (8, 2)
    with pytest.warns(UserWarning, match="validation rows are the test set; dev left out$"):
        assert sizes(huggingface(path=saved(train=10, val=4, dev=6))) == (10, 4)
    assert sizes(huggingface(path=saved(train=10, test=4))) == (10, 4)
