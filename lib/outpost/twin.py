"""Twin: desired properties to their handlers in the order of their versions, reported ones back.

Desired: asked for whole after each connection, then change by change; a version that was missed is
asked for whole again. Reported: a merge patch of what changed, one at a time, put again until the
hub says that it has it. Keeps in RAM only the names that the application knows; owns no flash.
"""

from micropython import const

from . import log, telemetry
from .backoff import Backoff
from .errors import OutpostError
from .json_in import parse
from .state import SIZE_MAX, difference, merge, missing, patched, size
from .tasks import OK

_ANSWER_MS = const(30000)
_SOON_MS = const(1000)
_DESIRED_MAX = const(4096)  # bytes of one property, put together of many patches


class Twin:
    def __init__(self, tasks):
        self._tasks = tasks
        self._handlers = {}
        self._values = {}  # name -> the desired value that its handler was given last
        self._later = {}  # name -> (value, version) that came while its handler was at work
        self._busy = set()
        self._session = self._profile = self._id = None
        self.version = None  # of the desired properties that were applied last
        self._rid = 0
        self._backoff = Backoff(5, 300)
        self._waiting = {}  # to be reported
        self._known = {}  # reported, and acknowledged by the hub
        self._reset()

    def _reset(self):
        self._get = None  # request id of the question that is not answered
        self._get_at = None  # uptime when to ask, or when the answer is late
        self._newest = 0  # version of a change that came while the question was open
        self._flying = None  # the patch that is not acknowledged
        self._flight = None  # its request id or packet id
        self._report_at = 0
        self._ready = False  # subscribed: asking makes sense

    # What the application says

    def desired(self, name, handler):
        """handler(value) is called for each new value, None where the property was removed."""
        if not isinstance(name, str) or not name or name[0] == "$":
            raise ValueError("a desired property's name is a text that does not begin with $")
        self._handlers[name] = handler
        if self._ready and self._get_at is None:
            self._ask(0)

    def report(self, patch):
        """Put reported properties: a dict, None in it removes. Returns at once.

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
        # Of a name that waits already, nothing is left out: it may go back to what it was.
        return {
            name: value if name in self._waiting else part
            for name, value in patch.items()
            for part in (difference(self._known.get(name, missing), value),)
            if name in self._waiting or part is not missing
        }

    def wanted(self):
        return bool(self._handlers or self._waiting or self._known)

    # The connection

    def attach(self, session, profile, device_id):
        self._put_back()
        self._reset()
        self._session, self._profile, self._id = session, profile, device_id

    def detach(self):
        self._put_back()
        self._reset()
        self._session = None

    def start(self):
        """The subscriptions stand."""
        self._ready = True
        if self.wanted() and self._get is None and self._profile.twin_get("") is not None:
            self._get_at = log.uptime_ms()

    def service(self):
        """Ask and report where it is time. Returns ms until it must be called again."""
        now = log.uptime_ms()
        if not self._ready:
            return 1000
        if self._get_at is not None and now >= self._get_at:
            if self._get is None:
                self._rid += 1
                self._get = "g%d" % self._rid
                self._get_at = now + _ANSWER_MS
                self._newest = 0
                self._session.publish(self._profile.twin_get(self._get), b"", qos=0)
            else:
                self._again("the hub did not answer what the twin is")
        if self._flying and now >= self._report_at:
            self._put_back()
            log.say("twin", "the hub did not answer a report: it is sent again")
        if self._waiting and not self._flying and self._get is None and now >= self._report_at:
            self._send(now)
        times = [at for at in (self._get_at, self._flying and self._report_at) if at]
        if self._waiting and not self._flying and self._get is None:
            times.append(self._report_at)
        return max(0, min([1000] + [at - now for at in times]))

    def too_long(self, rid):
        """The whole twin, or a change of it, is longer than this device takes."""
        if rid and rid == self._get:
            self._get = self._get_at = None
        log.say("twin", "the twin is too large for this device: make `incoming_bytes` larger")

    # Desired

    def _ask(self, in_ms):
        if self._get is None and self._profile.twin_get("") is not None:
            self._get_at = log.uptime_ms() + in_ms

    def _again(self, sentence):
        wait = self._backoff.next_ms()
        self._get = None
        self._get_at = log.uptime_ms() + _SOON_MS + wait
        log.say("twin", "%s: asked again in %d s" % (sentence, (_SOON_MS + wait) // 1000))

    def on_answer(self, status, rid, body):
        """To a question or a report of ours; one to neither changes nothing."""
        if rid and rid == self._get:
            self._get = self._get_at = None
            if status == 200:
                self._backoff.reset()
                self._whole_twin(body)
            elif status is None or status == 429 or status >= 500:
                self._again("the hub could not say what the twin is (%s)" % status)
            else:
                log.say("twin", "the hub refused to say what the twin is (%s)" % status)
        elif rid and rid == self._flight:
            self._reported(status)

    def _whole_twin(self, body):
        twin = _object(body)
        desired = twin and twin.get("desired")
        if not isinstance(desired, dict):
            return
        reported = twin.get("reported")
        twin = None
        if isinstance(reported, dict):
            self._compare(reported)
        reported = None
        version = _version(desired)
        self._apply_whole(desired, version)
        if self._newest > (version or 0):
            self._ask(_SOON_MS)  # the answer is older than a change that came before it

    def on_whole(self, body):
        """All desired properties, from a broker that keeps them as one message."""
        desired = _object(body)
        if desired is not None:
            version = _version(desired)
            if version is not None and self.version is not None and version <= self.version:
                return
            self._apply_whole(desired, version)

    def _apply_whole(self, desired, version):
        self.version = version
        log.say("twin", "desired version=%s" % version)
        for name in list(self._handlers):
            if name in desired or self._current(name) is not missing:
                self._apply(name, desired.get(name), version)

    def on_patch(self, version, body):
        """A change of the desired properties."""
        patch = _object(body)
        if patch is None:
            return
        version = _version(patch) or version
        if self._get is not None or not self._ready:
            # The whole is on its way, and newer or asked for again.
            self._newest = max(self._newest, version or 0)
            return
        if version is not None and self.version is not None and version <= self.version:
            log.say("twin", "desired version=%d came late: ignored" % version)
            return
        if version is None or self.version is None or version != self.version + 1:
            log.say("twin", "a change was missed: asking for the whole")
            self._ask(_SOON_MS)
            return
        self.version = version
        log.say("twin", "desired version=%d" % version)
        for name in self._handlers:
            if name in patch:
                current = self._current(name)
                value = patch[name]
                if isinstance(value, dict):
                    value = patched(current if isinstance(current, dict) else {}, value)
                    if size(value) > _DESIRED_MAX:
                        log.say("twin", "desired property %s is too large: ignored" % name)
                        continue
                self._apply(name, value, version)

    def _current(self, name):
        if name in self._later:
            return self._later[name][0]
        return self._values.get(name, missing)

    def _apply(self, name, value, version):
        if name in self._busy:
            self._later[name] = (value, version)
            return
        if name in self._values and self._values[name] == value:
            return
        self._values[name] = value
        self._busy.add(name)

        def done(outcome, result):
            self._busy.discard(name)
            self._acknowledge(name, value, version, outcome, result)
            if name in self._later:
                self._apply(name, *self._later.pop(name))

        self._tasks.call(self._handlers[name], (value,), done)

    def _acknowledge(self, name, value, version, outcome, result):
        """Plug and Play's form of an answer: value, ac (code), av (version), ad (words)."""
        if value is None:
            answer = None
        elif outcome == OK:
            answer = {"value": value if result is None else result, "ac": 200, "av": version}
        else:
            words = str(result) if isinstance(result, OutpostError) else type(result).__name__
            answer = {"value": value, "ac": 500, "av": version, "ad": words}
        try:
            self.report({name: answer})
        except ValueError as e:
            log.say("twin", "the answer to desired property %s was not reported: %s" % (name, e))

    # Reported

    def _compare(self, reported):
        """What the hub has, against what it should: a twin that was made anew gets it all."""
        self._put_back()
        for name in list(self._known):
            # What waits is an addition to what is known.
            self._waiting[name] = patched({name: self._known[name]}, self._waiting).get(name)
        self._known = {}
        for name in list(self._waiting):
            there = reported.get(name)
            part = difference(missing if there is None else there, self._waiting[name])
            if name in reported:
                self._known[name] = there
            if part is missing or (there is None and self._waiting[name] is None):
                del self._waiting[name]
            else:
                self._waiting[name] = part

    def _send(self, now):
        try:
            body = telemetry.encode(self._waiting)
            if len(body) > SIZE_MAX:
                raise ValueError("it is over %d bytes" % SIZE_MAX)
        except ValueError as e:
            log.say("twin", "a report was dropped: %s" % e)
            self._waiting = {}
            return
        except MemoryError:
            self._report_at = now + _ANSWER_MS
            log.say("twin", "there is no memory for a report of this size now")
            return
        self._rid += 1
        rid = "r%d" % self._rid
        qos = self._profile.REPORT_QOS
        pid = self._session.publish(self._profile.twin_report(self._id, rid), body, qos=qos)
        self._flight = pid if qos else rid
        self._flying, self._waiting = self._waiting, {}
        self._report_at = now + _ANSWER_MS
        log.say("twin", "reported bytes=%d" % len(body))

    def acknowledged(self, pid):
        """PUBACK: where reports go out at QoS 1 it is their answer."""
        if self._flying and pid == self._flight:
            self._reported(204)

    def _reported(self, status):
        patch, self._flying, self._flight = self._flying, None, None
        if status in (200, 204):
            self._known = patched(self._known, patch)
            self._report_at = 0
            self._backoff.reset()
        elif status is None or status == 429 or status >= 500:
            self._waiting = merge(patch, self._waiting)
            self._report_at = log.uptime_ms() + _SOON_MS + self._backoff.next_ms()
            log.say("twin", "the hub is busy (%s): the report is sent again later" % status)
        else:
            self._report_at = 0
            log.say("twin", "the hub refused a report (%s): it was dropped" % status)

    def _put_back(self):
        if self._flying:
            self._waiting = merge(self._flying, self._waiting)
            self._flying = self._flight = None
            self._report_at = 0


def _object(body):
    """The dict of a JSON object, or None: said, and nothing else comes of it."""
    try:
        value = parse(body)
        if isinstance(value, dict):
            return value
        why = "it is no JSON object"
    except ValueError as e:
        why = str(e)
    except MemoryError:
        why = "there is no memory for it"
    log.say("twin", "what came of the twin was ignored: %s" % why)
    return None


def _version(properties):
    version = properties.get("$version")
    if isinstance(version, int) and not isinstance(version, bool) and 0 < version < 1 << 53:
        return version
    return None
