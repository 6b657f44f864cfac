"""NumPy files: what is written is read back, and one line for each way in which a file can be wrong."""

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import one_line
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedjax_sim import InputError
from fedjax_sim._arrays import open_npy, read_npz

ARRAYS = hnp.arrays(
    st.sampled_from(["u1", "<f4", ">f8", "<i8", "?", "<U3", "S2", "<c8"]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)


@given(ARRAYS, st.booleans())
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, fortran: bool):
    array = np.asfortranarray(array) if fortran else array
    folder = tmp_path_factory.mktemp("arrays")
    np.save(folder / "a.npy", array)
    np.savez(folder / "a.npz", a=array, b=array)
    np.savez_compressed(folder / "b.npz", a=array)
    mapped = open_npy(folder / "a.npy")
    for read in (mapped, *read_npz(folder / "a.npz").values(), read_npz(folder / "b.npz")["a"]):
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(read, array)
    assert not mapped.flags.writeable
    assert list(read_npz(folder / "a.npz")) == ["a", "b"]


def test_an_array_is_mapped_and_not_read(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.arange(12.0).reshape(3, 4))
    array = open_npy(tmp_path / "a.npy")
    assert isinstance(array, np.memmap)
    np.testing.assert_array_equal(array[1], [4, 5, 6, 7])


def npy(header: str | bytes, values: bytes = b"", *, version: int = 1, length: int | None = None) -> bytes:
    """A .npy file with any header."""
    text = header.encode() if isinstance(header, str) else header
    width = "<H" if version == 1 else "<I"
    return (
        b"\x93NUMPY" + bytes([version, 0]) + struct.pack(width, len(text) if length is None else length) + text + values
    )


def described(descr: str, shape: str, fortran: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n"


FLOATS = described("'<f4'", "(3,)")
BAD_NPY: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it is empty"),
    "text": (b"inputs,labels\n1,2\n", "begins with 696e70757473"),
    "cut in the magic string": (b"\x93NUMPY\x01", "version 01"),
    "unknown version": (npy(FLOATS, version=9), "version 0900"),
    "cut in the header": (npy(FLOATS)[:30], "ends within its header"),
    "truncated": (npy(FLOATS, b"\0" * 11), "truncated"),
    "too long": (npy(FLOATS, b"\0" * 13), "too long"),
    "a gigantic shape": (npy(described("'<f8'", "(1152921504606846976, 1024)"), b"\0" * 8), "truncated"),
    "a gigantic header": (npy(FLOATS, version=2, length=2**32 - 1), "header claims 4294967295 bytes"),
    "a negative shape": (npy(described("'<f4'", "(-3,)"), b"\0" * 12), "shape (-3,)"),
    "a shape of fractions": (npy(described("'<f4'", "(3.0,)"), b"\0" * 12), "shape (3.0,)"),
    "no tuple": (npy(described("'<f4'", "[3]"), b"\0" * 12), "shape [3]"),
    "order is no boolean": (npy(described("'<f4'", "(3,)", "7"), b"\0" * 12), "fortran_order 7"),
    "objects": (npy(described("'|O'", "(1,)"), b"\x80\x04N."), "unpickled"),
    "objects in a structure": (npy(described("[('a', '|O')]", "(1,)"), b"\x80\x04N."), "unpickled"),
    "a structure": (npy(described("[('a', '<f4')]", "(3,)"), b"\0" * 12), "is not read"),
    "empty strings": (npy(described("'<U0'", "(1000000000000,)")), "is not read"),
    "an unknown dtype": (npy(described("'<q77'", "(3,)"), b"\0" * 12), "damaged"),
    "no dict": (npy("[1, 2]\n"), "no dict"),
    "a missing field": (npy("{'descr': '<f4'}\n"), "no dict"),
    "code": (npy("__import__('os').getcwd()\n"), "damaged"),
    "nested brackets": (npy("(" * 9000), "damaged"),
    "no UTF-8": (npy(b"\xff\xfe\xfd"), "damaged"),
    "too many dimensions": (npy(described("'<f4'", str((1,) * 99)), b"\0" * 4), "damaged"),
    "an impossible empty shape": (npy(described("'<f4'", f"(0, {2**62}, {2**62})")), "damaged"),
}


@pytest.mark.parametrize("kind", list(BAD_NPY))
def test_a_damaged_npy_file_is_named(tmp_path: Path, kind: str):
    data, found = BAD_NPY[kind]
    path = tmp_path / "x.npy"
    path.write_bytes(data)
    with pytest.raises(InputError) as error:
        open_npy(path)
    one_line(error, str(path), found)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:  # the same file as a member
        archive.writestr("x.npy", data)
    with pytest.raises(InputError) as error:
        read_npz(tmp_path / "x.npz")
    one_line(error, f"{tmp_path / 'x.npz'}, member 'x.npy'", found)


def test_an_array_without_rows_is_legal(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.zeros((0, 28, 28), np.uint8))
    assert open_npy(tmp_path / "a.npy").shape == (0, 28, 28)


@pytest.mark.parametrize("read", [open_npy, read_npz])
def test_files_that_are_not_there(tmp_path: Path, read: Callable):
    with pytest.raises(InputError) as error:
        read(tmp_path / "nowhere")
    one_line(error, "nowhere", "no such file")
    with pytest.raises(InputError) as error:
        read(tmp_path)
    one_line(error, str(tmp_path), "cannot be read")


def archive(*, compress: bool = False) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(file, a=np.arange(1000, dtype=np.int32), b=np.zeros(5))
    return file.getvalue()


def central(data: bytes, field: int, value: int) -> bytes:
    """The archive with a 32-bit field of its first central directory entry changed."""
    at = data.index(b"PK\x01\x02") + field
    return data[:at] + struct.pack("<I", value) + data[at + 4 :]


BAD_NPZ: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it is empty"),
    "text": (b"hello", "begins with 68656c6c"),
    "an .npy file": (npy(FLOATS, b"\0" * 12), "begins with"),
    "truncated": (archive()[:-30], "truncated"),
    "trailing bytes": (archive() + b"x" * 5, "too long"),
    "a bit flipped": (archive()[:600] + b"\xff" + archive()[601:], "member 'a.npy': it is damaged"),
    "compressed values damaged": (
        archive(compress=True)[:200] + b"\xff" * 9 + archive(compress=True)[209:],
        "member 'a",
    ),
    "a member larger than stored": (central(archive(), 24, 2**31), "claims 2147483648 bytes"),
    "a member larger than its values": (central(archive(compress=True), 24, 4500), "needs 4128"),
    "a zip bomb": (central(archive(compress=True), 24, 2**32 - 2), "hold at most"),
    "encrypted": (central(archive(), 8, 1), "encrypted"),
}


@pytest.mark.parametrize("kind", list(BAD_NPZ))
def test_a_damaged_archive_is_named(tmp_path: Path, kind: str):
    data, found = BAD_NPZ[kind]
    path = tmp_path / "x.npz"
    path.write_bytes(data)
    with pytest.raises(InputError) as error:
        read_npz(path)
    one_line(error, str(path), found)


def test_archives_of_something_else(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(InputError) as error:
        read_npz(tmp_path / "x.npz")
    one_line(error, "member 'readme.txt'", "no .npy file")
    with zipfile.ZipFile(tmp_path / "y.npz", "w", zipfile.ZIP_BZIP2) as file:
        file.writestr("a.npy", npy(FLOATS, b"\0" * 12))
    with pytest.raises(InputError) as error:
        read_npz(tmp_path / "y.npz")
    one_line(error, "member 'a.npy'", "compressed in another way")
    with zipfile.ZipFile(tmp_path / "z.npz", "w") as file:
        file.writestr("a.npy", npy(FLOATS, b"\0" * 12))
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("a.npy", npy(FLOATS, b"\1" * 12))
    with pytest.raises(InputError) as error:
        read_npz(tmp_path / "z.npz")
    one_line(error, "'a.npy' twice")


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_any_damage_gives_one_line_or_an_array(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    """Bytes changed anywhere: an InputError or some array of the file's size, and nothing else."""
    whole = bytearray(
        archive(compress=data.draw(st.booleans())) if data.draw(st.booleans()) else npy(FLOATS, b"\0" * 12)
    )
    zipped = whole[:2] == b"PK"
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damage") / "x"
    path.write_bytes(
        bytes(whole[: data.draw(st.integers(0, len(whole)))]) if data.draw(st.booleans()) else bytes(whole)
    )
    try:
        (read_npz if zipped else open_npy)(path)
        message = ""
    except InputError as error:
        message = str(error)
    assert "\n" not in message
    assert not message or str(path) in message
