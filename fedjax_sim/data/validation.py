"""Training examples that are held out to choose by, so that the test set is left to report from."""

import numpy as np

from fedjax_sim._validate import InputError
from fedjax_sim.data.federated import FederatedData


def hold_out(data: FederatedData, share: float, seed: int) -> FederatedData:
    """The federation without a share of each client's training examples, which become its `validation`.

    Each client gives up its share of examples drawn at random, rounded up or down at random so that small clients give
    up as much on average, and keeps one at least.

    Args:
      data: which has no validation examples yet.
      share: over 0 and under 1.
      seed: what the examples are drawn from.

    Raises:
      InputError: so small a share of so few examples that none is held out.
    """
    rng, sizes = np.random.default_rng([seed, 3]), np.asarray(data.sizes)
    counts = np.minimum(np.floor(share * sizes + rng.random(len(sizes))).astype(np.int64), np.maximum(sizes - 1, 0))
    total = int(data.offsets[-1])
    owner = np.repeat(np.arange(len(sizes)), sizes)
    order = np.lexsort((rng.random(total), owner))  # each client's rows in random order
    held = np.zeros(total, bool)
    held[order] = np.arange(total) - np.asarray(data.offsets)[owner] < counts[owner]
    if not held.any():
        raise InputError(f"validation_fraction: {share} of {total} examples on {len(sizes)} clients is none; raise it")
    examples = {field: array[~held] for field, array in data.examples.items()}
    validation = {field: np.asarray(array[held]) for field, array in data.examples.items()}
    offsets = np.concatenate([[0], np.cumsum(sizes - counts)]).astype(np.int64)
    return data._replace(examples=examples, offsets=offsets, validation=validation)
