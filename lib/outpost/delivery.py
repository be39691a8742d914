"""Delivery: files that come to this device piece by piece, and what is done with them.

    delivery.register("trust", 16384, check_begin, handler)

Who wants a kind of file says so here; this part stays in memory and is small. What writes the
pieces (pieces.py, staging.py) is loaded when the first one comes, and let go of. Bytes that
arrive are staged, compared with the hash that was announced, and handed over: they are believed
by nobody here, the handler judges them. Owns no flash itself; staging.py owns /stage.
"""

import gc

from micropython import const

from . import agreed, log, trust
from .backoff import Backoff
from .errors import DeliveryError, understood
from .json_in import parse
from .parts import let_go
from .profile import ANSWER, DESIRED, WHOLE

_kinds = {}
_device = None  # the Delivery that takes the calls
_NEVER = const(1 << 50)  # of the uptime in ms

_PUSH_MS = const(30000)  # from one piece to the next, before a push counts as given up
_TOLD_MS = const(5000)  # a connection that lives on for so long has brought a report to the hub

retry_s = (30, 3600)  # where a file could not be fetched: the first wait at most, and the longest


class Kind:
    """left, left_at   what may still be written of it, see staging.allow()
    last            what the last commit came to, for a sender who did not hear the answer
    busy            its handler is at work
    order, settled  of the wish: what was looked at last, and whether that is dealt with for good
    fetched         SHA-256 of the last file that was fetched and dealt with in this life
    backoff         of what could not be fetched; again_ms: uptime before which it is not tried
    """

    left = left_at = last = order = fetched = backoff = None
    busy = settled = False
    again_ms = 0

    def __init__(self, name, max_bytes, check_begin, handler, stage):
        self.name = name
        self.max_bytes = max_bytes
        self.check_begin = check_begin
        self.handler = handler
        self.stage = stage


def register(kind, max_bytes, check_begin, handler, stage=None):
    """Take files of this kind, of up to max_bytes.

    kind                             letters, digits and - : it is the name of its file too
    check_begin(size, sha256, args)  None, and it may come; (status, result), and that is the
                                     answer: nothing is taken. OutpostError: a refusal with its
                                     sentence. args is what else the sender said of it, a dict
    handler(path)                    all of it is there, with that hash: (status, result), or a
                                     generator that comes to it. Below 300: it is dealt with, and
                                     what is left at `path` is removed; else it stays there, and
                                     can be committed again. It may come to it twice (a power cut)
    stage(kind)                      where else than in a file the pieces go: what staging.Staging
                                     can do
    """
    if not kind or [c for c in kind if not ("a" <= c <= "z" or "0" <= c <= "9" or c == "-")]:
        raise ValueError("a kind of file is named with a to z, 0 to 9 and - alone")
    _kinds[kind] = Kind(kind, max_bytes, check_begin, handler, stage)
    if _device:
        _device.open()


def opened(incoming):
    """The Delivery of a device: it takes calls as soon as there is a kind of file to take."""
    global _device
    _device = Delivery(incoming)
    if _kinds:
        _device.open()
    return _device


class Delivery:
    """Pushes (deliver) and pulls (the desired property "outpost", pull.py) of one device.

    There is memory for one TLS connection. So the device's loop asks due() while it is connected,
    ends the connection where that says so, and calls fetch() while something is fetching().

    news  kind -> what is to be reported of it, until a connection has brought it to the hub
    """

    def __init__(self, incoming):
        self.incoming = incoming
        self.news = {}
        self._told_ms = None  # uptime at which the hub has them
        self._pushed_ms = -_PUSH_MS  # when the last piece of a push came
        self._open = False
        self._wish = None
        self._due_ms = _NEVER  # uptime at which to look at the wish
        self._pull = None

    def open(self):
        if not self._open:
            self._open = True
            self.incoming.commands.method(agreed.DELIVERY_METHOD, self.deliver, raw=True)
            self.incoming.follow(self)

    def packet_bytes(self):
        """The longest packet that it needs to be let through."""
        return agreed.DELIVERY_PACKET_BYTES if self._open else 0

    def deliver(self, body):
        """One call of the method: (status, result), or a generator that comes to it."""
        from . import pieces

        try:
            return pieces.answer(body, _kinds)
        except DeliveryError as e:
            return 400, {"error": str(e)}
        except MemoryError:
            return 413, {"error": "there is no memory for it now: send smaller pieces"}
        finally:
            self._pushed_ms = log.uptime_ms() if pieces.more else -_PUSH_MS
            if not pieces.more:
                self.rest()

    def rest(self):
        """No piece is to be expected soon."""
        if self._pull is None:
            let_go("pieces", "orders", "staging", "pull", "fetch")

    def detached(self):
        """The connection has ended."""
        self._told_ms = None
        self._pushed_ms = -_PUSH_MS
        self.rest()

    # The desired property

    def desired(self, value):
        """It came by the application's twin; None: it was removed."""
        from .state import missing

        self._wished(value)
        return missing  # it is not answered as the application's are: pull.py reports

    def heard(self, kind, found, body):
        """What came of the twin where the application has none."""
        gc.collect()
        try:
            if kind == WHOLE:
                self._wished(parse(body).get(agreed.LIBRARY_PROPERTY))
            elif kind == ANSWER and found[2] == agreed.LIBRARY_PROPERTY and found[1] == 200:
                self._wished(parse(body)["desired"].get(agreed.LIBRARY_PROPERTY))
            elif kind == DESIRED and agreed.LIBRARY_PROPERTY in parse(body):
                self.incoming.ask_twin()  # it may be a part of it
        except (ValueError, TypeError, KeyError, AttributeError):
            pass  # nothing about files is in it
        except MemoryError:
            log.say("delivery", "there is no memory to read the twin")

    def _wished(self, value):
        if value != self._wish:
            self._wish = value
            self._due_ms = _NEVER if value is None else log.uptime_ms()

    def busy(self):
        """Whether a pull is under way, or is to be begun."""
        return self._pull is not None or log.uptime_ms() >= self._due_ms

    def due(self, trial=None):
        """While the hub is connected: whether the connection is to be ended for a file.

        trial  of software, while there is one
        """
        now = log.uptime_ms()
        if self.news:
            if self._told_ms is None:
                self._told_ms = now + _TOLD_MS
                self.incoming.tell({agreed.LIBRARY_PROPERTY: {"delivery": self.news}})
            elif now >= self._told_ms:
                self.news = {}
        if self._pull is None:
            # A trial is decided on this connection, and a push goes on on it: nothing may end it.
            if now < self._due_ms or now < self._pushed_ms + _PUSH_MS or trust.trial or trial:
                return False
            self._look()
            if self._pull is None:
                return False
        return self._pull.connected()

    def _look(self):
        """Look at the wish: afterwards there is a pull, or another time to look."""
        gc.collect()
        try:
            from . import plan

            self._pull, wait_ms = plan.planned(self, self._wish, _kinds, retry_s[0] * 1000)
        except Exception as e:
            log.error(understood(e))
            wait_ms = retry_s[0] * 1000
        if self._pull is None:
            self.ended(wait_ms)
        let_go("plan", "orders")

    def fetching(self):
        return self._pull is not None and self._pull.fetching

    def fetch(self, way):
        """One piece, while there is no other connection."""
        self._pull.piece(way)
        if not self.fetching():
            let_go("fetch")

    def ended(self, wait_ms=1000):
        """A pull is over, or there is none; the wish is looked at again after that time."""
        self._pull = None
        self._due_ms = _NEVER
        if self._wish is not None and wait_ms is not None:
            self._due_ms = log.uptime_ms() + wait_ms
        self.rest()

    def later(self, kind, why, status=0):
        """It did not come to its end: again after a while, from where it stands."""
        kind.backoff = kind.backoff or Backoff(*retry_s)
        wait_ms = kind.backoff.next_ms() + 1000
        kind.again_ms = log.uptime_ms() + wait_ms
        log.say("delivery", "%s: %s; again in %d s" % (kind.name, why, wait_ms // 1000))
        self.report(kind, status, {"error": str(why)})

    def report(self, kind, status, result):
        """What came of a file, in the reported property when there is a connection."""
        why = result.get("error") if isinstance(result, dict) else None
        version = kind.order.get("version")
        if not isinstance(version, int):
            version = None  # whatever it is, it is not said again
        self.news[kind.name] = {"version": version, "status": status, "why": why and str(why)}
        self._told_ms = None
