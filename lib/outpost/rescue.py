"""Rescue: a device whose file system cannot be read connects with what its NVS holds.

Configuration and root are in the NVS since an earlier connection (kit.py). Of a board that cannot
read its file system, the firmware's start (firmware/virtual/rescue) makes one in RAM with these
in it, and run() is what that board does: it connects as ever, delivers what waits in the outbox,
says what is wrong, and makes the file system anew when it is told to, by whoever signs software
where the board knows signers. In our firmware alone. Never touches the partition vfs unasked,
unless it is blank: what is in it may be wanted.
"""

import esp32

from . import agreed, log
from .errors import OutpostError, TrustError, number

_AFTER = "from outpost import Device\n\nDevice().run()\n"
_SAID = "the file system is corrupt: %s, or write the image again"
_UNSIGNED = "call the method rescue with format"
_SIGNED = "send the signed command software rescue"
_ASKED = 'say {"format": true}: it erases the file system'


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
