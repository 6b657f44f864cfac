"""Downloads from a server of our own: whole, resumed, damaged, refused; and where loaders look for what was fetched."""

import hashlib
import io
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from conftest import one_line

from fedjax_sim import InputError
from fedjax_sim.data.sources import FILES, SOURCES, cache_folder, fetch, find
from fedjax_sim.data.sources.fetch import Remote

CONTENT = bytes(range(256)) * 4000  # about a megabyte, so that it comes in several blocks
SUM = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves `files`, with parts of them where `ranges` is set; breaks the connection after `cut` bytes, once."""

    files: ClassVar[dict[str, bytes]]
    asked: ClassVar[list[str | None]]  # the Range of each request
    ranges: ClassVar[bool]
    cut: ClassVar[int | None]
    shifted: ClassVar[int]  # how far the part that is sent lies from the one asked for

    def do_GET(self) -> None:
        kind = type(self)
        kind.asked.append(self.headers["Range"])
        content = kind.files.get(self.path)
        if content is None:
            return self.send_error(404)
        start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-")) if self.headers["Range"] else 0
        if kind.ranges and start >= len(content) and start:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if kind.ranges and start:
            start += kind.shifted
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            start = 0
            self.send_response(200)
        body, cut, kind.cut = content[start:], kind.cut, None
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(ConnectionError):  # the other side may have seen enough
            self.wfile.write(body if cut is None else body[:cut])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, type[Handler]]]:
    class Own(Handler):
        files: ClassVar = {"/data.bin": CONTENT}
        asked: ClassVar = []
        ranges, cut, shifted = True, None, 0

    web = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    thread = threading.Thread(target=partial(web.serve_forever, 0.01), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{web.server_port}", Own
    web.shutdown()
    web.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(FILES, "toy", (Remote("data.bin", SUM, ("http://127.0.0.1:9/data.bin",)),))
    monkeypatch.setenv("FEDJAX_SIM_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_a_whole_file_comes_once(server, tmp_path: Path) -> None:
    url, own = server
    calls: list[tuple[str, int, int | None]] = []
    folder = fetch("toy", base_url=url + "/", progress=lambda *call: calls.append(call))
    assert folder == tmp_path / "cache" / "toy"
    assert (folder / "data.bin").read_bytes() == CONTENT
    assert [file.name for file in folder.iterdir()] == ["data.bin"]
    assert calls[-1] == ("data.bin", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in calls] == sorted({done for _, done, _ in calls})
    assert fetch("toy", base_url=url) == folder
    assert own.asked == [None]  # the second time nothing was asked for


def test_a_broken_download_asks_for_the_rest_alone(server, tmp_path: Path) -> None:
    url, own = server
    own.cut = half = len(CONTENT) // 2
    with pytest.raises(InputError) as error:
        fetch("toy", cache=tmp_path, base_url=url)
    one_line(error, f"{url}/data.bin", f"broke after {half} of {len(CONTENT)} bytes", "run the command again to resume")
    assert (tmp_path / "toy" / "data.bin.partial").stat().st_size == half
    fetch("toy", cache=tmp_path, base_url=url)
    assert own.asked == [None, f"bytes={half}-"]
    assert (tmp_path / "toy" / "data.bin").read_bytes() == CONTENT
    assert not (tmp_path / "toy" / "data.bin.partial").exists()


@pytest.mark.parametrize(
    ("left", "ranges", "shifted", "requests"),
    [
        (CONTENT[:1000], False, 0, 1),  # a server that sends all of it whatever is asked
        (CONTENT[:1000], True, 500, 2),  # one that sends another part
        (CONTENT + b"more", True, 0, 2),  # what is left is longer than the file
        (CONTENT, True, 0, 1),  # what is left is complete
    ],
)
def test_what_is_left_of_a_download(
    server, tmp_path: Path, left: bytes, ranges: bool, shifted: int, requests: int
) -> None:
    url, own = server
    own.ranges, own.shifted = ranges, shifted
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "data.bin.partial").write_bytes(left)
    fetch("toy", cache=tmp_path, base_url=url)
    assert (tmp_path / "toy" / "data.bin").read_bytes() == CONTENT
    assert own.asked == [f"bytes={len(left)}-", None][:requests]


def test_a_wrong_sum_deletes_the_file(server, tmp_path: Path) -> None:
    url, own = server
    own.files["/data.bin"] = CONTENT[:-1] + b"x"
    with pytest.raises(InputError) as error:
        fetch("toy", cache=tmp_path, base_url=url)
    got = hashlib.sha256(own.files["/data.bin"]).hexdigest()
    one_line(error, got, SUM.removeprefix("sha256:"), "deleted")
    assert list((tmp_path / "toy").iterdir()) == []


def test_a_file_on_disk_that_has_changed_is_fetched_again(server, tmp_path: Path) -> None:
    url, _ = server
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "data.bin").write_bytes(b"changed")
    fetch("toy", cache=tmp_path, base_url=url)
    assert (tmp_path / "toy" / "data.bin").read_bytes() == CONTENT


def test_a_second_server_is_tried(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, _ = server
    monkeypatch.setitem(FILES, "toy", (Remote("data.bin", SUM, (f"{url}/nowhere", f"{url}/data.bin")),))
    assert (fetch("toy", cache=tmp_path) / "data.bin").read_bytes() == CONTENT


def test_servers_that_refuse_or_are_not_there(server, tmp_path: Path) -> None:
    url, _ = server
    with pytest.raises(InputError) as error:
        fetch("toy", cache=tmp_path, base_url=f"{url}/nowhere")
    one_line(error, f"{url}/nowhere/data.bin", "HTTP 404")
    with pytest.raises(InputError) as error:
        fetch("toy", cache=tmp_path, base_url="http://127.0.0.1:9")
    one_line(error, "http://127.0.0.1:9/data.bin", "refused")
    with pytest.raises(InputError) as error:
        fetch("toy", cache=tmp_path, base_url="file:///etc")
    one_line(error, "base_url: 'file:///etc'")
    with pytest.raises(InputError) as error:
        fetch("toys", cache=tmp_path)
    one_line(error, "name: 'toys'", "mnist", "cifar10")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError) as error:
        fetch("toy", cache=tmp_path / "file", base_url=url)
    one_line(error, str(tmp_path / "file"), "another folder")


def archive(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("cifar-10-batches-bin/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(link)
    return file.getvalue()


def test_an_archive_gives_its_wanted_members_alone(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, own = server
    (remote,) = FILES["cifar10"]
    wanted = {name: name.encode() for name in remote.members}
    data = archive({"../evil": b"evil", "/tmp/fedjax_sim_evil": b"evil", "../test_batch.bin": b"evil", **wanted})
    own.files[f"/{remote.name}"] = data
    monkeypatch.setitem(FILES, "cifar10", (remote._replace(sum="sha256:" + hashlib.sha256(data).hexdigest()),))
    folder = fetch("cifar10", cache=tmp_path, base_url=url)
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        [remote.name, *(Path(name).name for name in wanted)]
    )
    assert (folder / "test_batch.bin").read_bytes() == b"cifar-10-batches-bin/test_batch.bin"
    assert [file.name for file in tmp_path.iterdir()] == ["cifar10"]
    assert not Path("/tmp/fedjax_sim_evil").exists()


@pytest.mark.parametrize(("data", "found"), [(archive({}), "lacks"), (b"no archive", "cannot be unpacked")])
def test_archives_that_cannot_be_used(
    server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, found: str
) -> None:
    url, own = server
    (remote,) = FILES["cifar10"]
    own.files[f"/{remote.name}"] = data
    monkeypatch.setitem(FILES, "cifar10", (remote._replace(sum="sha256:" + hashlib.sha256(data).hexdigest()),))
    with pytest.raises(InputError) as error:
        fetch("cifar10", cache=tmp_path, base_url=url)
    one_line(error, remote.name, found)


@pytest.mark.parametrize("name", list(FILES))
def test_the_registry_is_complete(name: str) -> None:
    assert name in SOURCES
    for remote in FILES[name]:
        algorithm, value = remote.sum.split(":")
        assert len(value) == {"sha256": 64, "md5": 32}[algorithm]
        assert int(value, 16) > 0
        assert all(remote.name in url for url in remote.urls)


# --- where loaders look ----------------------------------------------------------------------------------------------


def test_loaders_look_in_the_users_folder_then_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.setenv("FEDJAX_SIM_DATA", str(tmp_path / "data"))
    with pytest.raises(InputError) as error:
        find("mnist")
    one_line(error, "data.path: it is empty", str(tmp_path / "data" / "mnist"), str(tmp_path / "cache" / "mnist"),
             "run `fedjax-sim data fetch mnist`, or give data.path or FEDJAX_SIM_DATA")  # fmt: skip
    (tmp_path / "cache" / "mnist").mkdir(parents=True)
    assert find("mnist") == tmp_path / "cache" / "mnist"
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    assert find("mnist") == tmp_path / "data" / "mnist"
    with pytest.raises(InputError) as error:
        find("shakespeare", can_fetch=False)
    one_line(error, "shakespeare", "give data.path or FEDJAX_SIM_DATA")
    assert "fetch" not in str(error.value)


def test_without_pooch_the_cache_is_found_and_downloads_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDJAX_SIM_CACHE")
    assert cache_folder().name == "fedjax_sim"
    monkeypatch.setitem(sys.modules, "pooch", None)
    assert cache_folder() == Path.home() / ".cache" / "fedjax_sim"
    with pytest.raises(InputError) as error:
        fetch("toy", cache=tmp_path)
    one_line(error, "data.bin", "pip install pooch")
