"""Pull: a file that the hub names and this device fetches itself.

    desired property "outpost": {"trust": {"version": 7, "url": "https://…", "size": 5120,
                                           "sha256": "…"}}

The address counts only where the bundle in use names its host. While it is fetched there is no
connection to the hub; each piece goes where a pushed one does, so that a fetch that was cut off
goes on where it stood, and once all of it is here and the hub is back, its handler gets it. What
came of it is in the reported property outpost.delivery. Loaded while a file is wanted; owns no
flash.
"""

import gc

from micropython import const

from . import agreed, fetch, log, pieces, staging, trust
from .backoff import Backoff
from .errors import DeliveryError, understood

# Answers that nothing but another wish changes. After any other it is tried again.
_FOR_GOOD = (400, 404, 413, 422)
_SECOND = const(1000)


class Pull:
    """What one look at the wish comes to: a file at most. fetching: what is to be done next is to
    fetch it."""

    def __init__(self, delivery, wish, kinds):
        self.fetching = False
        self._delivery = delivery
        self._wish = wish
        self._kinds = kinds
        self._name = self._kind = self._staged = self._fetch = None
        self._version = None
        self._url = None
        self._handed = False  # its handler is at work

    def connected(self):
        """While the hub is there: plan, or hand over. Whether there is something to fetch."""
        if self._handed or self.fetching:
            return self.fetching
        try:
            if self._name is None and not self._plan():
                return False
            if not self._staged.whole():
                self.fetching = True
                return True
            self._handed = True
            self._delivery.incoming.tasks.call(
                pieces.handed_over, (self._name, self._kind, self._staged), self._done
            )
        except Exception as e:
            self._later(understood(e))
        return False

    def _plan(self):
        """Choose the file; False where there is nothing to be done."""
        wish = self._wish if isinstance(self._wish, dict) else {}
        over = self._delivery.over
        for name, kind in self._kinds.items():
            order = wish.get(name)
            if not isinstance(order, dict):
                continue
            self._name, self._kind = name, kind
            self._version = order.get("version")
            try:
                size, sha256 = pieces.announced(order)
                if over.get(name) == sha256:
                    continue
                over.pop(name, None)
                answered = pieces.judged(kind, size, sha256, order)
                if answered is None:
                    answered = self._allowed(order)
            except DeliveryError as e:
                sha256 = order.get("sha256")
                if over.get(name) == sha256:
                    continue
                answered = 400, {"error": str(e)}
            if answered is None:
                self._staged = staging.Staging(name)
                if (size, sha256) != (self._staged.size, self._staged.sha256):
                    self._spend(512)
                    self._staged.begin(size, sha256)
                return True
            if answered[0] < 300 or answered[0] in _FOR_GOOD:
                over[name] = sha256
                if answered[0] >= 300:
                    self._report(*answered)
                continue
            self._later(answered[1].get("error"), answered[0])
            return False
        self._delivery.ended()
        return False

    def _allowed(self, order):
        """None where the address is one that this device may call."""
        host, port, self._path = fetch.parts(order.get("url"))
        self._host, self._port = host, port
        for name in trust.hosts():
            if name.lower() in (host, "%s:%d" % (host, port)):
                return None
        words = "the bundle in use does not name %s as a host for downloads"
        return 404, {"error": words % host}

    # Between two connections

    def piece(self, way):
        """Fetch the next one."""
        try:
            self._piece(way)
        except Exception as e:
            self._later(understood(e))

    def _piece(self, way):
        staged = self._staged
        if self._fetch is None:
            gc.collect()
            way.ready()
            log.say(
                "delivery",
                "%s: fetching %d bytes from %s at %d"
                % (self._name, staged.size, self._host, staged.have),
            )
            from .walk import Endpoint

            where = Endpoint(self._host, self._port, way.config.ecc_only)
            self._fetch = fetch.Fetch(where, self._path, trust.roots, staged.size)
            self._buffer = memoryview(bytearray(agreed.DELIVERY_PIECE_BYTES))
        if not staged.whole():
            n = self._fetch.read(staged.have, self._buffer)
            self._spend(n)
            staged.put(staged.have, self._buffer[:n])
        if staged.whole():
            self._close()
            if not staged.right():
                staged.drop()
                raise DeliveryError("the file there is not what was announced: it was dropped")

    def _spend(self, count):
        wait_s = pieces.allow(self._kind, count)
        if wait_s:
            raise DeliveryError("too much was written in a short time")

    def _close(self):
        """The hub can be called again."""
        self.fetching = False
        held, self._fetch = self._fetch, None
        self._buffer = None
        if held:
            held.close()

    # What came of it

    def _done(self, outcome, value):
        if outcome:
            value = 500, {"error": "the handler of %s failed" % self._name}
        status, result = value
        why = result.get("error") if isinstance(result, dict) else None
        if status < 300 or status in _FOR_GOOD:
            # What was asked for, whatever the handler has done with the file.
            self._delivery.over[self._name] = self._kind.last[0] if self._kind.last else None
            self._delivery.backoff = None
            self._report(status, result)
            self._delivery.ended(_SECOND)  # there may be another kind to look at
        else:
            self._later(why, status)

    def _later(self, why, status=0):
        """It did not come to its end: again after a while, from where it stands."""
        from . import delivery

        self._close()
        d = self._delivery
        d.backoff = d.backoff or Backoff(*delivery.retry_s)
        wait_ms = d.backoff.next_ms() + _SECOND
        log.say("delivery", "%s: %s; again in %d s" % (self._name, why, wait_ms // _SECOND))
        self._report(status, {"error": str(why)})
        d.ended(wait_ms)

    def _report(self, status, result):
        said = {"version": self._version, "status": status, "why": None}
        if isinstance(result, dict) and "error" in result:
            said["why"] = str(result["error"])
        self._delivery.news[self._name] = said
