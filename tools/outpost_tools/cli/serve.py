"""`outpost board serve`: a virtual board with a serial port, for esptool and mpremote."""

import os
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from outpost_tools.cli.boards import HeapOption, Leg, board_app, heapsize_of
from outpost_tools.cli.common import JsonOption, print_json

ASLEEP_S = 0.1


class ChipName(StrEnum):
    esp32 = "esp32"
    esp32s2 = "esp32s2"
    esp32s3 = "esp32s3"
    esp32c3 = "esp32c3"
    esp32c6 = "esp32c6"


@board_app.command(
    "serve", epilog="Example: outpost board serve desk.bin --blank 4, then outpost with --port URL"
)
def board_serve(
    flash: Annotated[Path, typer.Argument(metavar="FLASH", help="The image; it is written to.")],
    blank: Annotated[
        int | None,
        typer.Option("--blank", metavar="MIB", help="Make it first: an empty flash of that size."),
    ] = None,
    port: Annotated[
        int, typer.Option(help="TCP port on loopback; 0 is any that is free.", min=0, max=65535)
    ] = 0,
    # Its memory is as large as a chip's: in 64 bits the library on flash does not fit into it.
    leg: Annotated[Leg, typer.Option(help="Which build runs it.")] = Leg.outpost32,
    heapsize: HeapOption = None,
    chip: Annotated[ChipName, typer.Option(help="What the chip says it is.")] = ChipName.esp32,
    mac: Annotated[
        str | None, typer.Option(metavar="aa:bb:cc:dd:ee:ff", help="Its hardware address.")
    ] = None,
    wifi: Annotated[
        str | None,
        typer.Option(metavar="SSID[:KEY]", help="The network in the air.  [Espressif, open]"),
    ] = None,
    cut: Annotated[
        str | None,
        typer.Option(
            metavar="N[:clean|:torn|:odd]", help="The power goes at the N-th flash operation."
        ),
    ] = None,
    pull_after: Annotated[
        int | None,
        typer.Option(metavar="BYTES", help="The cable is pulled when that many have been sent."),
    ] = None,
    run_for: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Stop by itself after that time.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """A virtual board on a serial port: prints its address, then what happens at the port.

    esptool (with --no-stub) and mpremote open the address as they open /dev/ttyUSB0; DTR and RTS
    reset the board. It ends with whoever started it.
    """
    from outpost_tools.ending import until_told
    from outpost_tools.serialport import Machine, SerialPort
    from outpost_tools.serialport.machine import Cut
    from outpost_tools.serialport.norflash import blank as make_blank

    heap = heapsize_of(heapsize)
    planned = Cut.parse(cut) if cut else None
    if blank is not None:
        make_blank(flash, blank)
    machine = Machine(flash, leg.value, heap, chip=chip.value, mac=mac, cut=planned, wifi=wifi)
    parent = os.getppid()
    ends = None if run_for is None else time.monotonic() + run_for

    def on_event(text: str) -> None:
        typer.echo(f"-- {text}", err=True)

    with until_told(), SerialPort(machine, port, on_event=on_event) as serial_port:
        if pull_after is not None:
            serial_port.pull_cable(pull_after)
        if as_json:
            print_json({"port": serial_port.url, "flash": str(flash), "chip": chip.value})
        else:
            typer.echo(serial_port.url)
        sys.stdout.flush()
        while os.getppid() == parent and (ends is None or time.monotonic() < ends):
            time.sleep(ASLEEP_S)
