"""Kills this process at a chosen operation on a file: before it is done, or where something is written, half-way.
Of a database, before what is written becomes part of it."""

import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from typing import Any

from fedjax_sim.core import host
from fedjax_sim.experiment import folder

LASTING = ("COMMIT", "CREATE")  # statements that leave something behind; what others do goes with the process
EVENTS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")


class Killed:
    """Counts operations on files below the working folder; kills the process at number `at`, from 1 on."""

    def __init__(self, at: int):
        self.at, self.count, self.on, self.here = at, 0, True, os.getcwd() + os.sep

    def __call__(self) -> bool:
        """Counts; whether this is the one."""
        self.count += self.on
        return self.on and self.count == self.at

    def reached(self) -> None:
        if self():
            os.kill(os.getpid(), signal.SIGKILL)

    def stop(self) -> int:
        """How many there were."""
        self.on = False
        return self.count

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, _, flags = args
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if writes and self.concerns(path):
                self.reached()
        elif event in EVENTS and (self.concerns(args[0]) or (event != "os.truncate" and args[-1] != -1)):
            self.reached()

    def concerns(self, path: Any) -> bool:
        """A relative path, one below the working folder, or a descriptor."""
        if isinstance(path, int):
            return True
        text = os.fsdecode(path)
        return not os.path.isabs(text) or text.startswith(self.here)


def die_at(number: int) -> Killed:
    """From now on."""
    killed = Killed(number)
    sys.addaudithook(killed.audit)
    fsync = os.fsync

    def synced(descriptor: int) -> None:
        killed.reached()
        fsync(descriptor)

    def torn(write: Callable[..., None], half: Callable[[Any], Any]) -> Callable[..., None]:
        def writes(file: Any, source: Any) -> None:
            killed.reached()
            if killed():
                file.write(half(source))
                os.kill(os.getpid(), signal.SIGKILL)
            write(file, source)

        return writes

    def stated(statement: str) -> None:
        if statement.lstrip().upper().startswith(LASTING):
            killed.reached()

    def connected(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        connection = connect(*args, **kwargs)
        connection.set_trace_callback(stated)
        return connection

    os.fsync, connect, sqlite3.connect = synced, sqlite3.connect, connected
    host._write = torn(host._write, lambda source: source[: len(source) // 2])
    folder.append_line = torn(folder.append_line, lambda line: line[: len(line) // 2].encode())
    for module in [m for name, m in sys.modules.items() if name.startswith("fedjax_sim.")]:
        if "append_line" in vars(module):
            vars(module)["append_line"] = folder.append_line
    return killed
