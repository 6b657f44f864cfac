"""The command line."""

import signal

from fedjax_sim import _interrupt


def main() -> None:
    """The entry point. Ctrl-C is answered from here on, before anything slow is imported."""
    _interrupt.heed()
    try:
        from fedjax_sim.cli.entry import main as enter

        enter()
    except KeyboardInterrupt:
        _interrupt.leave()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done and the status is known: only tidying up is left


__all__ = ["main"]
