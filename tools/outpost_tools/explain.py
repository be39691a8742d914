"""What is where in a flash image: `outpost image --explain`.

Reads an image file and says what its partitions hold, how much of each is used, and which software,
trust and device it is of. It owns nothing and writes nothing; of an NVS it shows names, types and
sizes, of the configuration no Wi-Fi key, and never a byte of a key.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from littlefs import LittleFS, LittleFSError, UserContext

from outpost_tools import agreed, nvsread
from outpost_tools.errors import OutpostError
from outpost_tools.firmwareimage import (
    CHIPS,
    MAGIC,
    Chip,
    Firmware,
    check_image,
    describe,
    header_chip,
)
from outpost_tools.partitions import (
    SECTOR_BYTES,
    SUBTYPES,
    TABLE_DATA_BYTES,
    TABLE_OFFSET,
    TYPES,
    Partition,
    PartitionTable,
    check_flash_size,
)

FILES_MAX = 2000


@dataclass
class Part:
    """One stretch of the flash, and sentences about what it holds."""

    name: str
    kind: str
    offset: int
    size: int
    used: int | None = None  # bytes
    said: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def raw(self) -> dict[str, Any]:
        head = {"name": self.name, "kind": self.kind, "offset": self.offset, "size": self.size}
        return {**head, "used": self.used, "said": self.said, **self.facts}


@dataclass
class Explanation:
    source: str
    size: int
    device_id: str | None
    production: bool
    chip: str | None
    parts: list[Part]
    sealed: bool = False  # the NVS cannot be read, so nobody knows whose it is

    def raw(self) -> dict[str, Any]:
        return {
            "image": self.source,
            "bytes": self.size,
            "device": self.device_id,
            "production": self.production,
            "chip": self.chip,
            "parts": [part.raw() for part in self.parts],
        }

    def lines(self) -> list[str]:
        whose = f"device {self.device_id}" if self.device_id else "no device"
        mode = "production: the prompt is closed" if self.production else "development"
        if self.sealed:
            whose, mode = "device not readable", "mode not readable"
        told = [
            f"{self.source}: {self.size >> 20} MiB, {whose}, {self.chip or 'no firmware'}, {mode}"
        ]
        for part in self.parts:
            used = "" if part.used is None else f"  {_kib(part.used)} used"
            told.append(
                f"  {part.offset:#08x} {part.size >> 10:6} KiB  "
                f"{part.name:<12} {part.kind:<15}{used}".rstrip()
            )
            told += [f"                          {line}" for line in part.said]
        # Names come from the file, and may hold anything.
        return ["".join(c if c.isprintable() else "?" for c in line) for line in told]


def explain(path: Path) -> Explanation:
    """What the image holds; OutpostError with a sentence where it is none."""
    size = check_flash_size(path)
    flash = path.read_bytes()
    raw = flash[TABLE_OFFSET : TABLE_OFFSET + TABLE_DATA_BYTES]
    if not raw.strip(b"\xff"):
        raise OutpostError(
            f"{path} has no partition table at {TABLE_OFFSET:#x}: it is blank there, so it is no "
            "image of `outpost image`."
        )
    if not raw.startswith(b"\xaa\x50"):
        raise OutpostError(
            f"{path} has no partition table at {TABLE_OFFSET:#x}: it is no flash image, or it is "
            "encrypted (flash encryption)."
        )
    table = PartitionTable.from_binary(raw, f"the partition table of {path}")
    table.check_fits(size)
    found = Explanation(str(path), size, None, False, None, [])
    chip = _bootloader(flash, found)
    found.parts.append(Part("(table)", "partition table", TABLE_OFFSET, SECTOR_BYTES))
    found.parts[-1].said.append(f"{len(table)} partitions, checksum right")
    for partition in sorted(table, key=lambda p: p.offset):
        content = flash[partition.offset : partition.end]
        part = Part(partition.name, _kind(partition), partition.offset, partition.size)
        found.parts.append(part)
        if partition.type == TYPES["app"]:
            chip = _application(content, part, chip)
        elif _kind(partition) == "data/nvs":
            _nvs(content, part, found)
        elif _kind(partition) == "data/nvs_keys":
            part.said.append("blank" if _blank(content) else "holds the keys of NVS encryption")
        elif _kind(partition) == "data/ota":
            _otadata(content, part, table)
        elif partition.name == agreed.VFS_LABEL:
            _files(content, part)
        elif partition.name == "outbox":
            _outbox(content, part)
        else:
            part.said.append("blank" if _blank(content) else "written")
    found.chip = chip.name if chip else None
    return found


def _kib(size: int) -> str:
    return f"{size / 1024:.1f} KiB"


def _kind(p: Partition) -> str:
    kinds = {number: name for name, number in TYPES.items()}
    subs = {number: name for name, number in SUBTYPES.get(p.type, {}).items()}
    return f"{kinds.get(p.type, hex(p.type))}/{subs.get(p.subtype, hex(p.subtype))}"


def _blank(content: bytes) -> bool:
    return not content.strip(b"\xff")


def _bootloader(flash: bytes, found: Explanation) -> Chip | None:
    for chip in CHIPS:
        at = chip.bootloader_at
        if flash[at] == MAGIC and header_chip(flash[at:TABLE_OFFSET], "it").bootloader_at == at:
            real = header_chip(flash[at:TABLE_OFFSET], "it")
            content = flash[at:TABLE_OFFSET]
            part = Part(
                "(bootloader)", "bootloader", at, len(content), len(content.rstrip(b"\xff"))
            )
            part.said.append(f"for {real.name}, " + _whole(content, app=False))
            found.parts.append(part)
            return real
    content = flash[0x1000:TABLE_OFFSET]
    part = Part("(bootloader)", "bootloader", 0x1000, len(content))
    part.said.append("none" if _blank(flash[:TABLE_OFFSET]) else "unreadable")
    found.parts.append(part)
    return None


def _whole(content: bytes, app: bool) -> str:
    try:
        check_image(content, "it", app)
    except OutpostError:
        return "damaged"
    return "checksum right"


def _application(content: bytes, part: Part, chip: Chip | None) -> Chip | None:
    if _blank(content):
        part.used = 0
        part.said.append("blank")
        return chip
    try:
        chip = header_chip(content, part.name)
    except OutpostError:
        part.said.append("no application that can be read")
        return chip
    part.used = len(content.rstrip(b"\xff"))
    told = describe(content)
    part.facts["application"] = told | {"chip": chip.name}
    part.said.append(f"{Firmware(chip, b'', None, **told).title}, {_whole(content, app=True)}")
    return chip


def _nvs(content: bytes, part: Part, found: Explanation) -> None:
    nvs = nvsread.read(content)
    part.used = nvs.used * nvsread.ENTRY_BYTES
    part.facts["entries"] = [
        {"namespace": e.namespace, "key": e.key, "type": e.type, "size": e.size}
        for e in nvs.entries
    ]
    found.device_id = nvs.device_id
    found.production = nvs.production
    if nvs.blank:
        part.said.append("blank")
    elif nvs.unreadable:
        found.sealed = True
        part.said.append("encrypted, or damaged: no entry of it can be read")
    elif nvs.damaged:
        part.said.append(f"{nvs.damaged} entries are damaged")
    part.said.append(f"{nvs.used} of {nvs.room} entries used")
    for entry in nvs.entries:
        part.said.append(f"{entry.namespace}.{entry.key:<16} {entry.type:<6} {entry.size} bytes")


def _otadata(content: bytes, part: Part, table: PartitionTable) -> None:
    from esp_idf_defs.otadata import OtaDataSelectEntry

    found = []
    for at in range(0, min(len(content), 2 * SECTOR_BYTES), SECTOR_BYTES):
        entry = OtaDataSelectEntry.from_bytes(content[at : at + OtaDataSelectEntry.SIZE])
        found.append(entry if content[at : at + 4] != b"\xff" * 4 else None)
    chosen, _ = OtaDataSelectEntry.select(*found)
    slots = [p for p in table if p.type == TYPES["app"] and 0x10 <= p.subtype < 0x20]
    if chosen is None or not slots:
        part.said.append("blank: the first place starts")
        return
    slot = slots[chosen.ota_slot(len(slots))]
    part.facts["starts"] = slot.name
    part.said.append(f"{slot.name} starts, state {chosen.ota_state.name.lower()}")


def _outbox(content: bytes, part: Part) -> None:
    sectors = [content[at : at + SECTOR_BYTES] for at in range(0, len(content), SECTOR_BYTES)]
    used = sum(not _blank(sector) for sector in sectors)
    part.used = used * SECTOR_BYTES
    part.said.append("blank" if not used else f"{used} of {len(sectors)} sectors are written")


def read_files(content: bytes) -> dict[str, bytes]:
    """The files of a littlefs; OutpostError where it is none."""
    fs = LittleFS(
        UserContext(buffer=bytearray(content)),
        mount=False,
        block_size=SECTOR_BYTES,
        block_count=len(content) // SECTOR_BYTES,
        read_size=32,
        prog_size=32,
        cache_size=128,
        lookahead_size=32,
    )
    files: dict[str, bytes] = {}
    try:
        fs.mount()
        for folder, _, names in fs.walk("/"):
            for name in names:
                path = f"{folder.rstrip('/')}/{name}"
                with fs.open(path, "rb") as file:
                    files[path] = file.read()
                if len(files) > FILES_MAX:
                    raise OutpostError("The file system has too many files to be one of ours.")
    except (LittleFSError, OSError, ValueError) as why:
        raise OutpostError(f"The file system cannot be read ({why}).") from None
    return files


def _files(content: bytes, part: Part) -> None:
    if _blank(content):
        part.used = 0
        part.said.append("blank")
        return
    try:
        files = read_files(content)
    except OutpostError:
        part.said.append("no file system that can be read: damaged, or encrypted")
        return
    part.used = sum(
        SECTOR_BYTES
        for at in range(0, len(content), SECTOR_BYTES)
        if not _blank(content[at : at + SECTOR_BYTES])
    )
    part.facts["files"] = {path: len(data) for path, data in sorted(files.items())}
    part.said += _trust(files, part)
    part.said += _configuration(files.get(agreed.CONFIG_PATH))
    for path, data in sorted(files.items()):
        part.said.append(f"{path:<40} {len(data)} bytes")


def _trust(files: dict[str, bytes], part: Part) -> list[str]:
    data = files.get(agreed.FACTORY_ROOTS_PATH)
    if data is None:
        return ["no trusted roots: the device will connect to nothing"]
    if data.startswith(agreed.ENVELOPE_MAGIC):
        return _bundle(data, part)
    roots = []
    at = 0
    while at + 2 <= len(data):
        size = int.from_bytes(data[at : at + 2], "big")
        der = data[at + 2 : at + 2 + size]
        if len(der) != size or not size:
            return ["the trusted roots are damaged"]
        roots.append(hashlib.sha256(der).hexdigest())
        at += 2 + size
    part.facts["trust"] = {"version": 0, "roots": roots}
    return [f"trust bundle of the factory: version 0, {len(roots)} roots"] + [
        f"  root {one[:16]}..." for one in roots
    ]


def _bundle(data: bytes, part: Part) -> list[str]:
    from outpost_tools.bundle import read

    try:
        found, _ = read(data)
    except OutpostError:
        return ["the trust bundle of the factory is damaged"]
    roots = [hashlib.sha256(der).hexdigest() for der in found.roots]
    part.facts["trust"] = {"version": found.version, "roots": roots}
    return [f"trust bundle of the factory: version {found.version}, {len(roots)} roots"] + [
        f"  root {one[:16]}..." for one in roots
    ]


_SECRET_WORDS = ("key", "pass", "psk", "pwd", "secret", "token", "credential")


def _without_secrets(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _without_secrets(below, key) for key, below in value.items()}
    if isinstance(value, list):
        return [_without_secrets(below, name) for below in value]
    if any(word in name.lower() for word in _SECRET_WORDS):
        return "(not shown)" if value else ""
    return value


def _configuration(data: bytes | None) -> list[str]:
    if data is None:
        return ["no configuration"]
    try:
        raw = json.loads(data)
        if not isinstance(raw, dict):
            raise ValueError
    except (ValueError, RecursionError):
        return ["the configuration cannot be read"]
    return ["configuration: " + json.dumps(_without_secrets(raw))]
