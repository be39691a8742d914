"""Kit: what a rescue needs (rescue.py), put into the NVS while all is well.

The configuration, the bundle in use (the root that just verified the hub first, the others and the
recovery endpoints where there is room), and who signs commands, in a blob of the NVS (agreed.py),
after a connection and only when they are others than before. In our firmware alone. Loaded for that
moment, and let go of.
"""

import binascii
import hashlib
import os

import esp32
from micropython import const

from . import agreed, log, trust
from .errors import OutpostError, TrustError

_RECOVERY = const(3)  # formats.SECTION_RECOVERY
_NO_MARK = -1  # of a blob that is being written
_KINDS = (agreed.SECTION_HOST, agreed.SECTION_SOFTWARE, agreed.SECTION_SIGNERS)


def keep(root):
    """Keep configuration, signers, and the root (SHA-256) that just verified the hub.

    Flash is written only where one of them has changed. At most 6 KB of RAM, for a moment: the
    blob is made in one piece, and what goes into it is read one after the other.
    False: it is too early for that, once the trial under way is over is the time.
    """
    if trust.trial:
        return False  # its bundle may yet be taken back
    try:
        blob = _blob(root)
        if blob is None:
            log.say("rescue", "configuration and root are too long to be kept for it")
            return True
        whole = memoryview(blob)
        mark = int.from_bytes(hashlib.sha256(whole[:-4]).digest()[:4], "big") >> 1
        nvs = esp32.NVS(agreed.NVS_NAMESPACE)
        kept = _number(nvs, agreed.NVS_RESCUE_MARK)
        if kept != mark:
            whole[-4:] = binascii.crc32(whole[:-4]).to_bytes(4, "big")
            _write(nvs, blob, mark, kept is not None)
    except (OSError, MemoryError, OutpostError) as e:
        # A device that is connected has no need of it now; the next life tries again.
        log.say("rescue", "what a rescue needs was not kept (%s)" % e)
    return True


def _write(nvs, blob, mark, marked):
    if marked:
        # Before the blob, so that no power cut leaves the mark of one beside another.
        nvs.set_i32(agreed.NVS_RESCUE_MARK, _NO_MARK)
        nvs.commit()
    nvs.set_blob(agreed.NVS_RESCUE, blob)
    nvs.set_i32(agreed.NVS_RESCUE_MARK, mark)
    nvs.commit()


def _blob(root):
    """The three parts, and four bytes for the CRC; None where it is longer than it may be."""
    der = _root(root)
    path = trust.in_use()
    with open(path, "rb") as f:
        new = trust.to_body(f)
        head = keys = b""
        if new is not None:
            f.seek(0)
            head = f.read(7)
            head += f.read(head[6] + 16)  # fleet, version, floor, issued, expires
            f.seek(36, 1)
            keys = f.read(2)
            keys += f.read(64 * keys[1])
    room = agreed.RESCUE_MAX_BYTES - _size(agreed.CONFIG_PATH) - _size(agreed.SIGNERS_PATH) - 10
    if new is None:
        bundle = 2 + len(der)  # the older list of roots
    else:
        frame = len(head) + 36 + len(keys) + 1
        body = sum([3 + len(value) for _, value in _sections(der, path, room - frame)])
        bundle = frame + body
    if bundle > room:
        return None
    size = agreed.RESCUE_MAX_BYTES - room + bundle
    out = Writer(size)
    out.file(agreed.CONFIG_PATH)
    out.length(bundle)
    if new is None:
        out.length(len(der))
        out.add(der)
    else:
        _add_bundle(out, head, keys, body, _sections(der, path, room - frame))
    out.file(agreed.SIGNERS_PATH)
    return out.whole


def _add_bundle(out, head, keys, body, sections):
    out.add(head)
    digest = out.room(36)
    out.add(keys)
    out.add(b"\0")
    at = out.at
    for kind, value in sections:
        out.section(kind, value)
    digest[:4] = body.to_bytes(4, "big")
    digest[4:] = hashlib.sha256(memoryview(out.whole)[at : out.at]).digest()


def _sections(der, path, room):
    """(kind, value) of what is kept of the bundle's body. Recovery endpoints and the other roots as
    far as there is room: the hub may have another by then."""
    size = 3 + len(der)
    yield agreed.SECTION_ROOT, der
    for kind in _KINDS:
        for value in trust.values(kind, path):
            size += 3 + len(value)
            yield kind, value
    for kind in (_RECOVERY, agreed.SECTION_ROOT):
        for value in trust.values(kind, path):
            if value != der and size + 3 + len(value) <= room:
                size += 3 + len(value)
                yield kind, value


class Writer:
    """whole: the bytes; at: how many of them are there."""

    def __init__(self, size):
        self.whole = bytearray(size)
        self.at = 0

    def room(self, size):
        """The next bytes, to be written to."""
        self.at += size
        return memoryview(self.whole)[self.at - size : self.at]

    def add(self, content):
        self.room(len(content))[:] = content

    def length(self, size):
        self.add(size.to_bytes(2, "big"))

    def file(self, path):
        """A part: the file's length, and what is in it."""
        size = _size(path)
        self.length(size)
        if size:
            with open(path, "rb") as f:
                f.readinto(self.room(size))

    def section(self, kind, value):
        self.add(bytes((kind,)))
        self.length(len(value))
        self.add(value)


def _size(path):
    """In bytes; a board without signers has no such file."""
    try:
        return os.stat(path)[6]
    except OSError:
        return 0


def _root(root):
    for der in trust.roots():
        if hashlib.sha256(der).digest() == root:
            return der
        der = None  # one in memory at a time
    raise TrustError("the root of this connection is not in the bundle any more")


def _number(nvs, name):
    try:
        return nvs.get_i32(name)
    except OSError:
        return None
