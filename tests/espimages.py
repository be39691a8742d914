"""Firmware files for tests, made with Espressif's own image writer: nothing here runs on a chip.

No official ESP32 binary can be downloaded where the tests run. These have all that a loader, a
bootloader or a tool of ours looks at: header, chip, segments, application description, checksum,
hash; and a release file has bootloader, partition table and application where a release has them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from esp_idf_defs.app_description import AppDescription
from outpost_tools.firmwareimage import CHIPS, Chip
from outpost_tools.partitions import PartitionTable

STOCK_TABLE = """
nvs,data,nvs,0x9000,0x6000
phy_init,data,phy,0xf000,0x1000
factory,app,factory,0x10000,0x1f0000
vfs,data,fat,0x200000,0x200000
"""


def chip(word: str) -> Chip:
    return next(c for c in CHIPS if c.word == word)


def _image(word: str, first: bytes, more: bytes) -> bytes:
    from esptool import bin_image

    kind = {
        "esp32": bin_image.ESP32FirmwareImage,
        "esp32s2": bin_image.ESP32S2FirmwareImage,
        "esp32s3": bin_image.ESP32S3FirmwareImage,
        "esp32c3": bin_image.ESP32C3FirmwareImage,
        "esp32c6": bin_image.ESP32C6FirmwareImage,
    }[word]
    made = kind()
    made.chip_id = kind.ROM_LOADER.IMAGE_CHIP_ID
    made.flash_size_freq = 0x20  # 4 MB
    made.max_rev_full = 65535
    rom = kind.ROM_LOADER
    made.entrypoint = rom.IROM_MAP_START + 0x20
    made.segments = [bin_image.ELFSection(b".flash.appdesc", rom.DROM_MAP_START + 0x20, first, 0)]
    if more:
        made.segments.append(bin_image.ELFSection(b".text", rom.IROM_MAP_START + 0x20, more, 0))
    whole = made.save(None)
    assert whole is not None
    return whole


def application(
    word: str = "esp32",
    version: str = "v1.26.1",
    size: int = 20_000,
    project: str = "micropython",
    more: bytes = b"",
) -> bytes:
    told = AppDescription(project, version, "v5.4.2", 0, bytes(32), "12:00:00", "Sep 11 2025")
    return _image(word, told.to_bytes() + bytes(256), bytes(n % 251 for n in range(size)) + more)


def bootloader(word: str = "esp32", size: int = 6000) -> bytes:
    from esptool import bin_image, targets

    rom = targets.CHIP_DEFS[word]
    made = rom.BOOTLOADER_IMAGE()
    made.chip_id = rom.IMAGE_CHIP_ID
    made.flash_size_freq = 0x20
    made.max_rev_full = 65535
    ram = next(start for start, _, name in rom.MEMORY_MAP if name == "DRAM")
    made.entrypoint = ram
    made.segments = [bin_image.ELFSection(b".dram", ram, bytes(n % 253 for n in range(size)), 0)]
    whole = made.save(None)
    assert whole is not None
    return whole


def release(folder: Path, word: str = "esp32", app: bytes | None = None) -> Path:
    """A file as a release is: all from the bootloader's place on, put together by esptool."""
    at = chip(word).bootloader_at
    parts = {
        at: bootloader(word),
        0x8000: PartitionTable.from_csv(STOCK_TABLE).to_binary(),
        0x10000: app if app is not None else application(word),
    }
    words = []
    for offset, content in parts.items():
        file = folder / f"{offset:x}.part"
        file.write_bytes(content)
        words += [hex(offset), str(file)]
    out = folder / f"{word.upper()}_GENERIC.bin"
    subprocess.run(
        [sys.executable, "-m", "esptool", "--chip", word, "merge-bin", "--output", str(out)]
        + ["--target-offset", hex(at), *words],
        check=True,
        capture_output=True,
    )
    return out
