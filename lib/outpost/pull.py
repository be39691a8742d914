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


class Pull:
    """fetching: what is to be done next is to fetch a piece."""

    def __init__(self, delivery, name, kind, staged, address, version):
        self.fetching = not staged.whole()
        self._delivery = delivery
        self._name = name
        self._kind = kind
        self._staged = staged
        self._address = address  # (host, port, path)
        self._version = version
        self._fetch = self._buffer = None
        self._handed = False  # its handler is at work

    def connected(self):
        """While the hub is there: hand over what is whole. Whether there is something to fetch."""
        if not self.fetching and not self._handed:
            self._handed = True
            try:
                from . import orders

                self._delivery.incoming.tasks.call(
                    orders.handed_over, (self._name, self._kind, self._staged), self._done
                )
            except Exception as e:
                self._delivery.later(self._name, understood(e), self._version)
        return self.fetching

    def piece(self, way):
        """Fetch the next one, while there is no other connection."""
        try:
            self._piece(way)
        except Exception as e:
            self.close()
            self._delivery.later(self._name, understood(e), self._version)

    def _piece(self, way):
        staged = self._staged
        if self._fetch is None:
            self._fetch = self._source(way)
            self._buffer = memoryview(bytearray(agreed.DELIVERY_PIECE_BYTES))
        if not staged.whole():
            n = self._fetch.read(staged.have, self._buffer)
            if staging.allow(self._kind, n):
                raise DeliveryError("too much was written in a short time")
            staged.put(staged.have, self._buffer[:n])
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
        log.say(
            "delivery",
            "%s: fetching %d bytes from %s at %d" % (self._name, staged.size, host, staged.have),
        )
        where = Endpoint(host, port, way.config.ecc_only)
        return Fetch(where, path, trust.roots, staged.size)

    def close(self):
        """The hub can be called again."""
        self.fetching = False
        held, self._fetch, self._buffer = self._fetch, None, None
        if held:
            held.close()

    def _done(self, outcome, value):
        if outcome:
            value = 500, {"error": "the handler of %s failed" % self._name}
        status, result = value
        d = self._delivery
        if status < 300 or status in FOR_GOOD:
            # What was asked for, whatever the handler has done with the file.
            d.over[self._name] = self._kind.last[0] if self._kind.last else None
            d.backoff = None
            d.report(self._name, self._version, status, result)
            d.ended(1000)  # there may be another kind to look at
        else:
            why = result.get("error") if isinstance(result, dict) else "it was not taken"
            d.later(self._name, why, self._version, status)
