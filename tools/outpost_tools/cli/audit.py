"""`outpost audit`: what an endpoint offers, and whether devices will connect to it."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from outpost_tools.cli.common import JsonOption, app, print_json, say
from outpost_tools.errors import OutpostError

WILL, WILL_NOT, NOT_ASKED = 0, 1, 2


@app.command(
    "audit",
    epilog="Example: outpost audit my-hub.azure-devices.net --root azure && echo will connect",
)
def audit_command(
    endpoint: Annotated[str, typer.Argument(metavar="HOST[:PORT]", help="Where devices connect.")],
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port.  [8883]")] = None,
    bundle: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The trust bundle that the devices have.")
    ] = None,
    root: Annotated[
        list[str] | None,
        typer.Option(
            "--root",
            "--roots",
            metavar="NAME|FILE",
            help="Or their roots: azure-rsa, azure-ecc, azure, or a file; may be repeated.  "
            "[azure]",
            show_default=False,
        ),
    ] = None,
    ecc: Annotated[
        bool, typer.Option("--ecc", help='Devices have "suites": "ecc"; this decides the status.')
    ] = False,
    x509: Annotated[
        bool, typer.Option("--x509", help="Devices have certificates, if the server wants one.")
    ] = False,
    sni: Annotated[
        str | None, typer.Option(metavar="NAME", help="The name devices verify.  [HOST]")
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=60, help="Seconds that one answer may take.")
    ] = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Ask a TLS endpoint what it offers, and say whether devices will connect.

    Exit status: 0 they will, 1 they will not, 2 it could not be asked.
    """
    from outpost_tools.audit import NotAsked, Target, survey
    from outpost_tools.audit.report import as_dict, as_lines

    host, in_endpoint = split(endpoint)
    if port and in_endpoint and port != in_endpoint:
        raise typer.BadParameter("The port is given twice")
    # For a program that waits for a verdict these are alike: there is none.
    try:
        trusted, about = _trusted(bundle, root)
        target = Target(host, port or in_endpoint or 8883, sni or host, timeout, 18 * timeout)
        found = survey(target, trusted, with_certificate=x509, progress=_progress(as_json))
    except NotAsked as why:
        _could_not(str(why), as_json)
    except OutpostError as why:
        _could_not(str(why), False)
    policy = "ecc" if ecc else "all"
    if as_json:
        print_json(as_dict(found, policy, about))
    else:
        for line in as_lines(found, policy, about):
            say(line)
    raise typer.Exit(WILL if found.verdicts[policy].connects else WILL_NOT)


def split(text: str) -> tuple[str, int | None]:
    from outpost_tools import endpoint

    try:
        return endpoint.split(text)
    except OutpostError as why:
        raise typer.BadParameter(str(why)) from None


def _trusted(bundle: Path | None, root: list[str] | None) -> tuple[list[bytes], dict[str, Any]]:
    """DER of the roots, and what is said of where they come from."""
    from outpost_tools import roots
    from outpost_tools.audit.chain import read

    if bundle is not None and root:
        raise typer.BadParameter("Give --bundle or --root, not both")
    about: dict[str, Any] = {}
    if bundle is not None:
        trusted, about = _bundle(bundle)
    else:
        trusted, about["source"] = roots.choose(root or ["azure"]), ", ".join(root or ["azure"])
    seen = [read(der) for der in trusted]
    about["roots"] = [{"name": one.name, "sha256": one.sha256} for one in seen]
    return trusted, about


def _bundle(path: Path) -> tuple[list[bytes], dict[str, Any]]:
    from outpost_tools import agreed, bundle, trustwords

    try:
        with path.open("rb") as file:
            data = file.read(agreed.TRUST_FILE_MAX_BYTES + 1)
    except OSError as why:
        raise OutpostError(f"Cannot read {path} ({why.strerror}).") from None
    found, _ = bundle.read(data)
    about = {
        "source": str(path),
        "fleet": found.fleet,
        "version": found.version,
        "ending": trustwords.ending(found),
    }
    return list(found.roots), about


def _progress(as_json: bool):  # type: ignore[no-untyped-def]
    def show(step: str) -> None:
        if not as_json and sys.stderr.isatty():
            typer.echo(f"asking: {step}\x1b[K\r", nl=False, err=True)

    return show


def _could_not(why: str, as_json: bool) -> None:
    if as_json:
        print_json({"connects": None, "error": why})
    typer.echo(f"outpost: {why}", err=True)
    raise typer.Exit(NOT_ASKED)
