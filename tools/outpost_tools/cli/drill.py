"""`outpost drill`: a fleet changes its root and strands nobody, to watch."""

import contextlib
import shutil
from pathlib import Path
from typing import Annotated

import typer

from outpost_tools.cli.boards import Leg
from outpost_tools.cli.common import JsonOption, app, print_json
from outpost_tools.errors import OutpostError
from outpost_tools.paths import private_dir, tree, write_whole

MARK = "drill.txt"


@app.command("drill", epilog="Example: outpost drill --devices 10")
def drill(
    devices: Annotated[int, typer.Option(help="How many.")] = 10,
    leg: Annotated[Leg, typer.Option(help="Which build the boards run.")] = Leg.outpost32,
    patience: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long one step may take.")
    ] = 180.0,
    pace: Annotated[
        float, typer.Option(metavar="SECONDS", help="To stay after each phase, for who watches.")
    ] = 4.0,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Folder, emptied first.  [build/drill]"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Watch a fleet go over to another root; then a bad bundle; then the emergency.

    Virtual devices, a hub, signers and a recovery endpoint, all on loopback: the new bundle goes
    out in waves, the old root is removed; a bundle with a wrong root makes no device leave; a root
    that expired before anybody acted is replaced through the recovery endpoint. The exit status
    says whether all are connected and no message was lost.
    """
    from outpost_tools.drill import Drill, Plan
    from outpost_tools.drillview import View
    from outpost_tools.ending import until_told

    folder = _emptied(data or tree() / "build" / "drill")
    found = None
    with View(quiet=as_json) as view, until_told():
        view.drill = Drill(Plan(folder, devices, leg.value, patience_s=patience, pace_s=pace), view)
        found = view.drill.run()
    if found is None:
        raise OutpostError("The drill was stopped before its end.")
    if as_json:
        print_json(found)
    raise typer.Exit(0 if found["connected"] == devices and not found["lost"] else 1)


def _emptied(folder: Path) -> Path:
    """A folder of an earlier drill is emptied; any other that holds something is left alone."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).is_file():
        raise OutpostError(f"{folder} holds something else than a drill: give another --data.")
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)
    private_dir(folder)
    write_whole(folder / MARK, b"The drill's folder: the next one empties it.\n")
    return folder
