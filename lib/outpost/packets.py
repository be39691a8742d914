"""Packets: one MQTT packet after the other out of a Stream, never waiting for it.

A length is believed only up to `limit`: of a longer PUBLISH the front is kept, so that the
caller can say whose it was, and the rest is read and forgotten, 256 bytes at a time. Half a
packet has a deadline by its length. Owns no flash, and no more RAM than `limit`.
"""

import time

from micropython import const

from .errors import MqttError

_FRONT = const(256)  # kept of a packet that is too long
_DRAINED_MAX = const(1 << 20)  # a length beyond that is no message, it is an attack
_PUBLISH = const(0x30)
_SLOWEST_MS = const(4)  # a byte may take that long on average, in a packet ...
_LONGEST_MS = const(100000)  # ... of up to this much time on top of the stream's own


class Packets:
    """receive() gives the first byte of a packet that is whole; then body, size and pid hold.

    body   what came, or the first 256 bytes of what was `cut`
    size   the length that the packet had
    pid    of a PUBLISH at QoS 1 that was cut, else None
    """

    def __init__(self, stream, limit):
        self.stream = stream
        self.limit = limit
        self._head = bytearray(5)
        self.done()

    def done(self):
        """The packet was dealt with: let go of it and read the next one."""
        self.body = None
        self.size = 0
        self.cut = False
        self.pid = None
        self._pid_at = -2
        self._got = 0
        self._start = None

    def midway(self):
        """Whether a packet has begun to come in."""
        return self._start is not None

    def receive(self):
        """The first byte of a packet that is now whole, or None."""
        if self.body is None and not self._fixed_header():
            return self._late()
        kept = len(self.body)
        while self._got < kept:
            n = self.stream.read_some(memoryview(self.body)[self._got :])
            if not n:
                return self._late()
            self._got += n
        if self.cut and not self._drain(kept):
            return self._late()
        return self._head[0]

    def _late(self):
        """None, or MqttError where half a packet has taken too long."""
        if self._start is not None:
            allowed = self.stream.timeout_ms + min(self.size * _SLOWEST_MS, _LONGEST_MS)
            if time.ticks_diff(time.ticks_ms(), self._start) > allowed:
                raise MqttError("the server sent half a packet and then nothing")
        return None

    def _fixed_header(self):
        """Read it a byte at a time: its length is in its bytes. True where it is whole."""
        head = self._head
        while True:
            if not self.stream.read_some(memoryview(head)[self._got : self._got + 1]):
                return False
            if self._got == 0:
                self._start = time.ticks_ms()
            self._got += 1
            if self._got == 1 or head[self._got - 1] & 0x80:
                if self._got == 5:
                    raise MqttError("the server sent a length that MQTT does not allow")
                continue
            size = 0
            for i in range(self._got - 1, 0, -1):
                size = size << 7 | head[i] & 0x7F
            self._begin(size)
            return True

    def _begin(self, size):
        kept = size
        if size > self.limit:
            if self._head[0] & 0xF0 != _PUBLISH or size > _DRAINED_MAX:
                raise MqttError(
                    "the server sent a packet of %d bytes, more than the %d this device takes"
                    % (size, self.limit)
                )
            kept = min(_FRONT, self.limit)
            self.cut = True
        try:
            self.body = bytearray(kept)
        except MemoryError:
            # As good as one that is too long: it must not end the connection each time.
            if self._head[0] & 0xF0 != _PUBLISH:
                raise
            self.body = bytearray(min(_FRONT, kept))
            self.cut = True
        self.size = size
        self._got = 0

    def _drain(self, kept):
        """Read on without keeping anything but the packet id. True at the end of the packet."""
        if self._got == kept and self._head[0] & 6 and self._pid_at < 0:
            self._pid_at = 2 + (self.body[0] << 8 | self.body[1])
            self.pid = 0
            for i in range(self._pid_at, min(self._pid_at + 2, kept)):
                self.pid = self.pid << 8 | self.body[i]
        scratch = memoryview(bytearray(_FRONT))
        while self._got < self.size:
            # Never across either end of the packet id, which the topic's length may put anywhere.
            end = self.size
            inside = self._pid_at <= self._got < self._pid_at + 2
            if inside:
                end = self._pid_at + 2
            elif self._got < self._pid_at:
                end = self._pid_at
            end = min(end, self.size, self._got + _FRONT)
            n = self.stream.read_some(scratch[: end - self._got])
            if not n:
                return False
            if inside:
                for i in range(n):
                    self.pid = self.pid << 8 | scratch[i]
            self._got += n
        return True
