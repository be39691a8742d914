"""Staging: one file of each kind that is on its way to this device, whole over every power cut.

Owns the folder /stage: KIND.bin, which only grows, each piece in one step of littlefs (after a
power cut all of it is there, or nothing), and KIND.txt with the size and the SHA-256 that were
announced. Never believes what is in it, never holds more of it in RAM than 512 bytes.

Who holds the hub, and no signing key, can make this device write and no more: eight times the
longest file of a kind at once, then once more in each hour (allow).
"""

import binascii
import hashlib
import os

from micropython import const

from . import agreed, log
from .errors import DeliveryError

BEGIN_BYTES = 512  # what a beginning counts for, see allow()
_CHUNK = const(512)
_BURST = const(8)  # so many times its longest file may be written of a kind at once ...
_HOUR_MS = const(3600000)  # ... and once more in that time


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
            raise _no_room(e)
        finally:
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


def allow(kind, count):
    """0, and `count` bytes of this kind are taken off what may be written; or seconds until they
    may be."""
    now = log.uptime_ms()
    most = kind.max_bytes * _BURST
    if kind.left is None:
        kind.left, kind.left_at = most, now
    hours = (now - kind.left_at) // _HOUR_MS
    if hours:
        kind.left = min(most, kind.left + hours * kind.max_bytes)
        kind.left_at += hours * _HOUR_MS
    if kind.left < count:
        return 1 + (kind.left_at + _HOUR_MS - now) // 1000
    kind.left -= count
    return 0
