"""Stream: a TLS socket with a deadline on everything.

Non-blocking below; every wait goes through one poll with the time that is left.
What is written is gathered in one buffer, so that a packet made of many small
writes travels as one TLS record. No read or write can hang.
"""

import select
import time

from .errors import MqttError, TlsError

_OUT = 512


def _lost(e):
    return MqttError("the connection was lost (%s)" % e)


class Stream:
    """Owns the socket. Allocates 512 bytes for output once."""

    def __init__(self, sock):
        self._sock = sock
        self._out = bytearray(_OUT)
        self._view = memoryview(self._out)
        self._n = 0
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self.timeout_ms = 20000
        self.handshaken = False

    def write(self, data, n=None):
        """Gather `data` (its first n bytes); sends when the buffer is full."""
        if isinstance(data, str):
            data = data.encode()
        size = len(data) if n is None else n
        view = memoryview(data)
        at = 0
        while at < size:
            if self._n == _OUT:
                self.flush()
            step = min(size - at, _OUT - self._n)
            self._view[self._n : self._n + step] = view[at : at + step]
            self._n += step
            at += step
        return size

    def flush(self):
        """Send what is gathered, within timeout_ms; MqttError where the peer stops reading.

        The TLS handshake happens inside the first flush, under the same deadline.
        """
        start = time.ticks_ms()
        at = 0
        # A write that would block must be repeated with the same bytes: mbedtls has
        # already encrypted them. So the place only moves by what was taken.
        while at < self._n:
            try:
                done = self._sock.write(self._view[at : self._n])
            except OSError as e:
                if self.handshaken:
                    raise _lost(e)
                raise
            if done:
                self.handshaken = True
                at += done
                continue
            left = self.timeout_ms - time.ticks_diff(time.ticks_ms(), start)
            if left <= 0:
                if not self.handshaken:
                    raise TlsError(
                        "the TLS handshake was not done in %d s" % (self.timeout_ms // 1000)
                    )
                raise MqttError("the server took no data for %d s" % (self.timeout_ms // 1000))
            self._poll.modify(self._sock, select.POLLOUT)
            try:
                self._poll.poll(min(left, 500))
            finally:
                self._poll.modify(self._sock, select.POLLIN)
        self._n = 0

    def read_some(self, view):
        """Bytes read into view: 0 when nothing is there now; MqttError when the peer closed."""
        try:
            n = self._sock.readinto(view)
        except OSError as e:
            raise _lost(e)
        if n is None:
            return 0
        if n == 0:
            raise MqttError("the server closed the connection")
        return n

    def wait(self, timeout_ms):
        """Wait until something can be read, at most timeout_ms."""
        if timeout_ms > 0:
            self._poll.poll(timeout_ms)

    def readable(self):
        """Whether something is there to be read now, or the connection has ended."""
        return bool(self._poll.poll(0))

    def cipher(self):
        """(suite, version) of the finished handshake, as mbedtls names them."""
        return self._sock.cipher()

    def close(self):
        try:
            self._poll.unregister(self._sock)
        except (KeyError, OSError):
            pass
        try:
            self._sock.close()
        except OSError:
            pass
