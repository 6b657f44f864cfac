"""Whole runs in this process, as quick as they get."""

import io
import json
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from fedjax_sim.experiment import progress
from fedjax_sim.experiment.config import load_config
from fedjax_sim.experiment.history import Row, read_history
from fedjax_sim.experiment.run import Summary, run

QUICK = ("model.name=logistic", "training.rounds=4", "training.evaluate_every=4", "execution.devices=1")


class Run(NamedTuple):
    summary: Summary
    rows: list[Row]
    written: dict[str, Any]  # summary.json
    lines: list[str]  # printed


def trained(folder: Path, *overrides: str, path: Path | None = None) -> Run:
    base = () if path else QUICK
    config = load_config(path, [*base, f"output.folder={folder.parent}", f"output.name={folder.name}", *overrides])
    shown = io.StringIO()
    console = Console(file=shown, width=100)
    summary = run(config, progress.plain(console, config.training.rounds))
    for line in progress.closing(summary, config.training.rounds):
        console.print(line, soft_wrap=True)
    rows = read_history(folder / "history.jsonl")
    return Run(summary, rows, json.loads((folder / "summary.json").read_text()), shown.getvalue().splitlines())
