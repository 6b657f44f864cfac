"""Labels and inputs as people have them in NumPy: converted where their meaning is plain, else refused in one line."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import one_line

from fedjax_sim import InputError
from fedjax_sim.data import (
    ClientRecord,
    Dataset,
    FederatedData,
    by_column,
    federate,
    from_clients,
    from_dictionary,
    gather,
    open_store,
    write_store,
)
from fedjax_sim.data.convert import narrowed, unscaled
from fedjax_sim.data.shift import SHIFTS
from fedjax_sim.experiment.build import build
from fedjax_sim.experiment.config import load_config
from fedjax_sim.experiment.federation import held_out_examples
from fedjax_sim.experiment.run import run

RNG = np.random.default_rng(0)
CLASSES = np.arange(12) % 3
X = RNG.normal(size=(12, 4)).astype(np.float32)


def dealt(inputs: Any, labels: Any, classes: int) -> FederatedData:
    examples = {"inputs": inputs, "labels": labels}
    return federate(Dataset(examples, examples, classes, inputs.shape[1:], "x"), [np.arange(5), np.arange(5, 12)])


def by_name(inputs: Any, labels: Any, classes: int) -> FederatedData:
    examples, who = {"inputs": inputs, "labels": labels}, np.array([" a", "b ", "a"] * 4)
    return by_column(Dataset(examples, examples, classes, inputs.shape[1:], "x", {"client": who}, {"client": who}))


def in_memory(inputs: Any, labels: Any, classes: int) -> FederatedData:
    clients = [{"inputs": inputs[part], "labels": labels[part]} for part in (slice(5), slice(5, 12))]
    return from_clients(clients, test={"inputs": inputs, "labels": labels}, classes=classes)


def on_disk(inputs: Any, labels: Any, classes: int, folder: Path) -> FederatedData:
    examples = {"inputs": inputs, "labels": labels}
    return open_store(write_store(folder, [ClientRecord(examples, None, examples)], test=examples, classes=classes))


ENTRIES = {"federate": dealt, "by_column": by_name, "from_clients": in_memory, "write_store": on_disk}


def entered(entry: str, inputs: Any, labels: Any, classes: int, tmp_path: Path) -> FederatedData:
    more = (tmp_path / "store",) if entry == "write_store" else ()
    return ENTRIES[entry](inputs, labels, classes, *more)


def parts(data: FederatedData) -> list[dict[str, np.ndarray]]:
    assert data.test is not None
    return [data.examples, data.test, *([data.local_test.examples] if data.local_test is not None else [])]


# --- labels ----------------------------------------------------------------------------------------------------------

ONE_HOT = np.eye(3)[CLASSES]


@pytest.mark.parametrize("entry", list(ENTRIES))
@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (CLASSES > 0, 2),
        (CLASSES[:, None], 3),
        ((CLASSES > 0)[:, None], 2),
        (ONE_HOT, 3),
        (ONE_HOT.astype(int), 3),
        (ONE_HOT.astype(bool), 3),
        (CLASSES.astype(float), 3),
        (CLASSES.astype(np.uint64), 3),
    ],
)
def test_labels_of_a_plain_meaning_become_classes(entry: str, labels: Any, classes: int, tmp_path: Path) -> None:
    data = entered(entry, X, labels, classes, tmp_path)
    expected = CLASSES if classes == 3 else (CLASSES > 0).astype(int)
    order = np.argsort(X[:, 0])
    for part in parts(data):
        assert part["labels"].dtype.kind in "iu"
        got = part["labels"][np.argsort(part["inputs"][:, 0])]
        np.testing.assert_array_equal(got, expected[order])


@pytest.mark.parametrize("entry", list(ENTRIES))
@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.where(CLASSES == 1, 0.5, CLASSES), ("0.5 in row 1 is no class", "cannot be predicted yet")),
        (np.where(CLASSES == 1, 7, CLASSES), ("from 0 to 7, 7 in row 1",)),
        (CLASSES - 1, ("from -1 to 1, -1 in row 0",)),
        (CLASSES.astype(np.uint64) + 2**40, ("1099511627776 in row 0",)),
        (np.ones((12, 3)), ("row 0 is [1.0, 1.0, 1.0], not one 1 among zeros",)),
        (np.zeros((12, 3), int), ("row 0 is [0, 0, 0]",)),
        (np.full((12, 3), 1 / 3), ("row 0 is [0.33",)),
        (np.eye(4)[CLASSES], ("float64[", "one-hot [n, 3]")),
        (np.zeros((12, 1, 1), int), ("int64[",)),
        (np.array(["sick", "well", "sick"] * 4), ("'sick'", "is not trained on")),
        (np.array([0, 1, None] * 4), ("object", "is not trained on")),
        (CLASSES + 1j, ("complex128", "is not trained on")),
        (np.full(12, "2026-01-01", "datetime64[D]"), ("datetime64[D]", "is not trained on")),
    ],
)
def test_labels_that_are_no_classes_are_one_line(
    entry: str, labels: Any, words: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        entered(entry, X, labels, 3, tmp_path)
    one_line(error, "field 'labels'", *words)


def test_federations_made_by_hand_are_checked_where_they_are_used() -> None:
    for labels in (CLASSES > 0, ONE_HOT, CLASSES[:, None], CLASSES + 1):
        data = FederatedData({"inputs": X, "labels": labels}, np.array([0, 5, 12]), None, classes=3)
        for use in (data.population, lambda data=data: gather(data, np.array([0, 1]))):
            with pytest.raises(InputError, match="field 'labels'"):
                use()


def test_one_hot_labels_are_trained_on_from_disk(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)

    def client() -> dict[str, np.ndarray]:
        y = rng.integers(0, 2, 40)
        return {"inputs": rng.normal(size=(40, 5)) + 3 * y[:, None], "labels": np.eye(2, dtype=int)[y]}

    write_store(tmp_path / "store", [client() for _ in range(4)], test=client(), classes=2)
    settings = ["data.name=store", f"data.path={tmp_path / 'store'}", "model.name=logistic", "training.rounds=3"]
    done = run(load_config(None, [*settings, f"output.folder={tmp_path}", "output.name=r"]))
    assert done.test_accuracy is not None
    assert done.test_accuracy > 0.85


def test_dictionaries_of_labels() -> None:
    def made(labels: Any, **more: Any) -> FederatedData:
        return from_dictionary({"a": {"x": np.zeros((len(labels), 2)), "y": labels}}, **more)

    assert made(CLASSES > 0).classes == 2
    assert made(CLASSES[:, None]).examples["labels"].tolist() == CLASSES.tolist()
    assert made(np.arange(62).repeat(2)).classes == 62
    hours = np.random.default_rng(0).normal(175, 25, 120).round().astype(int)
    with pytest.raises(InputError) as error:
        made(hours)
    one_line(error, "look like a number, which cannot be predicted yet", "give classes=")
    assert made(hours, classes=400).classes == 400
    assert made(hours + 0.5).classes is None  # a loss of one's own may want them


# --- pixels ----------------------------------------------------------------------------------------------------------

IMAGES = RNG.integers(0, 256, (12, 4, 5, 1))


@pytest.mark.parametrize("entry", list(ENTRIES))
@pytest.mark.parametrize("dtype", ["int16", "int32", "int64", "uint16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(4, 5, 1), (4, 5)])
def test_pixels_are_scaled_alike_in_every_dtype(entry: str, dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    images = IMAGES.reshape(12, *shape)
    with pytest.warns(UserWarning, match=f"{dtype} images of whole numbers from 0 to 255 are kept as uint8"):
        data = entered(entry, images.astype(dtype), CLASSES, 3, tmp_path / "made")
    plain = entered(entry, images.astype(np.uint8), CLASSES, 3, tmp_path / "plain")
    for part, as_uint8 in zip(parts(data), parts(plain), strict=True):
        assert part["inputs"].dtype == np.uint8
        np.testing.assert_array_equal(part["inputs"], as_uint8["inputs"])


@pytest.mark.parametrize(
    "images",
    [IMAGES / 255, IMAGES % 17, IMAGES - 128, 16 * IMAGES, IMAGES + 0.5, IMAGES > 128, IMAGES.astype(np.uint8)],
)
def test_other_images_stay_as_they_are(images: np.ndarray) -> None:
    data = in_memory(images, CLASSES, 3)
    np.testing.assert_array_equal(data.examples["inputs"], images)
    assert data.examples["inputs"].dtype == images.dtype


def test_a_client_whose_pixels_are_of_another_range_is_named(tmp_path: Path) -> None:
    clients = [{"inputs": IMAGES, "labels": CLASSES}, {"inputs": IMAGES * 2, "labels": CLASSES}]
    with pytest.warns(UserWarning, match="kept as uint8"), pytest.raises(InputError) as error:
        write_store(tmp_path / "store", clients, classes=3)
    one_line(error, "client 1, field 'inputs': int64 from 4 to 510")


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (X * [1, 1, 50, 1], "inputs: column 2 has values from"),
        (IMAGES.reshape(12, -1), "inputs: column"),
        (16 * IMAGES, "inputs: they have values from"),
        (IMAGES + 0.5, "inputs: they have values from 2.5 to 255.5"),
    ],
)
def test_inputs_far_from_standardised_are_told_where_they_are_trained_on(inputs: np.ndarray, words: str) -> None:
    data = in_memory(inputs, CLASSES, 3)
    with pytest.warns(UserWarning, match=words + ".*far from standardised"):
        build(load_config(None, ["model.name=logistic"]), data=data)


@pytest.mark.parametrize("inputs", [X, X * 3, IMAGES.astype(np.uint8), IMAGES / 255, IMAGES % 17, np.zeros((0, 3))])
def test_inputs_of_a_usual_scale_are_not_told_of(inputs: np.ndarray) -> None:
    assert unscaled(inputs) is None


# --- narrower dtypes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", list(ENTRIES))
@pytest.mark.parametrize("value", [1e39, -1e300, np.inf, np.nan])
def test_numbers_beyond_float32_are_refused_at_the_door(entry: str, value: float, tmp_path: Path) -> None:
    inputs = X.astype(np.float64)
    inputs[2, 1] = value
    with pytest.raises(InputError) as error:
        entered(entry, inputs, CLASSES, 3, tmp_path)
    one_line(error, "field 'inputs'", f"{value} at [2, 1] is not finite in float32")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array([0.0, -1e39]), "-1e+39 is beyond float32"),
        (np.array([0, 2**31]), "from 0 to 2147483648 exceed int32"),
        (np.array([0, 2**32], np.uint64), "exceed uint32"),
        (np.array([1j]), "complex128, "),
        (np.array(["2026-01-01"], "datetime64[D]"), "datetime64"),
        (np.array([object()]), "object, <object"),
    ],
)
def test_what_devices_cannot_hold_is_one_line(array: np.ndarray, words: str) -> None:
    for use in (
        lambda: narrowed("x", array),
        lambda: held_out_examples(FederatedData({}, np.array([0]), {"x": array})),
    ):
        with pytest.raises(InputError) as error:
            use()
        one_line(error, "field 'x'", words)


def test_whole_numbers_that_lose_digits_are_told() -> None:
    ids = np.array([[0.5, 123456789.0], [0.25, 123456790.0]])
    with pytest.warns(UserWarning, match="field 'x': 123456789 becomes 123456792 in float32"):
        narrowed("x", ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured = np.array([123456789.5, 2.0**30, 2.0])  # amounts are rounded to seven digits, as ever
        np.testing.assert_array_equal(narrowed("x", measured), measured.astype(np.float32))
        assert narrowed("x", np.array([2.0**24, 2.0**30])).dtype == np.float32
        assert narrowed("x", np.array([1, 2], np.longdouble)).dtype == np.float32


@pytest.mark.parametrize("dial", ["noise_levels", "affine", "scanner"])
def test_texts_are_not_shifted(dial: str) -> None:
    data = from_clients([{"inputs": IMAGES[:, :, 0, 0], "labels": CLASSES}], classes=3, vocabulary=256)
    with pytest.raises(InputError) as error:
        SHIFTS[dial](data, 0.5)
    one_line(error, "inputs are codes of a text")
