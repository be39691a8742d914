"""`outpost device …`: the devices of a hub, or of the data folder while no hub runs on it."""

import json
import sys
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from outpost_tools.cli.common import (
    ConnectionOption,
    DataOption,
    DeviceArgument,
    JsonOption,
    Which,
    answer,
    group,
    print_json,
)
from outpost_tools.errors import OutpostError
from outpost_tools.paths import data_dir, write_whole

device_app = group("device", "The devices in the registry.")


class Mode(StrEnum):
    create = "create"
    createOrUpdate = "createOrUpdate"
    update = "update"
    updateTwin = "updateTwin"
    delete = "delete"


def in_words(row: dict[str, Any]) -> str:
    from outpost_tools.books import when

    words = [row["device"], row["status"]]
    if row["auth"] != "sas":
        words.append(row["auth"])
    if row.get("connectionState"):
        words.append(row["connectionState"].lower())
    if row.get("lastActivityTime"):
        words.append(f"last heard of {when(row['lastActivityTime'])}")
    if "created_s" in row:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["created_s"]))
        words.append(f"made {made}")
    return "  ".join(words)


@device_app.command("new", epilog="Example: outpost device new pump-7 --data fleet")
def device_new(
    device_id: DeviceArgument,
    thumbprint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HEX",
            help="A certificate of its own by SHA-256 or SHA-1; twice for a secondary one.",
        ),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A certificate of its own, from a PEM file."),
    ] = None,
    ca_signed: Annotated[
        bool, typer.Option("--ca-signed", help="A certificate from an authority of the hub.")
    ] = False,
    disabled: Annotated[bool, typer.Option("--disabled", help="Not to connect yet.")] = False,
    connection: ConnectionOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a device: two new keys and an entry in the registry. The keys are not shown."""
    from outpost_tools.books import open_book
    from outpost_tools.registry import check_device_id

    check_device_id(device_id)
    if set("+#") & set(device_id):
        raise OutpostError(
            f"IoT Hub takes the id {device_id!r}, but MQTT does not allow + and # in the topics "
            "that it stands in: choose another id."
        )
    prints = list(thumbprint or [])
    if certificate is not None:
        prints.append(_thumbprint_of(certificate))
    if len(prints) > 2 or (prints and ca_signed):
        raise OutpostError("A device has keys, or one or two thumbprints, or --ca-signed.")
    auth = "certificateAuthority" if ca_signed else "selfSigned" if prints else "sas"
    first, second, *_ = [*prints, "", ""]
    with open_book(connection, data_dir(data)) as book:
        row = book.add(device_id, auth, first, second, disabled)
        place = book.place
    if as_json:
        print_json(row | {"registry": place})
    else:
        hint = f" Its image: outpost image {device_id}" if auth == "sas" else ""
        typer.echo(f"Device {row['device']} is in {place}.{hint}")


def _thumbprint_of(path: Path) -> str:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    from outpost_tools.registry import thumbprints

    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        raise OutpostError(f"{path} is not a certificate in PEM form.") from None
    return thumbprints(certificate.public_bytes(serialization.Encoding.DER))[0]


@device_app.command("list", epilog="Example: outpost device list --json")
def device_list(
    connection: ConnectionOption = None, data: DataOption = None, as_json: JsonOption = False
) -> None:
    """Show the devices in the registry, without their keys."""
    from outpost_tools.books import open_book

    with open_book(connection, data_dir(data)) as book:
        rows = book.rows()
        place = book.place
    if as_json:
        print_json(rows)
    elif rows:
        for row in rows:
            typer.echo(in_words(row))
    else:
        typer.echo(f"There is no device in {place}: make one with `outpost device new ID`.")


@device_app.command("show", epilog="Example: outpost device show pump-7 --keys-to pump-7.json")
def device_show(
    device_id: DeviceArgument,
    keys_to: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write its keys and connection string there, readable by you alone.",
        ),
    ] = None,
    hub: Annotated[
        str | None, typer.Option(metavar="HOST", help="Host name in the connection string.")
    ] = None,
    connection: ConnectionOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one device, without its keys; they can be written into a file."""
    from outpost_tools.books import open_book
    from outpost_tools.cli.tokens import device_host

    folder = data_dir(data)
    with open_book(connection, folder) as book:
        row = book.show(device_id)
        if keys_to is not None:
            primary, secondary = book.secrets(device_id)
            host = hub or device_host(connection, folder)
            content = {
                "deviceId": device_id,
                "primaryKey": primary,
                "secondaryKey": secondary,
                "connectionString": f"HostName={host};DeviceId={device_id};"
                f"SharedAccessKey={primary}",
            }
            write_whole(keys_to, json.dumps(content, indent=2).encode() + b"\n")
    if as_json:
        print_json(row)
    else:
        for name, value in row.items():
            typer.echo(f"{name:20} {value}")
    if keys_to is not None:
        typer.echo(f"Its keys are in {keys_to}.", err=True)


def _set_status(
    device_id: str, status: str, connection: str | None, data: Path | None, as_json: bool
) -> None:
    from outpost_tools.books import open_book

    with open_book(connection, data_dir(data)) as book:
        row = book.set_status(device_id, status)
    answer(as_json, row, f"Device {device_id} is {row['status']}.")


@device_app.command("disable", epilog="Example: outpost device disable pump-7")
def device_disable(
    device_id: DeviceArgument,
    connection: ConnectionOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Close its connection and refuse the next, until it is enabled."""
    _set_status(device_id, "disabled", connection, data, as_json)


@device_app.command("enable", epilog="Example: outpost device enable pump-7")
def device_enable(
    device_id: DeviceArgument,
    connection: ConnectionOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let it connect again."""
    _set_status(device_id, "enabled", connection, data, as_json)


@device_app.command("rotate", epilog="Example: outpost device rotate pump-7 --which secondary")
def device_rotate(
    device_id: DeviceArgument,
    which: Annotated[Which, typer.Option(help="Which keys are made anew.")] = Which.both,
    connection: ConnectionOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make new keys for it, or exchange the two. They are not shown."""
    from outpost_tools.books import open_book

    with open_book(connection, data_dir(data)) as book:
        row = book.rotate(device_id, which.value)
    if as_json:
        print_json(row)
    elif which is Which.swap:
        typer.echo(f"The keys of {device_id} are exchanged.")
    else:
        what = "Both keys" if which is Which.both else f"The {which.value} key"
        typer.echo(f"{what} of {device_id} changed: build its image anew, or tell the device.")


@device_app.command("remove", epilog="Example: outpost device remove pump-7")
def device_remove(
    device_id: DeviceArgument,
    connection: ConnectionOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Forget it, its keys, its twin and its commands; its connection is closed."""
    from outpost_tools.books import open_book

    with open_book(connection, data_dir(data)) as book:
        book.remove(device_id)
    answer(as_json, {"device": device_id, "removed": True}, f"Device {device_id} is removed.")


@device_app.command("import", epilog="Example: outpost device import fleet.jsonl --mode create")
def device_import(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="IoT Hub's bulk form, a line each; - for stdin.")
    ],
    mode: Annotated[
        Mode, typer.Option(help="What is done with a line that has no importMode.")
    ] = Mode.createOrUpdate,
    connection: ConnectionOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take devices from a file in IoT Hub's bulk form. All lines are checked before the first."""
    from rich.console import Console
    from rich.progress import track

    from outpost_tools import bulk
    from outpost_tools.books import open_book

    entries = bulk.read(_lines(file), mode.value)
    with open_book(connection, data_dir(data)) as book:
        refused = book.take(
            track(entries, "Importing", console=Console(stderr=True), transient=True)
            if sys.stderr.isatty()
            else entries
        )
    if as_json:
        print_json({"taken": len(entries) - len(refused), "refused": refused})
    else:
        for device_id, why in refused.items():
            typer.echo(f"{device_id}: {why}", err=True)
        typer.echo(f"{len(entries) - len(refused)} of {len(entries)} lines were taken.")
    if refused:
        raise typer.Exit(1)


def _lines(file: Path) -> Iterator[str]:
    from outpost_tools.bulk import LINE_MAX_CHARS

    try:
        if str(file) == "-":
            yield from sys.stdin
        else:
            with file.open(encoding="utf-8") as lines:
                # A line without an end is not read whole: bulk says that it is too long.
                while line := lines.readline(LINE_MAX_CHARS + 2):
                    yield line
    except UnicodeDecodeError:
        raise OutpostError(f"{file} is not text in UTF-8.") from None
    except OSError as why:
        raise OutpostError(f"Cannot read {file} ({why.strerror}).") from None


@device_app.command("export", epilog="Example: outpost device export -o fleet.jsonl")
def device_export(
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="FILE", help="The file; only you can read it: it holds keys."
        ),
    ],
    no_keys: Annotated[bool, typer.Option("--no-keys", help="Leave the keys out.")] = False,
    connection: ConnectionOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write all devices into a file in IoT Hub's bulk form, with keys, twins and thumbprints."""
    from outpost_tools import bulk
    from outpost_tools.books import open_book
    from outpost_tools.paths import replacing

    count = 0
    with (
        open_book(connection, data_dir(data)) as book,
        replacing(output) as draft,
        draft.open("w", encoding="utf-8") as file,
    ):
        for entry in book.export():
            if no_keys and entry.get("authentication"):
                kept = {k: v for k, v in entry["authentication"].items() if k != "symmetricKey"}
                entry = entry | {"authentication": kept}
            file.writelines(bulk.lines([entry]))
            count += 1
    if as_json:
        print_json({"devices": count, "file": str(output), "keys": not no_keys})
    else:
        held = "without keys" if no_keys else "it holds their keys"
        typer.echo(f"{count} devices are in {output}, {held}.")
