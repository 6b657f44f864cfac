"""Feature shift: clients whose inputs differ at equal labels. Tables here, images in `scanner`, and all by name.

Every dial is `dial(data, severity, *, seed=0) -> FederatedData`; see `scanner` for what they have in common.
"""

from collections.abc import Callable

import numpy as np

import fedjax_sim.data.scanner as images
from fedjax_sim._validate import InputError
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.scanner import Change, checked_inputs, checked_settings, draws, per_client, unit

AFFINE_SCALE = 0.5  # at severity 1 a client measures a feature in units 0.5 to 1.5 times the others' ...
AFFINE_OFFSET = 1.0  # ... and up to one pooled standard deviation too high or too low: devices that are not calibrated
MISSING = 0.5  # share of the features that a client lacks at severity 1


def affine(data: FederatedData, severity: float, *, seed: int = 0) -> FederatedData:
    """Calibration: feature f of client i becomes `x * (1 + s * a_if) + s * b_if * d_f`.

    a is uniform within `AFFINE_SCALE` of 0 and b within `AFFINE_OFFSET`; d_f is the feature's standard deviation over
    all training examples.

    Args:
      data: floating-point tables [n, features].
      severity: s, from 0 to 1.
      seed: what every client's calibration is drawn from.

    Raises:
      InputError: the inputs are no tables, or a setting is out of range.
    """
    inputs = _table(data, "affine")
    severity = checked_settings(severity, seed)
    if severity == 0:
        return data
    deviation = inputs.std(0, dtype=np.float64)

    def prepare(client: int, _: int) -> Change:
        scale, offset = draws(seed, "affine", client).uniform(-1, 1, (2, len(deviation)))
        factor, added = 1 + severity * AFFINE_SCALE * scale, severity * AFFINE_OFFSET * offset * deviation
        return lambda rows: rows * factor + added

    return per_client(data, prepare)._replace(pooled=(*data.pooled, "the deviation of each column"))


def missing(data: FederatedData, severity: float, *, seed: int = 0) -> FederatedData:
    """Tests a hospital does not do: client i lacks feature f when `u_if < severity * MISSING`, u uniform in [0, 1).

    A lacking feature is the feature's mean over all training examples, which is what imputing by the mean would give.
    What a client lacks at a lower severity it lacks at a higher one.

    Args:
      data: floating-point tables [n, features].
      severity: from 0 to 1.
      seed: what u is drawn from.

    Raises:
      InputError: the inputs are no tables, or a setting is out of range.
    """
    inputs = _table(data, "missing")
    severity = checked_settings(severity, seed)
    if severity == 0:
        return data
    mean = inputs.mean(0, dtype=np.float64)

    def prepare(client: int, _: int) -> Change:
        lacking = draws(seed, "missing", client).random(len(mean)) < severity * MISSING
        return lambda rows: np.where(lacking, mean, rows)

    return per_client(data, prepare)._replace(pooled=(*data.pooled, "the mean of each column"))


def noise_levels(data: FederatedData, severity: float, *, seed: int = 0) -> FederatedData:
    """NIID-Bench's feature noise (Li et al. 2022): client i of N adds Gaussian noise of standard deviation
    `severity * i / (N - 1)`; not clipped.

    The unit is that in which pixels are from 0 to 1: uint8 inputs become float32 divided by 255 everywhere, test sets
    included, unless severity is 0. Floating-point inputs are taken as they are and keep their dtype. The global test
    set gets no noise. What clients keep for testing, which NIID-Bench does not have, is as noisy as what they train on.
    A single client gets none.

    Args:
      data: images, tables or any other floating-point or uint8 inputs.
      severity: from 0 to 1; NIID-Bench takes 0.1.
      seed: what the noise is drawn from, example by example as in `scanner.noise`.

    Raises:
      InputError: inputs of another dtype, or a setting out of range.
    """
    inputs = checked_inputs(data, "noise_levels")
    if inputs.dtype != np.uint8 and inputs.dtype.kind != "f":
        raise InputError(f"noise_levels: inputs of {inputs.dtype} take no noise; give uint8 pixels or floats")
    severity = checked_settings(severity, seed)
    if severity == 0:
        return data

    def prepare(client: int, part: int) -> Change:
        deviation = np.float32(severity * client / max(data.num_clients - 1, 1))
        stream = draws(seed, "noise_levels", client, part)
        return lambda rows: unit(rows) + deviation * stream.standard_normal(rows.shape, np.float32)

    if inputs.dtype != np.uint8:
        return per_client(data, prepare)
    test = None if data.test is None else {**data.test, "inputs": unit(data.test["inputs"])}
    return per_client(data, prepare, np.dtype(np.float32))._replace(test=test)


def _table(data: FederatedData, dial: str) -> np.ndarray:
    inputs = checked_inputs(data, dial)
    if inputs.ndim != 2 or inputs.dtype.kind != "f":
        raise InputError(
            f"{dial}: inputs of {inputs.dtype}{list(inputs.shape[1:])} are no table; give floats [features], or use "
            "scanner, one of its dials, or noise_levels"
        )
    return inputs


# name -> dial(data, severity, *, seed)
SHIFTS: dict[str, Callable[..., FederatedData]] = {
    "scanner": images.scanner,
    "rotation": images.rotation,
    "blur": images.blur,
    "resolution": images.resolution,
    "bias_field": images.bias_field,
    "gain": images.gain,
    "gamma": images.gamma,
    "noise": images.noise,
    "affine": affine,
    "missing": missing,
    "noise_levels": noise_levels,
}
