"""`outpost flash`, `erase` and `console`: an image onto a board, an empty board, its console."""

from pathlib import Path
from typing import Annotated, Any

import typer

from outpost_tools.cli.common import JsonOption, app, print_json, say
from outpost_tools.errors import OutpostError

PortOption = Annotated[
    str | None,
    typer.Option(
        "--port",
        metavar="PORT",
        envvar="OUTPOST_PORT",
        help="The board's serial port, or rfc2217://HOST:PORT.  [the one board that is plugged in]",
        show_default=False,
    ),
]
StubOption = Annotated[
    bool | None,
    typer.Option(
        "--stub/--no-stub",
        help="Load esptool's own faster loader into the chip first.  [not over rfc2217://]",
        show_default=False,
    ),
]


def _stub(wanted: bool | None, name: str) -> bool:
    from outpost_tools.ports import is_network

    # The virtual board has the ROM's loader and runs no machine code.
    return not is_network(name) if wanted is None else wanted


@app.command("flash", epilog="Example: outpost flash pump-7.bin --port /dev/ttyUSB0")
def flash_command(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="As `outpost image` made it.")],
    device: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Refuse an image that is not this device's."),
    ] = None,
    port: PortOption = None,
    erase: Annotated[
        bool,
        typer.Option("--erase", help="Erase all of it first: keys, messages, another device too."),
    ] = False,
    wait: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="Show the console until it connects; 0: do not."),
    ] = 90,
    stub: StubOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a flash image to a board: only what has changed, verified; then watch it connect.

    The board is asked first: its chip, its flash, whose keys it holds. A board that already is the
    image's device keeps its keys, its counters and the messages that wait. When the cable was
    pulled, run it again.
    """
    from outpost_tools import flashing, loader, watching
    from outpost_tools.ending import until_told
    from outpost_tools.ports import find_port, open_port

    image_read = flashing.read_image(image, device)
    name = find_port(port)
    with until_told(), loader.opened(name, _stub(stub, name)) as board:
        start = flashing.check_board(image_read, board)
        found = flashing.Found() if erase else flashing.whose(image_read, board, start)
        with _Bar(as_json) as bar:
            done = flashing.write(image_read, board, found, erase, bar.show)
            flashing.verify(image_read, board, done, bar.show)
    if not as_json:
        for outcome in done:
            typer.echo(f"  {outcome.sentence}.")
    opened = open_port(name)
    try:
        watching.restart(opened)
        shown = (lambda line: typer.echo(line, err=True)) if as_json else say
        online = wait > 0 and watching.until_connected(opened, wait, shown)
    finally:
        opened.close()
    if as_json:
        regions = {one.name: {k: v for k, v in vars(one).items() if k != "name"} for one in done}
        print_json(
            {"port": name, "device": image_read.device_id, "regions": regions, "online": online}
        )
    if wait > 0 and not online:
        raise OutpostError(
            f"The board is written, and has not connected in {wait:.0f} s: the lines above say "
            "why. `outpost console` shows what comes next."
        )
    if not as_json:
        whose = image_read.device_id or "The board"
        typer.echo(f"{whose} is written" + (" and connected." if online else "."))


class _Bar:
    """Progress on a terminal; nothing where nobody looks."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        console = Console(stderr=True, quiet=quiet)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._tasks: dict[str, Any] = {}

    def show(self, name: str, done: int, of: int) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bar.add_task(name, total=of)
        self._bar.update(self._tasks[name], completed=done)

    def __enter__(self) -> "_Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


@app.command("erase", epilog="Example: outpost erase --port /dev/ttyUSB0")
def erase_command(
    port: PortOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    stub: StubOption = None,
    as_json: JsonOption = False,
) -> None:
    """Erase a board's whole flash: its software, its keys and the messages that wait."""
    from outpost_tools import loader
    from outpost_tools.ending import until_told
    from outpost_tools.partitions import TABLE_OFFSET
    from outpost_tools.ports import find_port

    name = find_port(port)
    if not yes:
        asked = f"Erase all of the board on {name}, its keys and waiting messages too?"
        if not typer.confirm(asked, default=False, err=True):
            raise OutpostError("Nothing was erased.")
    with until_told(), loader.opened(name, _stub(stub, name)) as board:
        board.look(TABLE_OFFSET, 4)
        board.check_plain()
        size = board.flash_size
        if size is None:
            raise OutpostError("The board's flash does not say how large it is: check the cable.")
        board.erase(0, size)
        chip = board.chip
    if as_json:
        print_json({"port": name, "chip": chip, "erased": size})
    else:
        typer.echo(f"The {chip} on {name} is blank: {size >> 20} MiB erased.")


@app.command("console", epilog="Example: outpost console --port /dev/ttyUSB0")
def console_command(
    port: PortOption = None,
    reset: Annotated[
        bool, typer.Option("--reset", help="Restart the board first, to see it start.")
    ] = False,
    run_for: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Stop by itself after that time.")
    ] = None,
) -> None:
    """Show what a board says, until Ctrl-C. It only listens; `mpremote` is for the prompt."""
    import time

    from outpost_tools import watching
    from outpost_tools.ending import until_told
    from outpost_tools.ports import find_port, open_port

    opened = open_port(find_port(port))
    try:
        if reset:
            watching.restart(opened)
        ends = None if run_for is None else time.monotonic() + run_for
        with until_told():
            for line in watching.lines(opened, ends):
                if line is not None:
                    say(line)
    finally:
        opened.close()
