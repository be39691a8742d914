"""Rescue: a device whose file system cannot be read connects with what its NVS holds.

keep() puts the configuration and the root that verified the hub into a blob of the NVS
(agreed.py) after a connection, and only when they are others than before. Of a board that cannot
read its file system, the firmware's start (firmware/virtual/rescue) makes one in RAM with these
two in it, and run() is what that board does: it connects as ever, delivers what waits in the
outbox, says what is wrong, and makes the file system anew when it is told to. In our firmware
alone. Never touches the partition vfs unasked: what is in it may be wanted.
"""

import binascii
import hashlib

import esp32

from . import agreed, log, trust
from .errors import OutpostError, TrustError

_AFTER = "from outpost import Device\n\nDevice().run()\n"
_SAID = "the file system is corrupt: call the method rescue with format, or write the image again"


# While all is well


def keep(root):
    """Keep the configuration and the root (SHA-256) that just verified the hub.

    Flash is written only where one of them has changed. At most 8 KB of RAM, for a moment.
    """
    try:
        with open(agreed.CONFIG_PATH, "rb") as f:
            config = f.read()
        bundle = _bundle(root)
        nvs = esp32.NVS(agreed.NVS_NAMESPACE)
        mark = int.from_bytes(hashlib.sha256(config + bundle).digest()[:4], "big") >> 1
        if _number(nvs, agreed.NVS_RESCUE_MARK) == mark:
            return
        blob = _part(config) + _part(bundle)
        if len(blob) + 4 > agreed.RESCUE_MAX_BYTES:
            return log.say("rescue", "configuration and root are too long to be kept for it")
        # The mark comes after what it is of: a power cut between them costs another write.
        nvs.set_blob(agreed.NVS_RESCUE, blob + _crc(blob))
        nvs.set_i32(agreed.NVS_RESCUE_MARK, mark)
        nvs.commit()
    except (OSError, MemoryError, OutpostError) as e:
        # A device that is connected has no need of it now; the next life tries again.
        log.say("rescue", "what a rescue needs was not kept (%s)" % e)


def _bundle(root):
    """The bundle in use with this root alone, in the form that it has there, unsigned."""
    for der in trust.roots():
        if hashlib.sha256(der).digest() == root:
            break
    else:
        raise TrustError("the root of this connection is not in the bundle any more")
    path = trust.in_use()
    with open(path, "rb") as f:
        size = trust.to_body(f)
        if size is None:
            return _part(der)  # the older list of roots
        f.seek(0)
        head = f.read(7)
        head += f.read(head[6] + 16)  # fleet, version, floor, issued, expires
        f.seek(36, 1)
        keys = f.read(2)
        keys += f.read(64 * keys[1])
    body = b"\x01" + _part(der)
    for kind in (agreed.SECTION_HOST, agreed.SECTION_SOFTWARE, agreed.SECTION_SIGNERS):
        for value in trust.values(kind, path):
            body += bytes((kind,)) + _part(value)
    return head + len(body).to_bytes(4, "big") + hashlib.sha256(body).digest() + keys + b"\0" + body


def _part(content):
    return len(content).to_bytes(2, "big") + content


def _crc(content):
    return binascii.crc32(content).to_bytes(4, "big")


def _number(nvs, name):
    try:
        return nvs.get_i32(name)
    except OSError:
        return None


def run():
    """The program of a board in need: a Device that says so, and waits to be told."""
    import rescuefs

    if rescuefs.wanted():
        make_anew()
    from . import Device

    device = Device()
    log.say("rescue", _SAID)
    device.send({"rescue": _SAID})

    @device.method("rescue")
    def rescue(payload):
        if not isinstance(payload, dict) or payload.get("format") is not True:
            return 400, {"error": 'say {"format": true}: it erases the file system', "why": _SAID}
        device.after(1, make_anew)  # the answer goes out first
        return 202, {"state": "format"}

    device.run()


def make_anew():
    """An empty file system with configuration and trust in it, then a reset.

    Until it is whole the NVS says so, and each start does it again.
    """
    import machine
    import rescuefs
    import vfs
    from flashbdev import bdev

    kept = rescuefs.load()
    nvs = esp32.NVS(agreed.NVS_NAMESPACE)
    nvs.set_i32(agreed.NVS_RESCUE_AGAIN, 1)
    nvs.commit()
    log.say("rescue", "the file system is made anew")
    vfs.VfsLfs2.mkfs(bdev)
    vfs.mount(vfs.VfsLfs2(bdev), "/anew")
    rescuefs.write("/anew", kept, _AFTER)
    vfs.umount("/anew")
    nvs.set_i32(agreed.NVS_RESCUE_AGAIN, 0)
    nvs.commit()
    machine.reset()
