"""Files damaged in every way: each command ends as it promises, and loses nothing that was there."""

import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import QUICK, inside

from fedjax_sim.data import ClientRecord, write_store
from fedjax_sim.experiment.config import load_config
from fedjax_sim.experiment.run import run

ASKED = os.environ.get("FEDJAX_SIM_FUZZ")  # as many examples, from a seed of the day
EXAMPLES = int(ASKED or 25)
ENDS = (0, 2, 3, 130)  # finished, bad input, diverged, interrupted
BASE = [
    *QUICK,
    "training.rounds=2",
    "training.evaluate_every=2",
    "training.local_steps=1",
    "training.clients_per_round=2",
]
GML = 'graph [ node [ id 0 label "a" ] node [ id 1 label "b" ] node [ id 2 ] node [ id 3 ] '
GML += "edge [ source 0 target 1 distance 12.5 capacity 1e9 ] edge [ source 1 target 2 distance 3 ] "
GML += "edge [ source 2 target 3 distance 1 ] ]"


def sets(*overrides: str) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


def make_all(root: Path) -> None:
    """A whole one of everything that commands read."""
    rng = np.random.default_rng(0)

    def examples(size: int) -> dict[str, np.ndarray]:
        return {"inputs": rng.normal(size=(size, 3)).astype("f4"), "labels": rng.integers(0, 2, size).astype("i4")}

    clients = [ClientRecord(examples(5), f"clinic {i}", examples(2), {"town": f"t{i}"}) for i in range(4)]
    write_store(root / "store", clients, classes=2, test=examples(6))
    rows = "".join(f"{i % 2},{'ab'[i // 10]},{i * 0.5},{i % 3}\n" for i in range(20))
    (root / "table.csv").write_text(f"label,client,x,@site\n{rows}")
    (root / "leaf").mkdir()
    users = {name: {"x": [[float(i), 1.5] for i in range(6)], "y": [0, 1] * 3} for name in ("ann", "bob")}
    leaf = {"users": list(users), "num_samples": [6, 6], "hierarchies": ["x", "y"], "user_data": users}
    (root / "leaf" / "all.json").write_text(json.dumps(leaf))
    (root / "net.gml").write_text(GML)
    (root / "net.csv").write_text("downlink_bps,uplink_bps,latency_s\n1e6,2e6,0.1\n2e6,2e6,0.2\n")
    (root / "owners.txt").write_text("".join(f"{i % 3}\n" for i in range(16)))
    (root / "here.csv").write_text("client,active,inactive\na,0,50\nb,10,90\n")
    (root / "bandwidth").mkdir()
    (root / "bandwidth" / "one").write_text("0 1\n5 2.5\n9 0.5\n")
    (root / "devices").mkdir()
    speeds = {"phone": {"down_u": 100.0, "down_sigma": 3, "up_u": 50.0, "up_sigma": 2}}
    (root / "devices" / "speed_distri.json").write_text(json.dumps(speeds))
    (root / "devices" / "raw_ai_benchmark_list.json").write_text(json.dumps([{"CPU_F_AI_Score": "12"}]))
    (root / "given.toml").write_text('[data]\nname = "digits"\n[training]\nrounds = 2\n[model]\nname = "logistic"\n')
    data = ["data.name=store", f"data.path={root / 'store'}", f"output.folder={root / 'runs'}"]
    run(load_config(None, [*BASE, *data, "output.name=done", "output.checkpoint_every=1"]))
    stopped: list[int] = []
    run(load_config(None, [*BASE, *data, "training.rounds=4", "output.name=half", "output.checkpoint_every=1"]),
        stop=lambda: stopped.append(1) is None and len(stopped) > 1)  # fmt: skip
    rates = ["--over", "algorithm.learning_rate=0.1,0.2"]
    assert inside("sweep", *sets(*BASE, *data), *rates, "--folder", str(root / "swept")).status == 0
    rates = ["--over", "algorithm.learning_rate=0.1..0.9", "--trials", "1", "--sampler", "random"]
    assert inside("tune", *sets(*BASE, *data), *rates, "--folder", str(root / "study")).status == 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    make_all(root)
    return root


def commands(root: Path, here: Path) -> dict[str, list[Callable[[], list[str]]]]:
    """What is damaged, and the commands that read it; `root` is where it was made, `here` the copy."""
    data = ["data.name=store", f"data.path={root / 'store'}", f"output.folder={root / 'runs'}"]
    new = f"output.folder={here / 'new'}"

    def written(*overrides: str) -> list[str]:
        return ["data", "write", str(here / "written"), *sets(*overrides)]

    def trained(*overrides: str) -> list[str]:
        return ["run", *sets(*BASE, new, "data.name=store", f"data.path={root / 'store'}", *overrides)]

    def linked(profiles: str, path: str) -> list[str]:
        return trained(f"network.profiles={profiles}", f"network.path={here / path}")

    of_store = ("data.name=store", f"data.path={here / 'store'}")
    rate = ["--over", "algorithm.learning_rate=0.1,0.2", "--folder", str(here / "swept")]
    rates = ["--over", "algorithm.learning_rate=0.1..0.9", "--trials", "1", "--sampler", "random"]
    return {
        "store": [
            lambda: written(*of_store), lambda: ["data", "show", *sets(*of_store), "--picture", str(here / "p.png")],
            lambda: trained(*of_store, "execution.memory=stream"),
        ],
        "table.csv": [lambda: written("data.name=csv", f"data.path={here / 'table.csv'}")],
        "leaf": [lambda: written("data.name=leaf", f"data.path={here / 'leaf'}")],
        "owners.txt": [
            lambda: written("data.name=csv", f"data.path={root / 'table.csv'}", "data.partition=list",
                            f"data.owners={here / 'owners.txt'}")
        ],
        "net.csv": [lambda: linked("csv", "net.csv")],
        "net.gml": [lambda: [*linked("gml", "net.gml"), *sets("data.path=" + str(here / "store"))]],
        "devices": [lambda: linked("devices", "devices")],
        "bandwidth": [lambda: trained("network.profiles=constant", f"network.bandwidth_path={here / 'bandwidth'}")],
        "here.csv": [
            lambda: trained("network.profiles=constant", "network.availability=trace", "training.sampling=poisson",
                            f"network.availability_path={here / 'here.csv'}")
        ],
        "given.toml": [lambda: ["config", str(here / "given.toml")]],
        "runs": [
            lambda: ["report", str(here / "runs" / "done")], lambda: ["report", str(here / "runs" / "half")],
            lambda: ["compare", str(here / "runs" / "done"), str(here / "runs" / "half"), "--output",
                     str(here / "c.html")],
            lambda: ["resume", str(here / "runs" / "half")], lambda: ["config", str(here / "runs" / "half")],
            lambda: trained(f"model.start={here / 'runs' / 'done' / 'model'}"),
        ],
        "swept": [lambda: ["sweep", *sets(*BASE, *data), *rate]],
        "study": [lambda: ["tune", *sets(*BASE, *data), *rates, "--folder", str(here / "study")]],
    }  # fmt: skip


def damaged(path: Path, rng: random.Random) -> str:
    """Damages a file, and says how."""
    content = bytearray(path.read_bytes())
    size = max(len(content), 1)
    text = b"".join(bytes(part) for part in (content,))

    def flipped() -> bytes:
        for _ in range(rng.choice((1, 3, 30))):
            if content:
                content[rng.randrange(size)] ^= 1 << rng.randrange(8)
        return bytes(content)

    def put(what: bytes) -> Callable[[], bytes]:
        place = rng.randrange(size)
        return lambda: text[:place] + what + text[place:]

    def number(what: bytes) -> Callable[[], bytes]:
        places = [i for i in range(len(text)) if text[i : i + 1].isdigit()]
        place = rng.choice(places) if places else 0
        return lambda: text[:place] + what + text[place + 1 :]

    ways: dict[str, Callable[[], bytes]] = {
        "flipped": flipped,
        "cut": lambda: text[: rng.randrange(size)],
        "emptied": lambda: b"",
        "NUL": put(b"\0"),
        "deep": put(b"[" * 5000),
        "only deep": lambda: b"[" * 5000,
        "huge": number(b"9" * 5000),
        "large": number(b"1e308"),
        "negative": number(b"-7"),
        "no number": number(b"NaN"),
        "infinite": number(b"1e999"),
        "null": number(b"null"),
        "text": number(b'"$x$ [red]"'),
        "escape": put(b"\x1b[31m"),
        "half a character": put(b"\\ud83d"),
        "BOM": lambda: b"\xef\xbb\xbf" + text,
        "UTF-16": lambda: text.decode("utf-8", "replace").encode("utf-16"),
        "Latin-1": put(b"\xe4"),
        "twice": lambda: text + text,
        "line gone": lambda: b"\n".join(text.split(b"\n")[1:]),
        "long": put(b"1" * 140_000),
        "quote": put(b'"'),
    }  # fmt: skip
    structured = {"key gone": changed(text, rng, drop=True), "other type": changed(text, rng, drop=False)}
    ways |= {name: lambda new=new: new for name, new in structured.items() if new is not None}
    name = rng.choice(sorted([*ways, "removed", "folder"]))
    if name in ("removed", "folder"):
        path.unlink()
        if name == "folder":
            path.mkdir()
    else:
        path.write_bytes(ways[name]())
    return name


def changed(text: bytes, rng: random.Random, *, drop: bool) -> bytes | None:
    """JSON, or its last line, with a key less or a value of another type; None where it is none."""
    head, last = b"", text
    try:
        try:
            tree = json.loads(text)
        except ValueError:
            head, _, last = text.rstrip(b"\n").rpartition(b"\n")
            tree = json.loads(last)
    except ValueError:
        return None
    part: Any = tree
    while isinstance(part, (dict, list)) and part:
        key = rng.choice(sorted(part)) if isinstance(part, dict) else rng.randrange(len(part))
        if not isinstance(part[key], (dict, list)) or not part[key] or rng.random() < 0.4:
            if drop:
                del part[key]
            else:
                part[key] = rng.choice([None, True, -1, 0, 1e300, 10**30, "x", "\x1b[1m", [], {}, [[1], "a"], {"a": 1}])
            break
        part = part[key]
    return head + b"\n" * bool(head) + json.dumps(tree).encode() + b"\n"


def files_of(root: Path) -> dict[Path, bytes]:
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def attempt(whole: Path, seed: int) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        for part in whole.iterdir():
            (shutil.copytree if part.is_dir() else shutil.copy)(part, here / part.name)
        table = commands(whole, here)
        kind = rng.choice(sorted(table))
        files = sorted(path for path in [here / kind, *(here / kind).rglob("*")] if path.is_file())
        chosen = rng.sample(files, min(len(files), 1 + (rng.random() < 0.2)))
        hurt = [(path.relative_to(here), damaged(path, rng)) for path in chosen]
        before = files_of(here)
        arguments = rng.choice(table[kind])()
        ended = inside(*arguments)
        about = f"{hurt}: {arguments[0]} ended in {ended.status}, {ended.err[-600:]}"
        assert ended.status in ENDS, about
        assert "Traceback" not in ended.out + ended.err, about
        if ended.status == 2:
            assert len([line for line in ended.err.splitlines() if line.startswith("error: ")]) == 1, about
        after = files_of(here)
        kept = {path: text for path, text in before.items() if ended.status == 2 or path.parts[0] not in
                ("runs", "swept", "study")}  # fmt: skip
        lost = [str(path) for path in kept if path not in after and path.name != ".lock"]
        assert not lost, f"{about}; lost: {lost}"
        inputs = [path for path in kept if path.parts[0] not in ("runs", "swept", "study", "written", "new")]
        assert not [path for path in inputs if after[path] != before[path]], about


@settings(max_examples=EXAMPLES, deadline=None, derandomize=ASKED is None,
          suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])  # fmt: skip
@given(st.integers(0, 2**32))
def test_damaged_files_end_in_a_line_and_nothing_is_lost(whole: Path, seed: int) -> None:
    attempt(whole, seed)
