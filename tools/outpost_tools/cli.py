"""The console command `outpost`.

It owns the words of the command line and nothing else: what each command does stands in the module
of its name. An error is one sentence on stderr and exit status 1; a secret is never printed.
"""

import json
import os
import signal
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from outpost_tools import __version__
from outpost_tools.errors import OutpostError
from outpost_tools.paths import data_dir, tree, write_whole


class Commands(TyperGroup):
    """Turns our one exception into one sentence, for every command below it."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except OutpostError as why:
            typer.echo(f"outpost: {why}", err=True)
            raise typer.Exit(1) from None
        except typer.BadParameter as why:
            said = why.format_message().replace("Value error, ", "").rstrip(".")
            typer.echo(f"outpost: {said}.", err=True)
            raise typer.Exit(2) from None
        except BrokenPipeError:
            # Whoever read our output has seen enough. Nothing more may be written to it.
            _stop_writing()
            raise typer.Exit(1) from None


def _group(text: str) -> typer.Typer:
    return typer.Typer(
        help=text,
        no_args_is_help=True,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


app = typer.Typer(
    cls=Commands,
    name="outpost",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make devices and their flash images, run virtual boards, and run a local hub.",
    epilog="Example: outpost device new pump-7 && outpost image pump-7 -o pump-7.bin",
)
device_app = _group("The devices in the registry.")
board_app = _group("The virtual board.")
hub_app = _group("The local hub.")
app.add_typer(device_app, name="device")
app.add_typer(board_app, name="board")
app.add_typer(hub_app, name="hub")


class Leg(StrEnum):
    outpost64 = "outpost64"
    outpost32 = "outpost32"
    stock32 = "stock32"
    stock_release = "stock-release"


class ChainName(StrEnum):
    rsa = "rsa"
    ecdsa = "ecdsa"
    both = "both"


class LibraryName(StrEnum):
    frozen = "frozen"
    flash = "flash"


class SuitesName(StrEnum):
    all = "all"
    ecc = "ecc"


DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Folder of the registry and the development CA.  [$OUTPOST_DATA or ./outpost-data]",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
HeapOption = Annotated[
    str | None,
    typer.Option("--heapsize", metavar="SIZE", help="Python's heap on the board, e.g. 64K."),
]


def _say(text: str) -> None:
    """A line from any thread. Where nobody reads any more, the whole program ends in order."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        _stop_writing()
        os.kill(os.getpid(), signal.SIGTERM)


def _stop_writing() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_json(content: Any) -> None:
    typer.echo(json.dumps(content))


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"outpost {__version__}")
        raise typer.Exit()


@app.callback()
def _outpost(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _heapsize(text: str | None) -> str | None:
    if text is not None and not (text.rstrip("KkMm").isdigit() and len(text) < 12):
        raise OutpostError(f"{text!r} is not a heap size: give a number with K or M, e.g. 64K.")
    if text is not None and text.isdigit() and int(text) < 4096:
        raise OutpostError(f"{text} bytes are too few for a heap: at least 4K.")
    return text


def _record_size(text: str) -> Any:
    return int(text) if text.isascii() and text.isdigit() else text


@device_app.command("new", epilog="Example: outpost device new pump-7 --data fleet")
def device_new(
    device_id: Annotated[str, typer.Argument(metavar="ID", help="The device's id in IoT Hub.")],
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a device: two new keys and an entry in the registry. The keys are not shown."""
    from outpost_tools.registry import Registry, check_device_id

    check_device_id(device_id)
    if set("+#") & set(device_id):
        raise OutpostError(
            f"IoT Hub takes the id {device_id!r}, but MQTT does not allow + and # in the topics "
            "that it stands in: choose another id."
        )
    with Registry(data_dir(data)) as registry:
        device = registry.add(device_id)
        path = registry.path
    if as_json:
        _print_json({"device": device.device_id, "status": device.status, "registry": str(path)})
    else:
        typer.echo(f"Device {device.device_id} is in {path}. Its image: outpost image {device_id}")


@device_app.command("list", epilog="Example: outpost device list --json")
def device_list(data: DataOption = None, as_json: JsonOption = False) -> None:
    """Show the devices in the registry, without their keys."""
    from outpost_tools.registry import Registry

    with Registry(data_dir(data)) as registry:
        devices = registry.devices()
        path = registry.path
    if as_json:
        _print_json(
            [{"device": d.device_id, "status": d.status, "created_s": d.created_s} for d in devices]
        )
    elif devices:
        for d in devices:
            made = time.strftime("%Y-%m-%d %H:%M", time.localtime(d.created_s))
            typer.echo(f"{d.device_id}  {d.status}  made {made}")
    else:
        typer.echo(f"There is no device in {path}: make one with `outpost device new ID`.")


@app.command("image", epilog="Example: outpost image pump-7 -o pump-7.bin --hub localhost")
def image(
    device_id: Annotated[str, typer.Argument(metavar="ID", help="A device of the registry.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="The image.  [ID.bin]"),
    ] = None,
    hub: Annotated[str, typer.Option(help="Host name of the hub.")] = "localhost",
    port: Annotated[int, typer.Option(help="Port of the hub.")] = 8883,
    wifi: Annotated[
        str, typer.Option(metavar="SSID[:KEY]", help="The Wi-Fi network.")
    ] = "Espressif",
    wifi_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File with the Wi-Fi key, kept off the command line."),
    ] = None,
    sntp: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST[:PORT]", help="Time server; up to four.  [pool.ntp.org's]"),
    ] = None,
    record_size: Annotated[
        str,
        typer.Option(metavar="SIZE", help="TLS record size: auto, none, 512, 1024, 2048, 4096."),
    ] = "auto",
    suites: Annotated[SuitesName, typer.Option(help="Suites to offer.")] = SuitesName.all,
    keepalive: Annotated[int, typer.Option(metavar="SECONDS", help="MQTT keep-alive.")] = 240,
    library: Annotated[
        LibraryName, typer.Option(help="Where lib/outpost is: in the firmware, or in the flash.")
    ] = LibraryName.frozen,
    root: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Trusted roots: azure-rsa, azure-ecc, azure, or a file; may be repeated.  "
            "[the development CA of --data where there is one, else azure]",
        ),
    ] = None,
    app_dir: Annotated[
        Path | None, typer.Option("--app", metavar="DIR", help="Folder with your main.py.")
    ] = None,
    size: Annotated[int, typer.Option(metavar="MIB", help="Size of the flash.")] = 4,
    build_time: Annotated[
        int | None,
        typer.Option(
            metavar="UNIX",
            envvar="SOURCE_DATE_EPOCH",
            help="Build time, where the device's clock floor starts.  [now]",
        ),
    ] = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build the flash image of one device: its keys, configuration, roots and software."""
    from outpost_tools import roots
    from outpost_tools.image import DEFAULT_SNTP, Settings, build_image
    from outpost_tools.pki import DevCA
    from outpost_tools.registry import Registry

    folder = data_dir(data)
    ssid, _, wifi_key = wifi.partition(":")
    if wifi_key_file is not None:
        try:
            wifi_key = wifi_key_file.read_text().strip("\r\n")
        except (OSError, UnicodeDecodeError):
            raise OutpostError(f"Cannot read the Wi-Fi key in {wifi_key_file}.") from None
    settings = Settings(
        hub=hub,
        port=port,
        wifi_ssid=ssid,
        wifi_key=wifi_key,
        sntp=sntp or DEFAULT_SNTP,
        record_size=_record_size(record_size),
        suites=suites.value,
        keepalive_s=keepalive,
    )
    settings.check()
    with Registry(folder) as registry:
        device = registry.get(device_id)
    if root:
        trust, trusted = roots.choose(root), root
    elif DevCA.exists(folder):
        trust, trusted = DevCA(folder).roots_der(), ["development CA"]
    else:
        trust, trusted = roots.choose(["azure"]), ["azure"]
    content = build_image(
        device,
        trust,
        settings,
        build_time_s=int(time.time()) if build_time is None else build_time,
        library=library.value,
        app=app_dir,
        size_mib=size,
    )
    path = output or Path(f"{device_id}.bin")
    write_whole(path, content)
    if as_json:
        _print_json(
            {
                "device": device_id,
                "image": str(path),
                "bytes": len(content),
                "hub": hub,
                "port": port,
                "roots": trusted,
            }
        )
    else:
        typer.echo(
            f"{path}: {len(content) >> 20} MiB for {device_id}, hub {hub}:{port}, "
            f"roots: {', '.join(trusted)}. It holds the device's keys."
        )


@board_app.command("run", epilog="Example: outpost board run pump-7.bin --leg outpost32")
def board_run(
    flash: Annotated[Path, typer.Argument(metavar="FLASH", help="The image; it is written to.")],
    leg: Annotated[Leg, typer.Option(help="Which build runs it.")] = Leg.outpost64,
    heapsize: HeapOption = None,
    wifi: Annotated[
        str | None,
        typer.Option(metavar="SSID[:KEY]", help="The network in the air.  [Espressif, open]"),
    ] = None,
    run_for: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Stop by itself after that time.")
    ] = None,
) -> None:
    """Run a flash image on the virtual board: its console here, restarts included."""
    from outpost_tools.board import EXIT_CANNOT_START, EXIT_END, RESTARTS, Board
    from outpost_tools.ending import until_told

    def on_exit(code: int) -> None:
        if code in RESTARTS:
            typer.echo(f"-- the board's processor stopped with {code}", err=True)

    board = Board(
        flash,
        leg.value,
        _heapsize(heapsize),
        wifi=wifi,
        on_line=lambda line: _say(line.text),
        on_exit=on_exit,
    )
    ends = None if run_for is None else time.monotonic() + run_for
    with until_told(), board:
        while board.running and (ends is None or time.monotonic() < ends):
            time.sleep(0.1)
        if not board.running and board.exit_code not in (EXIT_END, *RESTARTS):
            if board.exit_code != EXIT_CANNOT_START:
                typer.echo(f"outpost: The board stopped with {board.exit_code}.", err=True)
            raise typer.Exit(1)


@hub_app.command("run", epilog="Example: outpost hub run --port 8883 --json")
def hub_run(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any.")] = 8883,
    name: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help="Further host name of the hub; may be repeated."),
    ] = None,
    chain: Annotated[ChainName, typer.Option(help="Certificates to show.")] = ChainName.both,
    sntp_port: Annotated[
        int | None,
        typer.Option(metavar="PORT", help="Answer SNTP there too, for boards with no internet."),
    ] = None,
    ignore_record_size: Annotated[
        bool,
        typer.Option("--ignore-record-size", help="As servers that do not know RFC 6066; slow."),
    ] = False,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the local hub until Ctrl-C: one line for each connection and each message."""
    import contextlib

    from outpost_tools.ending import until_told
    from outpost_tools.hub.server import Event, Hub, in_words
    from outpost_tools.sntp import SntpServer

    def show(event: Event) -> None:
        _say(json.dumps(event) if as_json else in_words(event))

    with until_told(), contextlib.ExitStack() as stack:
        if sntp_port is not None:
            address = stack.enter_context(SntpServer(host, sntp_port)).address
            if as_json:
                _print_json({"event": "sntp", "address": address})
            else:
                typer.echo(f"SNTP is answered on {address}")
        stack.enter_context(
            Hub(
                data_dir(data),
                host,
                port,
                chain.value,
                names=name or (),
                on_event=show,
                ignore_record_size=ignore_record_size,
            )
        )
        while True:
            time.sleep(3600)


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
        _print_json(
            [{"name": n, "sha256": pins[n].sha256, "bytes": len(d)} for n, d in held.items()]
        )
    else:
        for root_name, content in held.items():
            typer.echo(f"{pins[root_name].sha256}  {len(content):5} bytes  {root_name}")


@app.command("demo", epilog="Example: outpost demo --run-for 20 --devices 5 --mfl 512")
def demo(
    run_for: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Stop by itself after that time.")
    ] = None,
    devices: Annotated[int, typer.Option(help="How many devices.")] = 1,
    mfl: Annotated[
        str,
        typer.Option(metavar="SIZE", help="TLS record size: auto, none, 512, 1024, 2048, 4096."),
    ] = "auto",
    leg: Annotated[Leg, typer.Option(help="Which build the boards run.")] = Leg.outpost32,
    heapsize: HeapOption = None,
    chain: Annotated[ChainName, typer.Option(help="Certificates to show.")] = ChainName.both,
    library: Annotated[
        LibraryName | None,
        typer.Option(help="Where lib/outpost is.  [flash on the stock legs, else frozen]"),
    ] = None,
    app_dir: Annotated[
        Path | None, typer.Option("--app", metavar="DIR", help="Folder with your main.py.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Folder to keep things in.  [build/demo]"),
    ] = None,
) -> None:
    """Show the main job: a hub, a device, its image, a board, messages and acknowledgements.

    With --run-for the last line is one JSON object. The exit status says whether any message was
    acknowledged.
    """
    from outpost_tools.demo import Demo, Plan
    from outpost_tools.ending import until_told

    show = Demo(
        Plan(
            data=data or tree() / "build" / "demo",
            devices=devices,
            run_for_s=run_for,
            record_size=_record_size(mfl),
            leg=leg.value,
            heapsize=_heapsize(heapsize),
            chain=chain.value,
            library=library.value if library else None,
            app=app_dir,
        ),
        _say,
    )
    with until_told():
        show.run()
    acked = show.acked
    if not acked:
        typer.echo("outpost: No message was acknowledged: the lines above say why.", err=True)
    if run_for is not None and show.boards:
        _print_json(show.summary())
    raise typer.Exit(0 if acked else 1)


def main() -> None:
    app()


__all__ = ["app", "main"]
