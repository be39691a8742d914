"""The console command `outpost`.

It owns the words of the command line and nothing else: what each command does stands in the module
of its name outside this package. Importing a module here adds its commands.
"""

from typing import Annotated

import typer

from outpost_tools import __version__
from outpost_tools.cli import (
    authority,
    boards,
    born,
    devices,
    enrol,
    factory,
    hub,
    provision,
    rotate,
    serve,
    service,
    sign,
    tokens,
    trust,
)
from outpost_tools.cli.common import app


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"outpost {__version__}")
        raise typer.Exit()


@app.callback()
def _outpost(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    app()


__all__ = [
    "app",
    "authority",
    "boards",
    "born",
    "devices",
    "enrol",
    "factory",
    "hub",
    "main",
    "provision",
    "rotate",
    "serve",
    "service",
    "sign",
    "tokens",
    "trust",
]
