"""Rescue: a device whose file system cannot be read connects with what its NVS holds.

keep() puts the configuration and the root that verified the hub into a blob of the NVS
(agreed.py) after a connection, and only when they are others than before. Of a board that cannot
read its file system, the firmware's start (firmware/virtual/rescue) makes one in RAM with these
in it, and run() is what that board does: it connects as ever, delivers what waits in the outbox,
says what is wrong, and makes the file system anew when it is told to, by whoever signs software
where the board knows signers. In our firmware alone. Never touches the partition vfs unasked,
unless it is blank: what is in it may be wanted.
"""

import binascii
import gc
import hashlib

import esp32
from micropython import const

from . import agreed, log, trust
from .errors import OutpostError, TrustError, number

_AFTER = "from outpost import Device\n\nDevice().run()\n"
_SAID = "the file system is corrupt: %s, or write the image again"
_UNSIGNED = "call the method rescue with format"
_SIGNED = "send the signed command software rescue"
_ASKED = 'say {"format": true}: it erases the file system'
_RECOVERY = const(3)  # formats.SECTION_RECOVERY
_NO_MARK = -1  # of a blob that is being written


# While all is well


def keep(root):
    """Keep the configuration and the root (SHA-256) that just verified the hub.

    Flash is written only where one of them has changed. At most 8 KB of RAM, for a moment.
    False: it is too early for that, once the trial under way is over is the time.
    """
    if trust.trial:
        return False  # its bundle may yet be taken back
    gc.collect()
    try:
        blob = bytearray(_part(_read(agreed.CONFIG_PATH)))
        signers = _part(_read(agreed.SIGNERS_PATH, b""))
        room = agreed.RESCUE_MAX_BYTES - len(blob) - len(signers) - 6  # a length, the CRC-32
        pieces = _bundle(root, room)
        blob += sum([len(piece) for piece in pieces]).to_bytes(2, "big")
        while pieces:
            blob += pieces.pop(0)  # no second copy of it all
        blob += signers
        nvs = esp32.NVS(agreed.NVS_NAMESPACE)
        mark = int.from_bytes(hashlib.sha256(blob).digest()[:4], "big") >> 1
        if _number(nvs, agreed.NVS_RESCUE_MARK) != mark:
            _write(nvs, blob, mark)
    except (OSError, MemoryError, OutpostError) as e:
        # A device that is connected has no need of it now; the next life tries again.
        log.say("rescue", "what a rescue needs was not kept (%s)" % e)
    return True


def _write(nvs, blob, mark):
    if len(blob) + 4 > agreed.RESCUE_MAX_BYTES:
        return log.say("rescue", "configuration and root are too long to be kept for it")
    if _number(nvs, agreed.NVS_RESCUE_MARK) is not None:
        # Before the blob, so that no power cut leaves the mark of one beside another.
        nvs.set_i32(agreed.NVS_RESCUE_MARK, _NO_MARK)
        nvs.commit()
    blob += binascii.crc32(blob).to_bytes(4, "big")
    nvs.set_blob(agreed.NVS_RESCUE, blob)
    nvs.set_i32(agreed.NVS_RESCUE_MARK, mark)
    nvs.commit()


def _read(path, without=None):
    try:
        with open(path, "rb") as f:
            return f.read()
    except OSError:
        if without is None:
            raise
        return without


def _bundle(root, room):
    """The bundle in use with this root first, in the form that it has there, unsigned, in pieces.
    Recovery endpoints and the other roots as far as there is room: the hub may have another by
    then."""
    for der in trust.roots():
        if hashlib.sha256(der).digest() == root:
            break
    else:
        raise TrustError("the root of this connection is not in the bundle any more")
    path = trust.in_use()
    with open(path, "rb") as f:
        size = trust.to_body(f)
        if size is None:
            return [_part(der)]  # the older list of roots
        f.seek(0)
        head = f.read(7)
        head += f.read(head[6] + 16)  # fleet, version, floor, issued, expires
        f.seek(36, 1)
        keys = f.read(2)
        keys += f.read(64 * keys[1])
    body = bytearray(b"\x01" + _part(der))
    for kind in (agreed.SECTION_HOST, agreed.SECTION_SOFTWARE, agreed.SECTION_SIGNERS):
        for value in trust.values(kind, path):
            body += bytes((kind,)) + _part(value)
    room -= len(head) + 37 + len(keys)
    for kind in (_RECOVERY, agreed.SECTION_ROOT):
        for value in trust.values(kind, path):
            if value != der and len(body) + 3 + len(value) <= room:
                body += bytes((kind,)) + _part(value)
    sha256 = hashlib.sha256(body).digest()
    return [head, len(body).to_bytes(4, "big"), sha256, keys, b"\0", body]


def _part(content):
    return len(content).to_bytes(2, "big") + content


def _number(nvs, name):
    try:
        return nvs.get_i32(name)
    except OSError:
        return None


# A board in need


def run():
    """The program of a board in need: a Device that says so, and waits to be told."""
    import rescuefs

    if rescuefs.wanted() or _blank():
        try:
            make_anew()
        except (OSError, MemoryError, OutpostError) as e:
            # The next start tries again; meanwhile it connects.
            log.say("rescue", "the file system could not be made anew (%s)" % e)
    from . import Device

    device = Device()
    desk = device._desk
    said = _SAID % (_SIGNED if desk else _UNSIGNED)
    log.say("rescue", said)
    device.send({"rescue": said})
    if desk:
        desk.on("software", "rescue", lambda args, payload: _ordered(device))

    @device.method("rescue")
    def rescue(payload):
        if desk:
            return 403, {"error": "this fleet signs what changes software", "why": said}
        if not isinstance(payload, dict) or payload.get("format") is not True:
            return 400, {"error": _ASKED, "why": said}
        return _ordered(device)

    device.run()


def _ordered(device):
    """The answer to who may order it. From the mark on it is done, whatever the power does."""
    try:
        _under_way(1)
    except OSError as e:
        return 503, {"error": "the NVS takes nothing (error %d): write the image again" % number(e)}
    device.after(1, _restart)  # the answer goes out first; a start has the memory for it
    return 202, {"state": "format"}


def _restart():
    import machine

    machine.reset()


def _under_way(value):
    nvs = esp32.NVS(agreed.NVS_NAMESPACE)
    nvs.set_i32(agreed.NVS_RESCUE_AGAIN, value)
    nvs.commit()


def _blank():
    """Whether there is nothing in the partition that anybody could want."""
    import inisetup
    from flashbdev import bdev

    return bdev is not None and inisetup.blank()


def make_anew():
    """An empty file system with configuration and trust in it, then a reset.

    Until it is whole the NVS says so, and each start does it again.
    """
    import machine
    import rescuefs
    import vfs
    from flashbdev import bdev

    kept = rescuefs.load()
    if kept is None or bdev is None:
        raise TrustError("the board has no partition vfs, or kept nothing to put there", True)
    _under_way(1)
    log.say("rescue", "the file system is made anew")
    vfs.VfsLfs2.mkfs(bdev)
    vfs.mount(vfs.VfsLfs2(bdev), "/anew")
    rescuefs.write("/anew", kept, _AFTER)
    vfs.umount("/anew")
    _under_way(0)
    machine.reset()
