# SPDX-License-Identifier: MIT
"""The pages and items of an NVS partition (version 2): loaded, mended, appended, erased.

Owns one partition. A page that cannot be read is left alone, never erased; what a power cut left
half done is finished when it is loaded. Runs on MicroPython and on CPython (host tests).
"""

import binascii
import struct

NOT_FOUND = 0x1102
NOT_ENOUGH_SPACE = 0x1105
KEY_TOO_LONG = 0x1109
INVALID_LENGTH = 0x110C
NO_FREE_PAGES = 0x110D
VALUE_TOO_LONG = 0x110E
_NAMES = {
    NOT_FOUND: "NOT_FOUND",
    NOT_ENOUGH_SPACE: "NOT_ENOUGH_SPACE",
    KEY_TOO_LONG: "KEY_TOO_LONG",
    INVALID_LENGTH: "INVALID_LENGTH",
    NO_FREE_PAGES: "NO_FREE_PAGES",
    VALUE_TOO_LONG: "VALUE_TOO_LONG",
}

PAGE = 4096
ENTRIES = 126
CHUNK_MAX = (ENTRIES - 1) * 32
ACTIVE, FULL, FREEING = 0xFFFFFFFE, 0xFFFFFFFC, 0xFFFFFFF8
U8, I32, TEXT, BLOB_V1, CHUNK, INDEX = 0x01, 0x14, 0x21, 0x41, 0x42, 0x48
WITH_PAYLOAD = (TEXT, BLOB_V1, CHUNK)
WRITTEN, ERASED = 2, 0
NO_CHUNK = 0xFF
BLANK = b"\xff" * 32


def error(code):
    return OSError(-code, "ESP_ERR_NVS_" + _NAMES[code])


def crc(data):
    return binascii.crc32(data, 0xFFFFFFFF) & 0xFFFFFFFF


class _Page:
    def __init__(self, base, state, seq):
        self.base = base
        self.state = state
        self.seq = seq
        self.next = 0  # first entry that is free, as are all after it
        self.used = 0  # entries that hold live items


class Store:
    """`flash` has read(offset, n), program(offset, data) and erase(offset)."""

    def __init__(self, flash, offset, size):
        self._flash = flash
        self._blank = []  # pages that are free
        self._pages = []  # by age; the last is the one written to
        self._items = {}  # (namespace, key, chunk) -> (page, entry)
        self.unreadable = 0
        for base in range(offset, offset + size, PAGE):
            self._load_header(base)
        self._pages.sort(key=lambda p: p.seq)
        for page in self._pages:
            self._scan(page)
        if not self._pages and not self._blank:
            raise error(NO_FREE_PAGES)
        for page in list(self._pages):
            if page.state == FREEING:  # the power went while it was emptied
                if self._pages[-1].state != ACTIVE and self._blank:
                    self._begin_page()
                self._empty(page)
        self._drop_halves()

    # Loading

    def _load_header(self, base):
        head = self._flash.read(base, 32)
        if head == BLANK:
            self._blank.append(base)
            return
        state, seq, version = struct.unpack("<IIB", head[:9])
        known = state in (ACTIVE, FULL, FREEING) and version in (0xFE, 0xFF)
        if known and crc(head[4:28]) == struct.unpack("<I", head[28:])[0]:
            self._pages.append(_Page(base, state, seq))
        elif self._flash.read(base + 32, PAGE - 32) == b"\xff" * (PAGE - 32):
            self._blank.append(base)  # the power went while its header was written
        else:
            self.unreadable += 1

    def _scan(self, page):
        raw = self._flash.read(page.base, PAGE)
        i = 0
        while i < ENTRIES:
            state = raw[32 + i // 4] >> i % 4 * 2 & 3
            entry = raw[64 + i * 32 : 96 + i * 32]
            span = 1
            if state == 3:
                if entry != BLANK:  # the power went before its state was written
                    self._mark(page, i, 1, ERASED)
                    page.next = i + 1
            elif state == WRITTEN and not self._sound(raw, i, entry):
                self._mark(page, i, 1, ERASED)
                page.next = i + 1
            elif state == WRITTEN:
                span = entry[2]
                key = self._key(entry)
                page.used += span
                if key in self._items:  # the older one: the power went before it was erased
                    self._erase(key)
                self._items[key] = (page, i)
                page.next = i + span
            else:
                page.next = i + 1
            i += span

    @staticmethod
    def _sound(raw, i, entry):
        """Whether the item that starts at entry i is whole."""
        span = entry[2]
        if crc(entry[:4] + entry[8:]) != struct.unpack("<I", entry[4:8])[0] or not span:
            return False
        for k in range(i, i + span):
            if k >= ENTRIES or raw[32 + k // 4] >> k % 4 * 2 & 3 != WRITTEN:
                return False
        if entry[1] not in WITH_PAYLOAD:
            return True
        size, _, payload_crc = struct.unpack("<HHI", entry[24:])
        start = 96 + i * 32
        return size <= (span - 1) * 32 and crc(raw[start : start + size]) == payload_crc

    @staticmethod
    def _key(entry):
        return entry[0], bytes(entry[8:24]).split(b"\0")[0], entry[3]

    def _drop_halves(self):
        """Erase blobs of which a part is missing, and parts of no blob."""
        for key in list(self._items):
            ns, name, chunk = key
            if chunk == NO_CHUNK and self._entry(key)[1] == INDEX:
                if any((ns, name, c) not in self._items for c in self._chunks(key)):
                    self._erase(key)
        for key in list(self._items):
            index = key[:2] + (NO_CHUNK,)
            if key[2] != NO_CHUNK:
                if index not in self._items or key[2] not in self._chunks(index):
                    self._erase(key)

    # Entries

    def _entry(self, key):
        page, i = self._items[key]
        return self._flash.read(page.base + 64 + i * 32, 32)

    def _payload(self, key):
        page, i = self._items[key]
        size = struct.unpack("<H", self._entry(key)[24:26])[0]
        return self._flash.read(page.base + 96 + i * 32, size)

    def _chunks(self, index):
        """The chunk numbers of a blob, in order; none where the key holds no blob."""
        entry = self._entry(index)
        if entry[1] != INDEX:
            return ()
        return range(entry[29], entry[29] + entry[28])

    def _mark(self, page, i, n, state):
        mask = bytearray(BLANK)
        for k in range(i, i + n):
            mask[k // 4] &= ~((3 ^ state) << k % 4 * 2) & 0xFF
        first, last = i // 4, (i + n - 1) // 4 + 1
        self._flash.program(page.base + 32 + first, mask[first:last])

    def _erase(self, key):
        self._erase_at(*self._items.pop(key))

    def _erase_at(self, page, i):
        span = self._flash.read(page.base + 64 + i * 32, 32)[2]
        page.used -= span
        self._mark(page, i, span, ERASED)

    def _append(self, entry, payload=b""):
        """Write one item into the last page, which must have room, and put it in the index."""
        page = self._pages[-1]
        i = page.next
        at = page.base + 64 + i * 32
        if payload:
            self._flash.program(at + 32, payload)
        self._flash.program(at, entry)
        self._mark(page, i, entry[2], WRITTEN)
        page.next += entry[2]
        page.used += entry[2]
        self._items[self._key(entry)] = (page, i)

    def _write(self, ns, kind, name, chunk, data, payload=b""):
        span = 1 + (len(payload) + 31) // 32
        if self._room() < span:
            self._new_page()
            if self._room() < span:
                raise error(NOT_ENOUGH_SPACE)
        head = bytes((ns, kind, span, chunk))
        tail = name + bytes(16 - len(name)) + data
        self._append(head + struct.pack("<I", crc(head + tail)) + tail, payload)

    # Pages

    def _room(self):
        """Entries that the last page still takes."""
        page = self._pages[-1] if self._pages else None
        return ENTRIES - page.next if page and page.state == ACTIVE else 0

    def _state(self, page, state):
        page.state = state
        self._flash.program(page.base, struct.pack("<I", state))

    def _new_page(self):
        """Close the last page and begin another; one page is always kept free for this."""
        if self._pages and self._pages[-1].state == ACTIVE:
            self._state(self._pages[-1], FULL)
        victim = None
        if len(self._blank) < 2 and self._pages:
            victim = min(self._pages, key=lambda p: p.used)
            if not self._blank or victim.used == ENTRIES:
                raise error(NOT_ENOUGH_SPACE)
            self._state(victim, FREEING)
        self._begin_page()
        if victim:
            self._empty(victim)

    def _begin_page(self):
        base = self._blank.pop(0)
        if self._flash.read(base, PAGE) != b"\xff" * PAGE:
            self._flash.erase(base)
        seq = self._pages[-1].seq + 1 if self._pages else 0
        head = struct.pack("<IB", seq, 0xFE) + b"\xff" * 19
        head = struct.pack("<I", ACTIVE) + head + struct.pack("<I", crc(head))
        self._flash.program(base, head)
        self._pages.append(_Page(base, ACTIVE, seq))

    def _empty(self, page):
        """Move what a page holds into the last one and erase it; without room, leave it."""
        for key, (where, i) in sorted(self._items.items(), key=lambda item: item[1][1]):
            if where is page:
                entry = self._entry(key)
                if self._room() < entry[2]:
                    return
                payload = self._flash.read(page.base + 96 + i * 32, (entry[2] - 1) * 32)
                self._append(entry, payload)
        self._flash.erase(page.base)
        self._pages.remove(page)
        self._blank.append(page.base)
