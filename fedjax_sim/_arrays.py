"""NumPy's own files, read without trusting them: .npy as memory maps, .npz whole. Nothing is ever unpickled.

The layout is that of NumPy's enhancement proposal 1: a magic string, a version, the length of a header, and the header
itself, a Python literal with the dtype, the order and the shape.
"""

import ast
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim._validate import InputError, shown

MAGIC = b"\x93NUMPY"
LONGEST_HEADER = 10_000  # bytes; a plain array needs about a hundred
DEFLATE_LIMIT = 1032  # bytes that one compressed byte can stand for (RFC 1951)
_AGAIN = "write or fetch the file again"


class _Header(NamedTuple):
    dtype: np.dtype
    shape: tuple[int, ...]
    order: Any  # "C" or "F"
    length: int  # bytes before the values

    @property
    def total(self) -> int:
        """Bytes of the whole file, by what the header says."""
        return self.length + int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


def open_npy(path: str | os.PathLike[str]) -> np.ndarray:
    """A .npy file as an array mapped read-only; only its header is read.

    Args:
      path: the file, in C or Fortran order, of any dtype but objects and structures.

    Returns:
      The array, an `np.memmap` unless it has no elements.

    Raises:
      InputError: there is no such file, it is no .npy file, its header is damaged, or it is shorter or longer than the
        header says. Nothing is allocated before that is known.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = _read_header(file.read, str(path))
        _same_size(str(path), header, size)
        if header.total == header.length:
            return _frozen(np.empty(header.shape, header.dtype, header.order))
        return np.memmap(path, header.dtype, "r", header.length, header.shape, header.order)
    except OSError as error:
        raise InputError(_unreadable(path, error)) from None
    except ValueError as error:
        raise _damaged(str(path), error) from None


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All arrays of a .npz file, by name.

    Args:
      path: the file, from `np.savez` or `np.savez_compressed`.

    Returns:
      Name -> array, in the order of the file, all in memory.

    Raises:
      InputError: there is no such file, it is no .npz file, or a member is damaged, holds objects, or has another
        size than its header says. Sizes are compared before a member is allocated.
    """
    path = Path(path)
    try:
        _whole_archive(path)
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            if twice := [name for name in names if names.count(name) > 1]:
                raise InputError(f"{path}: it has {twice[0]!r} twice; {_AGAIN}")
            return {member.filename.removesuffix(".npy"): _member(path, archive, member) for member in members}
    except zipfile.BadZipFile as error:
        raise _damaged(str(path), error) from None
    except OSError as error:
        raise InputError(_unreadable(path, error)) from None


def _whole_archive(path: Path) -> None:
    """The file begins and ends as an archive does; `zipfile` itself overlooks bytes before and after it."""
    with path.open("rb") as file:
        start = file.read(4)
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            raise InputError(f"{path}: it is empty; {_AGAIN}")
        if start not in (b"PK\x03\x04", b"PK\x05\x06"):
            raise InputError(f"{path}: it begins with {start.hex()}, not as a .npz file does; give one, or {_AGAIN}")
        file.seek(max(0, size - 22))
        if file.read(4) != b"PK\x05\x06":
            raise InputError(f"{path}: it does not end as a .npz file does, so it is truncated or too long; {_AGAIN}")


def _member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    where = f"{path}, member {member.filename!r}"
    if not member.filename.endswith(".npy"):
        raise InputError(f"{where}: it is no .npy file; keep arrays alone in the archive")
    if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{where}: it is encrypted or compressed in another way; write it with np.savez_compressed")
    most = member.compress_size * (1 if member.compress_type == zipfile.ZIP_STORED else DEFLATE_LIMIT)
    if member.file_size > most:
        raise InputError(
            f"{where}: it claims {member.file_size} bytes, but its {member.compress_size} stored bytes hold at most "
            f"{most}; {_AGAIN}"
        )
    try:
        with archive.open(member) as file:
            header = _read_header(file.read, where)
            _same_size(where, header, member.file_size)
            values = np.empty(header.total - header.length, np.uint8)
            place = 0
            while block := file.read(min(1 << 20, len(values) + 1 - place)):
                values[place : place + len(block)] = np.frombuffer(block, np.uint8)
                place += len(block)
        if place != len(values):
            raise InputError(f"{where}: it ends after {place} of {len(values)} bytes of values; {_AGAIN}")
        return values.view(header.dtype).reshape(header.shape, order=header.order)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise _damaged(where, error) from None
    except MemoryError:
        raise InputError(f"{where}: its {member.file_size} bytes do not fit in memory; give a smaller file") from None


def _read_header(read: Callable[[int], bytes], where: str) -> _Header:
    start = read(8)
    if not start:
        raise InputError(f"{where}: it is empty; {_AGAIN}")
    if start[:6] != MAGIC:
        raise InputError(f"{where}: it begins with {start[:6].hex()}, not as a .npy file does; give one, or {_AGAIN}")
    if len(start) < 8 or start[6] not in (1, 2, 3):
        raise InputError(f"{where}: version {start[6:].hex()} of the format is unknown; {_AGAIN}")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(read(width), "little")
    if length > LONGEST_HEADER:
        raise InputError(f"{where}: its header claims {length} bytes, over the {LONGEST_HEADER} allowed; {_AGAIN}")
    text = read(length)
    if len(text) < length:
        raise InputError(f"{where}: it ends within its header; {_AGAIN}")
    dtype, shape, fortran = _parsed(text, where)
    return _Header(dtype, shape, "F" if fortran else "C", 8 + width + length)


def _parsed(text: bytes, where: str) -> tuple[np.dtype, tuple[int, ...], bool]:
    """Dtype, shape and whether the order is Fortran's."""
    try:
        fields = ast.literal_eval(text.decode("utf-8").strip())
        if not isinstance(fields, dict) or fields.keys() != {"descr", "fortran_order", "shape"}:
            raise ValueError("it is no dict of descr, fortran_order and shape")
        dtype, shape, fortran = np.lib.format.descr_to_dtype(fields["descr"]), fields["shape"], fields["fortran_order"]
    except (ValueError, SyntaxError, TypeError, KeyError, IndexError, MemoryError, RecursionError) as error:
        raise InputError(f"{where}: its header {shown(text)} is damaged ({_reason(error)}); {_AGAIN}") from None
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape) or type(fortran) is not bool:
        raise InputError(
            f"{where}: its header has shape {shown(shape)} and fortran_order {shown(fortran)}, not a tuple of numbers "
            f"from 0 and a boolean; {_AGAIN}"
        )
    if dtype.hasobject:
        raise InputError(f"{where}: it holds Python objects, which would have to be unpickled; save numbers or text")
    if dtype.kind == "V" or dtype.itemsize == 0:
        raise InputError(f"{where}: dtype {shown(dtype)} is not read; save plain arrays of numbers or text")
    return dtype, shape, fortran


def _same_size(where: str, header: _Header, size: int) -> None:
    if header.total != size:
        given = f"{header.dtype}{list(header.shape)}"
        raise InputError(
            f"{where}: it is {'truncated' if size < header.total else 'too long'}: {size} bytes, but {shown(given)} "
            f"needs {header.total}; {_AGAIN}"
        )


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


def _reason(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:120]


def _damaged(where: str, error: BaseException) -> InputError:
    return (
        error if isinstance(error, InputError) else InputError(f"{where}: it is damaged ({_reason(error)}); {_AGAIN}")
    )


def _unreadable(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{path}: no such file; give one that exists"
    return f"{path}: it cannot be read ({error.strerror or _reason(error)}); give a readable file"
