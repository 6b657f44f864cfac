"""The entry point. Heavy imports happen inside the commands, so that help and errors are quick."""

import os
import sys
import warnings
from typing import Any, cast

import typer

import fedjax_sim.cli.data
import fedjax_sim.cli.reports
import fedjax_sim.cli.studies
import fedjax_sim.cli.training  # noqa: F401  (each of these adds its commands)
from fedjax_sim.cli.program import app, leave

# click's UsageError, or that of the copy of click which newer versions of typer bring along
USAGE_ERRORS = cast(tuple[type[Exception], ...], typer.BadParameter.__bases__)


def _one_line(message: Any, *_: Any, **__: Any) -> None:
    print(f"warning: {' '.join(str(message).splitlines())}", file=sys.stderr)


def main() -> None:
    """The entry point: bad input is one line on stderr and exit status 2, never a traceback."""
    warnings.showwarning = _one_line
    try:
        if (status := app(standalone_mode=False)) != 130:  # which newer versions of typer make of Ctrl-C
            sys.exit(status)
        raise KeyboardInterrupt
    except USAGE_ERRORS as error:  # how the command was written
        _fail(getattr(error, "format_message", error.__str__)())
    except ValueError as error:
        from fedjax_sim._validate import InputError

        if not isinstance(error, InputError):
            raise
        _fail(error)
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # whoever read the output has gone, `head` for instance
            os._exit(141)
        name = f"{error.filename}: " if error.filename else ""
        _fail(f"{name}{error.strerror or error}; make room, or give another place")
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted; where a folder keeps what was done, the same command goes on", file=sys.stderr)
        leave(130)


def _fail(message: Any) -> None:
    print(f"error: {' '.join(str(message).splitlines())}", file=sys.stderr)
    sys.exit(2)
