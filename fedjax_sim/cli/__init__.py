"""The command line."""

from fedjax_sim.cli.entry import main
from fedjax_sim.cli.program import app

__all__ = ["app", "main"]
