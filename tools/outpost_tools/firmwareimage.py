"""MicroPython itself for a board: the application and the bootloader, read from files and judged.

A release's .bin holds bootloader, partition table and application; `.app-bin` and a build's
micropython.bin hold the application alone. It owns nothing, changes one thing (the flash's size in
the bootloader's header, by esptool), and never takes an image that its own checksums do not vouch
for.
"""

import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from outpost_tools.errors import OutpostError
from outpost_tools.partitions import (
    TABLE_DATA_BYTES,
    TABLE_OFFSET,
    TYPES,
    Partition,
    PartitionTable,
)

MAGIC = 0xE9
APP_MAGIC = b"\x32\x54\xcd\xab"
APP_DESCRIPTION_AT = 32  # behind the header and the first segment's
FROZEN = b"\0outpost/device.py\0"
FILE_MAX_BYTES = 16 << 20


@dataclass(frozen=True)
class Chip:
    word: str  # esptool's
    name: str  # as esptool and people write it
    id: int  # in an image's header
    bootloader_at: int


CHIPS = (
    Chip("esp32", "ESP32", 0x0000, 0x1000),
    Chip("esp32s2", "ESP32-S2", 0x0002, 0x1000),
    Chip("esp32s3", "ESP32-S3", 0x0009, 0x0),
    Chip("esp32c3", "ESP32-C3", 0x0005, 0x0),
    Chip("esp32c6", "ESP32-C6", 0x000D, 0x0),
)


def chip_named(text: str) -> Chip | None:
    """The chip of a word of esptool's: `ESP32-D0WD-V3` is an ESP32, `ESP32-S3` is none."""
    word = text.strip().upper()
    for chip in sorted(CHIPS, key=lambda chip: -len(chip.name)):
        if word == chip.name or word == chip.word.upper():
            return chip
    return None


@dataclass(frozen=True)
class Firmware:
    """What goes into a flash image beside what is the device's own."""

    chip: Chip
    app: bytes = field(repr=False)
    bootloader: bytes | None = field(default=None, repr=False)
    project: str = ""
    version: str = ""
    idf: str = ""

    @property
    def has_library(self) -> bool:
        """Whether lib/outpost is frozen into it: MicroPython keeps the names of such files."""
        return FROZEN in self.app

    @property
    def title(self) -> str:
        told = f"{self.project} {self.version}".strip() or "an application without a name"
        return f"{told} for {self.chip.name}" + (f", ESP-IDF {self.idf}" if self.idf else "")

    def check_fits(self, place: Partition) -> None:
        if len(self.app) > place.size:
            raise OutpostError(
                f"The firmware has {len(self.app)} bytes, more than the {place.size} of partition "
                f"{place.name!r}: build it smaller, or take another --layout."
            )


def header_chip(data: bytes, source: str) -> Chip:
    if len(data) < 24 or data[0] != MAGIC:
        raise OutpostError(
            f"{source} is no firmware for an ESP32 (its first byte is not 0xe9): take the .bin of "
            "the release, not its .elf or .uf2."
        )
    number = int.from_bytes(data[12:14], "little")
    for chip in CHIPS:
        if chip.id == number:
            return chip
    raise OutpostError(
        f"{source} is for a chip that Outpost does not know (number {number:#x}); it knows "
        f"{', '.join(chip.name for chip in CHIPS)}."
    )


def check_image(data: bytes, source: str, app: bool) -> None:
    """Espressif's checksum and hash over one image, which may be followed by other bytes."""
    from esp_idf_defs.image_metadata import ImageMetadata

    try:
        found = ImageMetadata.from_bytes(data)
    except (ValueError, struct.error) as why:
        raise OutpostError(
            f"{source} is cut short or damaged ({str(why).rstrip('.')}): get it again."
        ) from None
    if app and found.app_description is None:
        raise OutpostError(
            f"{source} holds no application: is it a bootloader? Give the .bin of a MicroPython "
            "release, or micropython.bin of a build."
        )


def read_firmware(path: Path, bootloader: Path | None = None) -> Firmware:
    """The firmware in a file: a whole release image, or the application alone."""
    source = str(path)
    data = _read(path)
    chip = header_chip(data, source)
    boot = _bootloader(bootloader, chip) if bootloader is not None else None
    table_at = TABLE_OFFSET - chip.bootloader_at
    app = data
    if data[table_at : table_at + 2] == b"\xaa\x50":
        table = PartitionTable.from_binary(
            data[table_at : table_at + TABLE_DATA_BYTES], f"the partition table in {source}"
        )
        place = next((p for p in table if p.type == TYPES["app"]), None)
        if place is None:
            raise OutpostError(f"{source} names no application in its partition table.")
        app = data[place.offset - chip.bootloader_at : place.end - chip.bootloader_at]
        if header_chip(app, f"the application in {source}") != chip:
            raise OutpostError(f"{source} holds a bootloader and an application of two chips.")
        if boot is None:
            boot = data[:table_at].rstrip(b"\xff")
            check_image(_padded(boot), f"the bootloader in {source}", app=False)
            boot = _padded(boot)
    check_image(app, source, app=True)
    told = describe(app)
    return Firmware(chip, app.rstrip(b"\xff") or app, boot, **told)


def _padded(data: bytes) -> bytes:
    # The hash may end in 0xff, and esptool writes words.
    return data + b"\xff" * (64 - len(data) % 64)


def describe(app: bytes) -> dict[str, str]:
    from esp_idf_defs.app_description import AppDescription

    found = AppDescription.from_bytes_or_none(app[APP_DESCRIPTION_AT:])
    if found is None:
        return {}

    def plain(text: str) -> str:
        return "".join(c for c in text if c.isprintable())

    return {
        "project": plain(found.project_name),
        "version": plain(found.version),
        "idf": plain(found.idf_version),
    }


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_MAX_BYTES + 1)
    except OSError as why:
        raise OutpostError(f"Cannot read {path} ({why.strerror}).") from None
    if len(data) > FILE_MAX_BYTES:
        raise OutpostError(f"{path} is larger than any flash: it is no firmware.")
    return data


def _bootloader(path: Path, chip: Chip) -> bytes:
    data = _read(path)
    if header_chip(data, str(path)) != chip:
        raise OutpostError(f"{path} is a bootloader for another chip than {chip.name}.")
    check_image(data, str(path), app=False)
    if data[APP_DESCRIPTION_AT : APP_DESCRIPTION_AT + 4] == APP_MAGIC:
        raise OutpostError(f"{path} is an application: --bootloader takes bootloader.bin.")
    if len(data) > TABLE_OFFSET - chip.bootloader_at:
        raise OutpostError(f"{path} is too long for a bootloader: it would reach into the table.")
    return data


def bootloader_for(firmware: Firmware, size_mib: int) -> bytes:
    """The bootloader with the flash's size in its header: it maps no more than that."""
    assert firmware.bootloader is not None
    at = hex(firmware.chip.bootloader_at)
    with tempfile.TemporaryDirectory(prefix="outpost-bootloader-") as folder:
        given, made = Path(folder) / "given", Path(folder) / "made"
        given.write_bytes(firmware.bootloader)
        words = ["--chip", firmware.chip.word, "merge-bin", "--output", str(made)]
        words += ["--flash-size", f"{size_mib}MB", "--target-offset", at, at, str(given)]
        done = subprocess.run(
            [sys.executable, "-m", "esptool", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if done.returncode or not made.is_file():
            raise OutpostError(
                f"esptool does not write {size_mib} MiB into the bootloader's header: give the "
                "build's own with --bootloader."
            )
        return made.read_bytes()
