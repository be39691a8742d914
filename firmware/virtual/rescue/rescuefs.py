# A file system in RAM for a board that cannot read the one in its flash: configuration, trust and
# signers, as lib/outpost/kit.py kept them in the NVS, the boot.py of every board (frozen in as
# rescueboot: slots, trials, production mode) and a main.py that runs the rescue.
#
# Owns nothing in flash. It stands alone, so that the start of every board does not load the
# library; the names are those of lib/outpost/agreed.py (a test compares them).
import binascii
import os

import esp32
import vfs
from micropython import const

NAMESPACE = "outpost"
BLOB = "rescue"
AGAIN = "rs-do"
SLOT = "tr-slot"
PRODUCTION = "prod"
MAX_BYTES = const(3600)
CONFIG = "/config.json"
FACTORY = "/trust/factory.bin"
SLOTS = ("/trust/a.bin", "/trust/b.bin")
SIGNERS = "/trust/signers.json"

_BLOCK = const(512)
_BLOCKS = const(32)  # the files, and what the library writes beside them
_MAIN = "from outpost import rescue\n\nrescue.run()\n"
# As boot.py begins: in production mode no Ctrl-C may come between.
_START = """\
import micropython

try:
    micropython.kbd_intr(-1)
    for _n in (0, 1):
        pass
except KeyboardInterrupt:
    micropython.kbd_intr(-1)
import rescueboot
"""


class Ram:
    # A block device of 16 KB in RAM.
    def __init__(self):
        self._data = bytearray(_BLOCK * _BLOCKS)

    def readblocks(self, number, buf, offset=0):
        at = number * _BLOCK + offset
        buf[:] = memoryview(self._data)[at : at + len(buf)]

    def writeblocks(self, number, buf, offset=0):
        at = number * _BLOCK + offset
        self._data[at : at + len(buf)] = buf

    def ioctl(self, op, arg):
        if op == 4:
            return _BLOCKS
        if op == 5:
            return _BLOCK
        return 0


def _number(name):
    try:
        return esp32.NVS(NAMESPACE).get_i32(name)
    except OSError:
        return None


def wanted():
    # Whether the file system was being made anew when the power went.
    return _number(AGAIN) == 1


def closed():
    # Whether this board is in production mode, as boot.py judges it.
    try:
        return esp32.NVS(NAMESPACE).get_i32(PRODUCTION) != 0
    except OSError as e:
        return e.args[0] not in (-0x1102, -0x110F)


def load():
    # (config.json, bundle, signers.json) or None where the NVS has none that is whole.
    blob = bytearray(MAX_BYTES)
    try:
        size = esp32.NVS(NAMESPACE).get_blob(BLOB, blob)
    except OSError:
        return None
    blob = bytes(memoryview(blob)[:size])
    if size < 8 or binascii.crc32(blob[:-4]).to_bytes(4, "big") != blob[-4:]:
        return None
    parts = []
    at = 0
    while at < size - 4 and len(parts) < 3:
        end = at + 2 + int.from_bytes(blob[at : at + 2], "big")
        parts.append(blob[at + 2 : end])
        at = end
    return parts if len(parts) == 3 and at == size - 4 else None


def mount():
    # A file system in RAM with what the NVS kept, at "/"; False where it kept nothing.
    kept = load()
    if kept is None:
        return False
    ram = Ram()
    vfs.VfsLfs2.mkfs(ram, readsize=32, progsize=32, lookahead=32)
    vfs.mount(vfs.VfsLfs2(ram, readsize=32, progsize=32, lookahead=32), "/")
    write("", kept, _MAIN)
    return True


def write(where, kept, main):
    # main.py comes last: where that is, all is.
    os.mkdir(where + "/trust")
    paths = [FACTORY]
    slot = _number(SLOT)
    if slot in (0, 1):
        paths.append(SLOTS[slot])
    for path in paths:
        _file(where + path, kept[1])
    if kept[2]:
        _file(where + SIGNERS, kept[2])
    _file(where + CONFIG, kept[0])
    _file(where + "/boot.py", _START.encode())
    _file(where + "/main.py", main.encode())


def _file(path, content):
    with open(path, "wb") as f:
        f.write(content)
