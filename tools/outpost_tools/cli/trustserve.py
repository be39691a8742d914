"""`outpost trust serve`: files for devices that fetch them, and a recovery endpoint."""

from pathlib import Path
from typing import Annotated

import typer

from outpost_tools.cli.common import DataOption, print_json, say
from outpost_tools.errors import OutpostError


def add_to(group: typer.Typer) -> None:
    """Add the command to the group that it belongs to, `outpost trust`."""
    group.command(
        "serve",
        epilog="Example: outpost trust serve --bundle harbour=harbour-7.bin --host 127.0.0.1",
    )(serve)


def serve(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="Folder whose files are served.  [none]"),
    ] = None,
    bundle: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FLEET=FILE",
            help="What a fleet finds at the recovery endpoint; read anew each time.",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any.")] = 9443,
    names: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="HOST", help="Name in the certificate.  [localhost]"),
    ] = None,
    chain: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Its chain, PEM.  [of the development CA]"),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The key to it, PEM.", show_default=False)
    ] = None,
    data: DataOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON for each event.")] = False,
) -> None:
    """Serve files over HTTPS to devices that fetch them in ranges, until Ctrl-C."""
    import threading

    from outpost_tools.bundleserver import (
        Asked,
        BundleServer,
        development_context,
        of_folder,
        recovery_path,
    )
    from outpost_tools.ending import until_told
    from outpost_tools.hub.tls import server_context
    from outpost_tools.paths import data_dir

    if not folder and not bundle:
        raise OutpostError("There is nothing to serve: give a folder, or --bundle FLEET=FILE.")
    if (chain is None) != (key is None):
        raise OutpostError("A chain and its key go together: give both --chain and --key.")
    below = of_folder(folder) if folder else lambda path: None
    recovery = dict(_bundle(text) for text in bundle or [])
    at = {recovery_path(fleet): path for fleet, path in recovery.items()}

    def read(path: str) -> bytes | None:
        return at[path].read_bytes() if path in at else below(path)

    def asked(what: Asked) -> None:
        if as_json:
            print_json({"event": "asked", **vars(what)})
        else:
            say(f"{what.status} {what.path} bytes={what.first}-{what.last}")

    if chain and key:
        context = server_context([(chain, key)])
    else:
        context = development_context(data_dir(data), names or ["localhost", "127.0.0.1"])
    with until_told(), BundleServer(read, context, host, port, asked) as server:
        if as_json:
            print_json({"event": "listening", "host": host, "port": server.port})
        else:
            say(f"Serving on https://{host}:{server.port}")
            for path in at:
                say(f"  recovery: https://{host}:{server.port}{path}")
        threading.Event().wait()


def _bundle(text: str) -> tuple[str, Path]:
    fleet, equals, name = text.partition("=")
    path = Path(name)
    if not fleet or not equals or not path.is_file():
        raise OutpostError(f"{text!r} is not FLEET=FILE with a file that is there.")
    return fleet, path
