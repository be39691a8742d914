"""Twin: desired properties to their handlers in the order of their versions, reported ones back.

Asked for whole after each connection, then change by change; where a version was missed it is asked
for whole again. Keeps in RAM only the properties that the application has handlers for, at most
4 KB each; owns no flash. What goes back is reported.py's.
"""

from micropython import const

from . import log
from .backoff import Backoff
from .errors import OutpostError
from .json_in import parse
from .reported import Reported
from .state import missing, patched, same, size
from .tasks import HANDLER_S, OK, TIMED_OUT

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
        self._session = self._profile = None
        self.version = None  # of the desired properties that were applied last
        self._rid = 0
        self._backoff = Backoff(5, 300)
        self.reported = Reported()
        self.report = self.reported.report
        self._reset()

    def _reset(self):
        self._get = None  # request id of the question that is not answered
        self._get_at = None  # uptime when to ask, or when the answer is late
        self._blind = False  # the whole is too long for this device: changes are all it gets
        self._newest = 0  # version of a change that came while the question was open
        self._ready = False  # subscribed: asking makes sense
        self.unheard = False  # a handler came after the subscription that brings its value

    # What the application says

    def desired(self, name, handler):
        """handler(value) is called for each new value, None where the property was removed."""
        if not isinstance(name, str) or not name or name[0] == "$":
            raise ValueError("a desired property's name is a text that does not begin with $")
        self._handlers[name] = handler
        if not self._ready:
            return
        if self._profile.twin_get("") is None:
            # It was sent with the subscription, and is once more with another one.
            self.version = None
            self.unheard = True
        elif self._get_at is None:
            self._ask(0)

    def wanted(self):
        return bool(self._handlers) or self.reported.wanted()

    def busy(self):
        """Whether the hub is still to say what the twin is, or to take what is reported."""
        return self._get_at is not None or self.reported.busy()

    # The connection

    def attach(self, session, profile, device_id):
        self._reset()
        self._session, self._profile = session, profile
        self.reported.attach(session, profile, device_id)

    def detach(self):
        self._reset()
        self._session = None
        self.reported.attach(None, None, None)

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
        wait = 1000 if self._get_at is None else max(0, min(1000, self._get_at - now))
        # Not before the answer: it may show that the hub has it all already.
        return wait if self._get is not None else min(wait, self.reported.service())

    def acknowledged(self, pid):
        """PUBACK: where reports go out at QoS 1 it is their answer."""
        if self.reported.is_mine(pid):
            self.reported.answered(204)

    def too_long(self, rid):
        """The whole twin (with its request id), or a change of it, is longer than this device
        takes."""
        if rid and rid == self._get:
            self._get = self._get_at = None
            self._blind = True
        elif not rid and not self._blind:
            self._ask(_SOON_MS)  # the whole may be shorter: a change may be of what is not ours
        log.say("twin", "the twin is too large for this device: make `incoming_bytes` larger")

    # Desired

    def _ask(self, in_ms):
        # Never put off what is planned: changes may come faster than that.
        if self._get_at is None and self._profile.twin_get("") is not None:
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
                self._blind = True
                log.say("twin", "the hub refused to say what the twin is (%s)" % status)
        elif rid and self.reported.is_mine(rid):
            self.reported.answered(status)

    def _whole_twin(self, body):
        twin = _object(body)
        desired = twin and twin.get("desired")
        if not isinstance(desired, dict):
            # Asking again would bring the same: changes are followed from here on.
            self._blind = True
            return
        self._blind = False
        if isinstance(twin.get("reported"), dict):
            self.reported.compare(twin["reported"])
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
                if version < self.version:
                    log.say(
                        "twin",
                        "desired version=%d is older than %d, which this device has: ignored"
                        % (version, self.version),
                    )
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
        missed = version is None or self.version is None or version != self.version + 1
        if missed and not self._blind:
            log.say("twin", "a change was missed: asking for the whole")
            self._ask(_SOON_MS)
            return
        self.version = version
        log.say("twin", "desired version=%s" % version)
        for name in list(self._handlers):
            if name in patch:
                self._apply_patch(name, patch[name], version)

    def _apply_patch(self, name, value, version):
        if isinstance(value, dict):
            current = self._current(name)
            value = patched(current if isinstance(current, dict) else {}, value)
            if size(value) > _DESIRED_MAX:
                log.say("twin", "desired property %s is too large: ignored" % name)
                # What the next change is put together with would be old: ask for it then.
                self.version = None
                return
        self._apply(name, value, version)

    def _current(self, name):
        if name in self._later:
            return self._later[name][0]
        return self._values.get(name, missing)

    def _apply(self, name, value, version):
        if name in self._busy:
            self._later[name] = (value, version)
            return
        self._later.pop(name, None)
        if same(self._values.get(name, missing), value):
            return
        self._values[name] = value
        self._busy.add(name)

        def done(outcome, result):
            self._busy.discard(name)
            if result is not missing:  # the library's own handler: it reports in its own way
                self._acknowledge(name, value, version, outcome, result)
            if name in self._later:
                self._apply(name, *self._later.pop(name))

        self._tasks.call(self._handlers[name], (value,), done, HANDLER_S)

    def _acknowledge(self, name, value, version, outcome, result):
        """Plug and Play's form of an answer: value, ac (code), av (version), ad (words)."""
        if value is None:
            answer = None
        elif outcome == OK:
            answer = {"value": value if result is None else result, "ac": 200, "av": version}
        elif outcome == TIMED_OUT:
            words = "it was not done in %d s" % HANDLER_S
            answer = {"value": value, "ac": 504, "av": version, "ad": words}
        else:
            words = str(result) if isinstance(result, OutpostError) else type(result).__name__
            answer = {"value": value, "ac": 500, "av": version, "ad": words}
        try:
            self.report({name: answer})
        except ValueError as e:
            log.say("twin", "the answer to desired property %s was not reported: %s" % (name, e))


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
