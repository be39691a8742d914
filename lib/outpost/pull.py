"""Pull: a file that the hub names and this device fetches itself.

    desired property "outpost": {"trust": {"version": 7, "url": "https://…", "size": 5120,
                                           "sha256": "…"}}

plan.py has looked whether it is wanted and where it may come from. While it is fetched there is no
connection to the hub; each piece goes where a pushed one does, so that a fetch that was cut off
goes on where it stood, and once all of it is here and the hub is back, its handler gets it. What
came of it is in the reported property outpost.delivery. Loaded while a file is wanted; owns no
flash. Keeps out of memory what it does not need beside a TLS connection.
"""

import gc

from . import agreed, log, staging, trust
from .errors import DeliveryError, understood

# Answers that nothing but another wish changes. After any other it is tried again.
FOR_GOOD = (400, 404, 413, 422)
away_ms = 600000  # then the hub is called, and the fetch goes on afterwards


class Pull:
    """fetching: what is to be done next is to fetch a piece."""

    def __init__(self, delivery, kind, staged, address):
        self.fetching = not staged.whole()
        self._delivery = delivery
        self._kind = kind
        self._staged = staged
        self._address = address  # (host, port, path)
        self._fetch = self._buffer = None
        self._began_ms = 0
        self._handed = False  # its handler is at work

    def connected(self):
        """While the hub is there: hand over what is whole. Whether there is something to fetch."""
        if not self.fetching and not self._handed:
            self._handed = True
            try:
                from . import orders

                self._delivery.incoming.tasks.call(
                    orders.handed_over, (self._kind, self._staged), self._done
                )
            except Exception as e:
                self._failed(understood(e))
        return self.fetching

    def piece(self, way):
        """Fetch the next one, while there is no other connection."""
        try:
            self._piece(way)
        except Exception as e:
            self.close()
            self._failed(understood(e))

    def _failed(self, why, status=0):
        self._delivery.later(self._kind, why, status)
        self._delivery.ended()

    def _piece(self, way):
        staged = self._staged
        if self._fetch is None:
            self._fetch = self._source(way)
            self._buffer = memoryview(bytearray(agreed.DELIVERY_PIECE_BYTES))
            self._began_ms = log.uptime_ms()
        if not staged.whole():
            n = self._fetch.read(staged.have, self._buffer)
            if staging.allow(self._kind, n):
                raise DeliveryError(staging.WORN)
            staged.put(staged.have, self._buffer[:n])
            if log.uptime_ms() - self._began_ms > away_ms and not staged.whole():
                self._kind.backoff = None
                raise DeliveryError(
                    "%d of %d bytes are here, and the hub is called in between"
                    % (staged.have, staged.size)
                )
        if staged.whole():
            self.close()
            if not staged.right():
                staged.drop()
                raise DeliveryError("the file there is not what was announced: it was dropped")

    def _source(self, way):
        from .fetch import Fetch
        from .walk import Endpoint

        gc.collect()
        way.ready()
        host, port, path = self._address
        staged = self._staged
        words = "%s: fetching %d bytes from %s at %d"
        log.say("delivery", words % (self._kind.name, staged.size, host, staged.have))
        where = Endpoint(host, port, way.config.ecc_only)
        return Fetch(where, path, trust.roots, staged.size)

    def close(self):
        """The hub can be called again."""
        self.fetching = False
        held, self._fetch, self._buffer = self._fetch, None, None
        if held:
            held.close()

    def _done(self, outcome, value):
        kind = self._kind
        if outcome:
            value = 500, {"error": "the handler of %s failed" % kind.name}
        status, result = value
        said = isinstance(result, dict)
        if status < 300 or status in FOR_GOOD and not (said and "have" in result):
            kind.settled = True
            kind.backoff = None
            if status < 300:
                kind.fetched = kind.last[0]
            self._delivery.report(kind, status, result)
            self._delivery.ended()  # there may be another kind to look at
        else:
            self._failed(result.get("error") if said else "it was not taken", status)
