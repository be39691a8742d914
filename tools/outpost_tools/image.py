"""The flash image of one device: partition table, NVS with its identity, littlefs with software.

The same inputs give the same bytes: the one thing that time changes is the build time, which is an
input too. It owns nothing once the bytes are written, and never prints what went into the NVS.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from esp_idf_defs.otadata import OtaDataSelectEntry, OtaImageState
from littlefs import LittleFS, LittleFSError

from outpost_tools import agreed
from outpost_tools import bundle as bundles
from outpost_tools.errors import OutpostError
from outpost_tools.firmwareimage import Firmware, bootloader_for
from outpost_tools.mpyfile import check_mpy, compiled
from outpost_tools.nvsimage import Identity, keys_partition, nvs_partition
from outpost_tools.partitions import SIZES_MIB, TABLE_OFFSET, Partition, PartitionTable
from outpost_tools.paths import tree
from outpost_tools.registry import Device

Library = Literal["frozen", "flash"]
RecordSize = int | Literal["auto", "none"]

BLOCK_BYTES = 4096
AS_SOURCE = ("/boot.py", "/main.py")  # MicroPython looks for these by name, and runs source
APP_SKIPPED = ("__pycache__", ".git")
DEFAULT_SNTP = ("0.pool.ntp.org:123", "1.pool.ntp.org:123", "2.pool.ntp.org:123")

_HOST = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?"
    r"(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*"
)


@dataclass(frozen=True)
class Dps:
    """The provisioning service that gives the device its hub."""

    id_scope: str
    host: str = "global.azure-devices-provisioning.net"
    registration_id: str | None = None
    csr: bool = False  # ask it for a certificate

    def check(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", self.id_scope):
            raise OutpostError(f"{self.id_scope!r} is not an id scope, e.g. 0ne0000ABCD.")
        if not _HOST.fullmatch(self.host):
            raise OutpostError(f"{self.host!r} is not the host name of a provisioning service.")
        if self.registration_id is not None and not re.fullmatch(
            r"[A-Za-z0-9._:-]{1,128}", self.registration_id
        ):
            raise OutpostError(f"{self.registration_id!r} cannot be a registration id.")

    def raw(self) -> dict[str, object]:
        named = {"registration_id": self.registration_id} if self.registration_id else {}
        return {"id_scope": self.id_scope, "host": self.host, "csr": self.csr, **named}


@dataclass(frozen=True)
class Settings:
    """What goes into the device's config.json: with `dps` that gives the hub."""

    hub: str = "localhost"
    port: int = 8883
    wifi_ssid: str = "Espressif"
    wifi_key: str = field(default="", repr=False)
    sntp: Sequence[str] = DEFAULT_SNTP
    record_size: RecordSize = "auto"
    suites: Literal["all", "ecc"] = "all"
    keepalive_s: int = 240
    rotation_days: int = 0  # age at which the keys are due for others; 0 is never
    dps: Dps | None = None
    more: Mapping[str, object] = field(default_factory=dict)  # further fields, as they are

    def check(self) -> None:
        """Say in one sentence what the device would refuse, before it is built in."""
        if self.dps is not None:
            self.dps.check()
        if not _HOST.fullmatch(self.hub):
            raise OutpostError(
                f"{self.hub!r} is not a host name: give the hub's name alone, no scheme, no port."
            )
        if not 1 <= self.port <= 65535:
            raise OutpostError(f"{self.port} is not a port: 1 to 65535.")
        if not 1 <= len(self.wifi_ssid.encode()) <= 32:
            raise OutpostError("The Wi-Fi name must have 1 to 32 bytes.")
        if self.wifi_key and not 8 <= len(self.wifi_key) <= 64:
            raise OutpostError(
                "The Wi-Fi key must have 8 to 64 characters, or none for an open network."
            )
        if not 1 <= len(self.sntp) <= 4:
            raise OutpostError("Give one to four SNTP servers.")
        for server in self.sntp:
            host, _, port = server.partition(":")
            if not _HOST.fullmatch(host) or not (
                port == "" and ":" not in server or port.isdecimal() and 1 <= int(port) <= 65535
            ):
                raise OutpostError(f"{server!r} is not an SNTP server: give HOST or HOST:PORT.")
        if self.record_size not in ("auto", "none", *agreed.RECORD_SIZES):
            sizes = ", ".join(map(str, agreed.RECORD_SIZES))
            raise OutpostError(f"{self.record_size} is not a record size: auto, none, {sizes}.")
        if not agreed.KEEPALIVE_MIN_S <= self.keepalive_s <= agreed.KEEPALIVE_MAX_S:
            raise OutpostError(
                f"The keep-alive must be {agreed.KEEPALIVE_MIN_S} to {agreed.KEEPALIVE_MAX_S} s."
            )
        if not 0 <= self.rotation_days <= 3650:
            raise OutpostError("Keys are due after 1 to 3650 days, or never: 0.")

    def to_json(self) -> bytes:
        return json.dumps(
            {
                **({"dps": self.dps.raw()} if self.dps else {"hub": self.hub}),
                "port": self.port,
                "wifi": {"ssid": self.wifi_ssid, "key": self.wifi_key},
                "sntp": list(self.sntp),
                "record_size": self.record_size,
                "suites": self.suites,
                "keepalive_s": self.keepalive_s,
                **({"rotation_days": self.rotation_days} if self.rotation_days else {}),
                **self.more,
            },
            indent=1,
        ).encode()


def build_image(
    device: Device | Identity | None,
    trust: Sequence[bytes],
    settings: Settings | None = None,
    *,
    build_time_s: int,
    library: Library = "frozen",
    app: Path | None = None,
    size_mib: int = 4,
    files: Mapping[str, bytes | None] | None = None,
    nvs_keys: bytes | None = None,
    firmware: Firmware | None = None,
    layout: str = "single",
    production: bool = False,
    bundle: bytes | None = None,
) -> bytes:
    """The whole flash, as esptool would write it at offset 0.

    device        identity and keys; None leaves the identity out, as on an unprovisioned board
    firmware      MicroPython itself; without it the image is for the virtual board, or for a board
                  that has it already
    layout        "single", or "ota" for two places for the firmware
    production    the board's prompt is closed from its first start on
    nvs_keys      64 bytes that the NVS is encrypted with; they go into a partition of their own
    trust         DER of each root: they become an unsigned bundle of version 0
    bundle        a signed trust bundle, in place of `trust`
    build_time_s  Unix time that the device's clock floor starts from
    app           folder whose files take the place of, or join, boot.py and main.py
    files         further files by absolute path; None takes one out
    """
    settings = settings or Settings()
    settings.check()
    if not agreed.UNIX_2000 <= build_time_s < agreed.UNIX_2000 + 2**31:
        raise OutpostError("The build time must be a Unix time from 2000 to 2068.")
    table = PartitionTable.for_size(size_mib, layout)
    if nvs_keys is not None:
        table = table.with_nvs_keys(agreed.VFS_LABEL)
    content: dict[str, bytes] = {
        **software(library, app),
        agreed.CONFIG_PATH: settings.to_json(),
        agreed.FACTORY_ROOTS_PATH: bundle or bundles.factory(trust, build_time_s),
    }
    for path, data in (files or {}).items():
        if data is None:
            content.pop(path, None)
        else:
            content[path] = data
    flash = bytearray(b"\xff" * (size_mib << 20))
    if nvs_keys is not None:
        _place(flash, table["nvs_keys"], keys_partition(nvs_keys, table["nvs_keys"].size))
    identity = Identity.of(device) if isinstance(device, Device) else device
    nvs = nvs_partition(identity, build_time_s, table["nvs"].size, nvs_keys, production)
    _place(flash, table["nvs"], nvs)
    _place(
        flash, table[agreed.VFS_LABEL], littlefs_partition(content, table[agreed.VFS_LABEL].size)
    )
    binary_table = table.to_binary()
    flash[TABLE_OFFSET : TABLE_OFFSET + len(binary_table)] = binary_table
    _place_firmware(flash, table, firmware, size_mib)
    return bytes(flash)


def _place_firmware(
    flash: bytearray, table: PartitionTable, firmware: Firmware | None, size_mib: int
) -> None:
    chosen = table.find("data", "ota")
    if chosen is not None:
        first = OtaDataSelectEntry(1, OtaImageState.VALID).to_bytes()  # the first place, for good
        flash[chosen.offset : chosen.offset + len(first)] = first
    if firmware is None:
        return
    place = table.application
    firmware.check_fits(place)
    flash[place.offset : place.offset + len(firmware.app)] = firmware.app
    if firmware.bootloader is not None:
        at = firmware.chip.bootloader_at
        content = bootloader_for(firmware, size_mib)
        flash[at : at + len(content)] = content


def _place(flash: bytearray, partition: Partition, content: bytes) -> None:
    assert len(content) == partition.size, partition
    flash[partition.offset : partition.end] = content


def littlefs_partition(files: Mapping[str, bytes], size: int) -> bytes:
    """A littlefs with these files, laid out for the cache sizes that MicroPython mounts with."""
    fs = LittleFS(
        block_size=BLOCK_BYTES,
        block_count=size // BLOCK_BYTES,
        read_size=32,
        prog_size=32,
        cache_size=128,
        lookahead_size=32,
        name_max=255,
        disk_version=0x00020000,
    )
    try:
        for path in sorted(files):
            parent = path.rpartition("/")[0]
            if parent:
                fs.makedirs(parent, exist_ok=True)
            with fs.open(path, "wb") as file:
                file.write(files[path])
    except LittleFSError as why:
        if why.code == LittleFSError.Error.LFS_ERR_NOSPC:
            raise OutpostError(
                f"The files do not fit into the file system's {size >> 10} KiB: leave some out."
            ) from None
        raise OutpostError(f"{path} cannot go into the image ({why.name}).") from None
    return bytes(fs.context.buffer)


def software(library: Library, app: Path | None) -> dict[str, bytes]:
    """The Python files of the image, by their path on the device."""
    top = tree()
    files = {}
    for name in ("boot.py", "main.py"):
        path = top / name
        if not path.is_file():
            raise OutpostError(f"{path} is missing: check the source tree out again.")
        files[f"/{name}"] = path.read_bytes()
    if app is not None:
        if not app.is_dir():
            raise OutpostError(f"{app} is not a folder: --app takes the folder that holds main.py.")
        files |= compiled_application(app)
    if library == "flash":
        files |= compiled_library()
    return files


def application(folder: Path) -> dict[str, bytes]:
    """What the folder holds, by its path on the device. Nothing from outside of it gets in."""
    files = {}
    room = max(SIZES_MIB) << 20
    top = folder.resolve()
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if set(inside.parts) & set(APP_SKIPPED):
            continue
        if path.is_symlink() and not path.resolve().is_relative_to(top):
            raise OutpostError(f"{path} is a link that leads out of {folder}: copy the file there.")
        if not path.is_file():
            continue
        name = inside.as_posix()
        if not name.isprintable():
            raise OutpostError(f"{name!a} in {folder} is no name for a file on the device.")
        room -= path.stat().st_size
        if room < 0:
            raise OutpostError(f"The files in {folder} do not fit into any flash: leave some out.")
        try:
            files[f"/{name}"] = path.read_bytes()
        except OSError as why:
            raise OutpostError(f"Cannot read {path} ({why.strerror}).") from None
        if name.endswith(".mpy"):
            check_mpy(files[f"/{name}"], str(path))
    return files


def compiled_application(folder: Path) -> dict[str, bytes]:
    """What the folder holds, its modules compiled: all Python but boot.py and main.py."""
    files = {}
    for path, content in application(folder).items():
        if path.endswith(".py") and path not in AS_SOURCE:
            source, path = path.lstrip("/"), path.removesuffix(".py") + ".mpy"
            content = compiled(folder / source, source)
        if path in files:
            raise OutpostError(f"{folder} holds {path[1:]} and its source: leave one out.")
        files[path] = content
    return files


def compiled_library() -> dict[str, bytes]:
    """lib/outpost and umqtt.simple as .mpy, by their path on the device."""
    top = tree()
    sources = {
        f"outpost/{path.relative_to(top / 'lib' / 'outpost').as_posix()}": path
        for path in sorted((top / "lib" / "outpost").rglob("*.py"))
    }
    umqtt = top / "build" / "micropython" / "umqtt" / "umqtt" / "simple.py"
    if not umqtt.is_file():
        raise OutpostError(f"{umqtt} is missing: run `make micropython`, which fetches it.")
    sources["umqtt/simple.py"] = umqtt
    # Without the numbers of lines: 5 % of the heap of a board that has the library in its flash.
    return {
        f"/lib/{name.removesuffix('.py')}.mpy": compiled(source, name, lines=False)
        for name, source in sources.items()
    }
