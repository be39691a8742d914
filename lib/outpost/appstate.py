"""App state: what the NVS says of software and trials, and what may be delivered.

Loaded when software is announced, installed or reported. Owns the NVS entries "app-*" and "fw-*"
(slots.py), which boot.py and trial.py write too; never writes a file.
"""

import os

from micropython import const

from . import agreed, slots, trust
from .errors import UpdateError, number

ON_TRIAL = "software is on trial here: send the next when that is kept or gone"
OLDER = "version %d is older than %d, which this device has kept: versions only rise"
_SPARE_BYTES = const(32768)  # of the file system, that an update leaves free
_NOT_FOUND = const(-0x1102)  # ESP_ERR_NVS_NOT_FOUND


class State:
    """What the NVS says of the slots; -1 stands for none."""

    def __init__(self):
        import esp32

        self.nvs = esp32.NVS(agreed.NVS_NAMESPACE)

    def get(self, name):
        try:
            return self.nvs.get_i32(name)
        except OSError as e:
            if number(e) != _NOT_FOUND:
                raise UpdateError("the NVS cannot be read (%s)" % e, True)
            return -1

    def set(self, name, value):
        try:
            if value is not None:
                self.nvs.set_i32(name, value)
            elif self.get(name) >= 0:
                self.nvs.erase_key(name)
            self.nvs.commit()
        except OSError as e:
            raise UpdateError("the NVS has no room for the state of an update (%s)" % e, True)

    def slot(self):
        """The slot that was kept last, or -1: none was. Its files may be gone: running()."""
        slot = self.get(slots.NVS_APP_CURRENT)
        return slot if slot in (0, 1) else -1

    def running(self):
        """The slot whose software boot.py starts, or -1: the image's own application."""
        slot = self.slot()
        try:
            return slot if slot >= 0 and os.stat(slots.APP_SLOTS[slot] + "/main.py")[6] else -1
        except OSError:
            return -1

    def free(self):
        """The slot that the next package goes into."""
        return 1 if self.slot() == 0 else 0

    def version(self, slot):
        return 0 if slot < 0 else max(0, self.get(slots.NVS_APP_SLOTS[slot]))

    def top(self):
        """The highest version that was ever kept here: what comes must be above it."""
        return max(self.get(slots.NVS_APP_TOP), self.version(self.slot()), 0)

    def trial(self):
        """The slot on trial, the firmware's subtype, or -1."""
        trial = self.get(slots.NVS_APP_TRIAL)
        return -1 if trial == self.slot() else trial


def wanted(version, failed, kept, pulled, runs):
    """The answer where what is announced is not to come, or None.

    failed  the version whose trial came to nothing last, or -1: a device does not fetch that by
            itself for ever; somebody who pushes it once more has a reason
    kept    the highest version that was ever kept here
    runs    the version that runs: where that is an older one, the one that was kept is gone
    """
    if isinstance(version, bool) or not isinstance(version, int):
        return None  # what was signed will tell
    if version == kept == runs > 0:
        return 200, {"state": "kept", "version": version}
    if version < kept:
        return 422, {"error": OLDER % (version, kept)}
    if pulled and version == failed:
        return 422, {"error": "the trial of version %d failed here: name a newer one" % version}
    return None


def may_begin(size, args):
    """None where a package of that size may come now, or the answer; UpdateError: not now.

    args  what else was said of it: "version", and "url" where this device is to fetch it
    """
    state = State()
    trial = state.trial()
    if trial in (0, 1) and state.version(trial) == args.get("version"):
        # Its sender did not hear the answer.
        return 202, {"state": "trial", "version": state.version(trial)}
    if trial >= 0:
        raise UpdateError(ON_TRIAL)
    failed = 1 < state.get(slots.NVS_APP_OUTCOME) < 16
    failed = state.get(slots.NVS_APP_LAST) if failed else -1
    answer = wanted(
        args.get("version"), failed, state.top(), "url" in args, state.version(state.running())
    )
    if answer:
        return answer
    try:
        size -= os.stat(agreed.STAGE_PATH + "/software.bin")[6]  # goes, or is a part of it
    except OSError:
        pass
    try:
        room(size)
    except UpdateError:
        # What lies in the other slot is of no use any more: it goes for this one anyway.
        from .emptied import empty

        empty(slots.APP_SLOTS[state.free()])
        room(size)


def signers():
    """(the fleet's name, the keys that may sign software); UpdateError: there are none."""
    keys = trust.software_keys()
    if keys:
        from . import bundle

        with open(trust.in_use(), "rb") as f:
            return bundle.head(f).fleet, keys
    # A bundle without that section, or none: the signers with that role, any one of them.
    from . import signed

    known = signed.signers()
    points = [point for point, roles in known.keys.values() if "software" in roles]
    if not points:
        raise UpdateError("this board knows nobody who may sign software", True)
    keys = bytes((1, len(points)))
    for point in points:
        keys += point[1:]
    return known.fleet.encode(), keys


def room(size):
    """UpdateError where the file system has no room for so many more bytes."""
    fs = os.statvfs("/")
    free = fs[0] * fs[3] - _SPARE_BYTES
    if free < size:
        raise UpdateError(
            "the update needs %d bytes of the file system and %d are free: nothing was changed"
            % (size, max(0, free))
        )
