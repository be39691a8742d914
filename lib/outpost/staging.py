"""Staging: one file of each kind that is on its way to this device, whole over every power cut.

Owns the folder /stage: KIND.bin, which only grows, each piece in one step of littlefs (after a
power cut all of it is there, or nothing), and KIND.txt with the size and the SHA-256 that were
announced. Never believes what is in it, never holds more of it in RAM than 512 bytes.

Who holds the hub, and no signing key, can make this device write and no more: eight times the
longest file of a kind at once, then once more in each hour, restarts or not (allow).
"""

import binascii
import hashlib
import os

from micropython import const

from . import agreed, log, rtcmem
from .errors import DeliveryError

BEGIN_BYTES = 512  # what a beginning counts for, see allow()
WORN = "too much was written in a short time: wait"
_RECORD_BYTES = const(16384)  # and one that brings a record, which is written to be judged
LEAST_BYTES = 1024  # and a piece, however short: littlefs erases a block for each
_CHUNK = const(512)
_SPARE_BYTES = const(16384)  # of the file system, that no delivery takes
_BURST = const(8)  # so many times its longest file may be written of a kind at once ...
_HOUR_MS = const(3600000)  # ... and once more in that time
_STEPS = const(4)  # of the longest file: what is kept of it over a restart


class Staging:
    """size and sha256 (hexadecimal; None: nothing is announced), have: bytes that are here."""

    def __init__(self, kind, folder=agreed.STAGE_PATH):
        self._folder = folder
        self.path = "%s/%s.bin" % (folder, kind)
        self._note = "%s/%s.txt" % (folder, kind)
        self.size = self.have = 0
        self.sha256 = None
        try:
            with open(self._note) as f:
                size, self.sha256 = f.read(96).split()
            self.size = int(size)
        except (OSError, ValueError):  # UnicodeError is one
            self.sha256 = None
        self._measure()

    def _measure(self):
        try:
            self.have = os.stat(self.path)[6] if self.sha256 else 0
        except OSError:
            self.have = 0
        if self.have > self.size:
            self.drop()

    def whole(self):
        return self.sha256 is not None and self.have == self.size

    def begin(self, size, sha256):
        """Make room for that file; what is here of another one goes. DeliveryError: no room."""
        if (size, sha256) == (self.size, self.sha256):
            return
        # In this order: a power cut in between leaves a beginning of nothing.
        self.drop()
        try:
            fs = os.statvfs("/")
            if fs[0] * fs[3] < size + _SPARE_BYTES:
                raise OSError(28)  # ENOSPC
            try:
                os.mkdir(self._folder)
            except OSError:
                pass  # it is there
            with open(self._note, "w") as f:
                f.write("%d %s\n" % (size, sha256))
        except OSError as e:
            raise _no_room(e)
        self.size, self.sha256 = size, sha256

    def put(self, at, piece):
        """The bytes from `at` on. They may be here already, if they are the same."""
        known = self.have - at
        if known < 0 or at + len(piece) > self.size:
            raise DeliveryError("this piece begins or ends where it cannot")
        known = min(known, len(piece))
        if known and not self._same(at, memoryview(piece)[:known]):
            raise DeliveryError("other bytes came for this place before: abort and begin again")
        if known == len(piece):
            return
        try:
            with open(self.path, "ab") as f:
                f.write(memoryview(piece)[known:])
        except OSError as e:
            self.drop()  # it cannot become whole, and nobody else has that room meanwhile
            raise _no_room(e)
        self._measure()

    def _same(self, at, piece):
        with open(self.path, "rb") as f:
            f.seek(at)
            for start in range(0, len(piece), _CHUNK):
                part = piece[start : start + _CHUNK]
                if f.read(len(part)) != part:
                    return False
        return True

    def right(self):
        """Whether all of it is here, with the hash that was announced."""
        if not self.whole():
            return False
        digest = hashlib.sha256()
        buffer = bytearray(_CHUNK)
        view = memoryview(buffer)
        try:
            with open(self.path, "rb") as f:
                while True:
                    n = f.readinto(buffer)
                    if not n:
                        break
                    digest.update(view[:n])
        except OSError:
            return False
        return binascii.hexlify(digest.digest()).decode() == self.sha256

    def drop(self):
        """Nothing of it stays. The file first: a note without a file is a beginning."""
        for path in (self.path, self._note):
            try:
                os.remove(path)
            except OSError:
                pass
        self.size = self.have = 0
        self.sha256 = None


def _no_room(e):
    err = DeliveryError("there is no room for it in this device's flash (%s)" % e)
    err.no_room = True
    return err


def begins(kind):
    """As allow(), of a beginning that makes the device write before it is judged."""
    return allow(kind, _RECORD_BYTES) if kind.stage else 0


def allow(kind, count):
    """0, and `count` bytes of this kind are taken off what may be written; or seconds until they
    may be.

    What is left outlives a restart, in steps and in RTC memory, or whoever can have the device
    restart could wear its flash. It goes with the power, which nobody cuts from afar.
    """
    now = log.uptime_ms()
    step = max(1, kind.max_bytes // _STEPS)
    most = step * _STEPS * _BURST
    if kind.left is None:
        kind.left, kind.left_at = _kept().get(kind.name, _STEPS * _BURST) * step, now
    hours = (now - kind.left_at) // _HOUR_MS
    if hours:
        kind.left = min(most, kind.left + hours * kind.max_bytes)
        kind.left_at += hours * _HOUR_MS
    if kind.left < count:
        return 1 + (kind.left_at + _HOUR_MS - now) // 1000
    before, kind.left = kind.left, kind.left - count
    if before // step != kind.left // step:
        _keep(kind.name, kind.left // step)
    return 0


def _kept():
    """kind -> steps that may be written, of those that were not full."""
    found = {}
    try:
        words = (rtcmem.get(rtcmem.WEAR) or b"").decode().split()
        for i in range(0, len(words), 2):
            found[words[i]] = min(_STEPS * _BURST, max(0, int(words[i + 1])))
    except (ValueError, IndexError):
        pass
    return found


def _keep(name, steps):
    found = _kept()
    found[name] = steps
    rtcmem.put(rtcmem.WEAR, " ".join(["%s %d" % item for item in found.items()]).encode())
