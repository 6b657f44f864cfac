"""Inputs made alike across clients, where nothing is known of how they came to differ.

What a client's inputs have in common is taken for its scanner's: in tables an offset and a scale for each feature, in
images for each channel. Both are measured at equal label, so that label skew is not taken for a shift, and shrunk as
far as a client's few examples would show such differences by chance (empirical Bayes; Morris 1983).
"""

import numpy as np

from fedjax_sim.data import FederatedData
from fedjax_sim.diagnose.exchange import with_inputs


def aligned(data: FederatedData) -> FederatedData:
    """Every client's inputs, for training and for testing, with its offset and scale taken out."""
    offsets, scales, center, width = client_effects(data)

    def prepare(client: int, inputs: np.ndarray) -> np.ndarray:
        values = inputs.astype(np.float32) / width
        return ((values - offsets[client] - center) / scales[client] + center).astype(np.float32)

    return with_inputs(data, prepare)


def client_effects(data: FederatedData) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Offset and scale of each client, f32[N, features] or [N, 1, 1, channels], the overall mean, and what values of an
    integer dtype are divided by."""
    inputs = np.asarray(data.examples["inputs"])
    width = 255.0 if inputs.dtype == np.uint8 else 1.0
    labels = np.asarray(data.examples["labels"]).astype(np.int64)
    images = inputs.ndim == 4
    axes = (1, 2) if images else ()
    values = inputs.astype(np.float32) / width
    first = values.mean(axes) if axes else values  # [n, channels] or [n, features]
    spread = values.std(axes) if axes else None
    owner = np.repeat(np.arange(data.num_clients), data.sizes)
    offsets = _effects(first.reshape(len(first), -1), labels, owner, data)
    if spread is not None:  # contrast within images
        scales = np.exp(_effects(np.log(np.maximum(spread, 1e-3)), labels, owner, data))
    else:
        rest = first.reshape(len(first), -1) - _class_means(first.reshape(len(first), -1), labels) - offsets[owner]
        scales = np.exp(_effects(np.log(np.abs(rest) + 1e-3), labels * 0, owner, data))
    shape = (data.num_clients, 1, 1, -1) if images else (data.num_clients, *inputs.shape[1:])
    center = first.reshape(len(first), -1).mean(0).reshape(shape[1:])
    scales = np.clip(scales, 0.2, 5.0)
    return offsets.reshape(shape), scales.reshape(shape), center, width


def _class_means(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    counts = np.maximum(np.bincount(labels), 1)
    sums = np.stack([np.bincount(labels, column) for column in values.T], 1)
    return (sums / counts[:, None])[labels]


def _effects(values: np.ndarray, labels: np.ndarray, owner: np.ndarray, data: FederatedData) -> np.ndarray:
    """The clients' means at equal label, [N, columns], shrunk towards 0. Fitted label by label and client by client in
    turn, as both are unbalanced."""
    effects, sizes = np.zeros((data.num_clients, values.shape[1])), np.maximum(data.sizes, 1)[:, None]
    for _ in range(5):
        rest = values - effects[owner]
        rest = values - _class_means(rest, labels)
        effects = np.stack([np.bincount(owner, column, data.num_clients) for column in rest.T], 1) / sizes
    within = np.maximum((rest - effects[owner]).var(0), 1e-12)
    between = np.maximum(
        np.average(effects**2, axis=0, weights=np.minimum(sizes[:, 0], 100)) - within / sizes.mean(), 0
    )
    return effects * between / (between + within / sizes)
