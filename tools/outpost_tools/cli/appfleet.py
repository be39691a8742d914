"""`outpost app push`, `rollout` and `status`: software for one device, for all, and how far."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from outpost_tools.cli.apps import PackageArgument, TrustOption, app_app
from outpost_tools.cli.common import (
    ConnectionOption,
    DataOption,
    DeviceArgument,
    JsonOption,
    answer,
    print_json,
)
from outpost_tools.errors import OutpostError
from outpost_tools.paths import data_dir

EXIT_FAILED, EXIT_AWAY = 1, 3

ImageOption = Annotated[
    Path | None,
    typer.Option("--image", metavar="FILE", help="Of a firmware: the .bin that was signed."),
]


@app_app.command("push", epilog="Example: outpost app push pump-7 pump-14.opk")
def app_push(
    device_id: DeviceArgument,
    package: PackageArgument,
    image: ImageOption = None,
    trust: TrustOption = None,
    patience: Annotated[
        str, typer.Option(metavar="TIME", help="To wait for what the device makes of it.")
    ] = "40m",
    connection: ConnectionOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send software to one device, and wait until it works with it or has gone back."""
    import tempfile

    from outpost_tools.cli.service import seconds_of
    from outpost_tools.progress import Bar
    from outpost_tools.rollout import Limits, Rollout
    from outpost_tools.waves import AWAY, FAILED, Ledger

    limits = Limits(patience_s=seconds_of(patience, "--patience"), poll_s=1)
    with (
        _cargo(data_dir(data), package, image, trust, connection) as (cargo, show),
        tempfile.TemporaryDirectory() as place,
        Bar(1, quiet=as_json) as tell,
    ):
        show.append(tell)
        ledger = Ledger(Path(place) / "push.jsonl")
        ledger.begin(cargo.kind, cargo.what, [[device_id]])
        Rollout(ledger, cargo, limits, tell).run()
        state, why = ledger.state(device_id), ledger.why(device_id)
    version = cargo.what["version"]
    words = {
        AWAY: f"{device_id} was not sent it: {why.rstrip('.')}.",
        FAILED: f"{device_id} does not run version {version}: {why.rstrip('.')}.",
    }
    said = words.get(state, f"{device_id} runs version {version}{why and ': ' + why}.")
    answer(as_json, {"device": device_id, "version": version, "state": state, "why": why}, said)
    raise typer.Exit({AWAY: EXIT_AWAY, FAILED: EXIT_FAILED}.get(state, 0))


@app_app.command("rollout", epilog="Example: outpost app rollout pump-14.opk --waves 1,10%,30%")
def app_rollout(
    package: PackageArgument,
    image: ImageOption = None,
    trust: TrustOption = None,
    waves: Annotated[
        str,
        typer.Option(metavar="SIZES", help="Devices or percent for each; the rest comes last."),
    ] = "1,10%,30%",
    first: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="These first, e.g. the one on your desk; repeat."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="These and no others; repeat.")
    ] = None,
    failures: Annotated[
        int, typer.Option(min=0, metavar="N", help="So many are borne; one more stops it.")
    ] = 0,
    pause: Annotated[str, typer.Option(metavar="TIME", help="Between two waves.")] = "0s",
    patience: Annotated[
        str, typer.Option(metavar="TIME", help="To wait until a device tells how it went.")
    ] = "1h",
    parallel: Annotated[int, typer.Option(min=1, max=64, help="Devices at the same time.")] = 8,
    retry: Annotated[
        bool, typer.Option("--retry", help="Those that failed get another try.")
    ] = False,
    state: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="How far it is.  [DATA/rollouts/KIND-VERSION-....jsonl]"),
    ] = None,
    connection: ConnectionOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring software to every device of the hub, in waves; it stops where too many fail.

    The same command again goes on where it stopped, with devices that were away or are new. The
    exit status is 0 when all have it, 1 when some failed, 3 when some were away.
    """
    from outpost_tools import fleetplan
    from outpost_tools.cli.service import seconds_of
    from outpost_tools.cli.trustfleet import _show_end
    from outpost_tools.ending import until_told
    from outpost_tools.progress import Bar
    from outpost_tools.rollout import Limits, Rollout
    from outpost_tools.waves import Ledger

    limits = Limits(
        failures,
        seconds_of(patience, "--patience"),
        seconds_of(pause, "--pause"),
        parallel,
    )
    folder = data_dir(data)
    with _cargo(folder, package, image, trust, connection) as (cargo, show):
        name = f"{cargo.kind}-{cargo.what['version']}-{cargo.what['sha256'][:8]}.jsonl"
        ledger = Ledger(state or folder / "rollouts" / name)
        planned = fleetplan.plan(show[0], ledger, only, first or [], waves)
        with ledger.held(), until_told():
            fleetplan.begin(ledger, cargo, planned)
            with Bar(sum(map(len, ledger.waves)), quiet=as_json) as tell:
                show.append(tell)
                good = Rollout(ledger, cargo, limits, tell).run(retry)
        counts = ledger.counts()
    _show_end(ledger, counts, as_json)
    if not good or counts["waiting"] or counts["sent"]:
        raise typer.Exit(EXIT_FAILED)
    raise typer.Exit(EXIT_AWAY if counts["away"] else 0)


@app_app.command("status", epilog="Example: outpost app status --version 14")
def app_status(
    version: Annotated[
        int | None, typer.Option(help="Those alone that run an older one, or do not tell.")
    ] = None,
    connection: ConnectionOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which software each device runs, and how its last trial ended."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from outpost_tools.connection import need
    from outpost_tools.operator import Operator
    from outpost_tools.softwarecargo import Told

    with Operator(need(connection, data_dir(data))) as operator:
        twins = sorted(operator.devices(), key=lambda twin: str(twin["deviceId"]))
    rows = []
    for twin in twins:
        told = Told.of(twin)
        if version is not None and told.version is not None and told.version >= version:
            continue
        rows.append(
            {
                "device": twin["deviceId"],
                "connected": twin.get("connectionState") == "Connected",
                "version": told.version,
                "slot": told.slot or None,
                "firmware": told.firmware,
                "change": {
                    "kind": told.kind,
                    "version": told.change_version,
                    "outcome": told.change,
                }
                if told.change
                else None,
            }
        )
    if as_json:
        print_json(rows)
        return
    if not rows:
        typer.echo(f"Every device runs version {version}." if twins else "The hub has no device.")
        return
    table = Table("device", "", "version", "from", "firmware", "last trial")
    for row in rows:
        change = row["change"]
        cells = (
            row["device"],
            "connected" if row["connected"] else "away",
            "not told" if row["version"] is None else str(row["version"]),
            row["slot"] or "",
            "" if row["firmware"] is None else str(row["firmware"]),
            f"{change['kind']} {change['version']}: {change['outcome']}" if change else "",
        )
        # What a device says of itself is text, not rich's markup.
        table.add_row(*map(Text, cells))
    Console().print(table)


@contextmanager
def _cargo(
    folder: Path, package: Path, image: Path | None, trust: Path | None, connection: str | None
) -> Iterator[tuple[Any, list[Any]]]:
    """(the cargo, [the operator, who gets its progress]) of a package that is signed."""
    from outpost_tools.connection import need
    from outpost_tools.firmwarerecord import FirmwareRecord
    from outpost_tools.operator import Operator
    from outpost_tools.software import Software, keys_of
    from outpost_tools.softwarecargo import SoftwareCargo

    held = Software.read(package)
    missing = held.missing(keys_of(folder, trust))
    if missing:
        raise OutpostError(f"{missing} more must sign {package}: outpost app sign {package}")
    record = held.package if isinstance(held.package, FirmwareRecord) else None
    if (record is None) != (image is None):
        raise OutpostError("A firmware is sent with its --image, an application without one.")
    content = record.image(image) if record and image else None
    with Operator(need(connection, folder)) as operator:
        show: list[Any] = [operator]

        def progress(device_id: str, have: int, size: int) -> None:
            for tell in show[1:]:
                tell({"event": "bytes", "device": device_id, "have": have, "size": size})

        yield SoftwareCargo(operator, held, content, progress), show
