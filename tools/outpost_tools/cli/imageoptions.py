"""Options of `outpost image` for a whole board: firmware, layout, mode; and --explain."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from outpost_tools.cli.common import print_json
from outpost_tools.errors import OutpostError

if TYPE_CHECKING:
    from outpost_tools.firmwareimage import Firmware
    from outpost_tools.image import Library


class LayoutName(StrEnum):
    single = "single"
    ota = "ota"


FirmwareOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="MicroPython: a release's .bin, or what `make firmware` built.  [none: for the "
        "virtual board, or a board that has it]",
    ),
]
BootloaderOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="bootloader.bin, where --firmware is the application alone."),
]
LayoutOption = Annotated[
    LayoutName, typer.Option(help="One place for the firmware, or two (ota) to exchange it.")
]
ProductionOption = Annotated[
    bool,
    typer.Option("--production", help="Close the board's prompt: signed software only, for good."),
]
ExplainOption = Annotated[
    Path | None,
    typer.Option("--explain", metavar="IMAGE", help="Say what an image holds, and stop."),
]


def given_firmware(path: Path | None, bootloader: Path | None) -> "Firmware | None":
    from outpost_tools.firmwareimage import read_firmware

    if path is None:
        if bootloader is not None:
            raise OutpostError("--bootloader goes with --firmware: give the application too.")
        return None
    return read_firmware(path, bootloader)


def where_library(firmware: "Firmware | None", given: str | None) -> "Library":
    """Where lib/outpost goes; OutpostError for an image that would find none."""
    if firmware is not None and not firmware.has_library:
        if given == "frozen":
            raise OutpostError(
                "The firmware has no lib/outpost in it (MicroPython's own releases have none): "
                "take --library flash."
            )
        return "flash"
    return "flash" if given == "flash" else "frozen"


def more_fields(config: Path | None, gateway: str | None, protect: bool) -> dict[str, object]:
    """Fields of config.json that have no option of their own, and those of the two that have."""
    more: dict[str, object] = {}
    if config is not None:
        try:
            more = json.loads(config.read_text())
        except (OSError, ValueError):
            more = []  # type: ignore[assignment]
        if not isinstance(more, dict):
            raise OutpostError(f"{config} does not hold a JSON object.")
    if gateway:
        more["gateway_host"] = gateway
    if protect:
        more["protect"] = "jwe"
    return more


def said_of(firmware: "Firmware | None", production: bool) -> str:
    """What a person should know of it, to stand behind the line about the image."""
    told = ""
    if firmware is not None:
        told += f" {firmware.title}."
        if not firmware.has_library:
            told += (
                " It is not Outpost's own: lib/outpost goes into the file system, the record size "
                "cannot be asked for, and the board makes no key itself."
            )
        if firmware.bootloader is None:
            told += " It has no bootloader: it starts on a board that has one (or --bootloader)."
    if production:
        told += " Production mode: the board's prompt is closed for good."
    return told


def tell(path: Path, as_json: bool) -> None:
    from outpost_tools.explain import explain

    found = explain(path)
    if as_json:
        print_json(found.raw())
    else:
        for line in found.lines():
            typer.echo(line)
