"""Commands in: direct methods and cloud-to-device messages, from the topic to the handler.

A method is answered with what its handler returned: a value (status 200) or (status, value). A
message is acknowledged after its handler returned, and is known again by its id when the hub sends
it once more, over every reset (seen.py). Neither can stop the device: see tasks.py.
"""

import gc

from micropython import const

from . import clock, log, telemetry
from .errors import OutpostError
from .json_in import parse
from .tasks import HANDLER_S, OK, TIMED_OUT
from .timers import milliseconds

_TIMEOUT_S = const(60)
_NAME_MAX = const(128)
_LARGE_BYTES = const(512)
_RID_MAX = const(128)
_TRIES = const(3)  # of a message whose handler raises, in one life of the device
_RAISED_MAX = const(16)


class Commands:
    """tasks is the Tasks that the handlers run in.

    attach() gives it a connection, detach() takes that away: what is under way goes on, and its
    answer is nobody's any more.
    """

    def __init__(self, tasks):
        self._tasks = tasks
        self._methods = {}  # name -> (handler, seconds that it may take)
        self._handler = None
        self._underway = {}  # mark -> for each message whose handler is at work its [(pid, life)]
        self._raised = {}  # mark -> how often its handler has raised
        self._seen = None
        self._life = 0  # counts connections: an answer belongs to the one that asked
        self._session = None
        self._profile = None
        self._id = None
        self.calls = self.messages = 0
        self.now = None  # gives the Unix seconds that it certainly is, or None: set by who knows

    # What handlers there are

    def method(self, name, handler, timeout_s=_TIMEOUT_S, raw=False):
        """handler(payload) is called for the direct method `name`; None takes it away.

        payload is the parsed JSON (None where there was none). After timeout_s a handler that
        is a generator is ended and the caller told. raw: payload is the bytes as they came, in
        the packet's own buffer, for a handler that is through when it returns.
        """
        if not isinstance(name, str) or not 1 <= len(name) <= _NAME_MAX:
            raise ValueError("a method's name is a text of 1 to %d characters" % _NAME_MAX)
        if timeout_s is not None:
            milliseconds(timeout_s, "timeout_s")  # ValueError now, not in the middle of a call
        if handler is None:
            self._methods.pop(name, None)
        else:
            self._methods[name] = (handler, timeout_s, raw)

    def message(self, handler):
        """handler(body, properties) is called for each cloud-to-device message."""
        self._handler = handler

    def takes_methods(self):
        return bool(self._methods)

    def takes_messages(self):
        return self._handler is not None

    # The connection

    def attach(self, session, profile, device_id):
        self._life += 1
        self._session, self._profile, self._id = session, profile, device_id

    def detach(self):
        self._life += 1
        self._session = None

    # Direct methods

    def on_method(self, name, rid, body):
        """A call came in: name and rid are bytes, body is bytes or a memoryview."""
        if not _plain(rid, _RID_MAX):
            # There is no topic on which it could be answered.
            log.say("method", "a call with a request id that is none was ignored")
            return
        name = _text(name)
        handler, timeout_s, raw = self._methods.get(name, (None, 0, False))
        if handler is None:
            log.say("method", "call of %s: there is no such method" % name)
            self._answer(rid, 404, _sentence("this device has no method of that name"))
            return
        if len(body) > _LARGE_BYTES:
            gc.collect()  # there may be room for it, in pieces
        try:
            payload = body if raw else parse(body)
        except ValueError as e:
            self._answer(rid, 400, _sentence("the payload cannot be read: %s" % e))
            return
        except MemoryError:
            self._answer(rid, 413, _sentence("the payload is too large for this device's memory"))
            return
        self.calls += 1
        log.say("method", "call of %s bytes=%d" % (name, len(body)))
        life = self._life

        def done(outcome, value):
            if life == self._life:
                self._answer(rid, *_reply(name, outcome, value))
            else:
                log.say("method", "the answer of %s came after its connection was gone" % name)

        self._tasks.call(handler, (payload,), done, timeout_s)

    def too_long(self, rid, size):
        if _plain(rid, _RID_MAX):
            words = "a call of %d bytes is more than this device takes" % size
            self._answer(rid, 413, _sentence(words))

    def _answer(self, rid, status, value):
        if self._session is None:
            return
        try:
            if not telemetry.is_json(value):
                raise ValueError("bytes are none")
            body = telemetry.encode(value)
        except ValueError as e:
            log.say("method", "a result has no JSON that can be sent: %s" % e)
            status, body = 500, telemetry.encode(_sentence("the method's result has no JSON"))
        except MemoryError:
            status, body = 500, b'{"error":"there was no memory for the result"}'
        log.say("method", "answered status=%d bytes=%d" % (status, len(body)))
        topic = self._profile.method_reply(self._id, str(rid, "utf-8"), status)
        self._session.publish(topic, body, qos=self._profile.REPLY_QOS)

    # Cloud-to-device messages

    def on_message(self, properties, mid, expires, body, pid):
        """A message came in.

        properties  dict of texts; mid its id (bytes) or None; expires Unix seconds or None
        pid         to be acknowledged with, None at QoS 0
        """
        if self._handler is None:
            # Left with the hub, unacknowledged: software that takes messages may come.
            log.say("message", "a message came, and this software takes none: left with the hub")
            return
        now = self.now and self.now()
        if expires is not None and now is not None and now > expires:
            log.say("message", "dropped: it expired at %s" % clock.text(expires))
            self._acknowledge(pid, self._life)
            return
        self._seen = self._seen or _seen()
        mark = self._seen.mark(self._id, mid, body)
        deliveries = self._redelivered(mark, bool(mid))
        if deliveries is not None:
            # Its handler is at work: what it comes to is for this delivery of it too.
            if len(deliveries) < _RAISED_MAX:
                deliveries.append((pid, self._life))
            return
        if mid and mark in self._seen:
            log.say("message", "known already: acknowledged again")
            self._acknowledge(pid, self._life)
            return
        try:
            body = _copy(body)
        except MemoryError:
            log.say("message", "there is no memory for it now: left with the hub")
            return
        deliveries = [(pid, self._life)]
        self._underway.setdefault(mark, []).append(deliveries)
        self.messages += 1
        log.say("message", "came bytes=%d" % len(body))

        def done(outcome, value):
            self._through(mark, deliveries)
            if outcome != OK and not self._give_up(mark):
                return
            self._raised.pop(mark, None)
            if mid:
                self._seen.add(mark)
            for delivery in deliveries:
                self._acknowledge(*delivery)

        self._tasks.call(self._handler, (body, properties), done, HANDLER_S)

    def _redelivered(self, mark, named):
        """The deliveries of the message under way that this is once more, or None.

        What has no id is known by its body, and only over a new connection: on one connection
        the same body twice is two messages.
        """
        for deliveries in self._underway.get(mark, ()):
            if named or all([life != self._life for _, life in deliveries]):
                return deliveries
        return None

    def _through(self, mark, deliveries):
        others = [d for d in self._underway.pop(mark) if d is not deliveries]
        if others:
            self._underway[mark] = others

    def _give_up(self, mark):
        """Whether a message whose handler raised is done with. Until then the hub keeps it."""
        tries = self._raised.pop(mark, 0) + 1
        if tries >= _TRIES:
            log.say("message", "given up: its handler failed %d times" % tries)
            return True
        if len(self._raised) >= _RAISED_MAX:
            self._raised.clear()
        self._raised[mark] = tries
        log.say("message", "its handler failed: left with the hub, which will send it again")
        return False

    def _acknowledge(self, pid, life):
        if pid is not None and self._session is not None and life == self._life:
            self._session.puback(pid)


def _seen():
    """Only software that takes messages has it in memory."""
    from .seen import Seen

    return Seen()


def _copy(body):
    if len(body) > _LARGE_BYTES:
        gc.collect()
    return bytes(body)


def _reply(name, outcome, value):
    """(status, result) for the caller."""
    if outcome == OK:
        if isinstance(value, tuple) and len(value) == 2 and _is_status(value[0]):
            return value
        return 200, value
    if outcome == TIMED_OUT:
        return 504, _sentence("%s was not through in its time and was ended" % name)
    if isinstance(value, OutpostError):
        return 500, _sentence(str(value))
    if isinstance(value, MemoryError):
        return 500, _sentence("there was no memory for %s" % name)
    # Its type alone: the text of an exception may hold anything, a secret too.
    return 500, _sentence("%s raised %s" % (name, type(value).__name__))


def _sentence(words):
    return {"error": words}


def _is_status(value):
    return isinstance(value, int) and not isinstance(value, bool) and 100 <= value <= 599


def _text(raw):
    try:
        return str(raw, "utf-8")
    except UnicodeError:
        return "?"


def _plain(raw, longest):
    """Whether it may stand in a topic of ours as it is."""
    if not raw or len(raw) > longest:
        return False
    for b in raw:
        if not 33 <= b <= 126 or b in b"#+/?":
            return False
    return True
