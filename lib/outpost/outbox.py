"""Outbox: messages on their way, in a ring on a raw flash partition of their own.

    sector (4 KiB):  header (36 bytes), then records, then blank flash (0xff)
    header:          magic, number, first sequence, dropped so far, CRC of these four,
                     drained mark, three places for the number of records dropped for room
    record:          length, flags, released mark, sequence, time, CRC, then what the flags
                     ask for (boot number, number before it moved), then the body, padded to 4

Everything is programmed in place, so that a message costs no erase: one erase per sector. A mark is
a program that clears bits, never an erase. What was taken by append() is there after a power cut at
any instant, in order, until release() or until the policy `full` drops it, which is counted in the
same program that does it; a record may come twice (its release was cut off), none is invented.
Owns the partition labelled `outbox`. Never writes to a sector whose end it does not know to be
blank. Programming in place and flash encryption exclude each other.

outbox_scan.py reads the ring at the start, outbox_room.py makes room in a full one: both are
loaded only to do so. All numbers
are little-endian. docs/flash-layout.md has the bytes.
"""

import binascii
import struct
from array import array

from micropython import const

from .errors import OutboxFull
from .parts import do

_SECTOR = const(4096)
_HEAD = const(36)
_RECORD = const(16)
_MAGIC = const(0x3242584F)  # "OXB2"

BODY_MAX = const(4000)
# Flags of a record.
TIME_UNKNOWN = const(1)  # `time` is seconds of uptime in the boot whose number follows
PRIORITY_SHIFT = const(1)  # two bits: 0 to 3
MOVED = const(8)  # copied when room was made: the number it was taken under follows
JSON = const(16)  # the body is one JSON value: it may stand in an array with others

REFUSE = const(0)
OLDEST = const(1)
PRIORITY = const(2)


def extra_of(flags):
    """How many bytes stand between a record's header and its body."""
    return (4 if flags & TIME_UNKNOWN else 0) + (4 if flags & MOVED else 0)


def intent(four):
    """How many records were dropped, by one of the places of a header; None: not written."""
    count, check = struct.unpack("<HH", four)
    # A program that was cut off leaves two bits alike somewhere.
    return count if count ^ check == 0xFFFF else None


def _room():
    """Loaded by the first that finds the outbox full, and there from then on: it stays full."""
    from . import outbox_room

    return outbox_room


class Outbox:
    """`partition` is an esp32.Partition, or anything with its three calls.

    Allocates 10 bytes per sector and two small buffers; a body is in RAM only while it
    is appended, moved or read. `damaged` counts records whose CRC was wrong (bit rot: what a
    power cut leaves half written was never accepted and is not counted), `refused` what was
    not taken, both since the start; `dropped` what the policy took out, ever.
    """

    def __init__(self, partition, full=REFUSE):
        self.full = full
        self.damaged = 0
        self.refused = 0
        self.dropped = 0
        self.next_sequence = 1
        self._p = partition
        self._n = partition.ioctl(4, 0)
        self._head_buf = bytearray(_HEAD)
        self._scratch = bytearray(64)
        self._numbers = array("I", [0] * self._n)  # sector number, 0: not in use
        self._firsts = array("I", [0] * self._n)  # sequence of its first record
        self._waiting = array("H", [0] * self._n)  # records in it that are not released
        self._sector = self._n - 1  # being written; the first append moves on to 0
        self._at = _SECTOR
        self._number = 0
        # Where the last read() ended: sector, its number, offset, sequence.
        self._cursor = (0, 0, 0, 0)
        do("outbox_scan", "recover", self)
        # Records from here on were made since this start: their uptime means something.
        self.first_of_this_start = self.next_sequence

    def __len__(self):
        """How many messages wait."""
        return sum(self._waiting)

    # Writing

    def append(self, body, time=0, flags=0, boot=0):
        """Put one message into flash; returns its number once it is safe there.

        body   bytes, at most 4,000
        time   seconds since 2000-01-01 UTC, or of uptime with flag TIME_UNKNOWN
        flags  TIME_UNKNOWN, JSON, priority << PRIORITY_SHIFT
        boot   number of this start, with TIME_UNKNOWN

        OutboxFull where there is no room and the policy does not make any: nothing that
        waits is lost then.
        """
        if len(body) > BODY_MAX:
            raise ValueError(
                "a message of %d bytes does not fit: %d at most" % (len(body), BODY_MAX)
            )
        need = _RECORD + (extra_of(flags) + len(body) + 3 & ~3)
        while True:
            following = (self._sector + 1) % self._n
            fits = self._at + need <= _SECTOR
            if self.full and self._n > 2 and self._waiting[following]:
                # A policy that drops keeps one sector ahead free, to move what it keeps into.
                priority = flags >> PRIORITY_SHIFT & 3
                if not _room().make(self, following, priority, need if fits else 0):
                    self._refuse()
            if fits:
                break
            if self._waiting[following]:
                self._refuse()
            self._begin_sector(following)
        return self.put(body, time, flags, struct.pack("<I", boot) if flags & TIME_UNKNOWN else b"")

    def _refuse(self):
        self.refused += 1
        raise OutboxFull(
            "the outbox is full: %d messages wait for the hub, and this one was not taken"
            % len(self)
        )

    def put(self, body, time, flags, extra):
        """Write one record where the ring stands: there must be room. Returns its sequence."""
        sequence = self.next_sequence
        size = len(extra) + len(body)
        # The body first and its header last: the header's CRC is what makes it a record.
        if body:
            self._p.writeblocks(self._sector, body, self._at + _RECORD + len(extra))
        record = bytearray(_RECORD + len(extra))
        struct.pack_into("<HBBII", record, 0, size, flags, 0xFF, sequence, time)
        record[_RECORD:] = extra
        crc = binascii.crc32(extra, binascii.crc32(memoryview(record)[:12]))
        struct.pack_into("<I", record, 12, binascii.crc32(body, crc))
        self._p.writeblocks(self._sector, record, self._at)
        self._at += _RECORD + (size + 3 & ~3)
        self._waiting[self._sector] += 1
        self.next_sequence = sequence + 1
        return sequence

    def _begin_sector(self, following):
        self._drain_if_done(self._sector)
        # Its header goes first: a half-erased sector must not look like a whole one.
        self._p.writeblocks(following, bytes(4), 0)
        self._numbers[following] = 0
        self._p.ioctl(6, following)
        self._number += 1
        head = self._head_buf
        struct.pack_into(
            "<IIII", head, 0, _MAGIC, self._number, self.next_sequence, self.dropped & 0xFFFFFFFF
        )
        struct.pack_into("<I", head, 16, binascii.crc32(memoryview(head)[:16]))
        self._p.writeblocks(following, memoryview(head)[:20], 0)
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
            self._p.writeblocks(sector, bytes(4), 20)

    # Reading

    def read(self, after=0):
        """The oldest waiting message with a sequence above `after`, or None.

        (sequence, time, flags, body, place, boot, number): allocates the body. `number` is
        what append() returned, also where the record has moved since. Bodies that flash has
        damaged are released, counted and passed over.
        """
        sector, number, at, sequence = self._cursor
        if self._numbers[sector] != number or not 0 < sequence <= after + 1:
            sector = self._oldest()
            at, sequence = _HEAD, self._firsts[sector]
        while True:
            if self._waiting[sector] and self._numbers[sector]:
                found = self._read_in(sector, at, sequence, after)
                if found:
                    return found
            if sector == self._sector:
                return None
            sector = (sector + 1) % self._n
            at, sequence = _HEAD, self._firsts[sector]

    def _oldest(self):
        """The sector with the oldest message that waits, else the one being written."""
        for step in range(1, self._n):
            i = (self._sector + step) % self._n
            if self._numbers[i] and self._waiting[i]:
                return i
        return self._sector

    def _read_in(self, sector, at, sequence, after):
        number = self._numbers[sector]
        while True:
            found = self.record(sector, at, sequence)
            if found is None:
                return None
            size, flags, released, time, crc = found
            place = (sector, at, number)
            here = sequence
            at += _RECORD + (size + 3 & ~3)
            sequence += 1
            if here <= after or released:
                continue
            self._cursor = (sector, number, at, sequence)
            whole = bytearray(size)
            if size:
                self._p.readblocks(sector, whole, place[1] + _RECORD)
            if self.crc(size, flags, here, time, whole) != crc:
                self.damaged += 1
                self.release(place)
                continue
            boot, moved, body = self.parts(flags, whole)
            return here, time, flags, body, place, boot, moved or here

    def next_size(self):
        """Size of the record right behind what read() gave last, where it waits, is JSON and
        carries nothing but its body; else None."""
        sector, number, at, sequence = self._cursor
        found = self.record(sector, at, sequence) if self._numbers[sector] == number else None
        if found and not found[2] and found[1] & JSON and not extra_of(found[1]):
            return found[0]
        return None

    def parts(self, flags, whole):
        """(boot, number before it moved, body) of what stands behind a record's header."""
        boot = struct.unpack_from("<I", whole)[0] if flags & TIME_UNKNOWN else 0
        size = extra_of(flags)
        moved = struct.unpack_from("<I", whole, size - 4)[0] if flags & MOVED else 0
        return boot, moved, memoryview(whole)[size:] if size else whole

    def record(self, sector, at, sequence):
        """(size, flags, released, time, crc) of the record expected at `at`, or None."""
        if at + _RECORD > _SECTOR:
            return None
        head = memoryview(self._scratch)[:_RECORD]
        self._p.readblocks(sector, head, at)
        size, flags, mark, number, time, crc = struct.unpack("<HBBIII", head)
        if number != sequence or at + _RECORD + size > _SECTOR or size < extra_of(flags):
            return None
        return size, flags, mark != 0xFF, time, crc

    def crc(self, size, flags, sequence, time, whole):
        head = memoryview(self._scratch)[:12]
        struct.pack_into("<HBBII", head, 0, size, flags, 0xFF, sequence, time)
        return binascii.crc32(whole, binascii.crc32(head))
