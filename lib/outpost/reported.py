"""Reported properties: from the application to the hub, as merge patches of what changed.

One patch is under way at a time, and is sent again until the hub says that it has it. Keeps in RAM
what the application reported, at most 32 KB of JSON; owns no flash.
"""

from micropython import const

from . import log, telemetry
from .backoff import Backoff
from .state import SIZE_MAX, difference, merge, missing, patched, size

_ANSWER_MS = const(30000)
_SOON_MS = const(1000)


class Reported:
    def __init__(self):
        self._waiting = {}  # to be reported
        self._known = {}  # reported, and acknowledged by the hub
        self._flying = None  # the patch that is not acknowledged
        self._flight = None  # its request id or packet id
        self._at = 0  # uptime when to send, or when the answer is late
        self._number = 0
        self._singly = 0  # so many properties go one by one: the hub refused them together
        self._backoff = Backoff(5, 300)
        self._session = self._profile = self._id = None

    def wanted(self):
        return bool(self._waiting or self._known)

    def busy(self):
        """Whether something is to be reported that the hub does not have yet."""
        return bool(self._waiting or self._flying)

    def attach(self, session, profile, device_id):
        """A new connection, or with None the end of one: what was under way goes again."""
        self._put_back()
        self._at = 0
        self._session, self._profile, self._id = session, profile, device_id

    def report(self, patch):
        """A dict of properties, None in it removes. Returns at once.

        ValueError where it has no JSON, or where all that was reported would be over 32 KB.
        """
        if not isinstance(patch, dict):
            raise ValueError("report() wants a dict of properties")
        telemetry.encode(patch)
        whole = patched(patched(patched(self._known, self._flying or {}), self._waiting), patch)
        if size(whole) > SIZE_MAX:
            raise ValueError("the reported properties would be over %d bytes" % SIZE_MAX)
        # What is in flight may be lost: until it is acknowledged only _waiting tells it apart.
        self._waiting = merge(self._waiting, patch if self._flying else self._changed(patch))

    def _changed(self, patch):
        changed = {}
        for name, value in patch.items():
            # Of a name that waits already nothing is left out: it may go back to what it was. Nor
            # of one that this life knows nothing of: an earlier one may have reported it.
            if name not in self._waiting and name in self._known:
                value = difference(self._known[name], value)
            if value is not missing:
                changed[name] = value
        return changed

    def service(self):
        """Send what waits, where it is time. Returns ms until it must be called again."""
        now = log.uptime_ms()
        if self._flying and now >= self._at:
            self._put_back()
            log.say("twin", "the hub did not answer a report: it is sent again")
        if self._waiting and not self._flying and now >= self._at:
            self._send(now)
        if self._waiting or self._flying:
            return max(0, min(1000, self._at - now))
        return 1000

    def is_mine(self, flight):
        """Whether that request id or packet id is of the patch under way."""
        return self._flying is not None and flight == self._flight

    def compare(self, reported):
        """What the hub has, against what it should: a twin that was made anew gets it all."""
        self._put_back()
        wanted = merge(self._known, self._waiting)
        self._known = {}
        self._waiting = {}
        for name, value in wanted.items():
            there = reported.get(name, missing)
            if there is not missing:
                self._known[name] = there
            part = difference(there, value)
            if part is not missing:
                self._waiting[name] = part

    def _send(self, now):
        patch = self._waiting
        if self._singly:
            self._singly -= 1
            name = next(iter(patch))
            patch = {name: patch[name]}
        try:
            body = telemetry.encode(patch)
            if len(body) > SIZE_MAX:
                raise ValueError("it is over %d bytes" % SIZE_MAX)
        except ValueError as e:
            log.say("twin", "a report was dropped: %s" % e)
            self._drop(patch)
            return
        except MemoryError:
            self._at = now + _ANSWER_MS
            log.say("twin", "there is no memory for a report of this size now")
            return
        self._number += 1
        rid = "r%d" % self._number
        qos = self._profile.REPORT_QOS
        pid = self._session.publish(self._profile.twin_report(self._id, rid), body, qos=qos)
        self._flight = pid if qos else rid
        self._flying = patch
        self._drop(patch)
        self._at = now + _ANSWER_MS
        log.say("twin", "reported bytes=%d" % len(body))

    def answered(self, status):
        """The hub's answer to the patch under way; None: it has no status that can be read."""
        patch, self._flying, self._flight = self._flying, None, None
        if status in (200, 204):
            self._known = patched(self._known, patch)
            self._at = 0
            self._backoff.reset()
        elif status is None or status == 429 or status >= 500:
            self._waiting = merge(patch, self._waiting)
            self._at = log.uptime_ms() + _SOON_MS + self._backoff.next_ms()
            log.say("twin", "the hub is busy (%s): the report is sent again later" % status)
        else:
            self._at = 0
            if len(patch) > 1:
                # One that the hub does not take must not take the others with it.
                self._waiting = merge(patch, self._waiting)
                self._singly = len(self._waiting)
                log.say("twin", "the hub refused a report (%s): sent again one by one" % status)
                return
            names = ", ".join(patch)
            log.say("twin", "the hub refused a report (%s) of %s: dropped" % (status, names))

    def _drop(self, patch):
        """What was sent waits no more."""
        self._waiting = {n: v for n, v in self._waiting.items() if n not in patch}

    def _put_back(self):
        if self._flying:
            self._waiting = merge(self._flying, self._waiting)
            self._flying = self._flight = None
            self._at = 0
