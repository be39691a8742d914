"""`outpost hub …`: the local hub, and how a hub is doing."""

import contextlib
import json
import time
from enum import StrEnum
from typing import Annotated

import typer

from outpost_tools.cli.common import (
    ChainName,
    ConnectionOption,
    DataOption,
    JsonOption,
    group,
    print_json,
    say,
)
from outpost_tools.errors import OutpostError
from outpost_tools.paths import data_dir

hub_app = group("hub", "The local hub.")


class LimitsName(StrEnum):
    off = "off"
    s1 = "s1"


@hub_app.command("run", epilog="Example: outpost hub run --port 8883 --json")
def hub_run(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any.")] = 8883,
    rest_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="Port of the service side (HTTPS); 0 for any.  [8443; any with --port 0]",
        ),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help="Further host name of the hub; may be repeated."),
    ] = None,
    chain: Annotated[ChainName, typer.Option(help="Certificates to show.")] = ChainName.both,
    limits: Annotated[
        LimitsName, typer.Option(help="Rates above which it throttles: none, or those of S1.")
    ] = LimitsName.off,
    sntp_port: Annotated[
        int | None,
        typer.Option(metavar="PORT", help="Answer SNTP there too, for boards with no internet."),
    ] = None,
    ignore_record_size: Annotated[
        bool,
        typer.Option("--ignore-record-size", help="As servers that do not know RFC 6066; slow."),
    ] = False,
    keep_mb: Annotated[
        int,
        typer.Option(
            min=1, metavar="MB", help="How much telemetry is kept, of seven days at the most."
        ),
    ] = 1024,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the local hub until Ctrl-C: devices, provisioning and the service side.

    One line for each connection, each message and whatever else happens.
    """
    from outpost_tools.ending import until_told
    from outpost_tools.hub.dps import Dps
    from outpost_tools.hub.rest import RestServer
    from outpost_tools.hub.running import Running, announced
    from outpost_tools.hub.server import Event, Hub, in_words
    from outpost_tools.hub.throttle import BY_NAME
    from outpost_tools.sntp import SntpServer

    def show(event: Event) -> None:
        say(json.dumps(event) if as_json else in_words(event))

    folder = data_dir(data)
    with until_told(), contextlib.ExitStack() as stack:
        if sntp_port is not None:
            address = stack.enter_context(SntpServer(host, sntp_port)).address
            if as_json:
                print_json({"event": "sntp", "address": address})
            else:
                typer.echo(f"SNTP is answered on {address}")
        if rest_port is None:
            rest_port = 8443 if port else 0
        dps, rest = Dps(folder), RestServer(host=host, port=rest_port)
        hub = stack.enter_context(
            Hub(
                folder,
                host,
                port,
                chain.value,
                names=name or (),
                on_event=show,
                ignore_record_size=ignore_record_size,
                limits=BY_NAME[limits.value],
                faces=[dps],
                services=[dps, rest],
                keep_bytes=keep_mb << 20,
            )
        )
        stack.enter_context(
            announced(folder, Running(host, hub.port, rest.host, rest.port, hub.names))
        )
        while True:
            time.sleep(3600)


@hub_app.command("status", epilog="Example: outpost hub status --json")
def hub_status(
    connection: ConnectionOption = None, data: DataOption = None, as_json: JsonOption = False
) -> None:
    """Say where the hub is and how many devices it has, and has connected."""
    from outpost_tools import connection as connections
    from outpost_tools.hub import running
    from outpost_tools.operator import Operator

    folder = data_dir(data)
    chosen = connections.need(connection, folder)
    found = None if connections.given(connection) else running.find(folder)
    with Operator(chosen) as operator:
        statistics = operator.statistics()
    total = statistics.get("totalDeviceCount", 0)
    connected = statistics.get("connectedDeviceCount", 0)
    if as_json:
        where = {} if found is None else {"host": found.host, "port": found.port}
        print_json({"service": chosen.host, **where, "statistics": statistics})
        return
    if found is not None:
        typer.echo(f"Devices: {found.host}:{found.port} as {', '.join(found.names)}")
    typer.echo(f"Service: https://{chosen.host}, policy {chosen.policy}")
    disabled = statistics.get("disabledDeviceCount", 0)
    typer.echo(f"{total} devices, {connected} connected, {disabled} disabled.")


@hub_app.command("load", epilog="Example: outpost hub load --devices 500 --run-for 60")
def hub_load(
    devices: Annotated[int, typer.Option(min=1, max=5000, help="How many.")] = 500,
    rate: Annotated[float, typer.Option(help="Messages a second from each.")] = 1.0,
    run_for: Annotated[float, typer.Option(metavar="SECONDS", help="How long.")] = 30.0,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Connect many devices to the running local hub and count what is acknowledged and kept.

    The devices are made in its registry, named load-0000 and so on. The exit status says whether
    everything acknowledged is kept.
    """
    from outpost_tools.hub import running

    folder = data_dir(data)
    found = running.find(folder)
    if found is None:
        raise OutpostError(f"No hub runs on {folder}: start it with `outpost hub run`.")
    if not (0 < rate <= 1000 and 0 < run_for <= 86400):
        raise OutpostError("The rate is up to 1000 a second, the time up to a day.")
    from outpost_tools.hub.load import run_load

    host = running.EVERYWHERE.get(found.host, found.host)
    result = run_load(
        folder, host, found.port, devices, rate, run_for, hub_name=(*found.names, host)[0]
    )
    if as_json:
        print_json(result)
    else:
        for key, value in result.items():
            typer.echo(f"{key:20} {value}")
    raise typer.Exit(1 if result.get("lost") else 0)
