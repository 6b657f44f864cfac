"""Reports: what is in them is what is in the files, and nothing in the files can break them."""

import json
import math
import re
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import one_line
from runs import Run as Trained
from runs import trained
from typer.testing import CliRunner

from fedjax_sim import InputError
from fedjax_sim.cli.entry import app
from fedjax_sim.experiment.config import load_config, to_toml
from fedjax_sim.experiment.per_client import ENTRY
from fedjax_sim.plots.style import thin
from fedjax_sim.report import tables
from fedjax_sim.report.charts import parts
from fedjax_sim.report.compare import difference, group
from fedjax_sim.report.facts import facts, trend, verdict
from fedjax_sim.report.page import comparison_page, report_page
from fedjax_sim.report.read import read_run, read_runs

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """A page's tags, text and figures; tags that are not balanced fail."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source, self.open, self.tags, self.ids = text, [], [], []
        self.headings, self.cells, self.words, self.figures = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag == "svg":
            self.figures.append({"title": "", "paths": 0})
        if tag == "path" and "svg" in self.open:
            self.figures[-1]["paths"] += "L" in (dict(attrs).get("d") or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        within = self.open[-1] if self.open else ""
        if within in ("h1", "h2"):
            self.headings.append(data)
        elif within in ("td", "th"):
            self.cells.append(data)
        if within == "title" and "svg" in self.open:
            self.figures[-1]["title"] += data
        if "style" not in self.open and "svg" not in self.open:
            self.words.append(data)

    def check(self) -> "Page":
        """It stands by itself, and each figure says what it is and has something drawn."""
        assert len(self.ids) == len(set(self.ids))
        for tag, attributes in self.tags:
            assert tag not in ("script", "link", "img", "iframe", "object", "embed", "base")
            for name, value in attributes.items():
                assert not name.startswith("on")
                if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
                    assert (value or "").startswith("#")
                    assert (value or "")[1:] in self.ids
                for target in re.findall(r"url\(([^)]*)\)", value or ""):
                    assert target.startswith("#")
                    assert target[1:] in self.ids
        style = self.source.partition("</style>")[0]
        assert "url(" not in style
        assert "@import" not in style
        assert set(re.findall(r"https?://[\w./]*", self.source)) <= {
            "http://www.w3.org/2000/svg",
            "http://www.w3.org/1999/xlink",
        }
        for figure in self.figures:
            assert len(figure["title"].split()) > 2
            assert figure["paths"] > 2
        return self


def row(number: int, accuracy: float | None = None, **others: Any) -> dict[str, Any]:
    found = {"round": number, "clients": 2, "loss_before": 2.0 / number, "loss_after": 1.0 / number, "drift": 0.1,
             "update_norm": 0.5, "cosine": 0.3, "rejected": 0, "aggregate_norm": 0.4, "gradient_diversity": 1.5,
             "uplink_bits": 8000, "downlink_bits": 16000, "elapsed_seconds": 0.01 * number,
             "test_accuracy": accuracy, "test_loss": None if accuracy is None else 1 - accuracy,
             "test_class_accuracy": None if accuracy is None else [accuracy, 0.5]}  # fmt: skip
    return {**found, **others}


def write(folder: Path, rows: list[dict[str, Any]], *overrides: str, **files: Any) -> Path:
    """A run folder; `files` are the contents of summary and clients."""
    folder.mkdir()
    (folder / "history.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    config = load_config(None, [f"training.rounds={max(len(rows), 1)}", *overrides])
    (folder / "config.toml").write_text(to_toml(config))
    if "summary" in files:
        (folder / "summary.json").write_text(json.dumps({"status": "finished", **files["summary"]}))
    if "clients" in files:
        (folder / "clients.jsonl").write_text("".join(json.dumps(c) + "\n" for c in files["clients"]))
    return folder


def took_part(folder: Path, rounds: list[list[int]]) -> None:
    """Writes who took part in each round."""
    found = np.zeros(sum(map(len, rounds)), ENTRY)
    found["round"] = np.repeat(np.arange(1, len(rounds) + 1), [len(ids) for ids in rounds])
    found["client"], found["counted"], found["asked"] = np.concatenate(rounds), True, 1
    np.save(folder / "per_client.npy", found)


def page(folder: Path) -> Page:
    run = read_run(folder)
    return Page(report_page(run, facts(run))).check()


def seeds(tmp_path: Path, name: str, accuracies: list[float], *overrides: str) -> list[Path]:
    return [
        write(tmp_path / f"{name}{i}", [row(1, 0.1), row(2, a)], f"training.seed={i}", *overrides, summary={})
        for i, a in enumerate(accuracies)
    ]


# --- of real runs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Trained]]:
    base = tmp_path_factory.mktemp("runs")
    options = {
        "network": ("network.profiles=lognormal", "data.local_test_fraction=0.3", "training.evaluate_every=2"),
        "private": ("privacy.mechanism=gaussian", "privacy.clip_norm=1.0", "privacy.noise_multiplier=3.0",
                    "training.sampling=poisson", "training.evaluate_every=1"),
    }  # fmt: skip
    return {name: (base / name, trained(base / name, *given)) for name, given in options.items()}


def test_a_run_with_a_clock_and_tested_clients(runs: dict[str, tuple[Path, Trained]]) -> None:
    folder, run = runs["network"]
    found = page(folder)
    assert found.headings == [
        "network: fedavg on digits, logistic", "Results", "Accuracy and loss", "What clients do to the model",
        "Accuracy by class", "Each client", "Participation", "Communication", "Settings", "Environment",
    ]  # fmt: skip
    told, own = run.written, run.written["own_tests"]
    for value in (
        f"{told['test_accuracy']:.1%}",
        f"{told['best_test_accuracy']:.1%} in round {told['best_round']}",
        f"{own['global_accuracy']:.1%}",
        f"{own['global_worst_tenth']:.1%}",
        f"{own['personal_accuracy']:.1%}",
        f"{own['personal_worst_tenth']:.1%}",
        f"{told['uplink_bits'] / 8e3:.3g} kB",
        f"{told['downlink_bits'] / 8e3:.3g} kB",
        tables.duration(told["simulated_seconds"]),
        f"{told['rounds_per_second']:.3g}",
        told["environment"]["jax"],
        "network.profiles",
        "lognormal",
    ):
        assert value in found.cells, value
    titles = " ".join(figure["title"] for figure in found.figures)
    for words in ("Test accuracy", "Accuracy of each client", "Who took part", "simulated time", "Length of a round"):
        assert words in titles
    clients = [json.loads(line) for line in (folder / "clients.jsonl").read_text().splitlines()]
    assert all(client["name"] in found.cells for client in clients)
    assert (folder / "config.toml").read_text() in "".join(found.words)


def test_who_took_part_is_counted_from_the_rows(runs: dict[str, tuple[Path, Trained]]) -> None:
    folder, run = runs["network"]
    found = {part.client: part for part in parts(read_run(folder))}
    for client in range(20):
        times = (run.table["client"][run.table["counted"]] == client).sum()
        assert (found[client].counted if client in found else 0) == times
        assert (found[client].last if client in found else 0) == sum(row["slowest"] == client for row in run.rows)


def test_a_private_run(runs: dict[str, tuple[Path, Trained]]) -> None:
    folder, run = runs["private"]
    found = page(folder)
    assert "Privacy" in found.headings
    assert "Each client" not in found.headings
    assert f"{run.written['epsilon']:.3g}" in found.cells
    assert run.written["privacy"] in found.cells
    titles = " ".join(figure["title"] for figure in found.figures)
    for words in ("Epsilon spent", "Clipped messages", "Signal to noise"):
        assert words in titles


def test_many_clients(tmp_path: Path) -> None:
    clients = [{"client": i, "name": f"ward {i}", "test_examples": 9, "global_accuracy": i / 100,
                "personal_accuracy": 0.5} for i in range(50)]  # fmt: skip
    rows = [row(i, 0.5) for i in range(1, 60)]
    folder = write(tmp_path / "run", rows, summary={}, clients=clients)
    took_part(folder, [[0, *range(i, i + 10)] for i in range(1, 60)])
    found = page(folder)
    assert "2.0%" in found.cells  # the worst tenth: 0 to 4 %
    assert "shaded: the worst tenth under the global model, 5 of 50." in "".join(found.words)
    assert {"ward 0", "ward 19"} <= set(found.cells)
    assert "ward 20" not in found.cells
    assert "69 clients were seen." in "".join(found.words)


# --- what runs end like ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "summary", "words"),
    [
        ([row(1), row(2, 0.5)], None, "Unfinished: 2 of 9 rounds are there"),
        ([], None, "Unfinished: 0 of 9 rounds"),
        ([row(1)], {"status": "interrupted"}, "Interrupted after 1 of 9 rounds."),
        ([row(1)], {"status": "plateau"}, "Stopped after 1 of 9 rounds, for accuracy had stopped improving."),
        ([row(1)], {"status": "new"}, "Ended as 'new' after 1 of 9 rounds."),
        ([row(1)], {"rounds": 3}, "summary.json is of 3 rounds, the history has 1"),
        ([row(1)], {"status": "spent"}, "Stopped by its privacy budget after 1 of 9 rounds"),
        ([row(1), row(2, loss_before=None)], {"status": "diverged", "divergence": {"round": 2, "metric": "drift"}},
         "The model diverged: drift is not finite in round 2"),
    ],
)  # fmt: skip
def test_every_end_is_said(tmp_path: Path, rows: list, summary: dict | None, words: str) -> None:
    files = {} if summary is None else {"summary": summary}
    folder = write(tmp_path / "run", rows, "training.rounds=9", **files)
    assert words in "".join(page(folder).words)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0.1 * i for i in range(10)], "It still improves: +40.0 points over the last 4 rounds; more rounds may pay."),
        ([0.9 - 0.05 * i for i in range(10)], "It is getting worse: -20.0 points over the last 4 rounds."),
        ([0.5, 0.6] * 5, "It has levelled off: no clear change over the last 4 rounds."),
        ([0.5, 0.6], "These are too few evaluations to say whether it still improves."),
    ],
)
def test_whether_it_still_improves(tmp_path: Path, values: list[float], words: str) -> None:
    run = read_run(write(tmp_path / "run", [row(i + 1, v) for i, v in enumerate(values)]))
    assert trend(run) == words
    assert words in verdict(run, facts(run))


# --- what may be wrong with files ------------------------------------------------------------------------------------


def test_text_from_files_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('$x$')</script>\x00\x1b[31m"
    clients = [{"client": i, "name": f"{evil}{i}", "test_examples": 3, "global_accuracy": 0.5, "personal_accuracy": 0.6}
               for i in range(3)]  # fmt: skip
    summary = {"privacy": evil, "environment": {evil: evil}, "divergence": {"metric": evil}, "status": "diverged"}
    folder = write(tmp_path / "<b>run", [row(1, 0.5, asked=3)], f"data.path={evil[:8]}", summary=summary,
                   clients=clients)  # fmt: skip
    took_part(folder, [[0, 2]])
    found = page(folder)
    assert "<script" not in found.source
    assert "\x1b" not in found.source
    assert "<script>alert('$x$')</script>\N{REPLACEMENT CHARACTER}" in "".join(found.words)


def test_broken_files_are_left_out_with_a_note(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", [row(1), row(2, 0.5, test_class_accuracy=[None, 0.5])])
    with open(folder / "history.jsonl", "a") as file:
        file.write('{"round": 3, "loss')
    (folder / "summary.json").write_text('{"status": ')
    (folder / "config.toml").write_text("rounds = = 3")
    (folder / "clients.jsonl").write_text('{"client": 1, "global_accuracy": 0.75}\n{"client": 2, "glo')
    found = page(folder)
    text = "".join(found.words)
    for words in ("The last line of history.jsonl is cut off", "summary.json cannot be read", "config.toml cannot be",
                  "1 of 2 lines of clients.jsonl", "Unfinished: 2 rounds are there"):  # fmt: skip
        assert words in text
    assert "75.0%" in found.cells  # of the client that is there
    (folder / "config.toml").unlink()
    (folder / "summary.json").write_text('["finished"]')
    notes = read_run(folder).notes
    assert any("There is no config.toml" in note for note in notes)
    assert any("summary.json is no summary" in note for note in notes)


def test_values_of_other_types_are_left_out(tmp_path: Path) -> None:
    odd = {"loss_before": "low", "uplink_bits": None, "elapsed_seconds": None, "test_accuracy": True, "slowest": [1],
           "epsilon": float("nan"), "test_class_accuracy": {},
           "drift": 10**400}  # fmt: skip
    folder = write(tmp_path / "run", [row(1, 0.4), row(2, 0.5, **odd)], summary={"own_tests": 3, "seconds": "1"})
    assert "40.0%" in page(folder).cells


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, ("no such folder", "runs/NAME")),
        (lambda folder: folder.mkdir(), ("no history.jsonl", "give the folder of a run")),
        (lambda folder: write(folder, [{"round": 1}, {"rounds": 2}]), ("history.jsonl", "line 2")),
        (lambda folder: write(folder, [{"round": "one"}]), ("history.jsonl", "'one'", "line 1")),
        (
            lambda folder: (write(folder, []) / "history.jsonl").write_bytes(b"\xff\xfe\n"),
            ("history.jsonl", "not text"),
        ),
    ],
)
def test_what_is_no_run_is_one_line(tmp_path: Path, make: Callable[[Path], Any], words: tuple[str, ...]) -> None:
    make(tmp_path / "run")
    with pytest.raises(InputError) as error:
        read_run(tmp_path / "run")
    one_line(error, str(tmp_path / "run"), *words)


# --- side by side ----------------------------------------------------------------------------------------------------


def test_replicates_have_a_mean_a_deviation_and_a_paired_interval(tmp_path: Path) -> None:
    one, other = [0.50, 0.60, 0.55], [0.56, 0.62, 0.62]
    folders = seeds(tmp_path, "a", one) + seeds(tmp_path, "b", other, "algorithm.learning_rate=0.5")
    groups, notes = group(read_runs(folders[::-1]))  # whatever the order they are given in
    assert notes == []
    assert [[f.accuracy for f in g.facts] for g in groups] == [other, one]
    groups = groups[::-1]
    found = difference(groups[0], groups[1])
    assert found is not None
    assert found.seeds == 3
    assert found.points == pytest.approx(5)  # of 6, 2 and 7
    assert found.half_width == pytest.approx(4.302653 * math.sqrt((1 + 9 + 4) / 2) / math.sqrt(3), rel=1e-6)
    table = tables.comparison(groups)
    assert table.header[:4] == ["algorithm.learning_rate", "seeds", "status", "rounds"]
    assert [r[0] for r in table.rows] == ["0.1", "0.5"]
    column = table.header.index("test accuracy")
    assert [r[column] for r in table.rows] == ["55.0 ± 5.0%", "60.0 ± 3.5%"]
    assert [r[column + 1] for r in table.rows] == ["-", "+5.0 ± 6.6"]
    drawn = Page(comparison_page(groups, notes)).check()
    assert {"55.0 ± 5.0%", "+5.0 ± 6.6"} <= set(drawn.cells)
    text = "".join(drawn.words)
    assert "learning_rate=0.5 against learning_rate=0.1: +5.0 points, -1.6 to +11.6 at 95 % over 3 paired seeds" in text
    assert "Student's t" in text


def test_only_what_differs_is_a_column(tmp_path: Path) -> None:
    folders = [
        write(tmp_path / name, [row(1, 0.5)], f"output.name={name}", *given)
        for name, given in (("a", ()), ("b", ("data.alpha=0.1", "algorithm.name=scaffold")))
    ]
    groups, _ = group(read_runs(folders))
    assert set(groups[0].settings) == {"data.alpha", "algorithm.name"}
    assert [g.label for g in groups] == ["fedavg", "scaffold"]  # alpha is not set in one of them
    text = Page(comparison_page(groups, [])).check().words
    assert any("unfinished" in word for word in text)
    found = difference(groups[0], groups[1])
    assert found is not None
    assert found.half_width is None


def test_seeds_that_do_not_match_have_no_interval_and_twins_count_once(tmp_path: Path) -> None:
    folders = [*seeds(tmp_path, "a", [0.5, 0.6]), *seeds(tmp_path, "b", [0.7], "data.alpha=0.1")]
    twin = write(tmp_path / "twin", [row(1, 0.9)], "training.rounds=2", "training.seed=1")
    groups, notes = group(read_runs([*folders, twin]))
    assert len(notes) == 1
    assert "twin is left out" in notes[0]
    found = difference(groups[0], groups[1])
    assert found is not None
    assert (found.half_width, found.points) == (None, pytest.approx(15))
    assert any("without an interval" in words for words in tables.explained(groups))


# --- much of it ------------------------------------------------------------------------------------------------------


def test_thinning_keeps_ends_and_extremes() -> None:
    y = [math.sin(i / 50) for i in range(100_000)]
    y[31_415], y[27_182] = 9.0, -9.0
    x, kept = thin(range(100_000), y)
    assert len(x) <= 2000
    assert x == sorted(set(x))
    assert (x[0], x[-1]) == (0, 99_999)
    assert {9.0, -9.0} <= set(kept)
    assert all(kept[i] == y[int(x[i])] for i in range(len(x)))


@pytest.mark.slow
def test_a_hundred_thousand_rounds_are_a_small_page(tmp_path: Path) -> None:
    line = json.dumps(row(12345678, 0.5))
    folder = write(tmp_path / "run", [], "training.rounds=100000")
    accuracy = [f"{0.5 + 0.4 * math.sin(i):.4f}" for i in range(1, 100_001)]
    (folder / "history.jsonl").write_text(
        "".join(f"{line}\n".replace("12345678", str(i)).replace("0.5", a) for i, a in enumerate(accuracy, 1))
    )
    took_part(folder, [[1, 2, 3]] * 100_000)
    began = time.process_time()
    found = page(folder)
    assert time.process_time() - began < 20
    assert len(found.source) < 3_000_000
    assert "100,000 of 100,000" in found.cells


# --- the commands ----------------------------------------------------------------------------------------------------


def test_commands_print_and_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [str(f.relative_to(tmp_path)) for f in seeds(tmp_path, "a", [0.5, 0.6])]
    done = CliRunner().invoke(app, ["report", folders[0]])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert [line.split(maxsplit=1) for line in lines[:2]] == [["status", "finished"], ["rounds", "2 of 2"]]
    assert ["test", "accuracy", "50.0%"] in [line.split() for line in lines]
    assert lines[-1] == "Written to a0/report.html"
    Page(Path("a0/report.html").read_text()).check()
    assert facts(read_run("a0")).accuracy == 0.5

    done = CliRunner().invoke(app, ["compare", *folders, "--output", "both.html"])
    assert done.exit_code == 0, done.output
    assert "55.0 ± 7.1%" in done.output
    assert "Written to both.html" in done.output
    Page(Path("both.html").read_text()).check()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("report", "a0", "--output", "x.png"), ("--output", "x.png", ".html")),
        (("report", "a0", "--output", "none/x.html"), ("--output", "none", "no folder")),
        (("compare", "a0"), ("two folders",)),
        (("compare", "a0", "./a0"), ("a0", "twice")),
        (("compare", "a0", "nothing"), ("nothing", "no such folder")),
    ],
)
def test_commands_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    seeds(tmp_path, "a", [0.5])
    with pytest.raises(InputError) as error:
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    one_line(error, *words)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a0"]
