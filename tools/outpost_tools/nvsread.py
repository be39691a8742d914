"""What is in an NVS partition: names, types and sizes; and the one value that says whose it is.

Reads Espressif's format, version 2, with every checksum. It owns nothing; values stay inside, so
that neither a repr nor a listing can show a secret.
"""

import struct
import zlib
from dataclasses import dataclass, field

from outpost_tools import agreed

PAGE_BYTES = 4096
ENTRY_BYTES = 32
ENTRIES = 126
ACTIVE, FULL = 0xFFFFFFFE, 0xFFFFFFFC
WRITTEN = 2
NUMBERS = {
    0x01: ("u8", "<B"),
    0x11: ("i8", "<b"),
    0x02: ("u16", "<H"),
    0x12: ("i16", "<h"),
    0x04: ("u32", "<I"),
    0x14: ("i32", "<i"),
    0x08: ("u64", "<Q"),
    0x18: ("i64", "<q"),
}
STRING, CHUNK, INDEX = 0x21, 0x42, 0x48


@dataclass(frozen=True)
class Entry:
    namespace: str
    key: str
    type: str
    size: int
    value: int | bytes = field(repr=False)


@dataclass
class Nvs:
    entries: list[Entry] = field(default_factory=list)
    used: int = 0  # entries of 32 bytes that hold something
    room: int = 0  # how many there are
    blank: bool = True  # nothing was ever written
    damaged: int = 0  # entries whose checksum is wrong
    pages: int = 0  # with a whole header

    @property
    def unreadable(self) -> bool:
        """Written, and not an entry of it can be read: encrypted, or damaged."""
        return not self.entries and self.damaged > 0

    def get(self, key: str, namespace: str = agreed.NVS_NAMESPACE) -> int | bytes | None:
        for entry in self.entries:
            if (entry.namespace, entry.key) == (namespace, key):
                return entry.value
        return None

    @property
    def device_id(self) -> str | None:
        value = self.get(agreed.NVS_DEVICE_ID)
        try:
            return value.decode() if isinstance(value, bytes) else None
        except UnicodeDecodeError:
            return None

    @property
    def has_outpost(self) -> bool:
        return any(e.namespace.startswith(agreed.NVS_NAMESPACE) for e in self.entries)

    @property
    def production(self) -> bool:
        return bool(self.get(agreed.NVS_PRODUCTION))


def _crc(data: bytes) -> int:
    return zlib.crc32(data, 0xFFFFFFFF)


def _items(page: bytes, nvs: Nvs) -> list[tuple[bytes, bytes]]:
    """(entry, data) of what can be read in a page whose header is whole."""
    found = []
    at = 0
    while at < ENTRIES:
        if page[32 + at // 4] >> (at % 4 * 2) & 3 != WRITTEN:
            at += 1
            continue
        entry = page[64 + ENTRY_BYTES * at : 96 + ENTRY_BYTES * at]
        kind, span = entry[1], entry[2]
        nvs.used += 1
        if struct.unpack_from("<I", entry, 4)[0] != _crc(entry[:4] + entry[8:]) or not (
            1 <= span <= ENTRIES - at
        ):
            nvs.damaged += 1
            at += 1
            continue
        data = page[96 + ENTRY_BYTES * at : 64 + ENTRY_BYTES * (at + span)]
        if kind in (STRING, CHUNK):
            size, _, checksum = struct.unpack_from("<HHI", entry, 24)
            data = data[:size]
            if len(data) != size or checksum != _crc(data):
                nvs.damaged += 1
                at += 1
                continue
        nvs.used += span - 1
        found.append((entry, data))
        at += span
    return found


def read(partition: bytes) -> Nvs:
    """All that can be read; what is damaged is counted, never raised."""
    nvs = Nvs(room=max(0, len(partition) // PAGE_BYTES - 1) * ENTRIES)
    nvs.blank = not partition.strip(b"\xff")
    items: list[tuple[bytes, bytes]] = []
    pages = []
    for start in range(0, len(partition) - PAGE_BYTES + 1, PAGE_BYTES):
        page = partition[start : start + PAGE_BYTES]
        state, sequence = struct.unpack_from("<II", page)
        if struct.unpack_from("<I", page, 28)[0] == _crc(page[4:28]) and state in (ACTIVE, FULL):
            pages.append((sequence, page))
    nvs.pages = len(pages)
    for _, page in sorted(pages, key=lambda pair: pair[0]):
        items += _items(page, nvs)
    spaces: dict[int, str] = {}
    chunks: dict[tuple[int, str, int], bytes] = {}
    values: dict[tuple[int, str], tuple[str, int | bytes]] = {}
    indexes = []
    for entry, data in items:
        space, kind, _, chunk = entry[:4]
        key = entry[8:24].split(b"\0")[0].decode(errors="replace")
        if kind == CHUNK:
            chunks[space, key, chunk] = data
        elif kind == INDEX:
            indexes.append((space, key, *struct.unpack_from("<IBB", entry, 24)))
        elif kind == STRING:
            values[space, key] = ("string", data.rstrip(b"\0"))
        elif kind in NUMBERS:
            name, form = NUMBERS[kind]
            number = struct.unpack_from(form, entry, 24)[0]
            if space == 0:
                spaces[number] = key
            else:
                values[space, key] = (name, number)
    for space, key, size, count, first in indexes:
        whole = b"".join(chunks.get((space, key, first + n), b"") for n in range(count))
        if len(whole) == size:
            values[space, key] = ("blob", whole)
        else:
            nvs.damaged += 1
    for (space, key), (kind_name, value) in values.items():
        size = len(value) if isinstance(value, bytes) else int(kind_name[1:]) // 8
        nvs.entries.append(Entry(spaces.get(space, "?"), key, kind_name, size, value))
    nvs.entries.sort(key=lambda e: (e.namespace, e.key))
    return nvs
