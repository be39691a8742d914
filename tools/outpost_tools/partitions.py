"""The partition table: from firmware/boards/*.csv to the bytes at 0x8000, and back.

It owns the layout's rules (alignment, no overlap, within the flash) and Espressif's binary form
with its MD5 row. It never decides where anything is: the CSV does.
"""

import hashlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from outpost_tools.errors import OutpostError
from outpost_tools.paths import tree

TABLE_OFFSET = 0x8000
TABLE_BYTES = 0x1000
TABLE_DATA_BYTES = 0xC00  # the rest of the sector is left for a signature
SECTOR_BYTES = 0x1000
APP_ALIGN_BYTES = 0x10000
ROW = struct.Struct("<HBBII16sI")
MAGIC = 0x50AA
MD5_MAGIC = b"\xeb\xeb" + b"\xff" * 14
SIZES_MIB = (4, 8, 16)

TYPES = {"app": 0, "data": 1}
SUBTYPES = {
    0: {"factory": 0x00, "test": 0x20} | {f"ota_{n}": 0x10 + n for n in range(16)},
    1: {
        "ota": 0x00,
        "phy": 0x01,
        "nvs": 0x02,
        "coredump": 0x03,
        "nvs_keys": 0x04,
        "efuse": 0x05,
        "undefined": 0x06,
        "fat": 0x81,
        "spiffs": 0x82,
        "littlefs": 0x83,
    },
}
FLAGS = {"encrypted": 1, "readonly": 2}


@dataclass(frozen=True)
class Partition:
    name: str
    type: int
    subtype: int
    offset: int
    size: int
    flags: int = 0

    @property
    def end(self) -> int:
        return self.offset + self.size


class PartitionTable:
    """Partitions in the order of their rows."""

    def __init__(self, partitions: list[Partition], source: str = "the partition table") -> None:
        self.partitions = partitions
        self.source = source
        self._check()

    def __iter__(self) -> Iterator[Partition]:
        return iter(self.partitions)

    def __len__(self) -> int:
        return len(self.partitions)

    def __getitem__(self, name: str) -> Partition:
        for partition in self.partitions:
            if partition.name == name:
                return partition
        raise OutpostError(f"There is no partition {name!r} in {self.source}.")

    @classmethod
    def from_csv(cls, text: str, source: str = "the partition table") -> "PartitionTable":
        rows = []
        for number, line in enumerate(text.splitlines(), 1):
            line = line.split("#", 1)[0].strip()
            if not line:
                continue
            where = f"{source} line {number}"
            cells = [cell.strip() for cell in line.split(",")]
            if not 5 <= len(cells) <= 6:
                raise OutpostError(f"{where}: a row is name, type, subtype, offset, size[, flags].")
            kind = _number(cells[1], TYPES, where, "type")
            flags = 0
            for flag in filter(None, (cells[5] if len(cells) == 6 else "").split(":")):
                if flag not in FLAGS:
                    raise OutpostError(f"{where}: {flag!r} is not a flag (encrypted, readonly).")
                flags |= FLAGS[flag]
            rows.append(
                Partition(
                    cells[0],
                    kind,
                    _number(cells[2], SUBTYPES.get(kind, {}), where, "subtype"),
                    _number(cells[3], {}, where, "offset"),
                    _number(cells[4], {}, where, "size"),
                    flags,
                )
            )
        return cls(rows, source)

    @classmethod
    def for_size(cls, size_mib: int, layout: str = "single") -> "PartitionTable":
        """The project's own layout for a flash of that many MiB: "single", one place for the
        application as in stock firmware, or "ota", two."""
        folder = tree() / "firmware" / "boards"
        suffix = "" if layout == "single" else f"-{layout}"
        path = folder / f"partitions-{size_mib}MiB{suffix}.csv"
        if not path.is_file():
            known = sorted(
                p.stem.removeprefix("partitions-") for p in folder.glob("partitions-*.csv")
            )
            wanted = f"{size_mib} MiB" + (f" with the layout {layout!r}" if suffix else "")
            raise OutpostError(
                f"There is no layout for a flash of {wanted}; there is {', '.join(known)}."
            )
        table = cls.from_csv(path.read_text(), path.name)
        table.check_fits(size_mib << 20)
        return table

    def _check(self) -> None:
        names = [p.name for p in self.partitions]
        for p in self.partitions:
            label = f"{self.source}: partition {p.name!r}"
            if not p.name or len(p.name.encode()) > 15 or not p.name.isprintable():
                raise OutpostError(f"{label}: a name has 1 to 15 bytes.")
            if names.count(p.name) > 1:
                raise OutpostError(f"{label} stands there twice.")
            if not (0 <= p.type <= 0xFE and 0 <= p.subtype <= 0xFE):
                raise OutpostError(f"{label}: type and subtype are 0 to 0xfe.")
            align = APP_ALIGN_BYTES if p.type == TYPES["app"] else SECTOR_BYTES
            if p.offset % align or p.size % SECTOR_BYTES or p.size <= 0:
                raise OutpostError(
                    f"{label} does not start at a multiple of {align:#x} "
                    f"and fill whole sectors of {SECTOR_BYTES:#x}."
                )
            if p.offset < TABLE_OFFSET + TABLE_BYTES:
                raise OutpostError(f"{label} lies over the partition table itself.")
            if (p.type, p.subtype) == (1, 2) and p.size < 3 * SECTOR_BYTES:
                raise OutpostError(f"{label}: an NVS needs at least 0x3000 bytes.")
        in_order = sorted(self.partitions, key=lambda p: p.offset)
        for one, next_one in zip(in_order, in_order[1:], strict=False):
            if one.end > next_one.offset:
                raise OutpostError(
                    f"{self.source}: partitions {one.name!r} and {next_one.name!r} overlap."
                )
        if len(self.partitions) * ROW.size > TABLE_DATA_BYTES - ROW.size:
            raise OutpostError(f"{self.source} has more rows than a table can hold.")

    @property
    def application(self) -> Partition:
        """Where the first application lies, which the bootloader starts on a new board."""
        apps = [p for p in self.partitions if p.type == TYPES["app"]]
        if not apps:
            raise OutpostError(f"{self.source} has no place for an application.")
        return min(apps, key=lambda p: (p.subtype, p.offset))

    def find(self, kind: str, subtype: str) -> Partition | None:
        """The first partition of a type and subtype by their names, e.g. "data", "ota"."""
        wanted = (TYPES[kind], SUBTYPES[TYPES[kind]][subtype])
        return next((p for p in self.partitions if (p.type, p.subtype) == wanted), None)

    def check_fits(self, flash_bytes: int) -> None:
        for p in self.partitions:
            if p.end > flash_bytes:
                raise OutpostError(
                    f"{self.source}: partition {p.name!r} ends at {p.end:#x}, beyond the flash "
                    f"of {flash_bytes >> 20} MiB."
                )

    def with_nvs_keys(self, giver: str) -> "PartitionTable":
        """The table with a partition for the keys of NVS encryption: the last sector of `giver`.

        Its flag says that flash encryption, where it is on, covers it.
        """
        given = self[giver]
        keys = Partition(
            "nvs_keys",
            TYPES["data"],
            SUBTYPES[1]["nvs_keys"],
            given.end - SECTOR_BYTES,
            SECTOR_BYTES,
            FLAGS["encrypted"],
        )
        rest = replace(given, size=given.size - SECTOR_BYTES)
        rows = [rest if p is given else p for p in self.partitions]
        return PartitionTable([*rows, keys], self.source)

    def to_binary(self) -> bytes:
        """The table as it lies in flash, padded to its whole region of 0xc00 bytes."""
        rows = b"".join(
            ROW.pack(MAGIC, p.type, p.subtype, p.offset, p.size, p.name.encode(), p.flags)
            for p in self.partitions
        )
        md5 = MD5_MAGIC + hashlib.md5(rows, usedforsecurity=False).digest()
        return (rows + md5).ljust(TABLE_DATA_BYTES, b"\xff")

    @classmethod
    def from_binary(cls, data: bytes, source: str = "the partition table") -> "PartitionTable":
        rows: list[Partition] = []
        for start in range(0, min(len(data), TABLE_DATA_BYTES) - ROW.size + 1, ROW.size):
            row = data[start : start + ROW.size]
            if row == b"\xff" * ROW.size:
                raise OutpostError(f"{source} is damaged: it ends without its checksum.")
            if row.startswith(MD5_MAGIC):
                if hashlib.md5(data[:start], usedforsecurity=False).digest() != row[16:]:
                    raise OutpostError(f"{source} is damaged: its checksum does not match.")
                return cls(rows, source)
            magic, kind, subtype, offset, size, name, flags = ROW.unpack(row)
            if magic != MAGIC:
                raise OutpostError(f"{source} is damaged: row {len(rows) + 1} is no partition.")
            try:
                text = name.split(b"\0", 1)[0].decode()
            except UnicodeDecodeError:
                raise OutpostError(
                    f"{source} is damaged: row {len(rows) + 1} has no name."
                ) from None
            rows.append(Partition(text, kind, subtype, offset, size, flags))
        raise OutpostError(f"{source} is damaged: it has no end.")

    @classmethod
    def from_flash(cls, flash: Path) -> "PartitionTable":
        """The table of a flash image file, after a look at the file's size."""
        check_flash_size(flash)
        with flash.open("rb") as file:
            file.seek(TABLE_OFFSET)
            return cls.from_binary(file.read(TABLE_DATA_BYTES), f"the partition table of {flash}")


def check_flash_size(flash: Path) -> int:
    """Bytes of the image, or a sentence: a flash chip has 4, 8 or 16 MiB and nothing between."""
    try:
        size = flash.stat().st_size
    except FileNotFoundError:
        raise OutpostError(
            f"There is no {flash}: build it with `outpost image ID -o {flash}`."
        ) from None
    except OSError as why:
        raise OutpostError(f"Cannot read {flash} ({why.strerror}).") from None
    if not flash.is_file():
        raise OutpostError(f"{flash} is not a file: give a flash image.")
    if size not in [mib << 20 for mib in SIZES_MIB]:
        raise OutpostError(
            f"{flash} has {size} bytes; a flash image has exactly 4, 8 or 16 MiB: build it again "
            "with `outpost image`."
        )
    return size


_SIZE = re.compile(r"(0x[0-9a-f]+|[0-9]+)([km]?)", re.IGNORECASE)


def _number(text: str, names: dict[str, int], where: str, what: str) -> int:
    if text in names:
        return names[text]
    match = _SIZE.fullmatch(text)
    if not match:
        raise OutpostError(f"{where}: {text!r} is not a {what}.")
    return int(match[1], 0) * {"": 1, "k": 1 << 10, "m": 1 << 20}[match[2].lower()]
