"""Whole runs, as quick as they get: in this process, or as a command of its own that may be killed."""

import io
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from rich.console import Console

from fedjax_sim.cli import entry
from fedjax_sim.experiment import progress
from fedjax_sim.experiment.config import load_config
from fedjax_sim.experiment.history import Row, read_history
from fedjax_sim.experiment.per_client import ENTRY, FILE, read_table
from fedjax_sim.experiment.run import Summary, run

QUICK = ("model.name=logistic", "training.rounds=4", "training.evaluate_every=4", "execution.devices=1")


class Run(NamedTuple):
    summary: Summary
    rows: list[Row]
    table: np.ndarray  # of single clients
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
    table = read_table(folder / FILE)
    table = np.zeros(0, ENTRY) if table is None else np.array(table)
    return Run(summary, rows, table, json.loads((folder / "summary.json").read_text()), shown.getvalue().splitlines())


class Ended(NamedTuple):
    status: int
    out: str
    err: str


def inside(*arguments: str) -> Ended:
    """A command in this process, as `fedjax-sim` would run it."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    one_device = patch("fedjax_sim.core.devices.use_cpu_devices", lambda count=None: 1)  # JAX has started already
    command = patch.object(sys, "argv", ["fedjax-sim", *arguments])
    with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings(), one_device, command:
        warnings.simplefilter("ignore")
        try:
            entry.main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return Ended(status, out.getvalue(), err.getvalue())


# Imports take seconds: one process has done them, and each command is a child of it that begins as the real one does.
FORKING = """
import importlib, json, os, resource, signal, sys, time, warnings
import fedjax_sim.cli.entry, fedjax_sim.experiment.progress, fedjax_sim.experiment.run, fedjax_sim.plots
import jax, killing, sklearn.datasets

for name in sys.argv[1:]:
    importlib.import_module(name)

def size(path):
    return os.path.getsize(path) if os.path.exists(path) else 0

for line in sys.stdin:
    folder, arguments, watched, seconds, die_at, limit = json.loads(line)
    before = size(watched)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that forking is dangerous; no thread has been started
        child = os.fork()
    if child == 0:
        os.chdir(folder)
        for name, stream in (("out", 1), ("err", 2)):
            os.dup2(os.open(f"{folder}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        warnings.simplefilter("error")
        sys.argv = ["fedjax-sim", *arguments]
        if limit is not None:
            jax.config.update("jax_enable_compilation_cache", False)  # whose files are larger
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        killed = None if die_at is None else killing.die_at(die_at)
        try:
            fedjax_sim.cli.main()
            status = 0
        except SystemExit as end:
            status = end.code or 0
        if killed is not None:
            with open(f"{folder}.operations", "w") as file:
                file.write(str(killed.stop()))
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)  # without a second of tidying up
    deadline = None if watched else time.monotonic() + seconds if seconds is not None else None
    while True:
        done, status = os.waitpid(child, 0 if seconds is None else os.WNOHANG)
        if done:
            break
        if watched and deadline is None and size(watched) > before:  # its first rounds of this life are written
            deadline = time.monotonic() + seconds
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            deadline = None
        time.sleep(0.002)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


def of_round(table: np.ndarray, number: int) -> dict[str, list[Any]]:
    """The values of the clients whose messages counted in that round, by column."""
    mine = table[(table["round"] == number) & table["counted"]]
    return {name: mine[name].tolist() for name in ENTRY.names or ()}


Command = Callable[..., tuple[int, str, str]]


@contextmanager
def commands(*imports: str, **environment: str) -> Iterator[Command]:
    """A function of a folder and of arguments: exit status, stdout and stderr. With `seconds`, the command is killed
    after so many, counted from when the file `watched` has grown if one is given; with `die_at`, at that operation on a
    file (see `killing`), and of one that comes to its end the file FOLDER.operations says how many there were. With
    `limit`, no file may grow beyond so many bytes.
    `imports` are modules that the commands use."""
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here.parent), str(here)])
    variables, pipe = {**os.environ, "FEDJAX_SIM_DATA": "", "COLUMNS": "120", "PYTHONPATH": paths}, subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", FORKING, *imports], stdin=pipe, stdout=pipe, text=True, env=variables | environment
    ) as process:
        given, told = process.stdin, process.stdout
        assert given is not None
        assert told is not None

        def run(
            folder: Path,
            *arguments: str,
            watched: str = "",
            seconds: float | None = None,
            die_at: int | None = None,
            limit: int | None = None,
        ) -> tuple[int, str, str]:
            given.write(json.dumps([str(folder), arguments, watched, seconds, die_at, limit]) + "\n")
            given.flush()
            status = int(told.readline())
            out, err = (folder.with_name(f"{folder.name}.{name}").read_text() for name in ("out", "err"))
            return status, out, err

        yield run
