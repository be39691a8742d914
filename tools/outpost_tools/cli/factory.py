"""`outpost factory`: a thousand devices in one run."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from outpost_tools.cli.authority import CaOption, PassphraseOption, ca_folder, secret_for
from outpost_tools.cli.common import DataOption, JsonOption, app, print_json
from outpost_tools.errors import OutpostError
from outpost_tools.paths import data_dir


@app.command(
    "factory", epilog="Example: outpost factory --count 1000 --profile pumps.toml -o batch-12"
)
def factory_command(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder of the run.")
    ],
    count: Annotated[int | None, typer.Option(metavar="N", help="How many devices.")] = None,
    profile: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What they have in common, as TOML (docs/identity.md)."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="Processes.  [one for each processor]")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only check the files against the manifest.")
    ] = False,
    ca: CaOption = None,
    passphrase_file: PassphraseOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make N devices: images or NVS partitions, one registry file, one manifest.

    A run that was stopped goes on where it was when it is started again. Load the registry file
    with `outpost device import`.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from outpost_tools import factory, roots
    from outpost_tools.ca import FleetCA
    from outpost_tools.pki import DevCA
    from outpost_tools.profile import read

    if verify:
        _show(factory.verify(output), output, as_json)
        return
    if count is None or profile is None:
        raise OutpostError("A run takes both: --count N and --profile FILE.")
    folder = data_dir(data)
    plan = read(profile)
    if plan.roots:
        trust = roots.choose(list(plan.roots))
    elif DevCA.exists(folder):
        trust = DevCA(folder).roots_der()
    else:
        trust = roots.choose(["azure"])
    authority = FleetCA(ca_folder(ca, data)) if plan.keys == "x509" else None
    secret = (
        secret_for(authority.token is not None, passphrase_file) if authority is not None else None
    )
    run = factory.Factory(output, plan, count, trust)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = Console(stderr=True)
    with Progress(*columns, console=shown, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("devices", total=count)
        manifest = run.make(
            folder,
            authority,
            secret,
            workers or os.cpu_count() or 1,
            lambda done: bar.update(task, completed=done),
        )
    if plan.keys == "x509":
        typer.echo(
            "outpost: The devices' keys were made on this machine, which is the weaker way: with "
            'keys = "born" each board makes its own.',
            err=True,
        )
    _show(manifest, output, as_json)


def _show(manifest: dict, output: Path, as_json: bool) -> None:
    if as_json:
        about = {name: value for name, value in manifest.items() if name != "files"}
        print_json(about | {"output": str(output), "files": len(manifest["files"])})
    else:
        typer.echo(
            f"{manifest['count']} devices, {manifest['first']} to {manifest['last']}, are in "
            f"{output}; every file is as the manifest says. Register them: outpost device import "
            f"{output / 'registry.jsonl'}"
        )
