"""Ctrl-C on the command line, from before the first slow import on: one line and exit status 130 at any moment."""

from __future__ import annotations  # nothing that takes time is imported here

import contextlib
import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, NoReturn

STATUS = 130
TEXT = (
    "interrupted; a run that has a folder goes on with fedjax-sim resume, "
    "a sweep, a search or a diagnosis with the same command"
)


def heed() -> None:
    """Has Ctrl-C raise KeyboardInterrupt, and end the process where nobody could catch that: within an import, in a
    finalizer, and when it comes again. Where Ctrl-C is ignored, as in the background of a shell, it stays so."""
    asked = [0]

    def handle(number: int, frame: FrameType | None) -> None:
        asked[0] += 1
        interrupt(frame, again=asked[0] > 1)

    def unraisable(given: Any) -> None:
        if issubclass(given.exc_type, KeyboardInterrupt):
            leave()
        sys.__unraisablehook__(given)

    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, handle)
    sys.unraisablehook = unraisable


def interrupt(frame: FrameType | None, *, again: bool = False) -> NoReturn:
    """What a handler does that has nothing better to do: raises KeyboardInterrupt, or ends the process."""
    if again or _importing(frame):
        leave()
    raise KeyboardInterrupt


def leave(status: int = STATUS, text: str = TEXT) -> NoReturn:
    """Exits at once: JAX crashes in its tear-down when an import or a compilation was interrupted."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, RuntimeError, ValueError):  # gone, or being written to just now
            stream.flush()
    if text:
        with contextlib.suppress(OSError):
            os.write(2, f"{text}\n".encode())
    os._exit(status)


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported: some swallow what is raised there, others are left half made."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
