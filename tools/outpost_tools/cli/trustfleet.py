"""`outpost trust push`, `rollout` and `status`: a bundle for one device, for all, and how far."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from outpost_tools.cli.common import (
    ConnectionOption,
    DataOption,
    DeviceArgument,
    JsonOption,
    answer,
    print_json,
)
from outpost_tools.cli.trust import trust_app
from outpost_tools.errors import OutpostError
from outpost_tools.paths import data_dir

EXIT_FAILED, EXIT_AWAY = 1, 3

BundleArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="[FILE]", help="A bundle or a complete draft.  [the newest in DATA/trust]"
    ),
]
EndpointOption = Annotated[
    list[str] | None,
    typer.Option(
        "--endpoint",
        metavar="HOST[:PORT]",
        help="What else the devices connect to, e.g. DPS or a gateway; repeat.  [the hub itself]",
    ),
]
EccOption = Annotated[bool, typer.Option("--ecc", help="The devices offer the ECDSA suites alone.")]


@trust_app.command("push", epilog="Example: outpost trust push pump-7 spring.draft")
def trust_push(
    device_id: DeviceArgument,
    path: BundleArgument = None,
    endpoint: EndpointOption = None,
    ecc: EccOption = False,
    patience: Annotated[
        str, typer.Option(metavar="TIME", help="To wait for what the device makes of it.")
    ] = "15m",
    connection: ConnectionOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Deliver a bundle to one device, and wait until it works with it or has gone back.

    Nothing is sent unless devices with that bundle would connect to the hub as it is now. The exit
    status is 0 when the device uses it, 1 when it does not, 3 when it was away.
    """
    import tempfile

    from outpost_tools.cli.service import seconds_of
    from outpost_tools.rollout import Limits, Rollout
    from outpost_tools.waves import AWAY, FAILED, Ledger

    wait_s = seconds_of(patience, "--patience")
    folder = data_dir(data)
    with _cargo(folder, path, connection, endpoint, ecc, as_json) as cargo:
        with tempfile.TemporaryDirectory() as place, _bar(1, as_json) as tell:
            cargo.show = tell
            ledger = Ledger(Path(place) / "push.jsonl")
            ledger.begin(cargo.kind, cargo.what, [[device_id]])
            Rollout(ledger, cargo, Limits(patience_s=wait_s, poll_s=1), tell).run()
            state, why = ledger.state(device_id), ledger.why(device_id)
        version = cargo.what["version"]
    words = {
        AWAY: f"{device_id} was not sent it: {why}.",
        FAILED: f"{device_id} does not use version {version}: {why}.",
    }
    said = words.get(state, f"{device_id} uses version {version}{why and ': ' + why}.")
    answer(as_json, {"device": device_id, "version": version, "state": state, "why": why}, said)
    raise typer.Exit({AWAY: EXIT_AWAY, FAILED: EXIT_FAILED}.get(state, 0))


@trust_app.command("rollout", epilog="Example: outpost trust rollout --waves 1,10%,30% --pause 1h")
def trust_rollout(
    path: BundleArgument = None,
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
    ] = "15m",
    parallel: Annotated[int, typer.Option(min=1, max=64, help="Devices at the same time.")] = 8,
    retry: Annotated[
        bool, typer.Option("--retry", help="Those that failed get another try.")
    ] = False,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="How far it is.  [DATA/rollouts/trust-VERSION-....jsonl]"
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, show the waves, send nothing.")
    ] = False,
    endpoint: EndpointOption = None,
    ecc: EccOption = False,
    connection: ConnectionOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring a bundle to every device of the hub, in waves; it stops where too many fail.

    Nothing is sent unless devices with that bundle would connect to the hub as it is now. The same
    command again goes on where it stopped, with devices that were away or are new. The exit status
    is 0 when all have it, 1 when some failed or it was stopped, 3 when some were away.
    """
    from outpost_tools.cli.service import seconds_of
    from outpost_tools.ending import until_told
    from outpost_tools.rollout import Limits, Rollout
    from outpost_tools.waves import Ledger, alone

    limits = Limits(
        failures,
        seconds_of(patience, "--patience"),
        seconds_of(pause, "--pause"),
        parallel,
    )
    folder = data_dir(data)
    with _cargo(folder, path, connection, endpoint, ecc, as_json) as cargo:
        name = f"trust-{cargo.what['version']}-{cargo.what['sha256'][:8]}.jsonl"
        ledger = Ledger(state or folder / "rollouts" / name)
        if ledger.begun:
            ledger.check(cargo.kind, cargo.what)
        planned = cargo.plan(ledger, only, first or [], waves)
        if dry_run:
            _show_plan(planned, ledger, as_json)
            return
        good = False  # where a Ctrl-C ends it
        with alone(folder / "rollouts" / "trust.lock", "a rollout"), ledger.held(), until_told():
            cargo.begin(ledger, planned)
            with _bar(sum(map(len, ledger.waves)), as_json) as tell:
                cargo.show = tell
                good = Rollout(ledger, cargo, limits, tell).run(retry)
        counts = ledger.counts()
        done = good and not counts["waiting"] and not counts["sent"]
    _show_end(ledger, counts, as_json)
    if not done:
        raise typer.Exit(EXIT_FAILED)
    raise typer.Exit(EXIT_AWAY if counts["away"] else 0)


@trust_app.command("status", epilog="Example: outpost trust status --behind")
def trust_status(
    behind: Annotated[
        bool, typer.Option("--behind", help="Those alone that have an older bundle, or none.")
    ] = False,
    expiring: Annotated[
        bool, typer.Option("--expiring", help="Those alone with a root that ends within the year.")
    ] = False,
    connection: ConnectionOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which version and which root each device last used, who is behind, and what ends."""
    from outpost_tools import truststatus, trustwords
    from outpost_tools.bundle import Bundle
    from outpost_tools.connection import need
    from outpost_tools.operator import Operator
    from outpost_tools.pki import DevCA
    from outpost_tools.trustshelf import Shelf

    folder = data_dir(data)
    history = Shelf(folder).history()
    newest = history[-1].version if history else None
    with Operator(need(connection, folder)) as operator:
        twins = operator.devices()
    own = DevCA(folder).roots_der() if DevCA.exists(folder) else []
    found = truststatus.rows(twins, truststatus.root_names(history, own), newest)
    ending = trustwords.ending(Bundle.of(history[-1])) if history else []
    shown = [row for row in found if (row.behind or not behind) and (row.expiring or not expiring)]
    if as_json:
        facts = truststatus.summary(found, newest)
        rows = truststatus.as_json(shown, newest)["rows"]
        print_json(facts | {"ending": ending, "rows": rows})
        return
    _show_status(shown, truststatus.summary(found, newest), ending)


# What they share


@contextmanager
def _cargo(
    folder: Path,
    path: Path | None,
    connection: str | None,
    endpoint: list[str] | None,
    ecc: bool,
    as_json: bool,
) -> Iterator[Any]:
    """The bundle ready to be sent, once it is seen that it strands nobody."""
    from outpost_tools.connection import need
    from outpost_tools.operator import Operator
    from outpost_tools.trustplan import Shipment, endpoints
    from outpost_tools.trustshelf import Shelf

    shelf = Shelf(folder)
    made = shelf.newest() if path is None else shelf.take(path)
    if made is None:
        raise OutpostError("There is no bundle yet: begin with `outpost trust new`.")
    chosen = need(connection, folder)
    with Operator(chosen) as operator:
        shipment = Shipment(operator, shelf, made)
        for line in shipment.check(endpoints(chosen, folder, endpoint or []), ecc):
            typer.echo(line, err=as_json)
        yield shipment


@contextmanager
def _bar(devices: int, as_json: bool) -> Iterator[Any]:
    """A progress bar on stderr, and a line for each wave and each device that tells of trouble."""
    from outpost_tools.progress import Bar

    with Bar(devices, quiet=as_json) as bar:
        yield bar


def _show_plan(planned: list[list[str]], ledger: Any, as_json: bool) -> None:
    from outpost_tools.progress import count

    lines = []
    for number, wave in enumerate(planned, 1):
        some = ", ".join(wave[:5]) + (", ..." if len(wave) > 5 else "")
        lines.append(f"wave {number}: {count(len(wave))}: {some}")
    begun = f"It goes on from {ledger.path}." if ledger.begun else "Nothing was sent."
    answer(as_json, {"waves": planned, "begun": ledger.begun}, *lines, begun)


def _show_end(ledger: Any, counts: dict[str, int], as_json: bool) -> None:
    failed = {one: ledger.why(one) for one in ledger.in_state("failed")}
    away = ledger.in_state("away")
    lines = [f"{one}: {why}" for one, why in failed.items()]
    said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    lines.append(f"{said or 'There are no devices.'}. State: {ledger.path}")
    if failed:
        lines.append("Find out why, then go on with --retry, or with more --failures.")
    elif counts["waiting"] or counts["sent"]:
        lines.append("It was stopped before its end: the same command again goes on.")
    elif away:
        lines.append("The same command again reaches those who were away.")
    facts = {"state": str(ledger.path), **counts, "failures": failed, "missed": away}
    answer(as_json, facts, *lines)


def _show_status(rows: list[Any], facts: dict[str, Any], ending: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from outpost_tools.progress import count

    table = Table()
    for title in ("device", "", "version"):
        table.add_column(title, no_wrap=True)
    for title in ("root of its last connection", "first expiry", "change"):
        table.add_column(title)
    for row in rows:
        days = "" if row.expires_days is None else f"{row.expires_days} days"
        cells = (
            row.device,
            "connected" if row.connected else f"away since {row.seen[:10]}" if row.seen else "away",
            f"{row.version}{' behind' * row.behind}{' unknown' * row.unknown}"
            if row.version is not None
            else "not told",
            row.root or "not told",
            f"{days}!" if row.expiring else days,
            row.change,
        )
        # What a device says of itself is text, not rich's markup.
        table.add_row(*map(Text, cells))
    if rows:
        Console().print(table)
    newest = "There is no bundle yet" if facts["newest"] is None else f"Newest: {facts['newest']}"
    typer.echo(
        f"{newest}. {count(facts['devices'])}, {facts['connected']} connected, "
        f"{facts['behind']} behind, {facts['expiring']} with a root that ends within the year."
    )
    for line in ending:
        typer.echo(f"Note: {line}")
