"""A federation on disk: a folder of .npy files and one JSON, written client by client, opened without being read.

    federation.json                     what there is: fields, dtypes, shapes, checksums; written last
    train.offsets.npy                   int64[N + 1]
    train.FIELD.npy                     [total, ...], one file per field
    local_test.*.npy, test.FIELD.npy    likewise, where there are such examples
    names.npy, attributes.NAME.npy      [N], strings of fixed width or numbers

Nothing in it is ever unpickled.
"""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim import _validate
from fedjax_sim._arrays import open_npy
from fedjax_sim._text import parse_json
from fedjax_sim._validate import InputError
from fedjax_sim.core.types import Population
from fedjax_sim.data.convert import as_bytes, pixels, tell_of_pixels
from fedjax_sim.data.federated import (
    NOTHING,
    Examples,
    FederatedData,
    check_values,
    checked,
    same_fields,
    with_classes,
)
from fedjax_sim.data.sound import check_around, check_clients

INDEX, FORMAT, VERSION = "federation.json", "fedjax_sim federation", 1


class ClientRecord(NamedTuple):
    """One client as it is written. Names and attributes stay in memory until the end; examples do not."""

    examples: Mapping[str, Any]  # field -> array [examples, ...]
    name: str | None = None  # of all clients or of none
    test: Mapping[str, Any] | None = None  # what the client keeps for testing; of all clients or of none
    attributes: Mapping[str, Any] = NOTHING  # strings and numbers, the same keys for all clients


class _Growing:
    """A .npy file that rows are appended to; its header is written again at the end, when the length is known."""

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]):
        self.path, self.dtype, self.shape, self.rows = path, dtype, shape, 0
        self.digest = hashlib.sha256()
        self.file = open(path, "xb", buffering=1 << 20)  # noqa: SIM115, closed by `close`
        self.file.write(self.header())

    def header(self) -> bytes:
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False}
        buffer = io.BytesIO()  # NumPy leaves room for the first axis to grow, so that the length stays the same
        np.lib.format.write_array_header_1_0(buffer, {**header, "shape": (self.rows, *self.shape)})
        return buffer.getvalue()

    def append(self, array: np.ndarray) -> None:
        data = np.ascontiguousarray(array).data.cast("B") if array.size else b""
        self.file.write(data)
        self.digest.update(data)
        self.rows += len(array)

    def close(self) -> dict[str, Any]:
        header = self.header()
        self.file.seek(0)
        self.file.write(header)
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return {"file": self.path.name, "dtype": self.dtype.str, "shape": [self.rows, *self.shape],
                "sha256_of_data": self.digest.hexdigest()}  # fmt: skip


class _Values:
    """What all examples of a federation are turned into; the first client decides about images."""

    def __init__(self, classes: int | None, vocabulary: int | None):
        self.classes, self.vocabulary = classes, vocabulary
        self.bytes: bool | None = None if vocabulary is None else False  # images of whole numbers become uint8

    def __call__(self, where: str, examples: Mapping[str, Any]) -> Examples:
        arrays = with_classes(where, checked(where, examples), self.classes)
        check_values(where, arrays, None, self.vocabulary)
        inputs = arrays.get("inputs")
        if inputs is None:
            return arrays
        if self.bytes is None:
            self.bytes = pixels([inputs])
            if self.bytes:
                tell_of_pixels("field 'inputs'", inputs.dtype, depth=6)
        return {**arrays, "inputs": as_bytes(f"{where}, field 'inputs'", inputs)} if self.bytes else arrays


class _Part:
    """The growing files of one set of clients' examples."""

    def __init__(self, folder: Path, prefix: str, values: _Values, stack: ExitStack):
        self.folder, self.prefix, self.values, self.stack = folder, prefix, values, stack
        self.first: Examples = {}  # the first client's, as the model of all others
        self.files: dict[str, _Growing] = {}
        self.offsets = self.open("offsets", np.zeros(1, np.int64))
        self.offsets.append(np.zeros(1, np.int64))

    def open(self, name: str, like: np.ndarray) -> _Growing:
        file = _Growing(self.folder / f"{self.prefix}.{name}.npy", like.dtype, like.shape[1:])
        self.stack.callback(file.file.close)
        return file

    def add(self, where: str, examples: Mapping[str, Any]) -> None:
        arrays = self.values(where, examples)
        if not self.files:
            for field in arrays:
                if not field.isidentifier() or field == "offsets":
                    raise InputError(f"{where}, field {field!r}: no name for a file; give letters, digits and _ alone")
            self.first = {field: array[:0].copy() for field, array in arrays.items()}
            self.files = {field: self.open(field, array) for field, array in arrays.items()}
        same_fields(where, arrays, "client 0", self.first)
        for field, array in arrays.items():
            self.files[field].append(array)
        self.offsets.append(np.array([next(iter(self.files.values())).rows], np.int64))

    def close(self) -> dict[str, Any]:
        fields = {field: file.close() for field, file in self.files.items()}
        return {"offsets": self.offsets.close(), "fields": fields}


def write_store(
    folder: str | Path,
    clients: Iterable[ClientRecord | Mapping[str, Any]],
    *,
    test: Mapping[str, Any] | None = None,
    classes: int | None = None,
    source: str = "",
    vocabulary: int | None = None,
    pooled: Sequence[str] = (),
) -> Path:
    """Writes a federation client by client; memory does not grow with its size, but for names and attributes.

    Labels and images are turned into what is trained on as `from_clients` does; whether inputs are images of whole
    numbers from 0 to 255 is known from the first client.

    All goes into `folder.partial`, which becomes `folder` when everything is on the disk; an error removes it.

    Args:
      folder: where, which must not exist yet or be empty.
      clients: each client's examples in turn, as `ClientRecord` or a plain dict of arrays.
      test: the global test set, with the same fields.
      classes: number of classes.
      source: where the data come from, in a few words.
      vocabulary: number of codes, where "inputs" are codes of characters or words.
      pooled: see `FederatedData`.

    Returns:
      The folder.

    Raises:
      InputError: the folder is in use, or as `from_clients`: the message names the client.
    """
    if classes is not None:
        _validate.whole("classes", classes, least=2)
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: it exists already; give another folder, or remove it")
    folder = folder if folder.name not in ("", "..") else folder.resolve()  # which has a name to put beside
    partial = folder.with_name(folder.name + ".partial")
    try:
        partial.mkdir(parents=True)
    except FileExistsError:
        raise InputError(
            f"{partial}: left by an interrupted write, or being written now; remove it, or give another folder"
        ) from None
    except OSError as error:
        raise InputError(f"{partial}: it cannot be made ({error.strerror}); give another folder") from None
    try:
        with ExitStack() as stack:
            index = _write(partial, clients, test, _Values(classes, vocabulary), stack)
        index |= {"classes": classes, "source": source, "vocabulary": vocabulary, "pooled": list(pooled)}
        with open(partial / INDEX, "w", encoding="utf-8") as file:
            json.dump({"format": FORMAT, "version": VERSION, **index}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder


def _write(
    folder: Path,
    clients: Iterable[ClientRecord | Mapping[str, Any]],
    test: Mapping[str, Any] | None,
    made: _Values,
    stack: ExitStack,
) -> dict[str, Any]:
    train, local, count = _Part(folder, "train", made, stack), None, 0
    names: list[str] = []
    attributes: dict[str, list[Any]] = {}
    kind: Any = None
    for i, client in enumerate(clients):
        record = client if isinstance(client, ClientRecord) else ClientRecord(client)
        has = (record.name is not None, record.test is not None, set(record.attributes))
        if i == 0:
            kind, attributes = has, {name: [] for name in record.attributes}
            local = None if record.test is None else _Part(folder, "local_test", made, stack)
        if has != kind:
            raise InputError(
                f"client {i}: it has no name, test or attributes like client 0's; give all clients the same"
            )
        train.add(f"client {i}", record.examples)
        if local is not None and record.test is not None:
            local.add(f"client {i}, test", record.test)
            same_fields(f"client {i}, test", local.first, "client 0", train.first)
        if record.name is not None:
            names.append(str(record.name))
        for name, values in attributes.items():
            values.append(record.attributes[name])
        count = i + 1
    if count == 0 or all(file.rows == 0 for file in train.files.values()):
        raise InputError(f"clients: none of the {count} has an example; give at least one example")
    index: dict[str, Any] = {"clients": count, "train": train.close()}
    if local is not None:
        index["local_test"] = local.close()
    if names:
        index["names"] = _whole(folder / "names.npy", np.array(names))
    if test is not None:
        held = made("test", test)
        same_fields("test", held, "client 0", train.first)
        index["test"] = {field: _whole(folder / f"test.{field}.npy", array) for field, array in held.items()}
    for name in attributes:
        if not name.isidentifier():
            raise InputError(f"attribute {name!r}: no name for a file; give letters, digits and _ alone")
    index["attributes"] = {
        name: _whole(folder / f"attributes.{name}.npy", np.array(values)) for name, values in attributes.items()
    }
    return index


def _whole(path: Path, array: np.ndarray) -> dict[str, Any]:
    if array.dtype.kind not in "buifU":
        raise InputError(f"{path.name}: dtype {array.dtype} cannot be stored; give numbers or strings")
    file = _Growing(path, array.dtype, array.shape[1:])
    file.append(array)
    return file.close()


def save(folder: str | Path, data: FederatedData) -> Path:
    """Writes `data` as `write_store` does."""

    def records() -> Iterator[ClientRecord]:
        for i in range(data.num_clients):
            test = None if data.local_test is None else data.client_test(i)
            attributes = {name: values[i].item() for name, values in data.attributes.items()}
            yield ClientRecord(data.client(i), None if data.names is None else data.name(i), test, attributes)

    about = {name: getattr(data, name) for name in ("classes", "source", "vocabulary", "pooled")}
    return write_store(folder, records(), test=data.test, **about)


def open_store(folder: str | Path, *, verify: bool = False) -> FederatedData:
    """Opens a federation as memory maps: nothing but the JSON, the headers and the offsets is read, 8 bytes a client.
    That no number is NaN or infinite is seen when it is trained or tested on.

    Args:
      folder: from `write_store`.
      verify: read everything and compare checksums.

    Raises:
      InputError: no federation, one of another version, or a file that is missing, truncated or changed.
    """
    path = Path(folder) / INDEX
    try:
        index = parse_json(path.read_text(encoding="utf-8"))
        if (index["format"], index["version"]) != (FORMAT, VERSION):
            raise InputError(f"{path}: {index['format']!r} version {index['version']!r}; this is for version {VERSION}")
        clients, read = _validate.whole("clients", index["clients"]), _Reader(path.parent, verify)
        train = read.part(index["train"], clients)
        data = FederatedData(
            *train,
            test={field: read(entry) for field, entry in index["test"].items()} if "test" in index else None,
            names=read(index["names"], clients) if "names" in index else None,
            local_test=read.part(index["local_test"], clients) if "local_test" in index else None,
            attributes={name: read(entry, clients) for name, entry in index["attributes"].items()},
            classes=index["classes"],
            vocabulary=index.get("vocabulary"),
            pooled=tuple(map(str, index.get("pooled", ()))),
            source=str(index["source"]) or f"federation in {folder}",
        )
        check_around(str(path), data)
        return data
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give a folder that holds a whole federation") from None
    except OSError as error:
        raise InputError(f"{path}: it cannot be read ({error.strerror}); give another folder") from None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(f"{path}: it is damaged ({reason}); write the federation again") from None


class _Reader(NamedTuple):
    folder: Path
    verify: bool

    def __call__(self, entry: dict[str, Any], rows: int | None = None) -> np.ndarray:
        path = self.folder / Path(entry["file"]).name
        array = open_npy(path)
        expected = np.dtype(entry["dtype"]), tuple(entry["shape"])
        if (array.dtype, array.shape) != expected or (rows is not None and len(array) != rows):
            wanted = f"{entry['dtype']}{entry['shape']}"
            raise InputError(f"{path}: {array.dtype.str}{list(array.shape)}, not {wanted}; write the federation again")
        if self.verify:
            digest = hashlib.sha256()
            for first in range(0, len(array), step := max(1, (1 << 24) // max(1, array[:1].nbytes))):
                digest.update(np.ascontiguousarray(array[first : first + step]).data.cast("B"))
            if digest.hexdigest() != entry["sha256_of_data"]:
                raise InputError(f"{path}: its checksum is not the one it was written with; write the federation again")
        return array

    def part(self, entry: dict[str, Any], clients: int) -> Population:
        offsets = self(entry["offsets"], clients + 1)
        examples = {field: self(of_field) for field, of_field in entry["fields"].items()}
        held, name = Population(examples, offsets), self.folder / Path(entry["offsets"]["file"]).name
        if offsets.dtype != np.int64:
            raise InputError(f"{name}: {offsets.dtype}, not int64; write the federation again")
        check_clients(str(name), held)
        return held
