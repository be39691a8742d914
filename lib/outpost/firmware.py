"""Firmware: a whole new MicroPython, written into the place for it that is not running.

    begin   brings the signed record of it: no byte is written that nobody has signed for
    write   goes straight into the partition, which has room for it where the file system has not
    commit  reads it all back, names it to the bootloader, and it is on trial (trial.py)

Owns the partition that esp32.Partition.get_next_update() names, /stage/firmware.opk (the record)
and /stage/firmware.txt (how much is there). The bootloader goes back to the firmware before unless
trial.py marks the new one as valid. Never touches what runs.
"""

import binascii
import hashlib
import os

from micropython import const

from . import agreed, bundle, log, slots, watchdog
from .appstate import ON_TRIAL, State, signers, wanted
from .errors import DeliveryError, UpdateError, number

_SECTOR = const(4096)
_NOTE_BYTES = const(65536)  # so often it is noted how much is there: a power cut costs no more
_RECORD = agreed.STAGE_PATH + "/firmware.opk"
_NOTE = agreed.STAGE_PATH + "/firmware.txt"


def target():
    """The partition that new firmware goes into; UpdateError where there is none."""
    import esp32

    try:
        return esp32.Partition(esp32.Partition.RUNNING).get_next_update()
    except OSError:
        raise UpdateError(
            "this board has one place for its firmware: write it over the cable, with 'make flash'",
            True,
        )


def _chip(part):
    """The chip that an application in a partition is for, or None where there is none."""
    head = bytearray(16)
    part.readblocks(0, head, 0)
    return head[12] | head[13] << 8 if head[0] == 0xE9 else None


def _record(now):
    """(version, chip, size, sha256) of the record that is staged, its signatures verified."""
    fleet, keys = signers()
    top = max(0, State().get(slots.NVS_FIRMWARE_TOP))
    head = bundle.accepted(
        _RECORD, agreed.ROLE_SOFTWARE, fleet, top, keys, now, slots.FIRMWARE_RECORD_MAX
    )
    with open(_RECORD, "rb") as f:
        f.seek(head.at)
        body = f.read(head.size)
    if len(body) < 43 or body[:5] != slots.FIRMWARE_MAGIC + b"\x01":
        raise UpdateError("what was signed is no record of firmware: build it with 'outpost app'")
    size = int.from_bytes(body[7:11], "big")
    return head.version, body[5] << 8 | body[6], size, body[11:43]


def begin(size, sha256, args, now):
    """None where the call brings a signed record of this very firmware for this chip, or the answer
    where it is not wanted; UpdateError says what is wrong."""
    state = State()
    trial, version = state.trial(), state.get(slots.NVS_FIRMWARE_VERSION)
    if trial > 1 and version == args.get("version"):
        return 202, {"state": "trial", "version": version}  # its sender did not hear the answer
    if trial >= 0:
        raise UpdateError(ON_TRIAL)
    failed = state.get(slots.NVS_APP_OUTCOME) > slots.KEPT + 16
    failed = state.get(slots.NVS_APP_LAST) if failed else -1
    kept = max(0, state.get(slots.NVS_FIRMWARE_TOP))
    answer = wanted(args.get("version"), failed, kept, "url" in args, kept)
    if answer:
        return answer
    part = target()
    text = args.get("signed")
    try:
        raw = binascii.a2b_base64(text)
    except (ValueError, TypeError):
        raise UpdateError("the beginning of firmware brings its signed record, in base64")
    if len(raw) > slots.FIRMWARE_RECORD_MAX:
        raise UpdateError("the record of the firmware is too long")
    _write(_RECORD, raw)
    try:
        _, chip, signed_size, digest = _record(now)
        if signed_size != size or binascii.hexlify(digest).decode() != sha256:
            raise UpdateError("other firmware was signed than the one that is announced")
        if size > part.info()[3]:
            raise UpdateError(
                "the firmware has %d bytes, more than the %d of its place" % (size, part.info()[3])
            )
        import esp32

        ours = _chip(esp32.Partition(esp32.Partition.RUNNING))
        if ours is not None and chip != ours:
            raise UpdateError("the firmware is for another chip (%d, this is %d)" % (chip, ours))
    except BaseException:
        os.remove(_RECORD)
        raise


def commit(now):
    """Everything is there with the hash that was announced: put it on trial."""
    version, _, size, digest = _record(now)
    part = target()
    if _digest(part, size) != digest:
        raise UpdateError("what lies in the flash is not the firmware that was signed: begin again")
    state = State()
    state.set(slots.NVS_APP_COUNT, max(0, state.get(slots.NVS_APP_COUNT)) + 1)
    state.set(slots.NVS_FIRMWARE_VERSION, version)
    # Known to be on trial before it can run: unconfirmed it would be started once and no more.
    state.set(slots.NVS_APP_TRIAL, part.info()[1])
    try:
        part.set_boot()
    except OSError as e:
        state.set(slots.NVS_APP_TRIAL, None)
        raise UpdateError("the bootloader does not take the firmware (%s)" % e)
    os.remove(_RECORD)
    log.say("update", "firmware version=%d is in %s: on trial" % (version, part.info()[4]))
    return 202, {"state": "trial", "version": version, "slot": part.info()[4]}


class Stage:
    """Where delivery.py puts the pieces: what staging.Staging is for a file.

    It is kept between two calls: how much is there is noted in flash now and then only.
    """

    path = None

    def __init__(self, kind):
        self.size = self.have = self._noted = 0
        self.sha256 = None
        try:
            with open(_NOTE) as f:
                size, sha256, have = f.read(128).split()
            self.size, self.have, self.sha256 = int(size), int(have), sha256
        except (OSError, ValueError):
            self.size = self.have = 0
        self._noted = self.have
        self._part = None

    def whole(self):
        return self.sha256 is not None and self.have == self.size

    def begin(self, size, sha256):
        if (size, sha256) == (self.size, self.sha256):
            return
        self.size, self.have, self.sha256 = size, 0, sha256
        self._note()

    def put(self, at, piece):
        """The bytes from `at` on, into erased sectors; those that are here already are passed."""
        known = min(self.have - at, len(piece))
        if known < 0 or at + len(piece) > self.size:
            raise DeliveryError("this piece begins or ends where it cannot")
        part = self._part = self._part or target()
        view = memoryview(piece)[known:]
        at += known
        while len(view):
            block, offset = at // _SECTOR, at % _SECTOR
            n = min(len(view), _SECTOR - offset)
            try:
                if not offset:
                    part.ioctl(6, block)
                part.writeblocks(block, view[:n], offset)
            except OSError as e:
                raise DeliveryError("the flash cannot be written (%s)" % e)
            at += n
            view = view[n:]
            self.have = max(self.have, at)
            if self.have // _NOTE_BYTES != self._noted // _NOTE_BYTES and not at % _SECTOR:
                self._note()
        if self.whole():
            self._note()

    def _note(self):
        # A sector is erased whole when its first byte comes: so it goes on from a sector's begin.
        self._noted = self.have if self.whole() else self.have // _SECTOR * _SECTOR
        _write(_NOTE, b"%d %s %d\n" % (self.size, self.sha256.encode(), self._noted))

    def right(self):
        return self.whole() and (
            binascii.hexlify(_digest(target(), self.size)).decode() == self.sha256
        )

    def drop(self):
        for path in (_NOTE, _RECORD):
            try:
                os.remove(path)
            except OSError:
                pass
        self.size = self.have = 0
        self.sha256 = None


def _digest(part, size):
    """SHA-256 of the partition's first `size` bytes."""
    digest = hashlib.sha256()
    buffer = bytearray(512)
    view = memoryview(buffer)
    for at in range(0, size, len(buffer)):
        piece = view[: min(len(buffer), size - at)]
        part.readblocks(at // _SECTOR, piece, at % _SECTOR)
        digest.update(piece)
        if not at % _NOTE_BYTES:
            watchdog.feed()
    return digest.digest()


def _write(path, data):
    try:
        try:
            os.mkdir(agreed.STAGE_PATH)
        except OSError as e:
            if number(e) != 17:  # EEXIST
                raise
        with open(path, "wb") as f:
            f.write(data)
    except OSError as e:
        raise UpdateError("the flash has no room for an update (%s)" % e)
