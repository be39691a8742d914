"""Outbox: messages on their way, in a ring on a raw flash partition of their own.

    sector (4 KiB):  header (20 bytes), then records, then blank flash (0xff)
    header:          magic, number, first sequence, CRC of these three, drained mark
    record:          length, flags, released mark, sequence, time, CRC, then the body, padded to 4

Everything is programmed in place, so that a message costs no erase: one erase per sector. A mark is
a program that clears bits, never an erase. What was taken by append() is there after a power cut at
any instant, in order, until release(); a record may come twice (its release was cut off), none is
invented. Owns the partition labelled `outbox`. Never writes to a sector whose end it does not know
to be blank. Programming in place and flash encryption exclude each other.

All numbers are little-endian. docs/flash-layout.md has the bytes.
"""

import binascii
import struct
from array import array

from micropython import const

from .errors import OutboxFull

_SECTOR = const(4096)
_HEAD = const(20)
_RECORD = const(16)
_MAGIC = const(0x3142584F)  # "OXB1"
_BLANK = b"\xff" * 64

BODY_MAX = const(4060)  # one sector less both headers
TIME_UNKNOWN = const(1)  # flag: `time` is seconds of uptime, not of date


class Outbox:
    """`partition` is an esp32.Partition, or anything with its three calls.

    Allocates 10 bytes per sector and two small buffers; a body is in RAM only while it
    is appended or read. `damaged` counts records whose CRC was wrong (bit rot: what a
    power cut leaves half written was never accepted and is not counted).
    """

    def __init__(self, partition):
        self._p = partition
        self._n = partition.ioctl(4, 0)
        self._head_buf = bytearray(_HEAD)
        self._scratch = bytearray(64)
        self._numbers = array("I", [0] * self._n)  # sector number, 0: not in use
        self._firsts = array("I", [0] * self._n)  # sequence of its first record
        self._waiting = array("H", [0] * self._n)  # records in it that are not released
        self.damaged = 0
        self.next_sequence = 1
        self._sector = self._n - 1  # being written; the first append moves on to 0
        self._at = _SECTOR
        self._number = 0
        self._cursor = (0, 0, 0)  # where the last read() ended: sector number, offset, sequence
        self._recover()
        # Records from here on were made since this start: their uptime means something.
        self.first_of_this_start = self.next_sequence

    def __len__(self):
        """How many messages wait."""
        return sum(self._waiting)

    # Writing

    def append(self, body, time=0, flags=0):
        """Put one message into flash; returns its sequence number once it is safe there.

        body   bytes, at most 4,060
        time   seconds since 2000-01-01 UTC, or of uptime with flag TIME_UNKNOWN

        OutboxFull where every sector still holds something that waits: nothing changed.
        """
        size = len(body)
        if size > BODY_MAX:
            raise ValueError("a message of %d bytes does not fit: %d at most" % (size, BODY_MAX))
        need = _RECORD + (size + 3 & ~3)
        if self._at + need > _SECTOR:
            self._begin_sector()
        sequence = self.next_sequence
        # The body first and its header last: the header's CRC is what makes it a record.
        if size:
            self._p.writeblocks(self._sector, body, self._at + _RECORD)
        record = bytearray(_RECORD)
        struct.pack_into("<HBBIII", record, 0, size, flags, 0xFF, sequence, time, 0)
        crc = binascii.crc32(body, binascii.crc32(memoryview(record)[:12]))
        struct.pack_into("<I", record, 12, crc)
        self._p.writeblocks(self._sector, record, self._at)
        self._at += need
        self._waiting[self._sector] += 1
        self.next_sequence = sequence + 1
        return sequence

    def _begin_sector(self):
        following = (self._sector + 1) % self._n
        if self._waiting[following]:
            raise OutboxFull(
                "the outbox is full: %d messages wait for the hub, and this one was not taken"
                % len(self)
            )
        self._drain_if_done(self._sector)
        if self._numbers[following]:
            # Its header goes first: a half-erased sector must not look like a whole one.
            self._p.writeblocks(following, bytes(4), 0)
            self._numbers[following] = 0
        self._p.ioctl(6, following)
        self._number += 1
        head = self._head_buf
        struct.pack_into("<III", head, 0, _MAGIC, self._number, self.next_sequence)
        struct.pack_into("<II", head, 12, binascii.crc32(memoryview(head)[:12]), 0xFFFFFFFF)
        self._p.writeblocks(following, memoryview(head)[:16], 0)
        self._numbers[following] = self._number
        self._firsts[following] = self.next_sequence
        self._sector = following
        self._at = _HEAD

    def release(self, place):
        """The hub has it: `place` is what read() gave. Doing it twice changes nothing."""
        sector, at, number = place
        if self._numbers[sector] != number:
            return
        mark = memoryview(self._scratch)[:1]
        self._p.readblocks(sector, mark, at + 3)
        if mark[0] != 0xFF:
            return
        self._p.writeblocks(sector, b"\x00", at + 3)
        self._waiting[sector] -= 1
        if sector != self._sector:
            self._drain_if_done(sector)

    def _drain_if_done(self, sector):
        """Mark a sector in which nothing waits, so that the next start need not read it."""
        if self._numbers[sector] and not self._waiting[sector]:
            self._p.writeblocks(sector, bytes(4), 16)

    # Reading

    def read(self, after=0):
        """The oldest waiting message with a sequence above `after`, or None.

        (sequence, time, flags, body, place): allocates the body. Bodies that flash has
        damaged are released, counted and passed over.
        """
        sector = self._sector_of(after)
        while sector is not None:
            number = self._numbers[sector]
            at, sequence = _HEAD, self._firsts[sector]
            if self._cursor[0] == number and self._cursor[2] <= after + 1:
                at, sequence = self._cursor[1:]
            while True:
                found = self._record(sector, at, sequence)
                if found is None:
                    break
                size, flags, released, time, crc = found
                place = (sector, at, number)
                here = sequence
                at += _RECORD + (size + 3 & ~3)
                sequence += 1
                if here <= after or released:
                    continue
                body = bytearray(size)
                if size:
                    self._p.readblocks(sector, body, place[1] + _RECORD)
                self._cursor = (number, at, sequence)
                if self._crc(size, flags, here, time, body) == crc:
                    return here, time, flags, body, place
                self.damaged += 1
                self.release(place)
            if sector == self._sector:
                return None
            after = max(after, sequence - 1)
            sector = self._sector_of(after, number)
        return None

    def _sector_of(self, after, above=0):
        """The oldest sector, numbered above `above`, in which something above `after` may wait."""
        best = None
        for step in range(1, self._n + 1):
            # In ring order from the one behind the newest, numbers rise.
            i = (self._sector + step) % self._n
            if not self._numbers[i]:
                continue
            if best is not None:
                if self._firsts[i] > after + 1:
                    return best
                best = None
            if self._waiting[i] and self._numbers[i] > above:
                best = i
        return best

    def _record(self, sector, at, sequence):
        """(size, flags, released, time, crc) of the record expected at `at`, or None."""
        if at + _RECORD > _SECTOR:
            return None
        head = memoryview(self._scratch)[:_RECORD]
        self._p.readblocks(sector, head, at)
        size, flags, mark, number, time, crc = struct.unpack("<HBBIII", head)
        if number != sequence or at + _RECORD + size > _SECTOR:
            return None
        return size, flags, mark != 0xFF, time, crc

    def _crc(self, size, flags, sequence, time, body):
        head = memoryview(self._scratch)[:12]
        struct.pack_into("<HBBII", head, 0, size, flags, 0xFF, sequence, time)
        return binascii.crc32(body, binascii.crc32(head))

    # Starting

    def _recover(self):
        """Read every sector's header and the records of those that are not drained."""
        head = self._head_buf
        newest = None
        spent = 0  # number of the newest drained sector
        for i in range(self._n):
            self._p.readblocks(i, head, 0)
            magic, number, first, crc, drained = struct.unpack("<IIIII", head)
            if magic != _MAGIC or not number or crc != binascii.crc32(memoryview(head)[:12]):
                continue
            self._numbers[i] = number
            self._firsts[i] = first
            if newest is None or number > self._numbers[newest]:
                newest = i
            if drained == 0xFFFFFFFF:
                self._count(i)
            else:
                spent = number if number > spent else spent
        if newest is None:
            return
        self._sector = newest
        self._number = self._numbers[newest]
        self._at, self.next_sequence = self._count(newest)
        # What stands behind the last record was being written when the power went, and was
        # never accepted. Not being blank, the place cannot be written again; nor may a sector
        # that is marked as drained take anything more.
        if spent == self._number or not self._blank_from(self._at):
            self._at = _SECTOR

    def _count(self, sector):
        """Count what waits in a sector. Returns (offset behind its last record, next sequence).

        A record that is not whole and has none behind it is half written: it is marked as
        released. One with others behind it is damaged: read() will find that out.
        """
        at, sequence = _HEAD, self._firsts[sector]
        waiting = doubtful = 0
        last = (at, sequence)
        while True:
            found = self._record(sector, at, sequence)
            if found is None:
                break
            size, flags, released, time, crc = found
            last = (at, sequence)
            if not released and not self._whole(sector, at, size, flags, sequence, time, crc):
                doubtful += 1
            else:
                waiting += doubtful + (not released)
                doubtful = 0
            at += _RECORD + (size + 3 & ~3)
            sequence += 1
        if doubtful:
            waiting += doubtful - 1
            at, sequence = last
            self._p.writeblocks(sector, b"\x00", at + 3)
        self._waiting[sector] = waiting
        return at, sequence

    def _whole(self, sector, at, size, flags, sequence, time, crc):
        """Whether the CRC of a record is right; reads its body 64 bytes at a time."""
        head = memoryview(self._scratch)[:12]
        struct.pack_into("<HBBII", head, 0, size, flags, 0xFF, sequence, time)
        value = binascii.crc32(head)
        at += _RECORD
        while size:
            piece = memoryview(self._scratch)[: min(size, 64)]
            self._p.readblocks(sector, piece, at)
            value = binascii.crc32(piece, value)
            at += len(piece)
            size -= len(piece)
        return value == crc

    def _blank_from(self, at):
        while at < _SECTOR:
            piece = memoryview(self._scratch)[: min(64, _SECTOR - at)]
            self._p.readblocks(self._sector, piece, at)
            if bytes(piece) != _BLANK[: len(piece)]:
                return False
            at += len(piece)
        return True
