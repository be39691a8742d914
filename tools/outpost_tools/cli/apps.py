"""`outpost app …`: new software for devices over the air."""

from pathlib import Path
from typing import Annotated, Any

import typer

from outpost_tools.cli.common import DataOption, JsonOption, answer, group, print_json
from outpost_tools.cli.sign import SignerPassphraseOption, signer_secret
from outpost_tools.errors import OutpostError
from outpost_tools.paths import data_dir, write_whole

app_app = group("app", "New software for devices, over the air.")

PackageArgument = Annotated[
    Path, typer.Argument(metavar="PACKAGE", help="A file of `outpost app build`.")
]
TrustOption = Annotated[
    Path | None,
    typer.Option(
        "--trust",
        metavar="FILE",
        help="The fleet's trust bundle, which names who signs software.  [signers of the role]",
    ),
]


@app_app.command("build", epilog="Example: outpost app build my-app -o pump-14.opk --version 14")
def app_build(
    source: Annotated[
        Path,
        typer.Argument(metavar="SRC", help="Folder with your main.py; or a firmware's .bin."),
    ],
    version: Annotated[int, typer.Option(help="A number above all before it.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="[SRC-VERSION.opk]")
    ] = None,
    label: Annotated[str, typer.Option(metavar="TEXT", help="What people call it, e.g. 1.4.")] = "",
    arch: Annotated[
        str,
        typer.Option(help="Machine code for e.g. xtensawin, rv32imc; bytecode runs everywhere."),
    ] = "bytecode",
    days: Annotated[float, typer.Option(help="How long it may be installed.")] = 90,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compile an application into a package, which then has to be signed.

    Of a firmware (the micropython.bin of a build) it makes the record that is signed.
    """
    from outpost_tools import package
    from outpost_tools.firmwarerecord import FirmwareRecord
    from outpost_tools.fleet import Fleet
    from outpost_tools.software import Software

    firmware = source.is_file()
    content = FirmwareRecord.of(source, label) if firmware else package.build(source, label, arch)
    with Fleet(data_dir(data)) as fleet:
        made = Software.around(content, fleet.name, version, days)
    name = source.resolve().stem if firmware else source.resolve().name
    path = output or Path(f"{name}-{version}.opk")
    write_whole(path, made.encode(), 0o644)
    answer(
        as_json,
        {"file": str(path), **about(made)},
        f"{path}: {_what(made)}, version {version}. Sign it: outpost app sign {path}",
    )


@app_app.command("sign", epilog="Example: outpost app sign pump-14.opk --signer releases")
def app_sign(
    package: PackageArgument,
    signer: Annotated[
        str | None, typer.Option(metavar="NAME", help="[the one with the role software]")
    ] = None,
    trust: TrustOption = None,
    passphrase_file: SignerPassphraseOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a signature on a package. Where several must sign, each does it, in any order."""
    from outpost_tools.signing import Signers
    from outpost_tools.software import ROLE, Software, keys_of

    folder = data_dir(data)
    held = Software.read(package)
    signers = Signers(folder)
    who = signers.find(signer) if signer else signers.for_role(ROLE)
    secret = signer_secret(who.token is not None, passphrase_file)
    with signers.unlocked(who, secret) as pen:
        made = Software(held.package, pen.envelope(held.envelope))
    write_whole(package, made.encode(), 0o644)
    missing = None
    try:
        missing = made.missing(keys_of(folder, trust))
        more = f"{missing} more must sign." if missing else "It is signed."
    except OutpostError as why:
        # The other signers are on other machines: the bundle knows them.
        more = f"Whether that is enough is not known here ({why}) Give --trust."
    answer(as_json, {"missing": missing, **about(made)}, f"{package}: {who.name} signed. {more}")


@app_app.command("inspect", epilog="Example: outpost app inspect pump-14.opk")
def app_inspect(
    package: PackageArgument,
    trust: TrustOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is in a package and who has signed it. Fails where a device would refuse it."""
    from outpost_tools.software import Software, keys_of

    held = Software.read(package)
    missing = held.missing(keys_of(data_dir(data), trust))
    facts = about(held)
    if as_json:
        print_json({"missing": missing, **facts})
    else:
        typer.echo(f"{package}: version {held.version} {held.package.label}".rstrip())
        typer.echo(f"fleet {facts['fleet']}, {_what(held)}, may be installed until {_day(held)}")
        for path, size in facts.get("files", {}).items():
            typer.echo(f"{size:8}  {path}")
        keys = ", ".join(facts["signed"]) or "nobody"
        typer.echo(
            f"signed by {keys}; {missing} more must sign" if missing else f"signed by {keys}"
        )
    if missing:
        raise typer.Exit(1)


def _day(held: Any) -> str:
    import datetime as dt

    return dt.datetime.fromtimestamp(held.envelope.expires, dt.UTC).date().isoformat()


def _what(held: Any) -> str:
    facts = about(held)
    if "chip" in facts:
        return f"firmware of {facts['bytes']} bytes for chip {facts['chip']}"
    return f"{facts['bytes']} bytes, {len(facts['files'])} files, {facts['mpy']}"


def about(held: Any) -> dict[str, Any]:
    """What may be said of a package to anybody."""
    package, frame = held.package, held.envelope
    said = {
        "kind": held.kind,
        "version": frame.version,
        "label": package.label,
        "fleet": frame.fleet,
        "expires": frame.expires,
        "signed": [one.key.hex() for one in frame.signatures],
    }
    if held.kind == "firmware":
        digest = package.sha256.hex()
        return {**said, "bytes": package.size, "chip": package.chip, "sha256": digest}
    flags = package.mpy_flags
    return {
        **said,
        "bytes": len(held.encode()),
        "mpy": f"mpy {package.mpy_version}.{flags & 3} arch {flags >> 2}",
        "files": {path: len(content) for path, content in sorted(package.files.items())},
    }
