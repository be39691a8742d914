"""`outpost ca …`: the fleet's certificate authority."""

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from outpost_tools.cli.common import DataOption, DeviceArgument, JsonOption, group, print_json
from outpost_tools.errors import OutpostError
from outpost_tools.paths import data_dir, write_whole

ca_app = group("ca", "The fleet's CA, which signs the devices' certificates.")

CaOption = Annotated[
    Path | None,
    typer.Option(
        "--ca", metavar="DIR", help="Folder of the CA, e.g. on a stick.  [fleet-ca in --data]"
    ),
]
PassphraseOption = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        metavar="FILE",
        help="File with the CA's passphrase, or the token's PIN.  "
        "[$OUTPOST_CA_PASSPHRASE, $OUTPOST_CA_PIN, else it is asked for]",
    ),
]
DaysOption = Annotated[int, typer.Option(metavar="DAYS", help="How long it is valid.")]


def ca_folder(given: Path | None, data: Path | None) -> Path:
    from outpost_tools.ca import FOLDER

    return given or data_dir(data) / FOLDER


def secret_for(token: bool, file: Path | None, again: bool = False) -> Callable[[], str]:
    """Where the passphrase or the PIN comes from, asked once and only when it is needed."""
    from outpost_tools import vault

    held: list[str] = []

    def secret() -> str:
        if not held:
            what, variable = (
                ("PIN of the token", vault.PIN_ENV)
                if token
                else ("passphrase of the CA", vault.PASSPHRASE_ENV)
            )
            held.append(vault.secret_of(what, file, variable, again and not token))
        return held[0]

    return secret


def about(certificate: Any) -> dict[str, Any]:
    from cryptography.hazmat.primitives import hashes

    return {
        "subject": certificate.subject.rfc4514_string(),
        "serial": f"{certificate.serial_number:x}",
        "sha256": certificate.fingerprint(hashes.SHA256()).hex().upper(),
        "sha1": certificate.fingerprint(hashes.SHA1()).hex().upper(),
        "until": certificate.not_valid_after_utc.strftime("%Y-%m-%d"),
    }


@ca_app.command("new", epilog="Example: outpost ca new 'Pumps North' --intermediate")
def ca_new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name in the CA's certificate.")],
    ca: CaOption = None,
    intermediate: Annotated[
        bool,
        typer.Option(
            "--intermediate",
            help="One below the root that signs, so that the root can be put away.",
        ),
    ] = False,
    days: DaysOption = 7300,
    module: Annotated[
        str | None,
        typer.Option("--pkcs11", metavar="LIBRARY", help="Make the key in a token behind this."),
    ] = None,
    token: Annotated[str | None, typer.Option(metavar="LABEL", help="The token.")] = None,
    label: Annotated[
        str, typer.Option("--key", metavar="LABEL", help="The key's label in the token.")
    ] = "outpost-ca",
    passphrase_file: PassphraseOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the fleet's CA: a P-256 key under a passphrase, or one in a PKCS #11 token."""
    from outpost_tools.ca import create
    from outpost_tools.vault import TokenPlace

    if (module is None) != (token is None):
        raise OutpostError("A token takes both: --pkcs11 LIBRARY and --token LABEL.")
    place = TokenPlace(module, token, label) if module and token else None
    folder = ca_folder(ca, data)
    secret = secret_for(place is not None, passphrase_file, again=True)
    made = create(folder, name, secret, days=days, intermediate=intermediate, token=place)
    if as_json:
        print_json({"ca": str(folder), "name": made.name, **about(made.root)})
    else:
        kept = f"in the token {token}" if place else "in that folder, under the passphrase"
        typer.echo(
            f"The CA {made.name} is in {folder}; its key is {kept}. Let a hub take its devices: "
            f"outpost authority add fleet {folder / 'root.pem'}"
        )


@ca_app.command("show", epilog="Example: outpost ca show")
def ca_show(ca: CaOption = None, data: DataOption = None, as_json: JsonOption = False) -> None:
    """Show the CA's certificates. No passphrase is needed."""
    from outpost_tools.ca import FleetCA

    found = FleetCA(ca_folder(ca, data))
    rows = [{"role": "root", "file": str(found.folder / "root.pem"), **about(found.root)}]
    if found.above:
        issuer = found.folder / "issuer.pem"
        rows.append({"role": "issuer", "file": str(issuer), **about(found.issuer)})
    where = str(found.token) if found.token else "a file under a passphrase"
    if as_json:
        print_json({"name": found.name, "key": where, "certificates": rows})
        return
    typer.echo(f"{found.name}: signs with {where}")
    for row in rows:
        typer.echo(f"{row['role']:7} {row['subject']}  until {row['until']}  {row['sha256']}")


@ca_app.command("sign", epilog="Example: outpost ca sign pump-7 pump-7.csr -o pump-7.pem")
def ca_sign(
    device_id: DeviceArgument,
    request: Annotated[Path, typer.Argument(metavar="CSR", help="Its request, PEM or DER.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="PEM.  [ID.pem]")
    ] = None,
    days: DaysOption = 365,
    ca: CaOption = None,
    passphrase_file: PassphraseOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sign a device's request, after a look at its name, its key and its signature."""
    from outpost_tools import proof
    from outpost_tools.ca import FleetCA, pem
    from outpost_tools.fleet import Fleet
    from outpost_tools.provision import check_key_is_alone

    content = _read(request)
    asked = proof.read_request(content, device_id)
    found = FleetCA(ca_folder(ca, data))
    with Fleet(data_dir(data)) as fleet:
        check_key_is_alone(fleet, device_id, proof.point(asked.public_key(), "The request's"))
        with found.unlocked(secret_for(found.token is not None, passphrase_file)) as signer:
            chain = signer.request(content, device_id, days)
        path = output or Path(f"{device_id}.pem")
        fleet.issued(device_id, proof.pack_chain(chain))
        write_whole(path, b"".join(map(pem, chain)), mode=0o644)
    if as_json:
        print_json({"device": device_id, "file": str(path), **about(chain[0])})
    else:
        typer.echo(f"{path} is the certificate of {device_id}, {about(chain[0])['sha256']}.")


@ca_app.command("issue", epilog="Example: outpost ca issue gateway-1 --key-to gateway-1.key")
def ca_issue(
    device_id: DeviceArgument,
    key_to: Annotated[
        Path, typer.Option("--key-to", metavar="FILE", help="The new key, readable by you alone.")
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="PEM.  [ID.pem]")
    ] = None,
    days: DaysOption = 365,
    ca: CaOption = None,
    passphrase_file: PassphraseOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key here, and its certificate: for what cannot make one, and weaker for that."""
    from outpost_tools import proof, vault
    from outpost_tools.ca import FleetCA, pem
    from outpost_tools.fleet import Fleet

    proof.check_common_name(device_id)
    found = FleetCA(ca_folder(ca, data))
    path = output or Path(f"{device_id}.pem")
    for file in (path, key_to):
        if file.exists():
            raise OutpostError(f"There is {file} already: give another name.")
    key = vault.new_key()
    with (
        Fleet(data_dir(data)) as fleet,
        found.unlocked(secret_for(found.token is not None, passphrase_file)) as signer,
    ):
        chain = signer.device(device_id, key.public_key(), days)
        write_whole(key_to, vault.plain_pem(key))
        write_whole(path, b"".join(map(pem, chain)), mode=0o644)
        fleet.remember(device_id, made_on="host")
        fleet.issued(device_id, proof.pack_chain(chain))
    if as_json:
        about_it = {"device": device_id, "file": str(path), "key": str(key_to)}
        print_json(about_it | about(chain[0]))
    else:
        typer.echo(
            f"{path} is the certificate of {device_id}, {key_to} its key. The key was made on this "
            "machine: a key that a board makes itself is better."
        )


@ca_app.command("prove", epilog="Example: outpost ca prove 4F1C… -o verification.pem")
def ca_prove(
    code: Annotated[str, typer.Argument(metavar="CODE", help="What the portal shows.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="PEM.")],
    ca: CaOption = None,
    passphrase_file: PassphraseOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prove to IoT Hub or DPS that the CA's key is yours, where it asks for that."""
    from outpost_tools.ca import FleetCA, pem

    found = FleetCA(ca_folder(ca, data))
    with found.unlocked(secret_for(found.token is not None, passphrase_file)) as signer:
        write_whole(output, pem(signer.possession(code)), mode=0o644)
    if as_json:
        print_json({"file": str(output)})
    else:
        typer.echo(f"{output} proves that the key of {found.name} is yours.")


@ca_app.command("list", epilog="Example: outpost ca list --json")
def ca_list(
    device: Annotated[
        str | None, typer.Option(metavar="ID", help="This device's alone.  [all]")
    ] = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the certificates that were issued to devices, the newest last."""
    from outpost_tools.fleet import Fleet

    with Fleet(data_dir(data)) as fleet:
        rows = [
            {
                "device": one.device_id,
                "serial": one.serial,
                "sha256": one.thumbprint,
                "issuer": one.issuer,
                "until": dt.datetime.fromtimestamp(one.not_after_s, dt.UTC).strftime("%Y-%m-%d"),
                "state": one.state,
            }
            for one in fleet.certificates(device)
        ]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        typer.echo(f"{row['device']}  {row['state']}  until {row['until']}  {row['sha256']}")
    if not rows:
        typer.echo("No certificate was issued yet: see `outpost provision` and `outpost ca sign`.")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as why:
        raise OutpostError(f"Cannot read {path} ({why.strerror}).") from None
