"""A second, independent reader of Espressif's NVS format, strict where a device is lenient.

Written from the format's description, in Python alone, to hold what our C code writes against it:
every CRC, every entry state, every chunk of every blob. Raises AssertionError at the first thing
that is not as it should be.
"""

from __future__ import annotations

import struct
import zlib

PAGE = 4096
ERASED, WRITTEN, EMPTY = 0, 2, 3
ACTIVE, FULL = 0xFFFFFFFE, 0xFFFFFFFC
NUMBERS = {0x01: "<B", 0x11: "<b", 0x02: "<H", 0x12: "<h"}
NUMBERS |= {0x04: "<I", 0x14: "<i", 0x08: "<Q", 0x18: "<q"}
STRING, BLOB, CHUNK, INDEX = 0x21, 0x41, 0x42, 0x48

Value = int | bytes | str


def crc(data: bytes) -> int:
    return zlib.crc32(data, 0xFFFFFFFF)


def page_items(page: bytes) -> list[tuple[bytes, bytes]]:
    """The (entry, data) of every item in a page; checks everything else in it."""
    state, sequence, version = struct.unpack_from("<IIB", page)
    assert state in (ACTIVE, FULL), f"page state {state:08x}"
    assert version == 0xFE and page[9:28] == b"\xff" * 19
    assert struct.unpack_from("<I", page, 28)[0] == crc(page[4:28]), f"header CRC of {sequence}"
    states = [page[32 + i // 4] >> (i % 4 * 2) & 3 for i in range(128)]
    assert states[126:] == [EMPTY, EMPTY]
    items = []
    index = 0
    while index < 126:
        entry = page[64 + 32 * index : 96 + 32 * index]
        if states[index] != WRITTEN:
            assert states[index] in (ERASED, EMPTY)
            assert states[index] == ERASED or entry == b"\xff" * 32, f"bytes in empty entry {index}"
            index += 1
            continue
        kind, span = entry[1], entry[2]
        assert struct.unpack_from("<I", entry, 4)[0] == crc(entry[:4] + entry[8:])
        assert 1 <= span <= 126 - index
        assert states[index : index + span] == [WRITTEN] * span, f"entry {index} is half there"
        assert entry[8:24].endswith(b"\0")
        data = page[96 + 32 * index : 64 + 32 * (index + span)]
        if kind in (STRING, BLOB, CHUNK):
            size, reserved, checksum = struct.unpack_from("<HHI", entry, 24)
            assert reserved == 0xFFFF and span == 1 + (size + 31) // 32
            assert data[size:] == b"\xff" * (len(data) - size)
            data = data[:size]
            assert checksum == crc(data), f"data CRC of entry {index}"
        else:
            assert span == 1 and (kind in NUMBERS or kind == INDEX), f"type {kind:02x}"
        items.append((entry, data))
        index += span
    return items


def in_use(page: bytes) -> bool:
    """Has the page a whole header? What a torn erase left has none and waits to be erased."""
    state, checksum = struct.unpack_from("<I24xI", page)
    return state in (ACTIVE, FULL) and checksum == crc(page[4:28])


def read(image: bytes, after_power_cut: bool = False) -> dict[tuple[str, str], Value]:
    """Everything in the partition, as {(namespace, key): value}."""
    pages = [image[at : at + PAGE] for at in range(0, len(image), PAGE)]
    used = [page for page in pages if page != b"\xff" * PAGE]
    if after_power_cut:
        used = [page for page in used if in_use(page)]
    sequences = [struct.unpack_from("<I", page, 4)[0] for page in used]
    assert len(set(sequences)) == len(sequences), "two pages with the same number"
    assert sum(page[:4] == struct.pack("<I", ACTIVE) for page in used) <= 1, "two active pages"
    assert len(used) < len(pages), "no free page"
    items = [item for page in used for item in page_items(page)]
    namespaces: dict[int, str] = {}
    chunks: dict[tuple[int, str, int], bytes] = {}
    values: dict[tuple[int, str], Value] = {}
    indexes = []
    for entry, data in items:
        number, kind, _, chunk = entry[:4]
        key = entry[8:24].split(b"\0")[0].decode()
        if kind == CHUNK:
            assert (number, key, chunk) not in chunks, f"chunk {chunk} of {key} twice"
            chunks[number, key, chunk] = data
            continue
        assert chunk == 0xFF
        if kind == INDEX:
            indexes.append((number, key, *struct.unpack_from("<IBB", entry, 24)))
            value: Value = b""
        elif kind == STRING:
            assert data.endswith(b"\0")
            value = data[:-1].decode()
        else:
            value = data if kind == BLOB else struct.unpack_from(NUMBERS[kind], entry, 24)[0]
        if number == 0:
            assert isinstance(value, int) and value not in namespaces
            namespaces[value] = key
        else:
            assert (number, key) not in values, f"{key} twice"
            values[number, key] = value
    for number, key, size, count, start in indexes:
        assert start in (0, 128)
        parts = [chunks.pop((number, key, start + n)) for n in range(count)]
        values[number, key] = b"".join(parts)
        assert len(values[number, key]) == size
    assert not chunks, f"chunks that belong to nothing: {list(chunks)}"
    return {(namespaces[number], key): value for (number, key), value in values.items()}
