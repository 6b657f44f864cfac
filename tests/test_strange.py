"""Names, numbers and nestings that nobody would write: told in a line or shown as they are, never a traceback."""

import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import one_line
from rich.console import Console
from runs import inside

from fedjax_sim import InputError
from fedjax_sim._text import clean, parse_json, parse_toml, whole_characters
from fedjax_sim._validate import shown
from fedjax_sim.data import ClientRecord, describe, open_store, write_store
from fedjax_sim.data.sources.leaf import leaf
from fedjax_sim.diagnose import diagnose
from fedjax_sim.experiment.config import load_config
from fedjax_sim.experiment.folder import write_whole
from fedjax_sim.experiment.progress import ranking
from fedjax_sim.experiment.show import tables
from fedjax_sim.experiment.sweep import Line
from fedjax_sim.network import from_csv, from_devices, from_gml, make_profiles, read_trace
from fedjax_sim.plots import curves, portrait

DIGITS, DEEP = "9" * 5000, "[" * 3000
NAMES = ("$x$ [red]", "[/red] $", "\x1b[31mred\x1b[0m\n", "two\tand 😀 $$", "x" * 300)


def examples(size: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"inputs": rng.normal(size=(size, 3)).astype("f4"), "labels": rng.integers(0, 2, size).astype("i4")}


@pytest.mark.parametrize("text", [DIGITS, DEEP, f"0x{'f' * 5000}", "'a\\u0000b'", '"a\\u0000b"', "\udcff"])
@pytest.mark.parametrize("path", ["training.rounds", "algorithm.learning_rate", "network.slow_clients", "data.path"])
def test_any_value_of_a_setting_is_taken_or_told_in_a_line(path: str, text: str) -> None:
    if path == "data.path" and text in (DIGITS, DEEP, "'a\\u0000b'"):  # in the last, of TOML, nothing is escaped
        assert load_config(None, [f"{path}={text}"]).data.path == text.strip("'")
        return
    with pytest.raises(InputError) as error:
        load_config(None, [f"{path}={text}"])
    one_line(error, f"{path}: ")


@pytest.mark.parametrize(("text", "words"), [
    (f"[training]\nrounds = {DIGITS}", "too many digits"), (f"x = {DEEP}", "nested too deeply"),
    (f"[training]\nrounds = 0x{'f' * 5000}", "training.rounds"), ('[data]\npath = "a\\u0000b"', "data.path"),
    ('[output]\nfolder = "a\\u0000b"', "output.folder"), ('[model]\nstart = "a\\u0000b"', "model.start"),
    ('[network]\nbandwidth_path = "a\\u0000b"', "network.bandwidth_path"),
])  # fmt: skip
def test_configuration_files_of_the_same(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "given.toml").write_text(text)
    ended = inside("run", str(tmp_path / "given.toml"))
    assert ended.status == 2
    assert words in ended.err
    assert len(ended.err.splitlines()) == 1


@pytest.mark.parametrize("parse", [parse_json, parse_toml])
def test_readers_raise_one_kind_of_error_with_one_line(parse: Any) -> None:
    for text in (DIGITS, DEEP, f"x = {DIGITS}", f"x = {DEEP}", "{"):
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            parse(text)
    assert shown(int("f" * 5000, 16)) == "a int too long to be written out"


def test_writing_into_the_folder_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kept").write_text("here")
    monkeypatch.chdir(tmp_path)
    for place in (".", "..", "/", "kept"):
        ended = inside("data", "write", place)
        assert ended.status == 2
        assert ended.err.startswith(f"error: {place}: it exists already")
    assert (tmp_path / "kept").read_text() == "here"


def test_names_are_shown_as_they_are_but_for_control_characters(tmp_path: Path) -> None:
    records = [ClientRecord(examples(6, i), name, examples(2), {"site": name}) for i, name in enumerate(NAMES)]
    data = open_store(write_store(tmp_path / "$n [red]$", records, classes=2, test=examples(4)))
    about = describe(data)
    console = Console(width=400, record=True, file=io.StringIO(), force_terminal=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for table in tables(data, about):
            console.print(table)
        console.print(ranking([Line({"data.path": "[/red] $x$"}, 1, 0.5, 0.0, 0.5, 0.5, 0.5, 0.5, "accuracy")]))
        portrait(data, about, tmp_path / "portrait.png", title="$ [red] \x1b[1m 😀 $_$")
        curves([], tmp_path / "curves.png", title="$a_$ $")
    text = console.export_text()
    assert "$x$ [red]" in text
    assert "[/red] $" in text
    assert "\x1b[31m" not in text
    assert clean("\x1b[31mred\n") == "\N{REPLACEMENT CHARACTER}[31mred\N{REPLACEMENT CHARACTER}"


def test_commands_print_no_escapes_of_names(tmp_path: Path) -> None:
    records = [ClientRecord(examples(6, i), name) for i, name in enumerate(NAMES)]
    write_store(tmp_path / "[/b] \x1b[1m", records, classes=2, test=examples(4))
    place = ("--set", "data.name=store", "--set", "data.path=" + str(tmp_path / "[/b] \x1b[1m"))
    ended = inside("data", "show", *place, "--picture", str(tmp_path / "p.png"))
    assert ended.status == 0, ended.err
    assert "\x1b" not in ended.out
    assert "[/b]" in ended.out


# --- LEAF ------------------------------------------------------------------------------------------------------------


def leaf_file(folder: Path, x: list[Any], y: list[Any], **more: Any) -> str:
    users = {"an\ud83d": {"x": x, "y": y}, "bob": {"x": x, "y": y}}
    tree = {"users": list(users), "num_samples": [len(x)] * 2, "user_data": users, **more}
    (folder / "all.json").write_text(json.dumps(tree))
    return str(folder)


def test_a_cut_emoji_is_a_character_like_others(tmp_path: Path) -> None:
    tweets = [["1", "monday", "none", "ann", f"good \ud83d {i}"] for i in range(6)]
    data = leaf(path=leaf_file(tmp_path, tweets, [0, 4] * 3))
    assert bytes(data.train["inputs"][0]).startswith("good \N{REPLACEMENT CHARACTER}".encode())
    assert set(data.columns["client"]) == {"an\N{REPLACEMENT CHARACTER}", "bob"}
    assert whole_characters("a \N{GRINNING FACE} b") == "a \N{GRINNING FACE} b"


@pytest.mark.parametrize("hierarchies", [5, {"a": 1, "b": 2}, "ab"])
def test_hierarchies_that_are_no_list(tmp_path: Path, hierarchies: Any) -> None:
    with pytest.raises(InputError) as error:
        leaf(path=leaf_file(tmp_path, [[1.0, 2.0]] * 6, [0, 1] * 3, hierarchies=hierarchies))
    one_line(error, "all.json", "hierarchies")


@pytest.mark.parametrize("text", ["inf", "1e400", "-inf"])
def test_labels_that_are_infinite(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError) as error:
        leaf(path=leaf_file(tmp_path, [[1.0, 2.0]] * 6, [text, "1"] * 3))
    one_line(error, "all.json", "inf is no class")


# --- links -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "words"), [
    ("graph [ node [ id [ ] ] ]", "different ids"),
    ("graph [ node [ id 0 ] node [ id 1 ] edge [ source [ ] target 0 distance 1 ] ]", "joins None"),
    (f"graph [ node [ id {DIGITS} ] ]", "line 1"),
    (f"graph [ node [ id 0 ] node [ id 1 ] edge [ source 0 target 1 distance 1 capacity {'9' * 400} ] ]", "line 1"),
    ("graph [ node [ id nan ] node [ id nan ] ]", "line 1 has 'nan'"),
    ("graph [ " * 5000, "ends inside"),
    ("#" * 60 + '\n"', "does not end"),
])  # fmt: skip
def test_odd_networks(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "net.gml").write_text(text)
    with pytest.raises(InputError) as error:
        from_gml(tmp_path / "net.gml")
    one_line(error, "net.gml", words)


def test_tables_and_devices_with_numbers_and_fields_without_end(tmp_path: Path) -> None:
    (tmp_path / "net.csv").write_text("downlink_bps,uplink_bps\n" + "1" * 200_000 + ",1\n")
    (tmp_path / "raw_ai_benchmark_list.json").write_text(DEEP)
    (tmp_path / "speed_distri.json").write_text('{"a": {"down_u": ' + DIGITS + "}}")
    (tmp_path / "trace").write_text("0 1\n1 1e-300\n")
    cases = ((lambda: from_csv(tmp_path / "net.csv"), ("net.csv", "131072")),
             (lambda: from_devices(tmp_path, 3, 0), ("speed_distri.json", "too many digits")),
             (lambda: read_trace(tmp_path / "trace"), ("trace", "1e-294")),
             (lambda: make_profiles(1e6, [1e6, 1e6], latency_s=1e308), ("latency_s", "1e+308")),
             (lambda: make_profiles(1e6, [1e-308, 1e6]), ("uplink_bps", "1e-308")),
             (lambda: load_config(None, ["network.profiles=constant", "network.latency_s=1e308"]),
              ("network.latency_s", "1e+308")),
             (lambda: load_config(None, ["compression.uplink=qsgd", f"compression.levels={10**19}"]),
              ("compression.levels", "1000000000")))  # fmt: skip
    for use, words in cases:
        with pytest.raises(InputError) as error:
            use()
        one_line(error, *words)


def test_masks_are_no_classes_to_diagnose(tmp_path: Path) -> None:
    data = open_store(write_store(tmp_path / "a", [examples(6), examples(6)], classes=2, test=examples(4)))
    masks = {"inputs": data.examples["inputs"], "labels": np.zeros((12, 8, 8), np.int32)}
    tests = {"inputs": np.asarray((data.test or {})["inputs"]), "labels": np.zeros((4, 8, 8), np.int32)}
    with pytest.raises(InputError) as error:
        diagnose(load_config(None, ["model.name=logistic"]), tmp_path / "out", data=data._replace(
            examples=masks, test=tests), seeds=2)  # fmt: skip
    one_line(error, "labels")


def test_halves_of_characters_in_a_text_that_is_written_are_replaced(tmp_path: Path) -> None:
    assert (
        write_whole(tmp_path / "page.html", "a\ud83db \U0001f600").read_text(encoding="utf-8") == "a\ufffdb \U0001f600"
    )
