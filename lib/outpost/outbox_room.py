"""Room in a full outbox: what the policy takes out, and how that is counted.

The oldest sector is emptied while the one behind it is being written. Under `oldest` all that
waits in it is dropped. Under `priority` what is more important is copied behind the newest, and
the least that makes room is dropped; a newcomer that is less important than what would have to
go is refused. One program into the newest sector's header then says how many were dropped: that
is the moment at which they go and the copies count, whole or not at all.

Owns no flash but the outbox's. Never drops anything above the newcomer's priority.
"""

import struct

from micropython import const

from .outbox import intent

_SECTOR = const(4096)
_HEAD = const(36)
_RECORD = const(16)
_INTENTS = const(24)
_PLACES = const(3)
_KEPT_MAX = const(2032)  # half a sector: so each erase wins as much for what is new
_TIME_UNKNOWN = const(1)
_MOVED = const(8)
_OLDEST = const(1)


def make(box, sector, priority, need):
    """Empty `sector`, the oldest, for a newcomer of `need` bytes (0: it goes elsewhere).

    False where the newcomer is to be refused: nothing has changed then.
    """
    place = _free_place(box)
    if place is None:
        return False
    level = _level(box, sector, priority, need)
    if level is None:
        return False
    dropped = 0
    for at, sequence, size, flags, time in _waiting(box, sector):
        if flags >> 1 & 3 > level:
            dropped += not _move(box, sector, at, sequence, size, flags, time)
        else:
            dropped += 1
    box._p.writeblocks(box._sector, struct.pack("<HH", dropped, dropped ^ 0xFFFF), place)
    box.dropped += dropped
    box._waiting[sector] = 0
    box._drain_if_done(sector)
    box._numbers[sector] = 0
    return True


def _free_place(box):
    """Offset of a blank place for the number in the newest sector's header, or None.

    One is used per sector; a power cut may spoil one.
    """
    four = memoryview(box._scratch)[:4]
    for at in range(_INTENTS, _INTENTS + 4 * _PLACES, 4):
        box._p.readblocks(box._sector, four, at)
        if intent(four) is not None:
            return None
        if bytes(four) == b"\xff\xff\xff\xff":
            return at
    return None


def _level(box, sector, priority, need):
    """The priority up to which records of `sector` are dropped (-1: none), or None: refuse."""
    if box.full == _OLDEST:
        return 3
    sizes = [0, 0, 0, 0]
    for _, _, size, flags, _ in _waiting(box, sector):
        if not flags & _MOVED:
            size += 4
        sizes[flags >> 1 & 3] += _RECORD + (size + 3 & ~3)
    room = min(_KEPT_MAX, _SECTOR - box._at - need)
    kept = sum(sizes)
    for level in range(-1, priority + 1):
        if level >= 0:
            kept -= sizes[level]
        if kept <= room:
            return level
    return None


def _waiting(box, sector):
    """(offset, sequence, size, flags, time) of each record of a sector that waits."""
    at, sequence = _HEAD, box._firsts[sector]
    while True:
        found = box.record(sector, at, sequence)
        if found is None:
            return
        size, flags, released, time, _ = found
        if not released:
            yield at, sequence, size, flags, time
        at += _RECORD + (size + 3 & ~3)
        sequence += 1


def _move(box, sector, at, sequence, size, flags, time):
    """Copy a record behind the newest. False where flash has damaged it."""
    crc = box.record(sector, at, sequence)[4]
    whole = bytearray(size)
    box._p.readblocks(sector, whole, at + _RECORD)
    if box.crc(size, flags, sequence, time, whole) != crc:
        return False
    boot, moved, body = box.parts(flags, whole)
    extra = struct.pack("<I", boot) if flags & _TIME_UNKNOWN else b""
    box.put(body, time, flags | _MOVED, extra + struct.pack("<I", moved or sequence))
    return True
