"""Guard: what the device's loop tells of its connections, for those who change the trust bundle.

Small, because it stays. What does the work is loaded when there is work, and let go of: install.py
(a bundle has come), trusting.py (it is on trial), emergency.py (no root works any more),
trustfacts.py (what is reported). Owns no flash.
"""

import gc
import os

from micropython import const

from . import agreed, delivery, log, telemetry, trust
from .errors import OutpostError
from .parts import let_go, load

_SETTLE_MS = const(500)  # from an answer to the new connection, so that the answer gets out
_REPORT_MS = const(2000)  # after connecting: messages go first
# As in formats.py, which is not to stay in memory for these.
_FILE_MAX = const(16384)
_LOADED = (
    "install",
    "revoke",
    "bundle",
    "x509",
    "emergency",
    "trustfacts",
)
_ASIDE = "/trust/new.bin"
_MISSED = "tr-miss"
_SINCE = "tr-since"
_TRIAL = "tr-try"
_HIGH = "tr-high"
_TOLD_MS = const(5000)  # a connection that lives on for so long has brought a report to the hub
_ROOM = const(12288)  # free memory below which nothing is reported
_PROBE_MS = const(1000)  # a trial without a message of the application sends one of ours


class Guard:
    """way: the Walk; messages: the Device's Sender."""

    def __init__(self, way, messages):
        self._way = way
        self._messages = messages
        self._again_ms = None  # uptime at which the connection is to be made anew
        self._report_ms = None  # uptime at which to look whether there is news to report
        self._told = None  # mark of the report that is on its way
        self._told_ms = 0
        self._session = None
        self._aside = False  # whether a delivered file waits for the next start
        self._anchor = None
        self._missed = _kept(_MISSED)
        delivery.register("trust", _FILE_MAX, _may_begin, self.installed)
        if _kept(_TRIAL) or (_kept(_HIGH) and not _kept(agreed.NVS_TRUST_SLOT)):
            trust.trial = _do("trusting", "resumed") or None
        try:
            os.stat(_ASIDE)
            _do("install", "late", _ASIDE, self._way)
            os.remove(_ASIDE)
        except OSError:
            pass  # nothing waits, or the flash keeps it: then it is judged again

    def installed(self, path):
        """A file has come: (status, result). A trial begins with the next connection."""
        try:
            answer = _do("install", "install", path, self._way, raises=True)
        except OutpostError as e:
            log.say("trust", "the bundle was not taken: %s" % e)
            return 409, {"error": str(e)}
        except MemoryError:
            # At the next start there is room. What comes of it is reported.
            os.rename(path, _ASIDE)
            self._aside = True
            answer = 202, {"state": "later"}
        if answer[0] == 202:
            self._again_ms = log.uptime_ms() + _SETTLE_MS
        return answer

    def revoke(self, args, payload):
        """The signed command trust.revoke."""
        return _do("revoke", "revoke", args, raises=True)

    # What the loop tells

    def connected(self, session):
        """The hub was verified, and has accepted this device."""
        self._session, self._told = session, None
        facts = self._way.connection and self._way.connection.facts
        self._anchor = (facts and facts["root"]) or self._anchor
        if trust.trial:
            trust.trial.connected(session)
        if self._missed:
            self._missed = False
            _do("emergency", "over")
        self._report_ms = log.uptime_ms() + _REPORT_MS

    def acknowledged(self, session):
        """The hub has a message that went out on this connection."""
        if trust.trial and trust.trial.session is session:
            _do("trusting", "commit", self._way)
            self._way.keep(True)
            self._report_ms = log.uptime_ms()
        elif self._report_ms:
            self._report_ms = log.uptime_ms()  # messages have gone: now

    def failed(self, err):
        """A connection was not made, or has ended. Whether to try again at once."""
        if trust.trial:
            err.person = False  # soon again: the bundle in use is there still
            return _do("trusting", "failed", err, self._way)
        if err.stage == "trust" or getattr(err, "untrusted", False):
            self._missed = True
            return self._way.config and self._emergency(err.stage == "trust")
        return False

    def _emergency(self, damaged):
        try:
            return _do("emergency", "missed", self._way, damaged, raises=True)
        except OutpostError as e:
            log.error(e)
        except MemoryError:
            # A life that is young has as much memory as there will be: then only after the wait.
            if log.uptime_ms() > self._way.config.recovery_after_s * 1000 and _due_at_once():
                _restart("another bundle is looked for")
            log.say("trust", "there is no memory for it now")
        return False

    def step(self):
        """Whether the device is to make a new connection now. Called while it is connected."""
        now = log.uptime_ms()
        trial = trust.trial
        if self._again_ms is not None and now >= self._again_ms:
            self._again_ms = None
            if self._aside:
                _restart("the bundle is judged")
            return trial is not None
        if trial and trial.session:
            if trial.probe_ms is not None and now - trial.probe_ms >= _PROBE_MS:
                trial.probe_ms = None
                self._probe(trial)
            return trial.late(self._way) and _do("trusting", "ended")
        if self._report_ms is not None and now >= self._report_ms:
            self._report_ms = None
            self._report(now)
        elif self._told and now >= self._told_ms:
            _do("trustfacts", "told", self._told)
            self._told = None
        return False

    def _report(self, now):
        if gc.mem_free() < _ROOM:
            gc.collect()
            if gc.mem_free() < _ROOM:
                return  # with the next connection; messages go first
        self._told = _do("trustfacts", "report", self._way, self._anchor, self._session)
        self._told_ms = now + _TOLD_MS

    def _probe(self, trial):
        """An application that has nothing to say must not be why a trial fails."""
        if not len(self._messages):
            body = telemetry.encode({"outpost": {"trust": {"trial": trial.version}}})
            self._messages.accept(body, False, None, is_json=True)


def _restart(what):
    import machine

    log.say("trust", "%s after a restart, when there is more memory" % what)
    machine.reset()


def _due_at_once():
    """The next attempt that ends without trust is the emergency's. Whether NVS has taken it."""
    import esp32

    try:
        store = esp32.NVS(agreed.NVS_NAMESPACE)
        store.set_i32(_SINCE, 0)
        store.commit()
    except OSError:
        return False
    return True


def _may_begin(size, sha256, args):
    """Where its version is said, one that is here does not come again."""
    version = args.get("version")
    if not isinstance(version, int) or isinstance(version, bool):
        return None
    if trust.trial and trust.trial.version == version:
        return 202, {"state": "trial", "version": version}
    there = trust.version()
    if version == there:
        return 200, {"state": "in use", "version": there}
    if version < there:
        return 422, {"error": "version %d is in use: versions only rise" % there}
    return None


def _kept(name):
    """Whether NVS has that entry."""
    import esp32

    try:
        esp32.NVS(agreed.NVS_NAMESPACE).get_i32(name)
    except OSError:
        return False
    return True


def _do(module, name, *args, raises=False):
    """Load a module, call its function, let go of it; a failure is said, and is no."""
    try:
        return getattr(load(module), name)(*args)
    except MemoryError:
        if raises:
            raise
        log.say("trust", "there is no memory for it now")
        return False
    except OutpostError as e:
        if raises:
            raise
        log.error(e)
        return False
    finally:
        let_go(*_LOADED)
        if not trust.trial:
            let_go("trusting", "formats")
