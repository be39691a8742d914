"""Update: a signed application package goes into the slot that is not in use, and on trial.

Owns what lies below /app, and the NVS entries "app-*" (agreed.py); boot.py reads them and counts
the starts of a trial, trial.py ends it. Loaded while a package is installed, and let go then. Never
believes a byte before the signatures are verified (bundle.py), never writes into the slot in use
nor outside of /app.
"""

import gc
import hashlib
import os

from micropython import const

from . import agreed, bundle, log, package, slots, trust, watchdog
from .errors import UpdateError, number

_BUFFER = const(512)
_FOLDER = const(0x4000)
_SPARE_BYTES = const(32768)  # of the file system, that an update leaves free
_ON_TRIAL = "software is on trial here: send the next when that is kept or gone"
_OLDER = "version %d is older than %d, which this device has kept: versions only rise"
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
        """The slot in use, or -1: the image's own application."""
        slot = self.get(slots.NVS_APP_CURRENT)
        return slot if slot in (0, 1) else -1

    def version(self, slot):
        return 0 if slot < 0 else max(0, self.get(slots.NVS_APP_SLOTS[slot]))

    def top(self):
        """The highest version that was ever kept here: what comes must be above it."""
        return max(self.get(slots.NVS_APP_TOP), self.version(self.slot()), 0)

    def trial(self):
        """The slot on trial, the firmware's subtype, or -1."""
        trial = self.get(agreed.NVS_APP_TRIAL)
        return -1 if trial == self.slot() else trial


def wanted(version, failed, kept, pulled):
    """The answer where what is announced is not to come, or None.

    failed  the version whose trial came to nothing last, or -1: a device does not fetch that by
            itself for ever; somebody who pushes it once more has a reason
    kept    the highest version that was ever kept here
    """
    if isinstance(version, bool) or not isinstance(version, int):
        return None  # what was signed will tell
    if version == kept > 0:
        return 200, {"state": "kept", "version": version}
    if version < kept:
        return 422, {"error": _OLDER % (version, kept)}
    if pulled and version == failed:
        return 422, {"error": "the trial of version %d failed here: name a newer one" % version}
    return None


def may_begin(size, args):
    """None where a package of that size may come now, or the answer; UpdateError: not now.

    args  what else was said of it: "version", and "url" where this device is to fetch it
    """
    state = State()
    if state.trial() >= 0:
        raise UpdateError(_ON_TRIAL)
    failed = 1 < state.get(slots.NVS_APP_OUTCOME) < 16
    failed = state.get(slots.NVS_APP_LAST) if failed else -1
    answer = wanted(args.get("version"), failed, state.top(), "url" in args)
    if answer:
        return answer
    try:
        size -= os.stat(agreed.STAGE_PATH + "/software.bin")[6]  # goes, or is a part of it
    except OSError:
        pass
    _room(size)


def taken(path, now):
    """Install the delivered package at `path`: what its sender is answered, (status, result).

    now  Unix seconds that it certainly is, or None
    """
    fleet, keys = signers()
    state = State()
    top = state.top()
    head = bundle.accepted(path, agreed.ROLE_SOFTWARE, fleet, 0, keys, now, agreed.APP_MAX_BYTES)
    trial = state.trial()
    if trial in (0, 1) and state.version(trial) == head.version:
        # Its sender did not hear the answer: the power went.
        return 202, {"state": "trial", "version": head.version}
    if head.version == top:
        return 200, {"state": "kept", "version": top}
    if head.version < top:
        raise UpdateError(_OLDER % (head.version, top))
    slot, label = install(path, head.at, head.size, head.version)
    return 202, {"state": "trial", "version": head.version, "label": label, "slot": slot}


def signers():
    """(the fleet's name, the keys that may sign software); UpdateError: there are none."""
    keys = trust.software_keys()
    if keys:
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


def install(path, body_at, body_size, version):
    """Unpack the body of a verified package into the free slot and put it on trial.

    Returns (slot's letter, label). The next start runs it. Whatever stops this, a power cut too,
    leaves what runs as it is.
    """
    state = State()
    if state.trial() >= 0:
        raise UpdateError(_ON_TRIAL)
    slot = 1 if state.slot() == 0 else 0
    top = slots.APP_SLOTS[slot]
    with open(path, "rb") as f:
        reader = package.Reader(f, body_at, body_size)
        reader.check()
        # What lies in the slot from before makes room: it is older than what runs, or was on trial.
        _clear(top)
        _room(reader.needs)
        try:
            _unpack(reader, top)
        except OSError as e:
            _clear(top)
            raise UpdateError("the slot cannot be written (%s): is the flash full?" % e)
        except BaseException:
            _clear(top)
            raise
    state.set(slots.NVS_APP_SLOTS[slot], version)
    state.set(slots.NVS_APP_COUNT, max(0, state.get(slots.NVS_APP_COUNT)) + 1)
    state.set(slots.NVS_APP_LIVES, 0)
    state.set(agreed.NVS_APP_TRIAL, slot)  # the moment
    log.say("update", "software version=%d is in slot %s: on trial" % (version, top[-1]))
    return top[-1], reader.label


def _unpack(reader, top):
    buffer = bytearray(_BUFFER)
    _folder(top)
    for path, _, digest in reader.entries():
        at = -1
        while True:
            at = path.find("/", at + 1)
            if at < 0:
                break
            _folder(top + "/" + path[:at])
        name = top + "/" + path
        with open(name, "wb") as out:
            while True:
                part = reader.read(buffer)
                if not len(part):
                    break
                out.write(part)
        # As it lies in flash now, not as it came.
        if _hash(name, buffer) != digest:
            raise UpdateError("%s is not what was signed: send the package again" % path)
        watchdog.feed()
        gc.collect()
    sync = getattr(os, "sync", None)
    if sync:
        sync()


def _hash(path, buffer):
    h = hashlib.sha256()
    view = memoryview(buffer)
    with open(path, "rb") as f:
        while True:
            n = f.readinto(buffer)
            if not n:
                return h.digest()
            h.update(view[:n])


def _folder(path):
    parent = path[: path.rfind("/")]
    if parent and parent == "/app":
        _make(parent)
    _make(path)


def _make(path):
    try:
        os.mkdir(path)
    except OSError as e:
        if number(e) != 17:  # EEXIST
            raise


def _clear(top):
    """Remove a folder and all in it, one entry at a time: no list of it is held."""
    while True:
        path = top
        while True:
            entry = _first(path)
            if entry is None:
                break
            path = path + "/" + entry[0]
            if entry[1] != _FOLDER:
                break
        try:
            if entry is None:
                os.rmdir(path)
            else:
                os.remove(path)
        except OSError as e:
            if path == top and number(e) in (2, 44):  # there is none
                return
            raise UpdateError("the slot %s cannot be emptied (%s)" % (top, e), True)
        if path == top:
            return


def _first(path):
    """(name, kind) of the first entry of a folder, or None."""
    try:
        for entry in os.ilistdir(path):
            return entry[0], entry[1]
    except OSError:
        pass
    return None


def _room(size):
    """UpdateError where the file system has no room for so many more bytes."""
    fs = os.statvfs("/")
    free = fs[0] * fs[3] - _SPARE_BYTES
    if free < size:
        raise UpdateError(
            "the update needs %d bytes of the file system and %d are free: nothing was changed"
            % (size, max(0, free))
        )
