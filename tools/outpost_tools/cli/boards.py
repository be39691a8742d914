"""`outpost image`, `board run` and `demo`: a device's flash image and what runs it."""

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from outpost_tools import agreed
from outpost_tools.cli.common import (
    ChainName,
    DataOption,
    JsonOption,
    app,
    group,
    print_json,
    say,
)
from outpost_tools.cli.imageoptions import (
    BootloaderOption,
    ExplainOption,
    FirmwareOption,
    LayoutName,
    LayoutOption,
    ProductionOption,
    given_firmware,
    more_fields,
    said_of,
    tell,
    where_library,
)
from outpost_tools.errors import OutpostError
from outpost_tools.paths import data_dir, tree, write_whole

board_app = group("board", "The virtual board.")


class Leg(StrEnum):
    outpost64 = "outpost64"
    outpost32 = "outpost32"
    stock32 = "stock32"
    stock_release = "stock-release"


class LibraryName(StrEnum):
    frozen = "frozen"
    flash = "flash"


class SuitesName(StrEnum):
    all = "all"
    ecc = "ecc"


HeapOption = Annotated[
    str | None,
    typer.Option("--heapsize", metavar="SIZE", help="Python's heap on the board, e.g. 64K."),
]


def heapsize_of(text: str | None) -> str | None:
    if text is not None and not (text.rstrip("KkMm").isdigit() and len(text) < 12):
        raise OutpostError(f"{text!r} is not a heap size: give a number with K or M, e.g. 64K.")
    if text is not None and text.isdigit() and int(text) < 4096:
        raise OutpostError(f"{text} bytes are too few for a heap: at least 4K.")
    return text


_KEYS_SAID = {
    "symmetric": "It holds the device's keys.",
    "x509": "It holds the device's key and certificate; a key that a board makes itself is better.",
    "born": "It holds no key: the board makes its own; then run `outpost provision`.",
}


def record_size_of(text: str) -> Any:
    return int(text) if text.isascii() and text.isdigit() else text


@app.command("image", epilog="Example: outpost image pump-7 -o pump-7.bin --hub localhost")
def image(
    device_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="A device of the registry.")
    ] = None,
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
        LibraryName | None,
        typer.Option(
            help="Where lib/outpost is: in the firmware, or in the flash.  [flash where --firmware "
            "has none in it, as MicroPython's own releases, else frozen]",
            show_default=False,
        ),
    ] = None,
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
    born: Annotated[
        bool,
        typer.Option(
            "--born", help="No key in the image: the board makes its own; see `outpost provision`."
        ),
    ] = False,
    certificate: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Its certificate chain, with --key: the weaker way."),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The certificate's private key, PEM.")
    ] = None,
    gateway: Annotated[
        str | None,
        typer.Option(metavar="HOST", help="The server to speak TLS with in the hub's place."),
    ] = None,
    payload_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="32 bytes: encrypt bodies from end to end (JWE)."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON object of further fields for config.json."),
    ] = None,
    seal_key: Annotated[
        bool,
        typer.Option(
            "--seal-key",
            help="For a stock MicroPython: a key that new secrets can be sealed to (rotation).",
        ),
    ] = False,
    rotation_days: Annotated[
        int, typer.Option(metavar="DAYS", help="Age at which its keys are due; 0 is never.")
    ] = 0,
    bundle_file: Annotated[
        Path | None,
        typer.Option("--bundle", metavar="FILE", help="A signed trust bundle, for the roots."),
    ] = None,
    encrypt_nvs: Annotated[
        bool, typer.Option("--encrypt-nvs", help="Encrypt the NVS; its keys get a partition.")
    ] = False,
    dps: Annotated[
        str | None,
        typer.Option(metavar="ID-SCOPE", help="Ask the provisioning service for the hub."),
    ] = None,
    dps_host: Annotated[
        str, typer.Option(metavar="HOST", help="The provisioning service.")
    ] = "global.azure-devices-provisioning.net",
    registration_id: Annotated[
        str | None, typer.Option(metavar="ID", help="What DPS knows it by.  [the device's id]")
    ] = None,
    dps_csr: Annotated[
        bool, typer.Option("--dps-csr", help="Let DPS issue a certificate for the board's key.")
    ] = False,
    firmware: FirmwareOption = None,
    bootloader: BootloaderOption = None,
    layout: LayoutOption = LayoutName.single,
    production: ProductionOption = False,
    explained: ExplainOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build the flash image of one device: its keys, configuration, roots and software.

    With --explain FILE: say what an image holds, and never a secret.
    """
    if explained is not None:
        tell(explained, as_json)
        return
    if device_id is None:
        raise OutpostError("Say which device: outpost image ID, e.g. outpost image pump-7.")
    from outpost_tools import roots
    from outpost_tools.fleet import Fleet
    from outpost_tools.image import DEFAULT_SNTP, Dps, Settings, build_image
    from outpost_tools.nvsimage import Identity, new_keys
    from outpost_tools.pki import DevCA
    from outpost_tools.registry import Registry, check_device_id
    from outpost_tools.signing import Signers, sealed_key

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
        record_size=record_size_of(record_size),
        suites=suites.value,
        keepalive_s=keepalive,
        rotation_days=rotation_days,
        more=more_fields(config, gateway, payload_key is not None),
        dps=Dps(dps, dps_host, registration_id, dps_csr) if dps else None,
    )
    settings.check()
    if (certificate is None) != (key is None) or (born and certificate is not None):
        raise OutpostError("An image takes --certificate and --key together, or --born, or none.")
    check_device_id(device_id)
    firm = given_firmware(firmware, bootloader)
    if certificate is not None and key is not None:
        device = Identity.with_certificate(device_id, certificate, key)
    elif born:
        device = Identity(device_id)
    else:
        with Registry(folder) as registry:
            device = Identity.of(registry.get(device_id))
    if payload_key is not None:
        device = device.with_payload_key(payload_key)
    signed_bundle = None
    if bundle_file is not None:
        if root:
            raise OutpostError("An image takes --root or --bundle: the bundle has the roots.")
        signed_bundle, name = _bundle(bundle_file)
        trust, trusted = [], [name]
    elif root:
        trust, trusted = roots.choose(root), root
    elif DevCA.exists(folder):
        trust, trusted = DevCA(folder).roots_der(), ["development CA"]
    else:
        trust, trusted = roots.choose(["azure"]), ["azure"]
    point = None
    if seal_key:
        device, point = sealed_key(device)
    with Fleet(folder) as fleet:
        signers = Signers(folder).for_devices(fleet.name)
    content = build_image(
        device,
        trust,
        settings,
        files={agreed.SIGNERS_PATH: signers} if signers else None,
        build_time_s=int(time.time()) if build_time is None else build_time,
        library=where_library(firm, library.value if library else None),
        app=app_dir,
        size_mib=size,
        nvs_keys=new_keys() if encrypt_nvs else None,
        firmware=firm,
        layout=layout.value,
        production=production,
        bundle=signed_bundle,
    )
    path = output or Path(f"{device_id}.bin")
    write_whole(path, content)
    if point is not None:
        with Fleet(folder) as fleet:
            fleet.remember(device_id, born=point, made_on="host", replace=True)
    if as_json:
        print_json(
            {
                "device": device_id,
                "image": str(path),
                "bytes": len(content),
                "hub": hub,
                "port": port,
                "roots": trusted,
                "keys": device.holds,
                "nvs_encrypted": encrypt_nvs,
                "firmware": firm.title if firm else None,
                "production": production,
            }
        )
    else:
        place = f"provisioning service {dps_host}" if dps else f"hub {hub}:{port}"
        typer.echo(
            f"{path}: {len(content) >> 20} MiB for {device_id}, {place}, "
            f"roots: {', '.join(trusted)}. {_KEYS_SAID[device.holds]}{said_of(firm, production)}"
        )


def _bundle(path: Path) -> tuple[bytes, str]:
    """A bundle for an image, and what to call it."""
    from outpost_tools import bundle, trustwords

    try:
        content = path.read_bytes()
    except OSError as why:
        raise OutpostError(f"Cannot read {path} ({why.strerror}).") from None
    found = bundle.for_image(content, int(time.time()))
    for line in trustwords.ending(found):
        typer.echo(f"Note: {line}", err=True)
    return content, f"bundle {found.version} of {found.fleet}"


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
        heapsize_of(heapsize),
        wifi=wifi,
        on_line=lambda line: say(line.text),
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
            record_size=record_size_of(mfl),
            leg=leg.value,
            heapsize=heapsize_of(heapsize),
            chain=chain.value,
            library=library.value if library else None,
            app=app_dir,
        ),
        say,
    )
    with until_told():
        show.run()
    acked = show.acked
    if not acked:
        typer.echo("outpost: No message was acknowledged: the lines above say why.", err=True)
    if run_for is not None and show.boards:
        print_json(show.summary())
    raise typer.Exit(0 if acked else 1)
