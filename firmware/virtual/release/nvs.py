# SPDX-License-Identifier: MIT
"""Key-value storage in Espressif's NVS format (version 2), read and written in Python.

Owns how a value is replaced: a new value is whole in flash before the old one goes. Reads i32 and
blob; other types are kept and moved, and read as "not found".
"""

import struct

# The codes too: who uses this module compares with them.
from nvs_store import (  # noqa: F401
    BLOB_V1,
    CHUNK,
    CHUNK_MAX,
    I32,
    INDEX,
    INVALID_LENGTH,
    KEY_TOO_LONG,
    NO_CHUNK,
    NO_FREE_PAGES,
    NOT_ENOUGH_SPACE,
    NOT_FOUND,
    U8,
    VALUE_TOO_LONG,
    Store,
    crc,
    error,
)


class Nvs(Store):
    """`flash` has read(offset, n), program(offset, data) and erase(offset). Names are bytes."""

    def open(self, name):
        """The namespace's number; made where it is not there."""
        if len(name) > 15:
            raise error(KEY_TOO_LONG)
        key = (0, name, NO_CHUNK)
        if key in self._items:
            return self._entry(key)[24]
        numbers = [self._entry(k)[24] for k in self._items if k[0] == 0]
        free = [n for n in range(1, 255) if n not in numbers]
        if not free:
            raise error(NOT_ENOUGH_SPACE)
        self._write(0, U8, name, NO_CHUNK, bytes((free[0],)) + b"\xff" * 7)
        return free[0]

    def _find(self, ns, name, kinds):
        """The item's key; NOT_FOUND where there is none or it has another type."""
        key = (ns, name[:15], NO_CHUNK)  # ESP-IDF compares 15 characters, no more
        if key not in self._items or kinds and self._entry(key)[1] not in kinds:
            raise error(NOT_FOUND)
        return key

    def _same(self, value, get, ns, name):
        """Whether the value is there already; else checks that the name can be written."""
        try:
            if get(ns, name) == value:
                return True
        except OSError:
            pass
        if len(name) > 15:
            raise error(KEY_TOO_LONG)
        return False

    def get_i32(self, ns, name):
        return struct.unpack("<i", self._entry(self._find(ns, name, (I32,)))[24:28])[0]

    def set_i32(self, ns, name, value):
        if self._same(value, self.get_i32, ns, name):
            return
        old = self._parts(ns, name)
        self._replace(old, ns, I32, name, struct.pack("<i", value) + b"\xff" * 4)

    def get_blob(self, ns, name):
        key = self._find(ns, name, (INDEX, BLOB_V1))
        if self._entry(key)[1] == BLOB_V1:
            return self._payload(key)
        return b"".join(self._payload((ns, key[1], c)) for c in self._chunks(key))

    def set_blob(self, ns, name, value):
        value = bytes(value)
        if self._same(value, self.get_blob, ns, name):
            return
        if len(value) > (len(self._pages) + len(self._blank) - 1) * CHUNK_MAX:
            raise error(VALUE_TOO_LONG)
        old = self._parts(ns, name)
        # The chunks of the new version are numbered from 0x80 where the old are from 0.
        start = 0x80 if any(k[2] < 0x80 for k in old) else 0
        written = []
        at = 0
        try:
            while True:
                room = max(0, self._room() - 1) * 32
                if not written and room < max(1, len(value)) and room < CHUNK_MAX // 10:
                    self._new_page()
                    if max(0, self._room() - 1) * 32 == room:
                        raise error(NOT_ENOUGH_SPACE)
                    continue
                if not room:
                    raise error(NOT_ENOUGH_SPACE)
                part = value[at : at + room]
                chunk = start + len(written)
                data = struct.pack("<HHI", len(part), 0xFFFF, crc(part))
                self._write(ns, CHUNK, name, chunk, data, part)
                written.append((ns, name, chunk))
                at += len(part)
                if at == len(value):
                    break
                self._new_page()
            index = struct.pack("<IBBH", len(value), len(written), start, 0xFFFF)
            self._replace(old, ns, INDEX, name, index)
        except OSError:
            for key in written:
                self._erase(key)
            raise

    def _parts(self, ns, name):
        """The keys of all that a name owns; its first item last, so that it goes last."""
        key = (ns, name, NO_CHUNK)
        if key not in self._items:
            return []
        return [(ns, name, c) for c in self._chunks(key)] + [key]

    def _replace(self, old, ns, kind, name, data):
        """Write the item that makes the new value whole, then erase the old value."""
        key = (ns, name, NO_CHUNK)
        if self._room() < 1:  # now, since it moves items, the old value among them
            self._new_page()
        where = self._items.get(key)
        self._write(ns, kind, name, NO_CHUNK, data)
        if where:
            self._erase_at(*where)
        for part in old[:-1]:
            self._erase(part)

    def erase_key(self, ns, name):
        key = self._find(ns, name, None)
        # The index first: a blob whose index is gone is gone as a whole.
        for part in reversed(self._parts(ns, key[1])):
            self._erase(part)
