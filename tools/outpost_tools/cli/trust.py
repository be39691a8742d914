"""`outpost roots`: the trust roots in certs/; and the group `outpost trust`."""

from pathlib import Path
from typing import Annotated

import typer

from outpost_tools.cli.common import JsonOption, app, group, print_json

trust_app = group(
    "trust", "What the fleet trusts: bundles of roots, their signatures, their way out."
)


@app.command("roots", epilog="Example: outpost roots --check")
def roots_command(
    check: Annotated[bool, typer.Option("--check", help="Only check what is in certs/.")] = False,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="PEM file to take.  [certifi's]")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Folder.  [certs/]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Take the trust roots out of certifi into certs/; any but the pinned ones are refused."""
    from outpost_tools import roots

    if not check:
        roots.take(source, output)
    held = roots.read(output)
    pins = {pin.name: pin for pin in roots.PINS}
    if as_json:
        print_json(
            [{"name": n, "sha256": pins[n].sha256, "bytes": len(d)} for n, d in held.items()]
        )
    else:
        for root_name, content in held.items():
            typer.echo(f"{pins[root_name].sha256}  {len(content):5} bytes  {root_name}")
