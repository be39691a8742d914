"""Kit: what a rescue needs (rescue.py), put into the NVS while all is well.

The configuration, and the bundle in use with no root but the one that just verified the hub, in a
blob of the NVS (agreed.py), after a connection and only when they are others than before. In our
firmware alone. Loaded for that moment, and let go of.
"""

import binascii
import hashlib
import os

import esp32

from . import agreed, log, trust
from .errors import OutpostError, TrustError

_KINDS = (agreed.SECTION_HOST, agreed.SECTION_SOFTWARE, agreed.SECTION_SIGNERS)


def keep(root):
    """Keep the configuration and the root (SHA-256) that just verified the hub.

    Flash is written only where one of them has changed. At most 6 KB of RAM, for a moment: the
    blob is made in one piece, and what goes into it is read one after the other.
    """
    if trust.trial:
        return  # its bundle may yet be taken back
    try:
        size = os.stat(agreed.CONFIG_PATH)[6]
        blob = _blob(root, size)
        if blob is None:
            return log.say("rescue", "configuration and root are too long to be kept for it")
        whole = memoryview(blob)
        said = hashlib.sha256(whole[2 : 2 + size])
        said.update(whole[4 + size : -4])
        mark = int.from_bytes(said.digest()[:4], "big") >> 1
        nvs = esp32.NVS(agreed.NVS_NAMESPACE)
        if _number(nvs, agreed.NVS_RESCUE_MARK) == mark:
            return
        whole[-4:] = binascii.crc32(whole[:-4]).to_bytes(4, "big")
        # The mark comes after what it is of: a power cut between them costs another write.
        nvs.set_blob(agreed.NVS_RESCUE, blob)
        nvs.set_i32(agreed.NVS_RESCUE_MARK, mark)
        nvs.commit()
    except (OSError, MemoryError, OutpostError) as e:
        # A device that is connected has no need of it now; the next life tries again.
        log.say("rescue", "what a rescue needs was not kept (%s)" % e)


def _blob(root, config_size):
    """Both parts, and four bytes for the CRC; None where it is longer than it may be."""
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
    # A root of the older list has no kind before it, and nothing behind it.
    body = len(der) + (2 if new is None else 3)
    if new is not None:
        for kind in _KINDS:
            for value in trust.values(kind, path):
                body += 3 + len(value)
    bundle = body if new is None else len(head) + 36 + len(keys) + 1 + body
    if 2 + config_size + 2 + bundle + 4 > agreed.RESCUE_MAX_BYTES:
        return None
    out = Writer(2 + config_size + 2 + bundle + 4)
    out.length(config_size)
    with open(agreed.CONFIG_PATH, "rb") as f:
        f.readinto(out.room(config_size))
    out.length(bundle)
    out.add(head)
    digest = out.room(0 if new is None else 36)
    out.add(keys)
    if new is None:
        out.length(len(der))
        out.add(der)
        return out.whole
    out.add(b"\0")
    at = out.at
    out.section(agreed.SECTION_ROOT, der)
    for kind in _KINDS:
        for value in trust.values(kind, path):
            out.section(kind, value)
    digest[:4] = body.to_bytes(4, "big")
    digest[4:] = hashlib.sha256(memoryview(out.whole)[at : out.at]).digest()
    return out.whole


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

    def section(self, kind, value):
        self.add(bytes((kind,)))
        self.length(len(value))
        self.add(value)


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
