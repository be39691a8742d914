"""`outpost sign …`: the fleet's signers, and the commands that they sign."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from outpost_tools.cli.common import DataOption, JsonOption, group, print_json
from outpost_tools.errors import OutpostError
from outpost_tools.paths import data_dir, write_whole

sign_app = group("sign", "Who may change keys, trust and software on a device, and their commands.")

PASSPHRASE_ENV = "OUTPOST_SIGNER_PASSPHRASE"
PIN_ENV = "OUTPOST_SIGNER_PIN"


class Role(StrEnum):
    keys = "keys"
    trust = "trust"
    software = "software"


SignerPassphraseOption = Annotated[
    Path | None,
    typer.Option(
        "--signer-passphrase-file",
        metavar="FILE",
        help="File with the signer's passphrase, or the token's PIN.  "
        f"[${PASSPHRASE_ENV}, ${PIN_ENV}, else it is asked for]",
    ),
]


def signer_secret(token: bool, file: Path | None, again: bool = False) -> Callable[[], str]:
    """Where the signer's passphrase or PIN comes from, asked once and only when it is needed."""
    from outpost_tools import vault

    def secret() -> str:
        what = "PIN of the signer's token" if token else "passphrase of the signer"
        variable = PIN_ENV if token else PASSPHRASE_ENV
        return vault.secret_of(what, file, variable, again and not token)

    return secret


@sign_app.command("new", epilog="Example: outpost sign new rotation --role keys")
def sign_new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What you call the signer.")],
    role: Annotated[list[Role], typer.Option(help="What it may sign; may be repeated.")],
    module: Annotated[
        str | None,
        typer.Option("--pkcs11", metavar="LIBRARY", help="Make the key in a token behind this."),
    ] = None,
    token: Annotated[str | None, typer.Option(metavar="LABEL", help="The token.")] = None,
    label: Annotated[
        str | None, typer.Option("--key", metavar="LABEL", help="The key in the token.  [NAME]")
    ] = None,
    passphrase_file: SignerPassphraseOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a signer: a P-256 key under a passphrase, or one in a PKCS #11 token.

    The images that are built from now on carry its public key.
    """
    from outpost_tools.signing import Signers
    from outpost_tools.vault import TokenPlace

    if (module is None) != (token is None):
        raise OutpostError("A token takes both: --pkcs11 LIBRARY and --token LABEL.")
    place = TokenPlace(module, token, label or name) if module and token else None
    secret = signer_secret(place is not None, passphrase_file, again=True)
    made = Signers(data_dir(data)).add(name, [r.value for r in role], secret, place)
    if as_json:
        print_json(_about(made))
    else:
        typer.echo(
            f"{name} may sign for {', '.join(made.roles)}. Boards know it from their next image "
            "on: outpost image ID"
        )


@sign_app.command("list", epilog="Example: outpost sign list --json")
def sign_list(data: DataOption = None, as_json: JsonOption = False) -> None:
    """Show the signers, their roles, and where their keys are. No passphrase is needed."""
    from outpost_tools.signing import Signers

    rows = [_about(signer) for signer in Signers(data_dir(data)).all()]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        typer.echo(f"{row['signer']}  {','.join(row['roles'])}  {row['key']}  {row['kid']}")
    if not rows:
        typer.echo("There is no signer yet: outpost sign new NAME --role keys")


@sign_app.command("public", epilog="Example: outpost sign public anna -o anna.pub")
def sign_public(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The signer.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="[printed]")
    ] = None,
    data: DataOption = None,
) -> None:
    """Write a signer's public key, in PEM, for who makes a trust bundle that names it."""
    from outpost_tools.signing import Signers
    from outpost_tools.trustparts import public_pem

    pem = public_pem(Signers(data_dir(data)).find(name).point)
    if output is None:
        typer.echo(pem.decode(), nl=False)
    else:
        if output.is_file() and b"PRIVATE KEY" in output.read_bytes():
            raise OutpostError(f"{output} is a private key: give another -o for the public one.")
        write_whole(output, pem, mode=0o644)
        typer.echo(f"{output}: the public key of {name}.")


@sign_app.command("command", epilog="Example: outpost sign command pump-7 keys drop")
def sign_command(
    device_id: Annotated[str, typer.Argument(metavar="ID", help="The device; * for every one.")],
    role: Annotated[Role, typer.Argument(metavar="ROLE", help="keys, trust or software.")],
    op: Annotated[str, typer.Argument(metavar="OP", help="What is to be done.")],
    args: Annotated[
        str, typer.Option(metavar="JSON", help="Its arguments; @FILE for a file, - for stdin.")
    ] = "{}",
    life: Annotated[str, typer.Option(metavar="TIME", help="E.g. 15m, 2h, 7d.")] = "1h",
    signer: Annotated[
        str | None, typer.Option(metavar="NAME", help="[the one with that role]")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="[printed]")
    ] = None,
    passphrase_file: SignerPassphraseOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sign one command. It is delivered as the payload of the direct method outpost.command."""
    from outpost_tools.cli.service import json_of, seconds_of
    from outpost_tools.fleet import Fleet
    from outpost_tools.registry import check_device_id
    from outpost_tools.signing import Signers

    if device_id != "*":
        check_device_id(device_id)
    content = json_of(args, "arguments")
    if not isinstance(content, dict):
        raise OutpostError("The arguments are a JSON object: give e.g. '{\"wait\": 60}'.")
    folder = data_dir(data)
    signers = Signers(folder)
    who = signers.find(signer) if signer else signers.for_role(role.value)
    secret = signer_secret(who.token is not None, passphrase_file)
    with Fleet(folder) as fleet, signers.unlocked(who, secret) as pen:
        token = pen.command(fleet, device_id, role.value, op, content, seconds_of(life, "--life"))
    if output is not None:
        write_whole(output, token.encode())
    if as_json:
        print_json({"command": token} if output is None else {"file": str(output)})
    else:
        typer.echo(token if output is None else f"{output}: {role.value}.{op} for {device_id}.")


def _about(signer: Any) -> dict[str, Any]:
    where = str(signer.token) if signer.token else "a file under a passphrase"
    return {"signer": signer.name, "roles": list(signer.roles), "key": where, "kid": signer.kid}
