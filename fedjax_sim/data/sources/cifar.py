"""CIFAR-10 (Krizhevsky 2009) in its binary form."""

from pathlib import Path

import numpy as np

from fedjax_sim._validate import InputError
from fedjax_sim.data.federated import Dataset, Examples
from fedjax_sim.data.sources.places import existing, find

SIDE, CHANNELS, CLASSES = 32, 3, 10
RECORD = 1 + CHANNELS * SIDE * SIDE  # bytes: a label, then the planes red, green and blue


def cifar10(*, path: str = "") -> Dataset:
    """CIFAR-10: colour images of 32x32 pixels in 10 classes, 50,000 for training and 10,000 for testing.

    Args:
      path: the folder with data_batch_1.bin to data_batch_5.bin and test_batch.bin, or the one that holds it as
        cifar-10-batches-bin; by default $FEDJAX_SIM_DATA/cifar10, or the cache. One training batch is enough.

    Returns:
      Inputs uint8 [n, 32, 32, 3]; the column "batch" says which file a training row is from, 1 to 5.

    Raises:
      InputError: a file is missing, empty or truncated, or a label is over 9.
    """
    folder = existing(path or str(find("cifar10")), "the folder with data_batch_1.bin and test_batch.bin")
    if (folder / "cifar-10-batches-bin").is_dir():
        folder = folder / "cifar-10-batches-bin"
    numbers = [i for i in range(1, 6) if (folder / f"data_batch_{i}.bin").is_file()]
    if not numbers:
        raise InputError(f"{folder}: it has none of data_batch_1.bin to data_batch_5.bin; give another data.path")
    batches = [_batch(folder / f"data_batch_{i}.bin") for i in numbers]
    train = {field: np.concatenate([batch[field] for batch in batches]) for field in batches[0]}
    test = _batch(folder / "test_batch.bin")
    column = np.repeat(numbers, [len(batch["labels"]) for batch in batches])
    return Dataset(train, test, CLASSES, (SIDE, SIDE, CHANNELS), f"CIFAR-10 in {folder}", {"batch": column})


def _batch(file: Path) -> Examples:
    try:
        data = np.fromfile(file, np.uint8)
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; put it there or give another data.path") from None
    except OSError as error:
        raise InputError(f"{file}: it cannot be read ({error.strerror}); fetch the file again") from None
    if len(data) == 0 or len(data) % RECORD:
        raise InputError(f"{file}: {len(data)} bytes are not a number of records of {RECORD}; fetch the file again")
    records = data.reshape(-1, RECORD)
    labels = records[:, 0].astype(np.int32)
    if labels.max() >= CLASSES:
        at = int(np.argmax(labels >= CLASSES))
        raise InputError(f"{file}: record {at} has label {labels[at]}, over {CLASSES - 1}; fetch the file again")
    planes = records[:, 1:].reshape(-1, CHANNELS, SIDE, SIDE)
    return {"inputs": np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), "labels": labels}
