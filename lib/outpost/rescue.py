"""Rescue: a device whose file system cannot be read connects with what its NVS holds.

Configuration and root are in the NVS since an earlier connection (kit.py). Of a board that cannot
read its file system, the firmware's start (firmware/virtual/rescue) makes one in RAM with these
two in it, and run() is what that board does: it connects as ever, delivers what waits in the
outbox, says what is wrong, and makes the file system anew when it is told to. In our firmware
alone. Never touches the partition vfs unasked: what is in it may be wanted.
"""

import esp32

from . import agreed, log

_AFTER = "from outpost import Device\n\nDevice().run()\n"
_SAID = "the file system is corrupt: call the method rescue with format, or write the image again"


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
