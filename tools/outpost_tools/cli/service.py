"""`outpost send`, `invoke`, `twin …` and `watch`: what a service does with its devices."""

import datetime as dt
import json
import re
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from outpost_tools.cli.common import (
    ConnectionOption,
    DataOption,
    DeviceArgument,
    JsonOption,
    app,
    group,
    print_json,
    say,
)
from outpost_tools.errors import OutpostError
from outpost_tools.paths import data_dir

twin_app = group("twin", "A device's twin.")

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Ack(StrEnum):
    none = "none"
    positive = "positive"
    negative = "negative"
    full = "full"


def _operator(connection: str | None, data: Path | None) -> Any:
    from outpost_tools.connection import need
    from outpost_tools.operator import Operator

    return Operator(need(connection, data_dir(data)))


def seconds_of(text: str, what: str) -> float:
    """A length of time: 90, 90s, 15m, 2h, 7d."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([smhd]?)", text)
    if match is None:
        raise OutpostError(f"{text!r} is no length of time for {what}: give e.g. 90s, 15m, 2h, 7d.")
    return float(match[1]) * UNITS_S[match[2] or "s"]


def moment_of(text: str) -> float:
    """Unix seconds: of an ISO time, or of so long ago."""
    if re.fullmatch(r"[\d.]+[smhd]?", text):
        return time.time() - seconds_of(text, "--since")
    try:
        return dt.datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError):
        raise OutpostError(
            f"{text!r} is no time for --since: give e.g. 15m, 2h, or 2026-01-31T12:00."
        ) from None


def json_of(text: str | None, what: str) -> Any:
    """JSON from the command line, or with @ from a file, - from stdin."""
    if text is None:
        return None
    try:
        if text == "-":
            text = sys.stdin.read()
        elif text.startswith("@"):
            text = Path(text[1:]).read_text(encoding="utf-8")
        return json.loads(text)
    except OSError as why:
        raise OutpostError(f"Cannot read {what} ({why.strerror}).") from None
    except (ValueError, RecursionError):
        raise OutpostError(
            f"The {what} is not JSON: give e.g. '{{\"interval\": 5}}', @file or -."
        ) from None


@app.command("send", epilog="Example: outpost send pump-7 '{\"open\": true}' --property zone=3")
def send(
    device_id: DeviceArgument,
    body: Annotated[
        str, typer.Argument(metavar="BODY", help="The message; @FILE for a file, - for stdin.")
    ],
    properties: Annotated[
        list[str] | None,
        typer.Option("--property", metavar="NAME=VALUE", help="May be repeated."),
    ] = None,
    message_id: Annotated[
        str | None, typer.Option(metavar="TEXT", help="[made by the hub]")
    ] = None,
    correlation_id: Annotated[str | None, typer.Option(metavar="TEXT")] = None,
    content_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="E.g. application/json.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="TIME", help="Dropped after e.g. 90s, 15m, 2h.  [1h]")
    ] = None,
    ack: Annotated[Ack, typer.Option(help="Which feedback the hub is to keep.")] = Ack.none,
    connection: ConnectionOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send a command to a device. The hub holds it until the device acknowledges it."""
    from outpost_tools.operator import Message

    pairs: dict[str, str] = {}
    for text in properties or []:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise OutpostError(f"{text!r} is not NAME=VALUE.")
        pairs[name] = value
    message = Message(
        body=_body(body),
        properties=pairs,
        message_id=message_id,
        correlation_id=correlation_id,
        content_type=content_type,
        expiry_s=None if expires is None else time.time() + seconds_of(expires, "--expires"),
        ack=ack.value,
    )
    with _operator(connection, data) as operator:
        sent_id = operator.send(device_id, message)
    if as_json:
        print_json({"device": device_id, "messageId": sent_id, "bytes": len(message.body)})
    else:
        named = f" {sent_id}" if sent_id else ""
        typer.echo(f"The command{named} waits for {device_id} in the hub.")


def _body(text: str) -> bytes:
    try:
        if text == "-":
            return sys.stdin.buffer.read()
        if text.startswith("@"):
            return Path(text[1:]).read_bytes()
    except OSError as why:
        raise OutpostError(f"Cannot read the message ({why.strerror}).") from None
    return text.encode(errors="surrogateescape")


@app.command("invoke", epilog="Example: outpost invoke pump-7 reboot '{\"delay_s\": 5}'")
def invoke(
    device_id: DeviceArgument,
    method: Annotated[str, typer.Argument(metavar="METHOD", help="The direct method's name.")],
    payload: Annotated[
        str | None, typer.Argument(metavar="[JSON]", help="@FILE for a file, - for stdin.")
    ] = None,
    response_timeout: Annotated[
        int, typer.Option(min=5, max=300, metavar="SECONDS", help="To wait for its answer.")
    ] = 30,
    connect_timeout: Annotated[
        int, typer.Option(min=0, max=300, metavar="SECONDS", help="To wait until it is connected.")
    ] = 0,
    connection: ConnectionOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Call a direct method and show its answer; the exit status says whether it was below 300."""
    given = json_of(payload, "payload")
    with _operator(connection, data) as operator:
        status, answer = operator.invoke(
            device_id, method, given, response_timeout, connect_timeout
        )
    if as_json:
        print_json({"device": device_id, "method": method, "status": status, "payload": answer})
    else:
        typer.echo(f"{status} {json.dumps(answer, ensure_ascii=False)}")
    raise typer.Exit(0 if status < 300 else 1)


@twin_app.command("get", epilog="Example: outpost twin get pump-7")
def twin_get(
    device_id: DeviceArgument,
    connection: ConnectionOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a twin: tags, desired and reported properties; with --json all of it, metadata too."""
    with _operator(connection, data) as operator:
        twin = operator.twin(device_id)
    _show_twin(twin, as_json)


@twin_app.command("patch", epilog="Example: outpost twin patch pump-7 '{\"interval\": 5}'")
def twin_patch(
    device_id: DeviceArgument,
    desired: Annotated[
        str | None,
        typer.Argument(
            metavar="[JSON]", help="Desired properties; null deletes one. @FILE or - as well."
        ),
    ] = None,
    tags: Annotated[
        str | None, typer.Option(metavar="JSON", help="Tags, which the device does not see.")
    ] = None,
    connection: ConnectionOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change desired properties or tags; what is not named stays."""
    patch, new_tags = json_of(desired, "patch"), json_of(tags, "tags")
    if patch is None and new_tags is None:
        raise OutpostError("There is nothing to patch: give desired properties, or --tags.")
    if not all(isinstance(part, dict | None) for part in (patch, new_tags)):
        raise OutpostError("A patch is a JSON object, e.g. '{\"interval\": 5}'.")
    with _operator(connection, data) as operator:
        twin = operator.patch_twin(device_id, patch, new_tags)
    _show_twin(twin, as_json)


def _show_twin(twin: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(twin)
        return
    properties = twin.get("properties") or {}
    parts = {
        "tags": (twin.get("tags") or {}, ""),
        "desired": (properties.get("desired") or {}, "$version"),
        "reported": (properties.get("reported") or {}, "$version"),
    }
    for name, (part, version) in parts.items():
        shown = {key: value for key, value in part.items() if not key.startswith("$")}
        number = f" (version {part.get(version)})" if version else ""
        typer.echo(f"{name}{number}: {json.dumps(shown, ensure_ascii=False, indent=2)}")


@app.command("watch", epilog="Example: outpost watch --device pump-7 --since 1h --follow")
def watch(
    device: Annotated[
        str | None, typer.Option(metavar="ID", help="This device alone.  [all]")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Kept telemetry from then on: 15m, 2h, 7d or ISO time."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on after --since; without --since it always does.")
    ] = False,
    telemetry: Annotated[
        bool, typer.Option("--telemetry", help="Telemetry alone, no connections and the like.")
    ] = False,
    connection: ConnectionOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show telemetry and events as they come, until Ctrl-C, or what is kept of the past."""
    from outpost_tools.ending import until_told

    from_s = None if since is None else moment_of(since)
    kinds = ("telemetry",) if telemetry else ()
    with until_told(), _operator(connection, data) as operator:
        for event in operator.events(device, from_s, follow or since is None, kinds):
            say(json.dumps(event) if as_json else line_of(event))


def line_of(event: dict[str, Any]) -> str:
    """A watched event for a person: when it arrived, how late it is, and what it is."""
    from outpost_tools.hub.server import in_words

    at_s = event.get("received_s") or event.get("at_s") or 0.0
    clock = dt.datetime.fromtimestamp(at_s).strftime("%H:%M:%S.%f")[:-3]
    made_s = event.get("made_s")
    late = ""
    if made_s and at_s - made_s > 5:
        late = f" (made {dt.datetime.fromtimestamp(made_s):%Y-%m-%d %H:%M:%S})"
    return f"{clock} {in_words(event)}{late}"
