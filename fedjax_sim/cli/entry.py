"""How every command ends: with a status, and one line where something was wrong. Heavy imports are inside commands."""

import os
import platform
import sys
import tempfile
import traceback
import warnings
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import typer

import fedjax_sim
import fedjax_sim.cli.data
import fedjax_sim.cli.reports
import fedjax_sim.cli.studies
import fedjax_sim.cli.training  # each of these adds its commands
from fedjax_sim._interrupt import leave
from fedjax_sim.cli.compiled import keep_compiled
from fedjax_sim.cli.program import app

# click's UsageError, or that of the copy of click which newer versions of typer bring along
USAGE_ERRORS = cast(tuple[type[Exception], ...], typer.BadParameter.__bases__)
UNFORESEEN = 1  # the exit status of what should not have happened


def main() -> None:
    """Runs a command: bad input is one line on stderr and exit status 2, never a traceback."""
    warnings.showwarning = _warn
    keep_compiled()
    try:
        if (here := os.getcwd()) not in sys.path:  # for code of the user's own, after whatever is installed
            sys.path.append(here)
        status = app(standalone_mode=False)
        if status == 130:  # which newer versions of typer make of Ctrl-C
            raise KeyboardInterrupt
        sys.stdout.flush()  # which Python would do when it is too late to say anything
        sys.exit(status)
    except USAGE_ERRORS as error:  # how the command was written
        _fail(getattr(error, "format_message", error.__str__)())
    except OSError as error:
        from fedjax_sim._validate import os_reason

        if isinstance(error, BrokenPipeError):  # whoever read the output has gone, `head` for instance
            os._exit(141)
        _fail(os_reason(error), error=error)
    except (KeyboardInterrupt, typer.Abort):
        leave()
    except Exception as error:
        from fedjax_sim._validate import InputError
        from fedjax_sim.distributed import Agreed, Lost

        told, cause = error, error.__cause__
        if isinstance(error, Agreed) and isinstance(cause, Exception) and not isinstance(cause, InputError | OSError):
            error = cause
        if isinstance(error, InputError):
            _fail(error, error=told)
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):  # the latter is how JAX says it
            text = f"not enough memory ({str(error)[:200] or 'for it'}); take a smaller model, or fewer clients"
            _fail(text, error=told)
        _fail(error if isinstance(error, Lost) else _reported(error), UNFORESEEN, error=told)


def _warn(message: Any, *_: Any, **__: Any) -> None:
    print(f"warning: {_line(message)}", file=sys.stderr)


def _fail(message: Any, status: int = 2, *, error: Exception | None = None) -> None:
    print(f"error: {_line(message)}", file=sys.stderr)
    others = sys.modules.get("fedjax_sim.distributed")
    if others is not None and others.joined():
        if not isinstance(error, others.Agreed):  # they do not know of it, and notice when this process is gone
            leave(status, text="")
        try:
            others.finish()
        except RuntimeError:  # one of them has gone already
            leave(status, text="")
    sys.exit(status)


def _line(message: Any) -> str:
    """`message` on one line, without control characters."""
    text = " ".join(str(message).splitlines())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _reported(error: Exception) -> str:
    """What to say of an error that nobody foresaw; its traceback goes into a file."""
    path = Path(tempfile.gettempdir()) / f"fedjax-sim-error-{datetime.now():%Y-%m-%d_%H-%M-%S}-{os.getpid()}.log"
    about = f"fedjax_sim {fedjax_sim.__version__}, Python {platform.python_version()}, {platform.platform()}\n"
    text = f"{sys.argv}\n{about}\n{''.join(traceback.format_exception(error))}"
    try:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as reason:
        where = f"no report could be written ({reason.strerror})"
    else:
        where = f"please report it with {path}"
    return f"{type(error).__name__}: {str(error)[:300] or 'without a message'}; this was not foreseen, {where}"
