"""The outbox at a start: finds what waits in the ring by reading it.

Settles what a power cut left open: a record that is not whole was never accepted; a sector whose
records were being dropped for room is dropped whole where its number stands in the newest sector's
header, else kept, and the copies that were made of it are void. Owns no flash but the outbox's.
"""

import binascii
import struct

from micropython import const

from .outbox import intent

_SECTOR = const(4096)
_HEAD = const(36)
_RECORD = const(16)
_MAGIC = const(0x3242584F)
_MOVED = const(8)
_BLANK = b"\xff" * 64


def recover(box):
    """Read every sector's header and the records of those that are not drained."""
    head = box._head_buf
    newest = None
    spent = 0  # number of the newest drained sector
    made_room = False
    for i in range(box._n):
        box._p.readblocks(i, head, 0)
        magic, number, first, dropped, crc, drained = struct.unpack_from("<IIIIII", head)
        if magic != _MAGIC or not number or crc != binascii.crc32(memoryview(head)[:16]):
            continue
        box._numbers[i] = number
        box._firsts[i] = first
        if newest is None or number > box._numbers[newest]:
            newest = i
            found = [intent(memoryview(head)[at : at + 4]) for at in (24, 28, 32)]
            made_room = any(n is not None for n in found)
            box.dropped = dropped + sum(n for n in found if n is not None)
        if drained == 0xFFFFFFFF:
            count(box, i)
        else:
            spent = number if number > spent else spent
    if newest is None:
        return
    box._sector = newest
    box._number = box._numbers[newest]
    box._at, box.next_sequence = count(box, newest)
    if made_room:
        following = (newest + 1) % box._n
        box._waiting[following] = 0
        box._numbers[following] = 0
    else:
        _void_copies(box)
    # What stands behind the last record was being written when the power went, and was
    # never accepted. Not being blank, the place cannot be written again; nor may a sector
    # that is marked as drained take anything more.
    if spent == box._number or not _blank_from(box, box._at):
        box._at = _SECTOR


def _void_copies(box):
    """Release the copies in the newest sector whose originals are still there."""
    at, sequence = _HEAD, box._firsts[box._sector]
    while True:
        found = box.record(box._sector, at, sequence)
        if found is None:
            return
        size, flags, released, _, _ = found
        if flags & _MOVED and not released:
            box.release((box._sector, at, box._number))
        at += _RECORD + (size + 3 & ~3)
        sequence += 1


def count(box, sector):
    """Count what waits in a sector. Returns (offset behind its last record, next sequence).

    A record that is not whole and has none behind it is half written: it is marked as
    released. One with others behind it is damaged: read() will find that out.
    """
    at, sequence = _HEAD, box._firsts[sector]
    waiting = doubtful = 0
    last = (at, sequence)
    while True:
        found = box.record(sector, at, sequence)
        if found is None:
            break
        size, flags, released, time, crc = found
        last = (at, sequence)
        if not released and not _whole(box, sector, at, size, flags, sequence, time, crc):
            doubtful += 1
        else:
            waiting += doubtful + (not released)
            doubtful = 0
        at += _RECORD + (size + 3 & ~3)
        sequence += 1
    if doubtful:
        waiting += doubtful - 1
        at, sequence = last
        box._p.writeblocks(sector, b"\x00", at + 3)
    box._waiting[sector] = waiting
    return at, sequence


def _whole(box, sector, at, size, flags, sequence, time, crc):
    """Whether the CRC of a record is right; reads its body 64 bytes at a time."""
    head = memoryview(box._scratch)[:12]
    struct.pack_into("<HBBII", head, 0, size, flags, 0xFF, sequence, time)
    value = binascii.crc32(head)
    at += _RECORD
    while size:
        piece = memoryview(box._scratch)[: min(size, 64)]
        box._p.readblocks(sector, piece, at)
        value = binascii.crc32(piece, value)
        at += len(piece)
        size -= len(piece)
    return value == crc


def _blank_from(box, at):
    while at < _SECTOR:
        piece = memoryview(box._scratch)[: min(64, _SECTOR - at)]
        box._p.readblocks(box._sector, piece, at)
        if bytes(piece) != _BLANK[: len(piece)]:
            return False
        at += len(piece)
    return True
