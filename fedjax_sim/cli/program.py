"""The program `fedjax-sim`, what its commands have in common, and how they end."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="fedjax-sim",
    help="Simulates federated learning, fast.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigPath = Annotated[
    Path | None, typer.Argument(help="TOML file; without it, the default experiment.", metavar="CONFIG")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Changes one setting, such as training.rounds=50; may be repeated."
    ),
]


def _refuse(asked: bool) -> bool:
    if asked:
        raise typer.BadParameter("many runs are made by one process; leave it out, or give each process a part of them")
    return asked


Alone = Annotated[bool, typer.Option("--distributed", hidden=True, callback=_refuse)]


@app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    """Simulates federated learning, fast."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
