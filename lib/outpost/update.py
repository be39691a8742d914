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

from . import agreed, bundle, log, package, slots, watchdog
from .appstate import OLDER, ON_TRIAL, State, room, signers
from .emptied import empty
from .errors import OutpostError, UpdateError, number

_BUFFER = const(512)


def taken(path, now):
    """Install the delivered package at `path`: what its sender is answered, (status, result).

    now  Unix seconds that it certainly is, or None
    """
    fleet, keys = signers()
    state = State()
    top = state.top()
    head = bundle.accepted(path, agreed.ROLE_SOFTWARE, fleet, 0, keys, now, slots.APP_MAX_BYTES)
    trial = state.trial()
    if trial in (0, 1) and state.version(trial) == head.version:
        # Its sender did not hear the answer: the power went.
        return 202, {"state": "trial", "version": head.version}
    if head.version == top == state.version(state.running()):
        return 200, {"state": "kept", "version": top}
    if head.version < top:
        raise UpdateError(OLDER % (head.version, top))
    slot, label = install(path, head.at, head.size, head.version)
    return 202, {"state": "trial", "version": head.version, "label": label, "slot": slot}


def install(path, body_at, body_size, version):
    """Unpack the body of a verified package into the free slot and put it on trial.

    Returns (slot's letter, label). The next start runs it. Whatever stops this, a power cut too,
    leaves what runs as it is.
    """
    state = State()
    if state.trial() >= 0:
        raise UpdateError(ON_TRIAL)
    slot = state.free()
    top = slots.APP_SLOTS[slot]
    with open(path, "rb") as f:
        reader = package.Reader(f, body_at, body_size)
        reader.check()
        # What lies in the slot from before makes room: it is older than what runs, or was on trial.
        empty(top)
        room(reader.needs)
        try:
            _unpack(reader, top)
        except OSError as e:
            empty(top)
            raise UpdateError("the slot cannot be written (%s): is the flash full?" % e)
        except BaseException:
            empty(top)
            raise
    state.set(slots.NVS_APP_SLOTS[slot], version)
    state.set(slots.NVS_APP_COUNT, max(0, state.get(slots.NVS_APP_COUNT)) + 1)
    state.set(slots.NVS_APP_LIVES, 0)
    state.set(slots.NVS_APP_TRIAL, slot)  # the moment
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


def late(path):
    """Install what could not be judged while there was a connection, for want of memory. Whether
    it is on trial now; what was refused is noted, to be reported."""
    state = State()
    try:
        # No clock yet: the floor that time never goes below.
        floor = state.get(agreed.NVS_TIME_FLOOR)
        now = floor + agreed.UNIX_2000 if floor >= 0 else None
        return taken(path, now)[0] == 202
    except (OutpostError, MemoryError) as e:
        log.say("update", "refused: %s" % (str(e) or "there is no memory to judge it"))
        try:
            with open(path, "rb") as f:
                state.set(slots.NVS_APP_LAST, bundle.head(f).version)
            state.set(slots.NVS_APP_COUNT, max(0, state.get(slots.NVS_APP_COUNT)) + 1)
            state.set(slots.NVS_APP_OUTCOME, slots.REFUSED)
        except (OutpostError, OSError):
            pass
        return False
