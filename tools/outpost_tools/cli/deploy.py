"""`outpost deploy`: changed files onto a running board in development mode."""

from pathlib import Path
from typing import Annotated

import typer

from outpost_tools.cli.boards import LibraryName
from outpost_tools.cli.common import JsonOption, app, print_json, say
from outpost_tools.cli.flash import PortOption
from outpost_tools.errors import OutpostError


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
    wait: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="Show the console until it connects; 0: do not."),
    ] = 90,
    as_json: JsonOption = False,
) -> None:
    """Send the files that differ from the board's, restart it, and watch it connect.

    Its keys, its trust bundle, its configuration and the messages that wait are not touched. A
    board in production mode takes signed software only: `outpost app push`.
    """
    from outpost_tools import deploying, watching
    from outpost_tools.image import software
    from outpost_tools.ports import find_port, open_port

    name = find_port(port)
    files = software(library.value, folder)
    done = deploying.deploy(deploying.Mpremote(name), files, device)
    online = None
    if not as_json:
        for path in done.sent:
            typer.echo(f"  {path}: {len(files[path])} bytes")
        typer.echo(f"  {len(done.sent)} files sent, {done.same} were the same.")
        if done.left_slot:
            typer.echo("  It ran an update, and runs the files in / again from now on.")
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
