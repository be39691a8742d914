"""Updates: what the device's loop tells of itself to those who change its software.

Small, because it stays. What does the work is loaded when there is work, and let go of: update.py
(a package has come), firmware.py (a firmware comes), trial.py (new software runs), appfacts.py
(what is reported). Owns no flash.
"""

import os

from micropython import const

from . import agreed, delivery, log
from .errors import OutpostError
from .parts import do, let_go

_ANSWERED_S = const(2)  # in which the answer goes out before the new software starts
_REPORT_MS = const(2500)  # after connecting: messages go first
_TOLD_MS = const(5000)  # a connection that lasts so long after a report has brought it
# As in slots.py, which is not to stay in memory for these.
_KIND = "software"
_MAX_BYTES = const(393216)
_TRIAL = "app-try"
_LATE = agreed.STAGE_PATH + "/software.late"
_LOADED = (
    "update",
    "package",
    "bundle",
    "x509",
    "firmware",
    "appfacts",
    "appstate",
    "emptied",
    "slots",
)


class Updates:
    """Made where somebody may sign software for this board (trust.changeable).

    trial  the trial.Trial of this start, while it lasts, or None
    """

    def __init__(self, device, way):
        self._device = device
        self._way = way
        _late()
        self.trial = _trial(device)
        self._stage = None  # of a firmware that is coming
        self._session = self._report_ms = self._told = None
        self._told_ms = 0
        delivery.register(_KIND, _MAX_BYTES, self._may_begin, self._came)
        place = _other_place()
        if place:
            delivery.register("firmware", place, self._may_flash, self._flashed, self._staged)

    # Deliveries

    def _may_begin(self, size, sha256, args):
        try:
            return _do("appstate", "may_begin", size, args)
        except MemoryError:
            return None  # it is judged when it is here

    def _came(self, path):
        try:
            answer = _do("update", "taken", path, self._way.at_least())
        except MemoryError:
            # At the next start there is room. What comes of it is reported.
            os.rename(path, _LATE)
            answer = 202, {"state": "later"}
        return self._restarting(answer)

    def _may_flash(self, size, sha256, args):
        return _do("firmware", "begin", size, sha256, args, self._way.at_least())

    def _staged(self, kind):
        # Kept from piece to piece: how much is there is in flash now and then only.
        if self._stage is None or self._stage.sha256 is None:
            self._stage = _do("firmware", "Stage", kind)
        return self._stage

    def _flashed(self, path):
        return self._restarting(_do("firmware", "commit", self._way.at_least()))

    def _restarting(self, answer):
        if answer[0] == 202:
            self._device.after(_ANSWERED_S, _restart)
        return answer

    # What the loop tells

    def connected(self, session):
        """The hub was verified, and has accepted this device."""
        self._session, self._told = session, None
        self._report_ms = log.uptime_ms() + _REPORT_MS

    def step(self):
        """At the end of each slice, whatever became of it."""
        if self.trial:
            if self.trial.step():
                self.trial = None
                let_go("trial", "slots")
                self._report_ms = log.uptime_ms()
        elif self._device.online:
            if self._report_ms is not None and log.uptime_ms() >= self._report_ms:
                self._report_ms = None
                self._told = self._try("report", self._way, self._session)
                self._told_ms = log.uptime_ms() + _TOLD_MS
            elif self._told and log.uptime_ms() >= self._told_ms:
                # The connection has lasted: the hub has it.
                self._told = self._try("told", self._told)

    def _try(self, name, *what):
        try:
            return _do("appfacts", name, *what)
        except (OutpostError, MemoryError, OSError) as e:
            log.say("update", "its state is not reported now: %s" % e)  # with the next connection


def _late():
    """Before there is a connection: install what came when there was no memory to judge it."""
    try:
        os.stat(_LATE)
    except OSError:
        return
    installed = False
    try:
        installed = _do("update", "late", _LATE)
    except (OutpostError, MemoryError, OSError) as e:
        # Given up: tried at each start, it would be what keeps this device from starting.
        log.say("update", "refused: it cannot be judged after a restart either (%s)" % type(e))
    os.remove(_LATE)
    if installed:
        _restart()


def _trial(device):
    """The Trial of new software that this start is with, or None."""
    import esp32

    try:
        nvs = esp32.NVS(agreed.NVS_NAMESPACE)
        if nvs.get_i32(_TRIAL) < 0:
            return None
    except OSError:
        return None
    from . import trial

    number = trial.current(nvs)
    return trial.Trial(device, nvs, number) if number >= 0 else None


def _other_place():
    """Bytes of the partition that new firmware would go into, 0 where there is none."""
    import esp32

    try:
        return esp32.Partition(esp32.Partition.RUNNING).get_next_update().info()[3]
    except (OSError, AttributeError):
        return 0


def _do(module, name, *args):
    """Load a module, call its function, let go of it and of what it has loaded."""
    try:
        return do(module, name, *args)
    finally:
        let_go(*_LOADED)


def _restart():
    import machine

    machine.reset()
