"""`outpost provision`: a board on the desk gets its certificate."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from outpost_tools.cli.authority import (
    CaOption,
    DaysOption,
    PassphraseOption,
    ca_folder,
    secret_for,
)
from outpost_tools.cli.boards import Leg
from outpost_tools.cli.common import (
    ConnectionOption,
    DataOption,
    DeviceArgument,
    JsonOption,
    app,
    print_json,
)
from outpost_tools.errors import OutpostError
from outpost_tools.paths import data_dir, write_whole


class ByName(StrEnum):
    thumbprint = "thumbprint"
    ca = "ca"


@app.command("provision", epilog="Example: outpost provision pump-7 --port /dev/ttyUSB0")
def provision_command(
    device_id: DeviceArgument,
    port: Annotated[
        str | None, typer.Option(metavar="PORT", help="The board's serial port.")
    ] = None,
    flash: Annotated[
        Path | None,
        typer.Option(metavar="IMAGE", help="A flash image, run on the virtual board."),
    ] = None,
    leg: Annotated[Leg, typer.Option(help="Which build runs the image.")] = Leg.outpost64,
    by: Annotated[
        ByName, typer.Option(help="How the hub knows it: by its thumbprint, or by the CA.")
    ] = ByName.thumbprint,
    csr_to: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Only write its request there, for another CA."),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The chain that another CA made of that request."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="This board takes the place of the one before.")
    ] = False,
    days: DaysOption = 365,
    ca: CaOption = None,
    passphrase_file: PassphraseOption = None,
    connection: ConnectionOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read a board's request, sign it, write the certificate back, and register the device.

    The key is made on the board and stays there. The board needs its image first (`outpost image`).
    """
    from contextlib import ExitStack

    from outpost_tools import provision
    from outpost_tools.books import open_book
    from outpost_tools.ca import FleetCA
    from outpost_tools.connection import given
    from outpost_tools.fleet import Fleet
    from outpost_tools.repl import open_prompt

    folder = data_dir(data)
    if certificate is not None and csr_to is not None:
        raise OutpostError("First --csr-to, then --certificate: they are two steps.")
    with ExitStack() as held:
        issue = None
        if certificate is not None:
            issue = provision.signed_elsewhere(certificate)
        elif csr_to is None:
            found = FleetCA(ca_folder(ca, data))
            secret = secret_for(found.token is not None, passphrase_file)
            signer = held.enter_context(found.unlocked(secret))
            issue = provision.signed_by(signer, device_id, days)
            if by is ByName.ca and given(connection) is None:
                provision.trust_ca(folder, found)
        prompt = held.enter_context(open_prompt(port, flash, leg.value))
        if issue is None:
            if not provision.makes_keys(prompt):
                raise OutpostError("A stock MicroPython makes no request: " + provision.WEAKER)
            assert csr_to is not None
            write_whole(csr_to, provision.read_request(prompt, device_id).pem, mode=0o644)
            print_json({"device": device_id, "csr": str(csr_to)}) if as_json else typer.echo(
                f"{csr_to} is the request of {device_id}. With the certificate: outpost provision "
                f"{device_id} --certificate FILE"
            )
            return
        fleet = held.enter_context(Fleet(folder))
        book = held.enter_context(open_book(connection, folder))
        done = provision.provision(prompt, device_id, fleet, book, issue, by.value, replace)
    ends = f"{provision.until(done.chain):%Y-%m-%d}"
    if done.made_on == "host":
        typer.echo(f"outpost: {provision.WEAKER[0].upper()}{provision.WEAKER[1:]}", err=True)
    if as_json:
        print_json(
            {
                "device": device_id,
                "key_made_on": done.made_on,
                "sha256": done.thumbprint,
                "until": ends,
                "by": by.value,
                "registry": done.place,
            }
        )
    else:
        typer.echo(
            f"{device_id} has its certificate, until {ends}, and is in {done.place}. Its key was "
            f"made on the {done.made_on}."
        )
