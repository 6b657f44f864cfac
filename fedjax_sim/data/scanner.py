"""Feature shift of images: every client photographs the same world with a scanner of its own.

A dial is `dial(data, severity, *, seed=0) -> FederatedData`, from severity 0 (the same arrays come back) to 1 (scanners
as different as those of different hospitals). A client's training examples and those it keeps for testing pass through
the same scanner; the global test set is the reference and stays as it is. What a client gets is drawn from (seed, dial,
client) alone, so a larger severity pushes each client further in its own direction, and dials may be combined.

Images are [n, height, width, channels]. Those of uint8 are computed in float32 from 0 to 1, clipped, and rounded back;
those of floats are not clipped. Results lie in memory, and clients are read in chunks.
"""

import math
import zlib
from collections.abc import Callable

import numpy as np

from fedjax_sim import _validate
from fedjax_sim._validate import InputError
from fedjax_sim.core.types import Population
from fedjax_sim.data.federated import FederatedData

Change = Callable[[np.ndarray], np.ndarray]  # rows [n, ...] of one client, in their order -> as many rows
Prepare = Callable[[int, int], Change]  # (client, part) -> what happens to its rows
Step = Callable[[float, np.random.Generator, np.random.Generator, tuple[int, ...]], Change]

TRAINING, LOCAL_TEST = 1, 2  # the parts of a client's examples, which have noise of their own
CHUNK = 2**22  # numbers computed at a time: 5,350 images of 28x28 pixels, 16 MB as float32

# What a client can get at severity 1; draws are uniform.
GAIN = 2.0  # brightness times 1/2 to 2, uniform in the logarithm: exposure and coil sensitivity
BIAS = 1.6  # field of 1/1.6 to 1.6 across one image, a strong one: Sled et al. 1998 report 10 to 40 %
GAMMA = 2.0  # exponents 1/2 to 2, within BigAug's 0.5 to 4.5
BLUR_PIXELS, BLUR_SIDE = 1.5, 1 / 16  # standard deviation: BigAug's largest, or in small images this share of the side
RESOLUTION = 2.5  # pixels up to 2.5 times as wide, as between slices of 1 and 2.5 mm
NOISE = 0.2  # standard deviation of pixels in [0, 1]: between the third and fourth of Hendrycks and Dietterich's five
ROTATION_DEGREES = 30.0  # how differently patients are laid


def gain(data: FederatedData, severity: float, *, seed: int = 0) -> FederatedData:
    """Brightness: each client's pixels times `GAIN ** (severity * u)`, u uniform in [-1, 1].

    Args:
      data: images.
      severity: from 0 to 1.
      seed: what every client's scanner is drawn from.

    Raises:
      InputError: the inputs are no images, or a setting is out of range. So do the other dials.
    """
    return _images(data, ("gain",), severity, seed)


def bias_field(data: FederatedData, severity: float, *, seed: int = 0) -> FederatedData:
    """A smooth multiplicative field over the image, `BIAS ** (severity * p)` with p a polynomial of order two, from -1
    to 1: the intensity non-uniformity of MRI (Sled, Zijdenbos and Evans 1998, N3).
    """
    return _images(data, ("bias_field",), severity, seed)


def gamma(data: FederatedData, severity: float, *, seed: int = 0) -> FederatedData:
    """Contrast: pixels to the power `GAMMA ** (severity * u)`, u uniform in [-1, 1] (Zhang et al. 2020, BigAug).

    Negative numbers keep their sign.
    """
    return _images(data, ("gamma",), severity, seed)


def blur(data: FederatedData, severity: float, *, seed: int = 0) -> FederatedData:
    """Gaussian blur, of a variance uniform from 0 to `severity` times the square of the smaller of `BLUR_PIXELS` and
    `BLUR_SIDE` of the shorter side (Zhang et al. 2020, BigAug).

    The kernel is the discrete Gaussian, the solution of the heat equation between pixels with insulated edges
    (Lindeberg 1990), whose variance is exact even where it is well below one pixel.
    """
    return _images(data, ("blur",), severity, seed)


def resolution(data: FederatedData, severity: float, *, seed: int = 0) -> FederatedData:
    """Coarser pixels, wider by a factor uniform from 1 to `1 + severity * (RESOLUTION - 1)`: averages over their areas,
    interpolated linearly back to the size it had.
    """
    return _images(data, ("resolution",), severity, seed)


def noise(data: FederatedData, severity: float, *, seed: int = 0) -> FederatedData:
    """Gaussian noise per pixel, of a standard deviation per client uniform from 0 to `severity * NOISE` (Hendrycks and
    Dietterich 2019). An example's noise is drawn from (seed, client, its row within the client).
    """
    return _images(data, ("noise",), severity, seed)


def rotation(data: FederatedData, severity: float, *, seed: int = 0) -> FederatedData:
    """One angle per client, uniform within `severity * ROTATION_DEGREES` to either side, about the centre.

    Interpolated by cubic convolution (Keys 1981): linear interpolation would blur small angles as much as large ones.
    What turns into view from outside repeats the pixel at the edge.
    """
    return _images(data, ("rotation",), severity, seed)


def scanner(data: FederatedData, severity: float, *, seed: int = 0) -> FederatedData:
    """All seven dials at one severity, with the draws each makes alone, in the order in which an image arises:
    rotation, blur, resolution, bias field, gain, gamma, noise. Rounded once, at the end.

    Zhang et al. 2020 ("Generalizing deep learning for medical image segmentation to unseen domains via deep stacked
    transformation") simulate the difference between hospitals' scanners by such a stack.
    """
    return _images(data, tuple(STEPS), severity, seed)


def _images(data: FederatedData, dials: tuple[str, ...], severity: float, seed: int) -> FederatedData:
    dial = dials[0] if len(dials) == 1 else "scanner"
    inputs = checked_inputs(data, dial)
    if inputs.ndim != 4 or not (inputs.dtype == np.uint8 or inputs.dtype.kind == "f"):
        raise InputError(
            f"{dial}: inputs of {inputs.dtype}{list(inputs.shape[1:])} are no images; give uint8 or floats [height, "
            "width, channels], or use affine, missing or noise_levels"
        )
    severity = checked_settings(severity, seed)
    if severity == 0:
        return data
    shape = inputs.shape[1:]

    def prepare(client: int, part: int) -> Change:
        steps = [
            STEPS[name](severity, draws(seed, name, client), draws(seed, name, client, part), shape) for name in dials
        ]

        def change(rows: np.ndarray) -> np.ndarray:
            images = unit(rows)
            for step in steps:
                images = step(images)
            return np.rint(images.clip(0, 1) * 255).astype(np.uint8) if rows.dtype == np.uint8 else images

        return change

    return per_client(data, prepare)


def _gain(severity: float, rng: np.random.Generator, _: np.random.Generator, shape: tuple[int, ...]) -> Change:
    factor = np.float32(GAIN ** (severity * rng.uniform(-1, 1)))
    return lambda images: images * factor


def _bias_field(severity: float, rng: np.random.Generator, _: np.random.Generator, shape: tuple[int, ...]) -> Change:
    y, x = (np.linspace(-1, 1, side) if side > 1 else np.zeros(1) for side in shape[:2])
    terms = np.broadcast_arrays(x, y[:, None], x * y[:, None], x**2, y[:, None] ** 2)
    surface = np.tensordot(rng.uniform(-1, 1, 5), np.stack(terms), 1)
    surface -= (surface.max() + surface.min()) / 2
    surface /= max(float(np.abs(surface).max()), 1e-12)
    field = (BIAS ** (severity * surface)).astype(np.float32)[..., None]
    return lambda images: images * field


def _gamma(severity: float, rng: np.random.Generator, _: np.random.Generator, shape: tuple[int, ...]) -> Change:
    power = np.float32(GAMMA ** (severity * rng.uniform(-1, 1)))
    return lambda images: np.copysign(np.abs(images) ** power, images)


def _blur(severity: float, rng: np.random.Generator, _: np.random.Generator, shape: tuple[int, ...]) -> Change:
    variance = severity * rng.uniform() * min(BLUR_PIXELS, BLUR_SIDE * min(shape[:2])) ** 2

    def matrix(side: int) -> np.ndarray:
        waves = np.arange(side)  # the cosines that neighbours' differences leave as they are, up to a factor
        basis = np.cos(np.pi / side * waves[:, None] * (np.arange(side) + 0.5))
        basis /= np.linalg.norm(basis, axis=1, keepdims=True)
        return basis.T * np.exp(variance * (np.cos(np.pi / side * waves) - 1)) @ basis

    return _along_both(matrix(shape[0]), matrix(shape[1]))


def _resolution(severity: float, rng: np.random.Generator, _: np.random.Generator, shape: tuple[int, ...]) -> Change:
    factor = 1 + severity * rng.uniform() * (RESOLUTION - 1)

    def matrix(side: int) -> np.ndarray:
        pixels = np.arange(side) - side / 2  # left edges, from the centre
        reach = math.ceil(side / 2 / factor) + 1
        edges = (np.arange(-reach, reach + 1) + side % 2 / 2) * factor  # at factor 1, those of the pixels
        centres = (edges[1:] + edges[:-1]) / 2
        overlap = (np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)).clip(0)
        inside = overlap.sum(1) > 1e-9
        overlap, centres = overlap[inside], centres[inside]
        down = overlap / overlap.sum(1, keepdims=True)
        place = (pixels + 0.5).clip(centres[0], centres[-1])
        up = (1 - np.abs(place[:, None] - centres) / factor).clip(0)
        return up @ down

    return _along_both(matrix(shape[0]), matrix(shape[1]))


def _along_both(rows: np.ndarray, columns: np.ndarray) -> Change:
    """Images [n, h, w, c] times a matrix [h, h] along their height and one [w, w] along their width."""
    left, right = rows.astype(np.float32), columns.T.astype(np.float32)

    def change(images: np.ndarray) -> np.ndarray:
        planes = np.ascontiguousarray(np.moveaxis(images, 3, 1))
        return np.moveaxis(left @ planes @ right, 1, 3)

    return change


def _noise(severity: float, rng: np.random.Generator, stream: np.random.Generator, shape: tuple[int, ...]) -> Change:
    deviation = np.float32(severity * rng.uniform() * NOISE)
    return lambda images: images + deviation * stream.standard_normal(images.shape, np.float32)


def _rotation(severity: float, rng: np.random.Generator, _: np.random.Generator, shape: tuple[int, ...]) -> Change:
    angle = math.radians(severity * rng.uniform(-1, 1) * ROTATION_DEGREES)
    height, width, channels = shape
    y, x = np.meshgrid(np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij")
    from_y = (math.cos(angle) * y - math.sin(angle) * x + (height - 1) / 2).clip(0, height - 1)
    from_x = (math.sin(angle) * y + math.cos(angle) * x + (width - 1) / 2).clip(0, width - 1)
    top, left = np.floor(from_y).astype(np.int64), np.floor(from_x).astype(np.int64)
    taps = []  # (pixel in the flat image, its weight) for the sixteen around each place
    for row in (top - 1, top, top + 1, top + 2):
        for column in (left - 1, left, left + 1, left + 2):
            weight = _cubic(from_y - row) * _cubic(from_x - column)
            pixel = row.clip(0, height - 1) * width + column.clip(0, width - 1)
            taps.append((pixel.ravel(), weight.astype(np.float32).reshape(-1, 1)))

    def change(images: np.ndarray) -> np.ndarray:
        flat = images.reshape(len(images), height * width, channels)
        turned = np.zeros_like(flat)
        for pixel, weight in taps:
            turned += flat[:, pixel] * weight
        return turned.reshape(images.shape)

    return change


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Weight of a pixel at this distance in cubic convolution (Keys 1981)."""
    d = np.abs(distance)
    return np.where(d <= 1, (1.5 * d - 2.5) * d**2 + 1, np.where(d < 2, ((-0.5 * d + 2.5) * d - 4) * d + 2, 0))


STEPS: dict[str, Step] = {
    "rotation": _rotation,
    "blur": _blur,
    "resolution": _resolution,
    "bias_field": _bias_field,
    "gain": _gain,
    "gamma": _gamma,
    "noise": _noise,
}


# --- what all feature shifts share -----------------------------------------------------------------------------------


def checked_inputs(data: FederatedData, dial: str) -> np.ndarray:
    """The field "inputs"; without one, an InputError that names the dial."""
    if "inputs" not in data.examples:
        raise InputError(f"{dial}: there is no field 'inputs' among {sorted(data.examples)}; give the field this name")
    if data.vocabulary is not None:
        raise InputError(f"{dial}: inputs are codes of a text, which are no amounts; leave it at 0")
    return data.examples["inputs"]


def checked_settings(severity: float, seed: int) -> float:
    """`severity` as a float from 0 to 1, when `seed` is a whole number from 0 too."""
    _validate.whole("seed", seed, least=0)
    return _validate.severity(severity)


def draws(seed: int, dial: str, client: int, part: int = 0) -> np.random.Generator:
    """What one client draws for one dial: from no other dial, client or severity."""
    return np.random.default_rng([seed, zlib.crc32(dial.encode()), client, part])


def unit(rows: np.ndarray) -> np.ndarray:
    """`rows` as float32; uint8 from 0 to 255 as 0 to 1."""
    return rows.astype(np.float32) / np.float32(255) if rows.dtype == np.uint8 else rows.astype(np.float32)


def per_client(data: FederatedData, prepare: Prepare, dtype: np.dtype | None = None) -> FederatedData:
    """`data` with the inputs of every client, training and its own test examples, changed by what `prepare` returns.

    Args:
      data: the federation, of which nothing is written to.
      prepare: called once for each client and part that has examples; its result is called for consecutive chunks.
      dtype: of the result, by default that of the inputs.
    """
    examples = {**data.examples, "inputs": _changed(data.examples["inputs"], data.offsets, prepare, TRAINING, dtype)}
    local = data.local_test
    if local is not None:
        inputs = _changed(local.examples["inputs"], local.offsets, prepare, LOCAL_TEST, dtype)
        local = Population({**local.examples, "inputs": inputs}, local.offsets)
    return data._replace(examples=examples, local_test=local)


def _changed(
    inputs: np.ndarray, offsets: np.ndarray, prepare: Prepare, part: int, dtype: np.dtype | None
) -> np.ndarray:
    result = np.empty(inputs.shape, dtype or inputs.dtype)
    at_once = max(1, CHUNK // max(1, math.prod(inputs.shape[1:])))
    for client in np.flatnonzero(np.diff(offsets)):
        change, stop = prepare(int(client), part), int(offsets[client + 1])
        for first in range(int(offsets[client]), stop, at_once):
            last = min(first + at_once, stop)
            result[first:last] = change(np.asarray(inputs[first:last]))
    return result
