"""Feature shift: nothing at severity 0, more with severity, a scanner for each client, and a clean global test set."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from conftest import assert_equal, one_line
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from fedjax_sim import InputError, Population
from fedjax_sim.data import scanner
from fedjax_sim.data.deal import federate
from fedjax_sim.data.federated import FederatedData, from_clients
from fedjax_sim.data.heterogeneity import describe
from fedjax_sim.data.partition import iid
from fedjax_sim.data.shift import MISSING, SHIFTS
from fedjax_sim.data.sources import SOURCES

TABLES = ("affine", "missing")
IMAGES = tuple(name for name in SHIFTS if name not in TABLES)
DIGITS, TUMOURS = SOURCES["digits"](), SOURCES["breast_cancer"]()
GRID = (0.0, 0.25, 0.5, 0.75, 1.0)


def digits(clients: int = 20, seed: int = 0, **options: Any) -> FederatedData:
    return federate(DIGITS, iid(DIGITS.train["labels"], clients, seed=seed), **options)


def tumours(clients: int = 10, seed: int = 0, **options: Any) -> FederatedData:
    return federate(TUMOURS, iid(TUMOURS.train["labels"], clients, seed=seed), **options)


def suited(name: str, **options: Any) -> FederatedData:
    return tumours(**options) if name in TABLES else digits(**options)


def alike(shape: tuple[int, ...], clients: int = 3, rows: int = 4, value: float = 0.5) -> FederatedData:
    """Clients of constant float32 inputs."""
    part = {"inputs": np.full((rows, *shape), value, np.float32), "labels": np.zeros(rows, np.int32)}
    return from_clients([part] * clients)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("name", "make"), [(n, digits) for n in IMAGES] + [(n, tumours) for n in (*TABLES, "noise_levels")]
)
def test_the_index_grows_with_every_dial(name: str, make: Any, seed: int) -> None:
    data = make(seed=seed)
    index = [describe(SHIFTS[name](data, severity, seed=seed)).feature_shift for severity in GRID]
    assert index[0] is not None
    assert index[0] < 0.02
    assert (np.diff(np.array(index, float)) > 0).all(), index


@pytest.mark.parametrize("name", SHIFTS)
def test_what_a_dial_changes_and_what_not(name: str) -> None:
    data = suited(name, clients=6, local_test_fraction=0.2)
    before = {field: array.copy() for field, array in data.examples.items()}
    assert SHIFTS[name](data, 0) is data
    shifted, again, other = (SHIFTS[name](data, 0.6, seed=seed) for seed in (3, 3, 4))
    assert_equal(data.examples, before)
    assert_equal(shifted.examples, again.examples)
    assert not np.array_equal(shifted.examples["inputs"], other.examples["inputs"])
    assert shifted.examples["labels"] is data.examples["labels"]
    np.testing.assert_array_equal(shifted.offsets, data.offsets)
    assert shifted.local_test is not None
    assert data.local_test is not None
    assert not np.array_equal(shifted.local_test.examples["inputs"], data.local_test.examples["inputs"])
    for inputs, old in (
        (shifted.examples["inputs"], data.examples["inputs"]),
        (shifted.local_test.examples["inputs"], data.local_test.examples["inputs"]),
    ):
        assert inputs.shape == old.shape
        assert inputs.dtype == (np.float32 if name == "noise_levels" else old.dtype)
    assert shifted.test is not None
    assert data.test is not None
    if name == "noise_levels":
        np.testing.assert_allclose(shifted.test["inputs"], data.test["inputs"] / 255, rtol=1e-6)
    else:
        assert shifted.test is data.test


@pytest.mark.parametrize("name", SHIFTS)
def test_chunks_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = suited(name, clients=4)
    whole = SHIFTS[name](data, 0.7)
    monkeypatch.setattr(scanner, "CHUNK", 700)  # 10 digits, or 23 tumours
    assert_equal(SHIFTS[name](data, 0.7).examples, whole.examples)


@pytest.mark.parametrize("name", [name for name in IMAGES if name != "noise_levels"])  # whose levels depend on N
def test_clients_do_not_depend_on_those_after_them(name: str) -> None:
    data = digits()
    rows = int(data.offsets[5])
    few = data._replace(examples={f: a[:rows] for f, a in data.examples.items()}, offsets=data.offsets[:6])
    full = SHIFTS[name](data, 0.8)
    np.testing.assert_array_equal(SHIFTS[name](few, 0.8).examples["inputs"], full.examples["inputs"][:rows])
    assert len({full.client(i)["inputs"].tobytes() for i in range(20)}) == 20


@pytest.mark.parametrize("name", [name for name in SHIFTS if name not in ("noise", "noise_levels", "scanner")])
def test_a_client_tests_with_the_scanner_it_trains_with(name: str) -> None:
    data = suited(name, clients=5)
    shifted = SHIFTS[name](data._replace(local_test=Population(data.examples, data.offsets)), 1)
    assert shifted.local_test is not None
    np.testing.assert_array_equal(shifted.local_test.examples["inputs"], shifted.examples["inputs"])


def test_test_images_have_noise_of_their_own() -> None:
    data = alike((20, 20, 1), rows=30)
    shifted = scanner.noise(data._replace(local_test=Population(data.examples, data.offsets)), 1)
    assert shifted.local_test is not None
    for i in range(3):
        own, kept = shifted.client(i)["inputs"] - 0.5, shifted.client_test(i)["inputs"] - 0.5
        assert abs(np.corrcoef(own.ravel(), kept.ravel())[0, 1]) < 0.05
        assert kept.std() == pytest.approx(own.std(), rel=0.05)


# --- one dial at a time ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "most"), [("gain", scanner.GAIN), ("bias_field", scanner.BIAS)])
def test_factors_grow_from_one_in_one_direction(name: str, most: float) -> None:
    data = alike((7, 9, 2), clients=8)
    fields = [np.log(SHIFTS[name](data, s).examples["inputs"] / 0.5) for s in (0.25, 1.0)]
    np.testing.assert_allclose(fields[1], 4 * fields[0], atol=1e-5)
    assert np.abs(fields[1]).max() <= math.log(most) + 1e-6
    if name == "bias_field":  # it reaches its limit on both sides, whatever the client draws
        for i in range(8):
            client = fields[1][4 * i]
            assert client.max() == pytest.approx(math.log(most), rel=1e-4)
            assert client.min() == pytest.approx(-math.log(most), rel=1e-4)
            np.testing.assert_array_equal(client[..., 0], client[..., 1])


def test_gamma_is_a_power_and_keeps_signs() -> None:
    data = alike((3, 3, 1), clients=8, value=0.25)
    powers = np.log(scanner.gamma(data, 1).examples["inputs"]) / math.log(0.25)
    assert powers.min() >= 1 / scanner.GAMMA - 1e-5
    assert powers.max() <= scanner.GAMMA + 1e-5
    negative = data._replace(examples={**data.examples, "inputs": -data.examples["inputs"]})
    np.testing.assert_array_equal(
        scanner.gamma(negative, 1).examples["inputs"], -scanner.gamma(data, 1).examples["inputs"]
    )


def impulse(side: int) -> np.ndarray:
    image = np.zeros((1, side, side, 1), np.float32)
    image[0, side // 2, side // 2] = 1
    return image


def step(name: str, shape: tuple[int, ...], severity: float = 1.0, client: int = 0) -> scanner.Change:
    stream = scanner.draws(0, name, client, scanner.TRAINING)
    return scanner.STEPS[name](severity, scanner.draws(0, name, client), stream, shape)


@pytest.mark.parametrize("side", [29, 64])
@pytest.mark.parametrize("severity", [0.1, 0.5, 1.0])
def test_blur_has_the_variance_it_says(side: int, severity: float) -> None:
    blurred = step("blur", (side, side, 1), severity)(impulse(side))[0, ..., 0]
    place = np.arange(side) - side // 2
    asked = severity * scanner.draws(0, "blur", 0).uniform() * scanner.BLUR_PIXELS**2
    assert blurred.sum() == pytest.approx(1, abs=1e-5)
    for axis in (0, 1):
        assert (blurred.sum(axis) * place**2).sum() == pytest.approx(asked, rel=1e-3)


@pytest.mark.parametrize("name", ["blur", "resolution", "rotation"])
@pytest.mark.parametrize("shape", [(8, 8, 1), (7, 12, 3), (1, 5, 1), (1, 1, 2)])
def test_smoothing_keeps_constants_and_channels_apart(name: str, shape: tuple[int, ...]) -> None:
    images = np.broadcast_to(np.arange(1, shape[2] + 1, dtype=np.float32), (2, *shape))
    for client in range(5):
        np.testing.assert_allclose(step(name, shape, client=client)(images), images, rtol=1e-5)


@pytest.mark.parametrize("side", [28, 29])
def test_coarser_pixels_are_symmetric_and_lose_detail(side: int) -> None:
    images = np.random.default_rng(0).random((3, side, side, 1)).astype(np.float32)
    change = step("resolution", (side, side, 1))
    coarse = change(images)
    np.testing.assert_allclose(change(images[:, ::-1, ::-1]), coarse[:, ::-1, ::-1], atol=1e-5)
    assert coarse.mean() == pytest.approx(images.mean(), rel=0.01)
    assert coarse.var() < images.var() / 2
    np.testing.assert_allclose(step("resolution", (side, side, 1), 1e-6)(images), images, atol=1e-4)


def test_rotation_turns_about_the_centre() -> None:
    """Cubic convolution has quadratics exactly, away from the edge; SciPy's splines agree on what is smooth."""
    y, x = np.mgrid[-10:11, -14:15] / 10
    form = 1 + 0.5 * x - 0.3 * y + 0.4 * x * y + 0.2 * x**2
    for client in range(4):
        degrees = scanner.ROTATION_DEGREES * scanner.draws(0, "rotation", client).uniform(-1, 1)
        change = step("rotation", (21, 29, 1), client=client)
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        from_x, from_y = cos * x + sin * y, cos * y - sin * x
        expected = 1 + 0.5 * from_x - 0.3 * from_y + 0.4 * from_x * from_y + 0.2 * from_x**2
        turned = change(form[None, ..., None].astype(np.float32))[0, ..., 0]
        inside = (np.abs(from_x) < 1.2) & (np.abs(from_y) < 0.8)
        np.testing.assert_allclose(turned[inside], expected[inside], atol=1e-5)
        spot = np.exp(-((x - 0.4) ** 2 + (y + 0.1) ** 2) / 0.1).astype(np.float32)
        scipys = ndimage.rotate(spot, -degrees, reshape=False, order=3, mode="nearest")
        np.testing.assert_allclose(change(spot[None, ..., None])[0, ..., 0], scipys, atol=0.02)


def test_noise_belongs_to_a_row_of_a_client() -> None:
    few, many = (scanner.noise(alike((9, 9, 1), rows=rows), 1) for rows in (5, 800))
    for i in range(3):
        np.testing.assert_array_equal(few.client(i)["inputs"], many.client(i)["inputs"][:5])
        added = many.client(i)["inputs"] - 0.5
        asked = scanner.NOISE * scanner.draws(0, "noise", i).uniform()
        assert added.std() == pytest.approx(asked, rel=5 / math.sqrt(2 * added.size))


def test_the_scanner_is_its_dials_in_turn() -> None:
    data = alike((10, 10, 1), clients=4)
    chained = data
    for name in scanner.STEPS:
        chained = SHIFTS[name](chained, 0.5, seed=9)
    np.testing.assert_allclose(
        scanner.scanner(data, 0.5, seed=9).examples["inputs"], chained.examples["inputs"], atol=1e-6
    )


def test_affine_is_one_scale_and_offset_per_client_and_feature() -> None:
    data = tumours()
    half, full = (SHIFTS["affine"](data, s, seed=5).examples["inputs"] for s in (0.5, 1.0))
    np.testing.assert_allclose(full - data.examples["inputs"], 2 * (half - data.examples["inputs"]), atol=2e-5)
    for i in range(10):
        x, y = data.client(i)["inputs"], full[data.offsets[i] : data.offsets[i + 1]]
        scales = y.std(0) / x.std(0)
        assert 0.5 <= scales.min() < scales.max() <= 1.5
        offsets = (y.mean(0) - scales * x.mean(0)) / data.examples["inputs"].std(0)
        assert np.abs(offsets).max() <= 1 + 1e-4


def test_what_is_missing_is_the_mean_and_stays_missing() -> None:
    data = tumours(clients=40)
    inputs, mean = data.examples["inputs"], data.examples["inputs"].mean(0)
    lacking = []
    for severity in GRID[1:]:
        shifted = SHIFTS["missing"](data, severity).examples["inputs"]
        gone = shifted != inputs
        np.testing.assert_allclose(shifted[gone], np.broadcast_to(mean, inputs.shape)[gone], atol=1e-6)
        per_client = np.stack([gone[data.offsets[i] : data.offsets[i + 1]].all(0) for i in range(40)])
        np.testing.assert_array_equal(np.repeat(per_client, data.sizes, 0), gone)
        share, asked = per_client.mean(), severity * MISSING
        assert abs(share - asked) < 5 * math.sqrt(asked * (1 - asked) / per_client.size)
        lacking.append(per_client)
    assert all((low <= high).all() for low, high in pairwise(lacking))


def test_noise_levels_are_niid_benchs() -> None:
    data = digits(clients=5)
    shifted = SHIFTS["noise_levels"](data, 0.4)
    for i in range(5):
        added = shifted.client(i)["inputs"] - data.client(i)["inputs"] / np.float32(255)
        assert added.std() == pytest.approx(0.4 * i / 4, rel=5 / math.sqrt(2 * added.size), abs=1e-6)
    assert shifted.examples["inputs"].min() < -0.5  # not clipped
    alone = SHIFTS["noise_levels"](digits(clients=1), 1)
    np.testing.assert_allclose(alone.examples["inputs"], digits(clients=1).examples["inputs"] / 255, rtol=1e-6)


# --- any federation, and what is refused -----------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(sum),
    side=st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3)),
    dtype=st.sampled_from([np.uint8, np.float32, np.float64]),
    severity=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=25, deadline=None)
def test_every_dial_on_any_federation(
    sizes: list[int], side: tuple[int, ...], dtype: Any, severity: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    for name, dial in SHIFTS.items():
        table = name in TABLES
        clients = [
            {
                "inputs": rng.standard_normal((n, side[0])).astype(np.float64 if dtype == np.float64 else np.float32)
                if table
                else (rng.random((n, *side)) * (255 if dtype == np.uint8 else 1)).astype(dtype),
                "labels": np.zeros(n, np.int32),
            }
            for n in sizes
        ]
        data = from_clients(clients)._replace(classes=1)
        shifted = dial(data, severity, seed=seed)
        inputs, old = shifted.examples["inputs"], data.examples["inputs"]
        assert inputs.shape == old.shape
        assert inputs.dtype == old.dtype or (name == "noise_levels" and inputs.dtype == np.float32)
        assert np.isfinite(inputs).all()
        index = describe(shifted).feature_shift
        assert index is None or 0 <= index <= 1


def test_inputs_that_do_not_suit_a_dial() -> None:
    for name in IMAGES:
        if name != "noise_levels":
            with pytest.raises(InputError) as error:
                SHIFTS[name](tumours(), 0.5)
            one_line(error, name, "float32[30] are no images", "affine")
    for name in TABLES:
        with pytest.raises(InputError) as error:
            SHIFTS[name](digits(), 0.5)
        one_line(error, name, "uint8[8, 8, 1] are no table", "scanner")
    tokens = from_clients([{"inputs": np.zeros((2, 3), np.int32)}])
    with pytest.raises(InputError) as error:
        SHIFTS["noise_levels"](tokens, 0.5)
    one_line(error, "noise_levels", "int32 take no noise")
    nameless = from_clients([{"x": np.zeros((2, 3), np.float32)}])
    for name, dial in SHIFTS.items():
        with pytest.raises(InputError) as error:
            dial(nameless, 0.5)
        one_line(error, name, "no field 'inputs' among ['x']")


@pytest.mark.parametrize("name", SHIFTS)
@pytest.mark.parametrize("severity", [-0.1, 1.01, float("nan"), "much", True, None])
def test_severities_out_of_range(name: str, severity: Any) -> None:
    with pytest.raises(InputError) as error:
        SHIFTS[name](suited(name, clients=2), severity)
    one_line(error, "severity", str(severity))
    with pytest.raises(InputError) as error:
        SHIFTS[name](suited(name, clients=2), 0.5, seed=-1)
    one_line(error, "seed: -1")
