"""Tables in CSV, Parquet and Hugging Face form: values kept, and one line for each mistake."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import one_line
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_sim import InputError
from fedjax_sim.data import by_column
from fedjax_sim.data.sources import csv, huggingface, parquet
from fedjax_sim.data.sources.prepare import draw_test_rows, encode_labels, standardise

CLIENTS = ["north"] * 6 + ["south"] * 5 + ["east"]
COLUMNS: dict[str, list] = {
    "age": [float(i) for i in range(12)],
    "constant": [3] * 12,
    "@scanner": ["A", "B"] * 6,
    "weight": [0.5 * i * i for i in range(12)],
    "client": CLIENTS,
    "label": ["ill", "well", "ill"] * 4,
}


def lines(columns: dict[str, list], delimiter: str = ",") -> str:
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    return "".join(delimiter.join(map(str, row)) + "\n" for row in rows)


def write_csv(file: Path, columns: dict[str, list]) -> str:
    file.write_text(lines(columns), encoding="utf-8")
    return str(file)


def write_parquet(file: Path, columns: dict[str, list]) -> str:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), file)
    return str(file)


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and a cache of our own, for `datasets` if it is installed."""
    try:
        import datasets.config as config
        import huggingface_hub.constants as hub
    except ImportError:
        return
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "hub cache")


def write_saved(file: Path, columns: dict[str, list]) -> str:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict(columns).save_to_disk(file)
    return str(file)


FORMATS: dict[str, tuple[Callable[..., Any], Callable[[Path, dict[str, list]], str]]] = {
    "csv": (csv, write_csv),
    "parquet": (parquet, write_parquet),
    "huggingface": (huggingface, write_saved),
}


@pytest.mark.parametrize("name", list(FORMATS))
def test_a_table_becomes_standardised_features_classes_and_facts(tmp_path: Path, name: str) -> None:
    load, write = FORMATS[name]
    data = load(path=write(tmp_path / "x", COLUMNS), test_fraction=0.4, seed=1)
    assert (data.classes, data.input_shape, data.train["inputs"].dtype) == (2, (3,), np.float32)
    federation = by_column(data)
    assert federation.names is not None
    assert federation.names.tolist() == ["east", "north", "south"]
    assert federation.sizes.tolist() == [1, 4, 3]  # 0.4 of 1, 6 and 5, rounded down, are held out
    np.testing.assert_allclose(data.train["inputs"].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(data.train["inputs"].std(0), [1, 0, 1], atol=1e-6)
    assert not data.test["inputs"][:, 1].any()
    ages = np.concatenate([data.train["inputs"][:, 0], data.test["inputs"][:, 0]])
    for part, facts in ((data.train, data.columns), (data.test, data.test_columns)):
        rows = np.rint((part["inputs"][:, 0] - ages.min()) / np.ptp(ages) * 11).astype(int)
        assert facts["client"].tolist() == [CLIENTS[row] for row in rows]
        assert facts["scanner"].tolist() == ["AB"[row % 2] for row in rows]
        assert part["labels"].tolist() == [int(row % 3 == 1) for row in rows]
    again = load(path=str(tmp_path / "x"), test_fraction=0.4, seed=1)
    np.testing.assert_array_equal(data.test["inputs"], again.test["inputs"])


@pytest.mark.parametrize("name", list(FORMATS))
@pytest.mark.parametrize(
    ("changed", "options", "found"),
    [
        ({}, {"label": "diagnosis"}, "data.label: 'diagnosis' is no column"),
        ({}, {"client": "site"}, "data.client: 'site' is no column"),
        ({}, {"client": "label"}, "data.client: 'label' is the column of labels too"),
        ({}, {"test_fraction": 0.01}, "data.test_fraction: 0.01 of 12 rows leaves no test rows"),
        ({}, {"test_fraction": 1.0}, "data.test_fraction: 1.0"),
        ({"age": ["old"] * 12}, {}, "column 'age': 'old' is no number"),
        ({"age": [1.0] * 11 + [float("inf")]}, {}, "column 'age': inf is not finite"),
        ({"age": [1.0] * 11 + [float("nan")]}, {}, "column 'age': the value is missing"),
        ({"age": ["1"] * 11 + ["?"]}, {}, "column 'age': the value is missing"),
        ({"client": ["a"] * 11 + [""]}, {}, "column 'client': the value is missing"),
        ({"label": ["a"] * 11 + ["?"]}, {}, "column 'label': the value is missing"),
        ({"label": [0.5] * 12}, {}, "column 'label': 0.5 is no class"),
    ],
)
def test_wrong_tables_are_named(
    tmp_path: Path, name: str, changed: dict[str, list], options: dict[str, Any], found: str
) -> None:
    load, write = FORMATS[name]
    path = write(tmp_path / "x", {**COLUMNS, **changed})
    with pytest.raises(InputError) as error:
        load(path=path, **options)
    one_line(error, found)
    if "column" in found and "data." not in found and "class" not in found:
        row = {"csv": "line 13", "parquet": "row 12", "huggingface": "row 12"}[name]
        one_line(error, path, row if "old" not in found else "")


@pytest.mark.parametrize("name", list(FORMATS))
def test_without_clients_rows_are_stratified_by_label(tmp_path: Path, name: str) -> None:
    load, write = FORMATS[name]
    columns = {"x": [i * i for i in range(100)], "label": [10] * 50 + [9] * 30 + [100] * 20}
    data = load(path=write(tmp_path / "x", columns), test_fraction=0.2, seed=0)
    assert np.bincount(data.train["labels"]).tolist() == [24, 40, 16]  # 9, 10, 100: in numerical order
    assert np.bincount(data.test["labels"]).tolist() == [6, 10, 4]
    assert not data.columns


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_dialects(tmp_path: Path, delimiter: str) -> None:
    file = tmp_path / "x.csv"
    file.write_bytes(b"\xef\xbb\xbf" + lines(COLUMNS, delimiter).replace("\n", "\r\n").encode() + b"\r\n")
    plain = csv(path=write_csv(tmp_path / "plain.csv", COLUMNS))
    np.testing.assert_array_equal(csv(path=str(file)).train["inputs"], plain.train["inputs"])


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "it is empty"),
        (b"x,label\n", "line 1: no row follows"),
        (b"x,label\n1,a\n2,b,c\n", "line 3: 3 fields, but 2 names"),
        (b"x,label\n1,a\n2\n", "line 3: 1 fields"),
        (b'x,label\n"1\n2",a\n3\n', "line 4: 1 fields"),  # a field with a line break counts as two lines
        (b"x,x,label\n1,2,a\n", "line 1: it names 'x' twice"),
        (b"x,,label\n1,2,a\n", "line 1: it has no name for column 2"),
        (b"x,label\n1,a\n\xff,b\n", "line 3: byte 0xff is not UTF-8"),
        (b'x,label\n1,"a"b\n', "line 2"),
        (b"label\na\nb\n", "no column is left for features"),
        (b"x,label\n" + b"1" * 200000 + b",a\n", "line 2"),
    ],
)
def test_damaged_csv_lines_are_named(tmp_path: Path, content: bytes, found: str) -> None:
    file = tmp_path / "x.csv"
    file.write_bytes(content)
    with pytest.raises(InputError) as error:
        csv(path=str(file))
    one_line(error, str(file), found)


def test_files_that_are_not_there_or_of_another_kind(tmp_path: Path) -> None:
    for load in (csv, parquet):
        with pytest.raises(InputError) as error:
            load(path=str(tmp_path / "nowhere"))
        one_line(error, "data.path", "nowhere", "does not exist")
        with pytest.raises(InputError) as error:
            load()
        one_line(error, "data.path: it is empty")
    file = tmp_path / "x"
    whole = Path(write_parquet(file, COLUMNS)).read_bytes()
    for content in (b"", b"PAR1", b"x,label\n1,2\n", whole[:-9], whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(InputError) as error:
            parquet(path=str(file))
        one_line(error, str(file), "cannot be read")


def test_parquet_columns_that_are_no_single_values(tmp_path: Path) -> None:
    for changed, found in (
        ({"age": [[1]] * 12}, "column 'age': 'list<"),
        ({"age": [*range(11), None]}, "row 12, column 'age': the value is missing"),
        ({"label": ["a"] * 11 + [None]}, "row 12, column 'label': the value is missing"),
    ):
        with pytest.raises(InputError) as error:
            parquet(path=write_parquet(tmp_path / "x", {**COLUMNS, **changed}))
        one_line(error, str(tmp_path / "x"), found)
    with pytest.raises(InputError) as error:
        parquet(path=write_parquet(tmp_path / "x", {name: [] for name in COLUMNS}))
    one_line(error, "it has no rows")


@pytest.mark.parametrize(("load", "module"), [(parquet, "pyarrow"), (huggingface, "datasets")])
def test_packages_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: Any, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError) as error:
        load(path=str(tmp_path))
    one_line(error, module, "pip install 'fedjax-sim[datasets]'")


# --- Hugging Face ----------------------------------------------------------------------------------------------------


def pictures(mode: str, shapes: list[tuple[int, ...]]) -> tuple[list[Any], list[np.ndarray]]:
    """Pillow's images and their pixels."""
    image = pytest.importorskip("PIL.Image", reason="images need pillow")
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, shape).astype(np.uint8) for shape in shapes]
    return [image.fromarray(array).convert(mode) for array in pixels], pixels


@pytest.mark.parametrize(("mode", "shape"), [("L", (5, 4)), ("RGB", (5, 4, 3)), ("RGBA", (5, 4, 4))])
def test_images_with_class_labels_and_their_own_split(tmp_path: Path, mode: str, shape: tuple[int, ...]) -> None:
    datasets = pytest.importorskip("datasets")
    images, pixels = pictures(mode, [shape] * 6)
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog", "unicorn"]),
            "writer": datasets.Value("string"),
            "id": datasets.Value("int64"),
        }
    )
    rows = {"image": images, "label": [0, 1, 0, 1, 1, 0], "writer": list("aabbab"), "id": list(range(6))}
    whole = datasets.Dataset.from_dict(rows, features=features)
    splits = {"train": whole.select(range(4)), "test": whole.select([4, 5]), "validation": whole.select([0])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    with pytest.warns(UserWarning, match="train and validation rows are trained on, test rows are the test set"):
        data = huggingface(path=str(tmp_path / "saved"), client="writer")
    expected = np.stack(pixels).reshape(6, 5, 4, -1)
    np.testing.assert_array_equal(data.train["inputs"], expected[[0, 1, 2, 3, 0]])
    np.testing.assert_array_equal(data.test["inputs"], expected[4:])
    assert (data.classes, data.train["inputs"].dtype) == (3, np.uint8)  # no unicorn is there
    assert data.test["labels"].tolist() == [1, 0]
    assert data.columns["id"].tolist() == [0, 1, 2, 3, 0]
    assert data.columns["split"].tolist() == ["train"] * 4 + ["validation"]
    assert by_column(data).sizes.tolist() == [3, 2]


def test_wrong_images_are_named(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    different, _ = pictures("L", [(5, 4)] * 4 + [(4, 4)])
    wrong_mode = pictures("CMYK", [(5, 4, 3)] * 5)[0]
    cases = ((different, "row 5, column 'image': [4, 4, 1]"), (wrong_mode, "CMYK"), ([*different[:4], None], "row 5"))
    for i, (images, found) in enumerate(cases):
        rows = {"image": images, "label": [0, 1, 0, 1, 0]}
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / str(i))
        with pytest.raises(InputError) as error:
            huggingface(path=str(tmp_path / str(i)))
        one_line(error, found)


@pytest.mark.parametrize(("kind", "dtype"), [("uint8", np.uint8), ("float32", np.float32), ("int64", np.float32)])
def test_arrays_keep_their_values(tmp_path: Path, kind: str, dtype: type) -> None:
    datasets = pytest.importorskip("datasets")
    vectors = np.arange(40).reshape(10, 4)
    for name, feature, values in (
        ("vector", datasets.Sequence(datasets.Value(kind)), vectors),
        ("square", datasets.Array2D((2, 2), kind), vectors.reshape(10, 2, 2)),
    ):
        features = datasets.Features({"x": feature, "label": datasets.Value("string")})
        rows = {"x": values.tolist(), "label": ["a", "b"] * 5}
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / name)
        data = huggingface(path=str(tmp_path / name))
        joined = np.concatenate([data.train["inputs"], data.test["inputs"]]).reshape(10, 4)
        np.testing.assert_array_equal(joined[np.argsort(joined[:, 0])], vectors)
        assert data.train["inputs"].dtype == dtype
        assert data.input_shape == ((4,) if name == "vector" else (2, 2, 1))


def test_wrong_arrays_are_named(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    label = [0, 1, 0, 1, 0]
    cases: list[tuple[dict[str, list], dict[str, Any], str]] = [
        ({"x": [[1.0]] * 4 + [[1.0, 2.0]]}, {}, "column 'x': its rows are no arrays"),
        ({"x": [["a"]] * 5}, {}, "column 'x': its rows are no arrays"),
        ({"x": [[1.0]] * 4 + [[float("nan")]]}, {}, "row 5, column 'x': NaN"),
        ({"x": [[1.0]] * 5, "z": [[1.0]] * 5}, {}, "several inputs, x, z"),
        ({"x": [[1.0]] * 5}, {"label": "x"}, "data.label: 'x' is the column of inputs"),
        ({"x": [1.0, 2.0, None, 4.0, 5.0]}, {}, "row 3, column 'x': the value is missing"),
    ]
    for i, (columns, options, found) in enumerate(cases):
        datasets.Dataset.from_dict({**columns, "label": label}).save_to_disk(tmp_path / str(i))
        with pytest.raises(InputError) as error:
            huggingface(path=str(tmp_path / str(i)), **options)
        one_line(error, found)
    features = datasets.Features({"x": datasets.Value("float32"), "label": datasets.ClassLabel(names=["a", "b"])})
    unlabelled = datasets.Dataset.from_dict({"x": [1.0] * 5, "label": [0, 1, -1, 0, 1]}, features=features)
    unlabelled.save_to_disk(tmp_path / "unlabelled")
    with pytest.raises(InputError) as error:
        huggingface(path=str(tmp_path / "unlabelled"))
    one_line(error, "column 'label': labels from -1 to 1; give 0 to 1")


def test_local_files_need_no_network(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    rows = {"x": [float(i) for i in range(10)], "label": [0, 1] * 5}
    folder = tmp_path / "files"
    folder.mkdir()
    write_csv(folder / "my_train.csv", rows)
    write_csv(folder / "my_test.csv", {name: values[:3] for name, values in rows.items()})
    data = huggingface(path=str(folder))
    np.testing.assert_allclose(data.train["inputs"][:, 0], (np.arange(10) - 4.5) / np.std(np.arange(10)), rtol=1e-5)
    np.testing.assert_array_equal(data.test["inputs"], data.train["inputs"][:3])
    (tmp_path / "x.jsonl").write_text("".join(f'{{"x": {i}, "label": "{"ab"[i % 2]}"}}\n' for i in range(10)))
    write_parquet(tmp_path / "x.parquet", rows)
    for name in ("x.jsonl", "x.parquet"):
        assert len(huggingface(path=str(tmp_path / name)).train["labels"]) == 8
    (tmp_path / "x.json").write_text('{"x": ')
    for path, found in (
        (str(tmp_path / "x.json"), "cannot be loaded"),
        (str(tmp_path / "no" / "such" / "file.csv"), "does not exist and is no name on the hub"),
        (str(tmp_path), "holds no files of one kind"),
        ("some_owner/some_name:config", "cannot be loaded"),
        ("", "it is empty"),
    ):
        with pytest.raises(InputError) as error:
            huggingface(path=path)
        one_line(error, "data.path", path, found)


# --- the shared steps ------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5), min_size=4, max_size=60), st.floats(0.05, 0.95), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_every_group_gives_its_share(groups: list[int], fraction: float, seed: int) -> None:
    array = np.array(groups)
    for stratify in (False, True):
        taken = [int(fraction * groups.count(group) + 1e-9) for group in set(groups)]
        count = int(np.floor(len(groups) * fraction + 0.5)) if stratify else sum(taken)
        if count in (0, len(groups)):
            with pytest.raises(InputError, match="leaves no t"):
                draw_test_rows(fraction, seed, array, stratify=stratify)
            continue
        held = draw_test_rows(fraction, seed, array, stratify=stratify)
        np.testing.assert_array_equal(held, draw_test_rows(fraction, seed, array, stratify=stratify))
        for group in set(groups):
            share = fraction * groups.count(group)
            if stratify:
                assert abs(held[array == group].sum() - share) <= 1
            else:
                assert held[array == group].sum() == int(share + 1e-9)
        if stratify:
            assert abs(held.sum() - fraction * len(groups)) <= 0.5 + 1e-9


@pytest.mark.parametrize(
    ("values", "codes", "listed"),
    [
        ([10, 9, 10], [1, 0, 1], [9, 10]),
        (["10", "9", "-1"], [2, 1, 0], [-1, 9, 10]),
        (["1.0", "0.0"], [1, 0], [0, 1]),
        ([2.0, 1.0], [1, 0], [1, 2]),
        ([True, False], [1, 0], [0, 1]),
        (["b", "a", "10"], [2, 1, 0], ["10", "a", "b"]),
        (["99999999999999999", "99999999999999998"], [1, 0], [99999999999999998, 99999999999999999]),
    ],
)
def test_labels_are_classes_in_order(values: list, codes: list[int], listed: list) -> None:
    got, names = encode_labels("x", values)
    assert (got.tolist(), names, got.dtype) == (codes, listed, np.int32)


def test_large_numbers_are_standardised_without_overflow() -> None:
    train, test = standardise(np.array([[1e38, 5.0], [-1e38, 5.0]]), np.array([[0.0, 7.0]]))
    np.testing.assert_allclose(train, [[1, 0], [-1, 0]])
    np.testing.assert_allclose(test, [[0, 0]])
