"""What tells data apart: a checksum of every part of a federation, and of files.

Arrays and files are read whole up to `WHOLE_BYTES`. Of larger ones, their size and blocks that are spread evenly over
them are read, and of an array in a federation on disk the checksums that its index records.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.store import INDEX

WHOLE_BYTES = 2e9  # about a second's work
BLOCKS, BLOCK_BYTES = 1024, 1 << 16  # of what is larger
CHUNK_BYTES = 1 << 24
LENGTH = 32  # hexadecimal digits of a checksum


def fingerprint(data: FederatedData) -> dict[str, str]:
    """A checksum of each part of a federation, by name: "train inputs", "test labels", "clients" (where each one's
    rows lie), "classes" and so on; equal for equal data in the same order, wherever and however they are kept."""
    parts: dict[str, Any] = {f"train {field}": array for field, array in data.examples.items()}
    parts |= {"clients": data.offsets, "classes": np.asarray(data.classes or 0)}
    parts |= {f"test {field}": array for field, array in (data.test or {}).items()}
    if data.local_test is not None:
        parts |= {f"local test {field}": array for field, array in data.local_test.examples.items()}
        parts["local test clients"] = data.local_test.offsets
    parts |= {} if data.names is None else {"names": data.names}
    parts |= {f"attribute {name}": values for name, values in data.attributes.items()}
    return {name: _of_array(np.asanyarray(part)) for name, part in parts.items()}


def _of_array(array: np.ndarray) -> str:
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape} ".encode())
    if array.nbytes > WHOLE_BYTES:
        rows = max(1, BLOCK_BYTES * len(array) // array.nbytes)
        for start in _spread(len(array), rows):
            digest.update(np.ascontiguousarray(array[start : start + rows]).tobytes())
        if isinstance(array, np.memmap) and (index := Path(str(array.filename)).with_name(INDEX)).is_file():
            digest.update(index.read_bytes())
    elif array.size:
        flat = array.reshape(1) if array.ndim == 0 else array
        rows = max(1, CHUNK_BYTES * len(flat) // max(flat.nbytes, 1))
        for start in range(0, len(flat), rows):
            digest.update(np.ascontiguousarray(flat[start : start + rows]).tobytes())
    return digest.hexdigest()[:LENGTH]


def of_path(path: str | os.PathLike[str]) -> str:
    """A checksum of a file, or of all files in a folder and their names; empty where there is nothing to read."""
    place = Path(path)
    try:
        if place.is_dir():
            files = sorted(file for file in place.rglob("*") if file.is_file())
            digest = hashlib.sha256()
            for file in files:
                digest.update(f"{file.relative_to(place).as_posix()} {_of_file(file)}\n".encode())
            return digest.hexdigest()[:LENGTH]
        return _of_file(place)
    except (OSError, ValueError):  # no such file, or a name that no file has: whoever opens it says so
        return ""


def _of_file(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(f"{size} ".encode())
    with open(path, "rb") as file:
        if size <= WHOLE_BYTES:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
        else:
            for start in _spread(size, BLOCK_BYTES):
                file.seek(start)
                digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()[:LENGTH]


def _spread(total: int, length: int) -> list[int]:
    """Where `BLOCKS` pieces of this length begin, spread evenly from the first to the last."""
    return np.linspace(0, max(0, total - length), BLOCKS).astype(np.int64).tolist()
