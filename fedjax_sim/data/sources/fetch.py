"""Downloads of public data sets: checked against published sums, and resumed where they broke off. Needs pooch."""

import http.client
import re
import shutil
import ssl
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, cast

from fedjax_sim import _validate
from fedjax_sim._validate import InputError
from fedjax_sim.data.sources.places import cache_folder

Progress = Callable[[str, int, int | None], None]  # file, bytes so far, bytes in all where the server tells

TIMEOUT_SECONDS = 60
BLOCK_BYTES = 1 << 18


class Remote(NamedTuple):
    """One file to download."""

    name: str
    sum: str  # "sha256:..." or "md5:...", of the file as it is served
    urls: tuple[str, ...]  # tried in this order
    members: tuple[str, ...] = ()  # of a .tar.gz, unpacked next to it


def _remotes(sums: dict[str, str], *folders: str, suffix: str = "") -> tuple[Remote, ...]:
    return tuple(Remote(name, total, tuple(f + name + suffix for f in folders)) for name, total in sums.items())


_ZENODO = "https://zenodo.org/records/10519652/files/"  # MedMNIST publishes MD5 sums
_CIFAR10 = tuple(
    f"cifar-10-batches-bin/{name}.bin" for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
)

FILES: dict[str, tuple[Remote, ...]] = {
    "mnist": _remotes(
        {
            "train-images-idx3-ubyte.gz": "sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
    ),
    "fashion_mnist": _remotes(
        {
            "train-images-idx3-ubyte.gz": "sha256:3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "sha256:a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "sha256:346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "sha256:67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    "heart_disease": _remotes(
        {
            "processed.cleveland.data": "sha256:a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8",
            "processed.hungarian.data": "sha256:d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796",
            "processed.switzerland.data": "sha256:834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314",
            "processed.va.data": "sha256:e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f",
        },
        "https://archive.ics.uci.edu/ml/machine-learning-databases/heart-disease/",
    ),
    "cifar10": (
        Remote(
            "cifar-10-binary.tar.gz",
            "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
            _CIFAR10,
        ),
    ),
    "pneumoniamnist": _remotes(
        {"pneumoniamnist.npz": "md5:28209eda62fecd6e6a2d98b1501bb15f"}, _ZENODO, suffix="?download=1"
    ),
    "breastmnist": _remotes({"breastmnist.npz": "md5:750601b1f35ba3300ea97c75c52ff8f6"}, _ZENODO, suffix="?download=1"),
}


def fetch(
    name: str, *, cache: str | Path | None = None, base_url: str | None = None, progress: Progress | None = None
) -> Path:
    """Downloads a public data set, unless it is there already and its sums are right.

    A file is written to NAME.partial next to its place and renamed when its sum is right. What a broken connection
    leaves is kept, and the next call asks the server for the rest alone.

    Args:
      name: one of `FILES`.
      cache: the folder to download to, by default `cache_folder()`; the files go to its subfolder `name`.
      base_url: where to get the files instead, such as a mirror: http(s) and a folder that has them under their names.
      progress: called as progress(file, bytes so far, bytes in all or None).

    Returns:
      The folder with the files, where loaders look for them.

    Raises:
      InputError: the name is unknown, pooch is not installed, no server has the file, the connection broke, a file has
        another sum than published, or the folder cannot be written.
    """
    _validate.one_of("name", name, FILES)
    if base_url is not None and not re.match("https?://", base_url):
        raise InputError(f"base_url: {base_url!r} is no web address; give one that begins with http:// or https://")
    folder = (Path(cache) if cache is not None else cache_folder()) / name
    for remote in FILES[name]:
        urls = remote.urls if base_url is None else (f"{base_url.rstrip('/')}/{remote.name}",)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _fetch_file(folder, remote, urls, progress)
            _unpack(folder, remote)
        except OSError as error:
            raise InputError(f"{folder}: {error.strerror or error}; give another folder or make room") from None
    return folder


def _fetch_file(folder: Path, remote: Remote, urls: tuple[str, ...], progress: Progress | None) -> None:
    try:
        import pooch
    except ImportError:
        raise InputError(
            f"{remote.name}: downloads need pooch, which is not installed; run: pip install pooch"
        ) from None

    def download(url: str, output_file: Any, _: Any) -> None:  # as pooch calls it
        partial = folder / f"{remote.name}.partial"
        _download(url, partial, progress)
        algorithm, expected = remote.sum.split(":")
        got = pooch.file_hash(str(partial), alg=algorithm)
        if got != expected:
            partial.unlink()
            raise InputError(f"{url}: its {algorithm} is {got}, not {expected}; it was deleted, try another base_url")
        partial.replace(output_file)

    for i, url in enumerate(urls):
        try:
            with _quiet(pooch):
                pooch.retrieve(url, remote.sum, fname=remote.name, path=folder, downloader=cast(Any, download))
            return
        except InputError:
            if i + 1 == len(urls):
                raise


@contextmanager
def _quiet(pooch: Any) -> Iterator[None]:
    """Without pooch's own messages, which would break a progress bar."""
    logger = pooch.get_logger()
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _download(url: str, partial: Path, progress: Progress | None) -> None:
    """Completes `partial`; what is there already is not asked for again, if the server can send a part.

    Raises:
      InputError: the server refuses, or the connection broke; then `partial` keeps what has come.
    """
    have = partial.stat().st_size if partial.exists() else 0
    try:
        answer = _resumed(url, have) if have else _ask(url)
        if answer is None:
            return
        with answer:
            _receive(url, answer, partial, have if answer.status == 206 else 0, progress)
    except urllib.error.HTTPError as error:
        raise InputError(f"{url}: HTTP {error.code} ({error.reason}); try again later, or another base_url") from None
    except urllib.error.URLError as error:
        raise InputError(f"{url}: {error.reason}; run the command again to resume") from None
    except (http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
        reason = " ".join((str(error) or type(error).__name__).split())
        raise InputError(f"{url}: the connection broke ({reason}); run the command again to resume") from None


def _resumed(url: str, have: int) -> http.client.HTTPResponse | None:
    """An answer with the rest of the file, or with all of it where there is no such rest; None where it is complete."""
    try:
        answer = _ask(url, have)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        error.close()
        return None if total and int(total[1]) == have else _ask(url)  # what we have is longer than the file
    if answer.status == 206 and not (answer.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
        answer.close()
        return _ask(url)
    return answer


def _ask(url: str, have: int = 0) -> http.client.HTTPResponse:
    headers = {"User-Agent": "fedjax-sim", **({"Range": f"bytes={have}-"} if have else {})}
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS)


def _receive(url: str, answer: http.client.HTTPResponse, partial: Path, have: int, progress: Progress | None) -> None:
    length = answer.headers.get("Content-Length")
    total = have + int(length) if length and length.isdigit() else None
    name = partial.name.removesuffix(".partial")
    with partial.open("ab" if have else "wb") as file:
        while block := answer.read(BLOCK_BYTES):
            file.write(block)
            have += len(block)
            if progress is not None:
                progress(name, have, total)
    if total is not None and have < total:
        raise InputError(f"{url}: the connection broke after {have} of {total} bytes; run the command again to resume")


def _unpack(folder: Path, remote: Remote) -> None:
    """The wanted members of an archive, written under their last name; nothing else of it touches the disk."""
    places = {member: folder / PurePosixPath(member).name for member in remote.members}
    if all(place.is_file() for place in places.values()):
        return
    archive = folder / remote.name
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isreg() and member.name in places else None
                if content is not None:
                    place = places.pop(member.name)
                    part = place.with_name(f"{place.name}.partial")
                    with part.open("wb") as file:
                        shutil.copyfileobj(content, file)
                    part.replace(place)
    except (tarfile.TarError, EOFError) as error:
        raise InputError(f"{archive}: it cannot be unpacked ({error}); delete it and fetch it again") from None
    if places:
        raise InputError(f"{archive}: it lacks {', '.join(places)}; delete it and fetch it again")
