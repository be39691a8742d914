"""`outpost deploy`: changed files onto a running board in development mode."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from outpost_tools.cli.boards import LibraryName
from outpost_tools.cli.common import JsonOption, app, print_json, say
from outpost_tools.cli.flash import PortOption
from outpost_tools.errors import OutpostError

if TYPE_CHECKING:
    from outpost_tools.deploying import Deployed


@app.command("deploy", epilog="Example: outpost deploy my-app/ --port /dev/ttyUSB0")
def deploy_command(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="Folder with your main.py.  [the example]"),
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="ID", help="Refuse a board that is another device.")
    ] = None,
    port: PortOption = None,
    library: Annotated[
        LibraryName, typer.Option(help="flash: bring lib/outpost too, compiled.")
    ] = LibraryName.frozen,
    prune: Annotated[
        bool,
        typer.Option("--prune", help="Remove from the board what is not in the folder any more."),
    ] = False,
    wait: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="Show the console until it connects; 0: do not."),
    ] = 90,
    as_json: JsonOption = False,
) -> None:
    """Send the files that differ from the board's, restart it, and watch it connect.

    Modules go compiled (.mpy), main.py and boot.py as they are. Files on the board that are not in
    the folder stay, and are named; --prune removes them, what the application wrote there too.
    Its keys, its trust bundle, its configuration and the messages that wait are not touched. A
    board in production mode takes signed software only: `outpost app push`.
    """
    from outpost_tools import deploying, watching
    from outpost_tools.image import software
    from outpost_tools.ports import find_port, open_port

    name = find_port(port)
    files = software(library.value, folder)
    deploying.refuse_kept(files)
    try:
        done = deploying.deploy(
            deploying.Mpremote(name),
            files,
            device,
            prune=prune,
            library=library is LibraryName.flash,
        )
    except OutpostError:
        # The prompt stopped what ran there.
        with suppress(OutpostError):
            opened = open_port(name)
            try:
                watching.restart(opened)
            finally:
                opened.close()
        raise
    online = None
    if not as_json:
        _tell(done, files)
    opened = open_port(name)
    try:
        watching.restart(opened)
        if wait > 0:
            shown = (lambda line: typer.echo(line, err=True)) if as_json else say
            online = watching.until_connected(opened, wait, shown)
    finally:
        opened.close()
    if as_json:
        print_json({**vars(done), "port": name, "online": online})
    if online is False:
        raise OutpostError(
            f"The files are on the board, and it has not connected in {wait:.0f} s: the lines "
            "above say why."
        )


def _tell(done: "Deployed", files: dict[str, bytes]) -> None:
    for path in done.sent:
        typer.echo(f"  {path}: {len(files[path])} bytes")
    for path in done.removed:
        typer.echo(f"  {path}: removed")
    typer.echo(f"  {len(done.sent)} files sent, {done.same} were the same.")
    if done.left:
        more = f" and {len(done.left) - 8} more" if len(done.left) > 8 else ""
        typer.echo(
            f"  Not in the folder, and left on the board: {', '.join(done.left[:8])}{more}. "
            "--prune removes them."
        )
    if done.left_slot:
        typer.echo("  It ran an update, and runs the files in / again from now on.")
