"""What every command of `outpost` shares: the application, its options, and how it speaks.

An error is one sentence on stderr and exit status 1; a secret is never printed.
"""

import errno
import json
import os
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from outpost_tools.errors import OutpostError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Commands(TyperGroup):
    """Turns our one exception into one sentence, for every command below it."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except OutpostError as why:
            typer.echo(f"outpost: {why}", err=True)
            raise typer.Exit(1) from None
        except typer.BadParameter as why:
            said = why.format_message().replace("Value error, ", "").rstrip(".")
            typer.echo(f"outpost: {said}.", err=True)
            raise typer.Exit(2) from None
        except BrokenPipeError:
            # Whoever read our output has seen enough. Nothing more may be written to it.
            _stop_writing()
            raise typer.Exit(1) from None
        except OSError as why:
            if why.errno not in _NO_ROOM:
                raise
            typer.echo(
                f"outpost: The disk is full ({why.strerror}): make room, and run the same command "
                "again. What stood there before is as it was.",
                err=True,
            )
            raise typer.Exit(1) from None


HELP_NAMES = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    cls=Commands,
    name="outpost",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=HELP_NAMES,
    help="Make devices and their flash images, run virtual boards, and run a local hub.",
    epilog="Example: outpost device new pump-7 && outpost image pump-7 -o pump-7.bin",
)


def group(name: str, text: str) -> typer.Typer:
    """A group of commands, `outpost {name} ...`."""
    made = typer.Typer(
        help=text, no_args_is_help=True, rich_markup_mode=None, context_settings=HELP_NAMES
    )
    app.add_typer(made, name=name)
    return made


class ChainName(StrEnum):
    rsa = "rsa"
    ecdsa = "ecdsa"
    both = "both"


class Which(StrEnum):
    primary = "primary"
    secondary = "secondary"
    both = "both"
    swap = "swap"


DeviceArgument = Annotated[str, typer.Argument(metavar="ID", help="The device's id.")]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Folder of the registry and the development CA.  [$OUTPOST_DATA or ./outpost-data]",
        show_default=False,
    ),
]
ConnectionOption = Annotated[
    str | None,
    typer.Option(
        "--connection",
        metavar="FILE|TEXT",
        help="Service connection string of a hub, better in a file than in the command.  "
        "[$OUTPOST_CONNECTION_STRING, else the local hub]",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def say(text: str) -> None:
    """A line from any thread. Where nobody reads any more, the whole program ends in order."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        _stop_writing()
        os.kill(os.getpid(), signal.SIGTERM)


def _stop_writing() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_json(content: Any) -> None:
    typer.echo(json.dumps(content))


def answer(as_json: bool, content: Any, *lines: str) -> None:
    """What a command has to say: for a program, or line by line for a person."""
    if as_json:
        print_json(content)
    else:
        for line in lines:
            typer.echo(line)
