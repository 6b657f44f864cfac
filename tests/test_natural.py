"""Data that say whose each row is: four hospitals, the roles of plays, LEAF's users, and dictionaries of clients."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import one_line
from test_sources import published

from fedjax_sim import InputError
from fedjax_sim.data import by_column
from fedjax_sim.data.sources import from_dictionary, heart_disease, leaf, shakespeare

# --- heart disease ---------------------------------------------------------------------------------------------------

HOSPITALS = {"cleveland": "cleveland", "hungary": "hungarian", "switzerland": "switzerland", "va": "va"}


def test_heart_disease_is_as_published() -> None:
    folder = published("heart_disease")
    raw = heart_disease(path=folder, standardise="none")
    rows = np.concatenate([raw.train["inputs"], raw.test["inputs"]])
    owner = np.concatenate([raw.columns["client"], raw.test_columns["client"]])
    labels = np.concatenate([raw.train["labels"], raw.test["labels"]])
    data = by_column(raw)
    assert data.names is not None
    assert data.names.tolist() == list(HOSPITALS)
    assert data.sizes.tolist() == [199, 172, 30, 85]
    assert data.local_test is not None
    assert np.diff(data.local_test.offsets).tolist() == [104, 89, 16, 45]
    assert (raw.classes, raw.input_shape, rows.dtype) == (2, (13,), np.float32)
    for hospital, stem in HOSPITALS.items():  # by a reader of our own
        lines = (Path(folder) / f"processed.{stem}.data").read_text().split()
        cells = [[cell for i, cell in enumerate(line.split(",")) if i not in (10, 11, 12)] for line in lines]
        full = np.array([row for row in cells if "?" not in row], float)
        assert np.bincount(labels[owner == hospital]).tolist() == np.bincount(full[:, -1] != 0).tolist()
        chest, heart = full[:, 2], full[:, 6]
        columns = [full[:, i] for i in (0, 1, 3, 4, 5, 7, 8, 9)]
        columns += [chest == 2, chest == 3, chest == 4, heart == 1, heart == 2]
        np.testing.assert_allclose(rows[owner == hospital].mean(0), np.mean(columns, axis=1), rtol=1e-5)


def test_heart_disease_is_standardised_with_training_statistics() -> None:
    folder = published("heart_disease")
    raw, own, pooled = (heart_disease(path=folder, standardise=kind) for kind in ("none", "client", "pooled"))
    for hospital in HOSPITALS:
        train, test = raw.columns["client"] == hospital, raw.test_columns["client"] == hospital
        x = raw.train["inputs"][train].astype(float)
        mean, deviation = x.mean(0), x.std(0, ddof=1) + 1e-9
        expected = (raw.test["inputs"][test] - mean) / deviation
        np.testing.assert_allclose(own.test["inputs"][test], expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(own.train["inputs"][train].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(pooled.train["inputs"].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(pooled.train["inputs"].std(0, ddof=1), 1, atol=1e-5)
    assert np.abs(own.train["inputs"].mean(0)).max() < 1e-5 < np.abs(pooled.test["inputs"].mean(0)).max()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("1,2,3", "3 fields, not 14"),
        ("63,1,1,145,233,1,2,150,0,2.3,3,0,6,x", "'x' is neither"),
        ("63,1,1,nan,233,1,2,150,0,2.3,3,0,6,0", "'nan' is neither"),
        ("63,1,1,145,233,1,2,150,0,1e999,3,0,6,0", "'1e999' is neither"),
        ("63,1,1,145,233,1,2,150,0,2.3,3,0,6,7", "diagnosis 7"),
        ("63,1,1,145,233,1,2,150,0,2.3,3,0,6,?", "diagnosis ?"),
    ],
)
def test_damaged_heart_disease_lines_are_named(tmp_path: Path, line: str, found: str) -> None:
    for stem in HOSPITALS.values():
        (tmp_path / f"processed.{stem}.data").write_text("63,1,1,145,233,1,2,150,0,2.3,3,0,6,0\n" * 4)
    file = tmp_path / "processed.hungarian.data"
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(InputError) as error:
        heart_disease(path=str(tmp_path))
    one_line(error, f"{file}, line 5", found)
    for content, reason in ((b"", "0 patients"), (b"\xff\xfe", "no text"), (None, "cannot be read")):
        file.unlink() if content is None else file.write_bytes(content)
        with pytest.raises(InputError) as error:
            heart_disease(path=str(tmp_path))
        one_line(error, str(file), reason)
    with pytest.raises(InputError) as error:
        heart_disease(path=str(tmp_path), standardise="batch")
    one_line(error, "data.standardise: 'batch'", "client, pooled, none")


# --- Shakespeare -----------------------------------------------------------------------------------------------------


def test_shakespeare_windows_are_the_text(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    speeches = ["".join(rng.choice(list("abcde\u00e7"), 150, p=[0.2, 0.2, 0.2, 0.2, 0.195, 0.005])) for _ in range(10)]
    long = "ab" * 600
    roles = [("p", "many", ["\u2060" + s for s in speeches]), ("p", "one", [long]), ("q", "short", ["a" * 999])]
    lines = [json.dumps({"play": play, "role": role, "speeches": s}) for play, role, s in roles]
    (tmp_path / "roles.jsonl").write_text("\n".join(lines))
    data = shakespeare(path=str(tmp_path), stride=7)
    codes = {c: i for i, c in enumerate("abcde")}  # the newline and the cedilla are rare
    train, test = "\n".join(speeches[:8]), "\n".join(speeches[8:])
    for examples, columns, text, rest in (
        (data.train, data.columns, train, long[:960]),
        (data.test, data.test_columns, test, long[960:]),
    ):
        for name, whole in (("p / many", text), ("p / one", rest)):
            rows = columns["client"] == name
            starts = range(0, len(whole) - 80, 7)
            expected = [[codes.get(c, 5) for c in whole[i : i + 81]] for i in starts]
            np.testing.assert_array_equal(examples["inputs"][rows], np.array(expected)[:, :80])
            np.testing.assert_array_equal(examples["labels"][rows], np.array(expected)[:, 80])
    assert (data.classes, data.input_shape, data.train["inputs"].dtype) == (6, (80,), np.uint8)
    assert set(data.columns["client"]) == {"p / many", "p / one"}
    assert set(data.columns["play"]) == {"p"}


def test_the_published_plays() -> None:
    data = shakespeare(path=published("shakespeare"))
    federation = by_column(data)
    assert federation.num_clients == 671
    assert federation.local_test is not None
    assert federation.sizes.min() >= 1
    assert np.diff(federation.local_test.offsets).min() >= 1
    assert (len(data.train["labels"]), len(data.test["labels"]), data.classes) == (165529, 43107, 64)
    assert len(np.unique(federation.attributes["play"])) == 39
    assert data.train["labels"].max() < data.classes


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'{"play": "p", "role": "r"}', "line 1: it is damaged (there is no 'speeches')"),
        (b'{"play": "p", "role": "r", "speeches": ["a"]}\n{"play": ', "line 2: it is damaged"),
        (b'{"play": "p", "role": "r", "speeches": [1]}', "line 1"),
        (b'{"play": "p", "role": "r", "speeches": "a"}', "line 1"),
        (b"[]", "line 1: it is damaged"),
        (b'{"play": "p", "role": "r", "speeches": []}\n' * 2, "line 2: 'p / r' is there twice"),
        (b"", "no role has 1000 characters"),
        (b"\xff", "byte 0 is not UTF-8"),
    ],
)
def test_damaged_plays_are_named(tmp_path: Path, content: bytes, found: str) -> None:
    file = tmp_path / "roles.jsonl"
    file.write_bytes(content)
    with pytest.raises(InputError) as error:
        shakespeare(path=str(file))
    one_line(error, str(file), found)
    with pytest.raises(InputError) as error:
        shakespeare(path=str(file), stride=0)
    one_line(error, "data.stride: 0")


# --- LEAF ------------------------------------------------------------------------------------------------------------


def write_leaf(file: Path, samples: dict[str, tuple[list, list]], **changed: Any) -> None:
    content = {
        "users": list(samples),
        "num_samples": [len(y) for _, y in samples.values()],
        "user_data": {name: {"x": x, "y": y} for name, (x, y) in samples.items()},
        **changed,
    }
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))


def images(seed: int, count: int) -> list[list[float]]:
    return np.random.default_rng(seed).random((count, 784)).round(3).tolist()


def test_leafs_images_keep_their_users_and_split(tmp_path: Path) -> None:
    a, b, c = images(0, 3), images(1, 2), images(2, 1)
    write_leaf(tmp_path / "train" / "1.json", {"f1": (a, [5, 61, 5])}, hierarchies=["class_b"])
    write_leaf(tmp_path / "train" / "2.json", {"f0": (b, [0, 61]), "none": ([], [])}, hierarchies=["class_a", "x"])
    write_leaf(tmp_path / "test" / "1.json", {"f1": (c, [17])}, hierarchies=["class_b"])
    data = leaf(path=str(tmp_path))
    assert data.train["inputs"].dtype == np.float32
    np.testing.assert_allclose(data.train["inputs"].reshape(5, 784), np.array(a + b), rtol=1e-6)
    np.testing.assert_allclose(data.test["inputs"].reshape(1, 784), np.array(c), rtol=1e-6)
    assert data.train["labels"].tolist() == [1, 3, 1, 0, 3]  # 0, 5, 17, 61
    assert data.test["labels"].tolist() == [2]
    assert (data.classes, data.input_shape) == (4, (28, 28, 1))
    federation = by_column(data)
    assert federation.names is not None
    assert federation.names.tolist() == ["f0", "f1"]
    assert federation.attributes["hierarchy"].tolist() == ["class_a", "class_b"]
    assert len(federation.client_test(1)["labels"]) == 1


def test_leafs_features_are_split_by_user(tmp_path: Path) -> None:
    users = {f"u{i}": ([[i, j, -0.5] for j in range(5 * i + 1)], [j % 2 for j in range(5 * i + 1)]) for i in range(4)}
    write_leaf(tmp_path / "all.json", users)
    data = leaf(path=str(tmp_path), test_fraction=0.2, seed=3)
    federation = by_column(data)
    assert federation.local_test is not None
    assert np.diff(federation.local_test.offsets).tolist() == [0, 1, 2, 3]
    assert federation.sizes.tolist() == [1, 5, 9, 13]
    rows = np.concatenate([data.train["inputs"], data.test["inputs"]])
    expected = np.array([x for xs, _ in users.values() for x in xs])
    np.testing.assert_allclose(rows[np.lexsort(rows.T[:2][::-1])], expected)
    np.testing.assert_array_equal(data.test["inputs"], leaf(path=str(tmp_path), seed=3).test["inputs"])


def test_a_split_by_user_has_a_global_test_set(tmp_path: Path) -> None:
    write_leaf(tmp_path / "train" / "1.json", {"a": ([[1.0]], [0])})
    write_leaf(tmp_path / "test" / "1.json", {"b": ([[2.0]], [1])})
    data = leaf(path=str(tmp_path))
    assert not data.test_columns
    assert by_column(data).local_test is None


def test_leafs_characters_share_one_alphabet(tmp_path: Path) -> None:
    write_leaf(tmp_path / "train" / "1.json", {"HAMLET": (["to b", "o be"], ["e", ","])})
    write_leaf(tmp_path / "test" / "1.json", {"HAMLET": (["or n"], ["\u00e9"])})
    data = leaf(path=str(tmp_path))
    alphabet = sorted(set("to be, or n\u00e9"))
    for text, row in (("to b", data.train["inputs"][0]), ("or n", data.test["inputs"][0])):
        assert "".join(alphabet[code] for code in row) == text
    assert [alphabet[code] for code in (*data.train["labels"], *data.test["labels"])] == ["e", ",", "\u00e9"]
    assert (data.classes, data.train["inputs"].dtype) == (len(alphabet), np.uint8)


def test_leafs_tweets_are_bytes(tmp_path: Path) -> None:
    tweets = [["1", "Mon", "NO_QUERY", "me", "so happy \u263a"], ["2", "Tue", "NO_QUERY", "me", "x" * 200]]
    write_leaf(tmp_path / "train" / "1.json", {"me": (tweets, [4, 0])})
    write_leaf(tmp_path / "test" / "1.json", {"me": (tweets[:1], ["1"])})
    data = leaf(path=str(tmp_path))
    assert data.train["inputs"].shape == (2, 140)
    assert bytes(data.train["inputs"][0]).rstrip(b"\0").decode() == "so happy \u263a"
    assert bytes(data.train["inputs"][1]) == b"x" * 140
    assert (data.train["labels"].tolist(), data.test["labels"].tolist(), data.classes) == ([1, 0], [1], 2)


GOOD = {"a": ([[1.0, 2.0], [3.0, 4.0]], [0, 1])}


@pytest.mark.parametrize(
    ("users", "changed", "found"),
    [
        (GOOD, {"users": ["a", "b"], "num_samples": [2, 1]}, "user 'b': \"user_data\" has nothing"),
        (GOOD, {"num_samples": [3]}, "user 'a': 2 x and 2 y, but num_samples says 3"),
        (GOOD, {"num_samples": [2, 2]}, "differ in length"),
        (GOOD, {"hierarchies": ["x", "y"]}, "differ in length"),
        (GOOD, {"user_data": []}, "differ in length or kind"),
        (GOOD, {"user_data": {"a": [1]}}, "user 'a': \"user_data\" has nothing"),
        ({"a": ([[1.0, 2.0], [3.0]], [0, 1])}, {}, "user 'a': x are not all lists of as many numbers"),
        ({**GOOD, "b": ([[1.0]], [0])}, {}, "user 'b': x are not all lists of 2 numbers"),
        ({**GOOD, "b": ([[1.0, float("nan")]], [0])}, {}, "user 'b': x holds NaN"),
        ({**GOOD, "b": ([[1.0, 1e39]], [0])}, {}, "user 'b': x holds NaN or a number beyond"),
        ({**GOOD, "b": ([[1.0, None]], [0])}, {}, "user 'b': x holds NaN"),
        ({**GOOD, "b": (["text"], [0])}, {}, "user 'b': x 'text' is no list of numbers"),
        ({"a": ([[]], [0])}, {}, "user 'a': x are not all"),
        ({"a": (["abc", "ab"], ["a", "b"])}, {}, "user 'a': x 'ab' has 2 characters, not 3"),
        ({"a": (["1.jpg"], [0])}, {}, "user 'a'"),
        ({"a": ([["tweet"]], [1])}, {}, "user 'a': x ['tweet'] is a list of unknown layout"),
        ({"a": ([["1", "d", "q", "me", "text"]], [3])}, {}, "user 'a': y 3 is no sentiment"),
        ({"a": ([[1.0]], [0.5])}, {}, "user 'a': y 0.5 is no class"),
        ({"a": ([[1.0]], [None])}, {}, "user 'a': y None is no class"),
        ({}, {}, "no user has a sample"),
    ],
)
def test_wrong_leaf_files_are_named(
    tmp_path: Path, users: dict[str, tuple[list, list]], changed: dict[str, Any], found: str
) -> None:
    write_leaf(tmp_path / "data.json", users, **changed)
    with pytest.raises(InputError) as error:
        leaf(path=str(tmp_path))
    one_line(error, str(tmp_path), found)


def test_damaged_leaf_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        leaf(path=str(tmp_path))
    one_line(error, str(tmp_path), "no .json files")
    for content, found in ((b"", "not one of LEAF's"), (b'{"users": []}', "no 'num_samples'"), (b"\xff", "decode")):
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(InputError) as error:
            leaf(path=str(tmp_path))
        one_line(error, "x.json", found)
    write_leaf(tmp_path / "x.json", GOOD)
    write_leaf(tmp_path / "y.json", GOOD)
    with pytest.raises(InputError) as error:
        leaf(path=str(tmp_path))
    one_line(error, "y.json, user 'a'", "in x.json too")
    (tmp_path / "train").mkdir()
    write_leaf(tmp_path / "train" / "x.json", GOOD)
    with pytest.raises(InputError) as error:
        leaf(path=str(tmp_path))
    one_line(error, str(tmp_path / "test"), "no .json files")
    with pytest.raises(InputError) as error:
        leaf()
    one_line(error, "data.path: it is empty")


# --- dictionaries ----------------------------------------------------------------------------------------------------


def test_a_dictionary_becomes_a_federation() -> None:
    clients = {b"c9": {"x": np.ones((2, 3)), "y": np.array([4, 0])}, "a": {"x": np.zeros((1, 3)), "y": np.array([1])}}
    data = from_dictionary(clients, test={"x": np.zeros((1, 3)), "y": np.array([5])})
    assert data.names is not None
    assert data.names.tolist() == ["c9", "a"]
    np.testing.assert_array_equal(data.examples["inputs"], [[1] * 3, [1] * 3, [0] * 3])
    assert data.examples["labels"].tolist() == [4, 0, 1]
    assert (data.classes, data.source) == (6, "dictionary of 2 clients")
    both = from_dictionary({"a": {"x": [1.0], "inputs": [2.0], "z": [1]}})
    assert sorted(both.examples) == ["inputs", "x", "z"]
    assert both.classes is None


@pytest.mark.parametrize(
    ("clients", "found"),
    [
        ({}, "clients: it is empty"),
        ([1], "clients: it is empty or no dictionary"),
        ({b"a": {"x": [1.0]}, "a": {"x": [1.0]}}, "two ids read 'a'"),
        ({b"\xff": {"x": [1.0]}}, "is not UTF-8"),
        ({3: {"x": [1.0]}}, "id 3 is a int"),
        ({"a": [1.0]}, "client 'a': list is no dictionary"),
        ({"a": {"x": [np.nan]}}, "client 'a', field 'inputs': nan at [0]"),
        ({"a": {"x": [object()]}}, "client 'a', field 'inputs': dtype object"),
        ({"a": {"x": [1.0]}, "b": {"z": [1.0]}}, "client 1: fields ['z']"),
    ],
)
def test_wrong_dictionaries_are_named(clients: Any, found: str) -> None:
    with pytest.raises(InputError) as error:
        from_dictionary(clients)
    one_line(error, found)
