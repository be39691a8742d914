"""`outpost rotate`: new keys for devices over the air."""

from contextlib import ExitStack
from enum import StrEnum
from typing import Annotated, Any

import typer

from outpost_tools.cli.authority import CaOption, PassphraseOption, ca_folder, secret_for
from outpost_tools.cli.common import ConnectionOption, DataOption, JsonOption, app, print_json
from outpost_tools.cli.sign import SignerPassphraseOption, signer_secret
from outpost_tools.errors import OutpostError
from outpost_tools.paths import data_dir


class Kind(StrEnum):
    symmetric = "symmetric"
    x509 = "x509"


@app.command("rotate", epilog="Example: outpost rotate pump-7 pump-8 --ca /media/stick/fleet-ca")
def rotate(
    device_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID...]", help="The devices.")
    ] = None,
    due: Annotated[
        bool,
        typer.Option("--due", help="Each device that says that its keys are due, or stopped half."),
    ] = False,
    emergency: Annotated[
        bool,
        typer.Option("--emergency", help="Forbid the old keys first: somebody else knows them."),
    ] = False,
    kind: Annotated[
        Kind | None, typer.Option(help="What it is to have then; another kind in --emergency only.")
    ] = None,
    listing: Annotated[
        bool, typer.Option("--list", help="Show the rotations that are under way.")
    ] = False,
    patience: Annotated[
        str, typer.Option(metavar="TIME", help="How long to wait for a device, e.g. 10m.")
    ] = "3m",
    days: Annotated[int, typer.Option(metavar="DAYS", help="Life of a new certificate.")] = 365,
    signer: Annotated[
        str | None, typer.Option(metavar="NAME", help="[the one with the role keys]")
    ] = None,
    signer_passphrase_file: SignerPassphraseOption = None,
    ca: CaOption = None,
    passphrase_file: PassphraseOption = None,
    connection: ConnectionOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give devices new keys. A run that was stopped is taken up by the same command again."""
    from outpost_tools.ca import FleetCA
    from outpost_tools.cli.service import seconds_of
    from outpost_tools.connection import need
    from outpost_tools.fleet import Fleet
    from outpost_tools.operator import Operator
    from outpost_tools.provision import Issue, signed_by
    from outpost_tools.rotation import Rotator
    from outpost_tools.rotationhub import OperatorHub
    from outpost_tools.signing import Signers

    folder = data_dir(data)
    with ExitStack() as held:
        fleet = held.enter_context(Fleet(folder))
        if listing:
            _show(fleet, as_json)
            return
        if bool(device_ids) == due:
            raise OutpostError("Name the devices to rotate, or say --due.")
        signers = Signers(folder)
        who = signers.find(signer) if signer else signers.for_role("keys")
        secret = signer_secret(who.token is not None, signer_passphrase_file)
        pen = held.enter_context(signers.unlocked(who, secret))
        operator = held.enter_context(Operator(need(connection, folder)))
        opened: list[Any] = []

        def issue(device_id: str) -> Issue:
            # The CA's passphrase is asked for when the first certificate is to be signed.
            if not opened:
                found = FleetCA(ca_folder(ca, data))
                word = secret_for(found.token is not None, passphrase_file)
                opened.append(held.enter_context(found.unlocked(word)))
            return signed_by(opened[0], device_id, days)

        rotator = Rotator(
            fleet,
            OperatorHub(operator),
            pen,
            issue,
            say=lambda text: typer.echo(text, err=as_json),
            patience_s=seconds_of(patience, "--patience"),
        )
        wanted = list(device_ids or []) or _due(rotator, fleet)
        rows = [_one(rotator, device_id, emergency, kind) for device_id in wanted]
    if as_json:
        print_json(rows)
    elif not rows:
        typer.echo("No device that answers says that its keys are due.")
    if any("error" in row for row in rows):
        raise typer.Exit(1)


def _one(rotator: Any, device_id: str, emergency: bool, kind: Kind | None) -> dict[str, Any]:
    try:
        done = rotator.rotate(device_id, emergency=emergency, kind=kind.value if kind else None)
    except OutpostError as why:
        typer.echo(f"outpost: {why}", err=True)
        return {"device": device_id, "error": str(why)}
    return {"device": device_id, "kind": done.kind, "key": done.key, "emergency": done.emergency}


def _due(rotator: Any, fleet: Any) -> list[str]:
    """Those that stopped half-way, and those that say so when they are asked."""
    wanted = [one.device_id for one in fleet.rotations()]
    for known in fleet.devices():
        if known.born_point is None or known.device_id in wanted:
            continue
        try:
            why = rotator.due(known.device_id)
        except OutpostError as trouble:
            typer.echo(f"{known.device_id} was not asked: {trouble}", err=True)
            continue
        if why:
            wanted.append(known.device_id)
    return wanted


def _show(fleet: Any, as_json: bool) -> None:
    rows = [
        {
            "device": one.device_id,
            "kind": one.kind,
            "phase": one.phase,
            "emergency": bool(one.detail.get("emergency")),
        }
        for one in fleet.rotations()
    ]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        urgent = "  emergency" if row["emergency"] else ""
        typer.echo(f"{row['device']}  {row['kind'] or 'keys'}  {row['phase']}{urgent}")
    if not rows:
        typer.echo("No rotation is under way.")
