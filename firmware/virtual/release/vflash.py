# SPDX-License-Identifier: MIT
"""The flash chip of the release leg: one image file, held to NOR rules.

Owns the image file, the counters, the planned power cut and the partition table
at 0x8000. Never sets a bit without an erase, and after a power cut changes
nothing more. Runs on MicroPython and on CPython (host tests).
"""

import hashlib
import struct

SECTOR = 4096
PAGE = 256
TABLE = 0x8000

chip = None  # the Flash of this board: set by board.py, used by esp32.py


class PowerCut(Exception):
    pass


class Flash:
    """read, program and erase, by address. `file` is open for reading and writing, unbuffered.

    One operation is a program of at most one page, or the erase of a sector.
    """

    def __init__(self, file):
        self._file = file
        self.size = file.seek(0, 2)
        if self.size not in (4 << 20, 8 << 20, 16 << 20):
            raise ValueError("the flash image has %d bytes: a chip has 4, 8 or 16 MiB" % self.size)
        self.erases = self.programs = self.bytes_programmed = 0
        self.sector_erases = {}
        self._cut_in = 0
        self._torn = False
        self._dead = False

    def cut_after(self, n, torn):
        """Take the power away at the n-th operation from now: before it, or in its middle."""
        self._cut_in = n
        self._torn = torn

    def read(self, offset, n):
        self._file.seek(offset)
        return self._file.read(n)

    def _write(self, offset, data):
        self._file.seek(offset)
        self._file.write(data)

    def _operation(self, offset, data):
        """True when the caller shall do it all; at the cut, does its first half here."""
        if self._dead:
            raise PowerCut()
        self._cut_in -= 1
        if self._cut_in == 0:
            self._dead = True
            if self._torn:
                self._write(offset, data[: len(data) // 2])
            raise PowerCut()

    def program(self, offset, data):
        """AND `data` into the flash, page by page."""
        data = bytes(data)
        at = 0
        while at < len(data):
            n = min(len(data) - at, PAGE - (offset + at) % PAGE)
            old = int.from_bytes(self.read(offset + at, n), "little")
            new = old & int.from_bytes(data[at : at + n], "little")
            new = new.to_bytes(n, "little")
            self._operation(offset + at, new)
            self._write(offset + at, new)
            self.programs += 1
            self.bytes_programmed += n
            at += n

    def erase(self, offset):
        """Erase the sector at `offset`."""
        blank = b"\xff" * SECTOR
        self._operation(offset, blank)
        self._write(offset, blank)
        self.erases += 1
        self.sector_erases[offset] = self.sector_erases.get(offset, 0) + 1


def partitions(flash):
    """[(type, subtype, offset, size, label, encrypted)]; ValueError says what is wrong."""
    table = flash.read(TABLE, 0xC00)
    found = []
    for at in range(0, len(table), 32):
        entry = table[at : at + 32]
        if entry[:2] == b"\xeb\xeb":
            if hashlib.md5(table[:at]).digest() != entry[16:]:
                raise ValueError("the partition table is damaged: its checksum is wrong")
            return found
        if entry[:2] != b"\xaa\x50":
            break
        kind, subtype, offset, size, label, flags = struct.unpack("<BBII16sI", entry[2:])
        if offset % SECTOR or offset + size > flash.size:
            raise ValueError("the partition table is damaged: an entry lies outside the chip")
        label = label.split(b"\0")[0].decode()
        found.append((kind, subtype, offset, size, label, bool(flags & 1)))
    raise ValueError("there is no whole partition table at 0x%x" % TABLE)


def erases_by_partition(flash, table):
    counts = {p[4]: 0 for p in table}
    for sector, n in flash.sector_erases.items():
        for p in table:
            if p[2] <= sector < p[2] + p[3]:
                counts[p[4]] += n
    return counts
