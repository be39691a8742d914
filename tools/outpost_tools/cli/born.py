"""`outpost born`: the key that a board was born with is remembered before it ships."""

from pathlib import Path
from typing import Annotated

import typer

from outpost_tools.cli.boards import Leg
from outpost_tools.cli.common import DataOption, DeviceArgument, JsonOption, app, print_json
from outpost_tools.paths import data_dir


@app.command("born", epilog="Example: outpost born pump-7 --port /dev/ttyUSB0")
def born(
    device_id: DeviceArgument,
    port: Annotated[
        str | None, typer.Option(metavar="PORT", help="The board's serial port.")
    ] = None,
    flash: Annotated[
        Path | None,
        typer.Option(metavar="IMAGE", help="A flash image, run on the virtual board."),
    ] = None,
    leg: Annotated[Leg, typer.Option(help="Which build runs the image.")] = Leg.outpost64,
    replace: Annotated[
        bool, typer.Option("--replace", help="This board takes the place of the one before.")
    ] = False,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remember the key that a board with symmetric keys was born with; rotations need it.

    `outpost provision` does the same for a board that gets a certificate.
    """
    from outpost_tools import bornkey
    from outpost_tools.fleet import Fleet
    from outpost_tools.repl import open_prompt

    with Fleet(data_dir(data)) as fleet, open_prompt(port, flash, leg.value) as prompt:
        known = bornkey.remember(prompt, device_id, fleet, replace)
    if as_json:
        print_json({"device": device_id, "born_sha256": known.born_thumbprint})
    else:
        typer.echo(f"The born key of {device_id} is known, {known.born_thumbprint}.")
