"""Fetch: one file from one HTTPS server, a piece at a time, over one verified connection.

HTTP/1.1 with ranges. The server is verified as every other; no redirect is followed, nothing
chunked or packed is taken, no credential and no word about this device is sent. A header is looked
through up to 4 KB and each piece has a deadline. Owns no flash; holds 512 bytes. Loaded while it
works.
"""

import time

from micropython import const

from . import tls, watchdog
from .errors import DeliveryError, MqttError, TlsError

_BUFFER = const(512)
_HEAD_MAX = const(4096)
_RUNGS = const(5)

piece_ms = 20000  # from the question to the last byte of its answer


class _Ladder(tls.Ladder):
    """Nothing of it is kept: the names of servers come from outside, and NVS is small."""

    def _load(self):
        return None

    def worked(self, granted):
        self.size = granted or 0
        self.ignored = not granted


class Fetch:
    """size: of the file; None until the server has said it, and then `most` at the most.

    where  tls.connect()'s Endpoint; roots() gives the DER of those that its chain may end in
    """

    def __init__(self, where, path, roots, size=None, most=None):
        self.where = where
        self.size = size
        self._path = path
        self._most = most
        self._roots = roots
        self._ladder = _Ladder(where.host, where.port)
        self._stream = None
        self._buffer = bytearray(_BUFFER)
        self._at = self._end = 0  # what of the buffer is not used yet
        self._place = self._left = 0  # of the answer being read
        self._last = False  # whether the server closes after it
        self._deadline = self._quota = 0

    def close(self):
        stream, self._stream = self._stream, None
        if stream:
            stream.close()

    def read(self, at, view):
        """Fill the view with the bytes of the file from `at` on: how many there were.

        Less only at the end of the file. DeliveryError and TlsError say why not; the connection is
        then closed.
        """
        watchdog.feed()
        try:
            return self._read(at, view)
        except MqttError as e:
            self.close()
            raise DeliveryError("%s: %s" % (self.where.host, e))
        except BaseException:
            self.close()
            raise

    def _read(self, at, view):
        if not self._left or self._place != at or not self._stream:
            self._ask(at, len(view))
        else:
            self._begin_clock()
        want = min(len(view), self.size - at)
        got = 0
        while got < want:
            got += self._some(view[got:want])
        self._place += got
        self._left -= got
        if not self._left and self._last:
            self.close()
        return got

    # The question

    def _ask(self, at, count):
        if self._left or self._at < self._end:
            self.close()  # in the middle of an answer that nobody wants any more
        self._at = self._end = self._left = 0
        if not self._asked_again(at, count):
            self._connect(at, count)
        # A server without ranges sends all of it: up to `at` it is known already.
        scratch = memoryview(bytearray(64))
        while self._place < at:
            n = self._some(scratch[: min(64, at - self._place)])
            self._place += n
            self._left -= n

    def _asked_again(self, at, count):
        """Whether the connection there is has answered. A server may end one that is not in use,
        and says so to nobody: then it is asked over another."""
        if not self._stream:
            return False
        self._quota = _HEAD_MAX
        try:
            self._question(self._stream, at, count)
            return True
        except MqttError:
            if self._quota < _HEAD_MAX:
                raise  # in the middle of its answer
        self.close()
        return False

    def _connect(self, at, count):
        for rung in range(_RUNGS):
            watchdog.feed()
            try:
                tls.connect(
                    self.where,
                    self._roots,
                    lambda stream: self._question(stream, at, count),
                    self._ladder,
                )
                return
            except TlsError as e:
                if not e.climb or rung + 1 == _RUNGS:
                    raise

    def _question(self, stream, at, count):
        host = self.where.host
        if self.where.port != 443:
            host = "%s:%d" % (host, self.where.port)
        last = at + count - 1 if self.size is None else min(at + count, self.size) - 1
        stream.write("GET %s HTTP/1.1\r\nHost: %s\r\n" % (self._path, host))
        stream.write("Range: bytes=%d-%d\r\nAccept-Encoding: identity\r\n\r\n" % (at, last))
        stream.flush()
        self._stream = stream
        self._begin_clock()
        self._head(at, last)

    def _begin_clock(self):
        self._deadline = time.ticks_add(time.ticks_ms(), piece_ms)

    # The answer

    def _head(self, at, last):
        self._quota = _HEAD_MAX
        line = self._line().split(None, 2)
        status = line[1] if len(line) > 1 and line[0][:7] == b"HTTP/1." else b""
        if status not in (b"200", b"206"):
            if status[:1] == b"3":
                raise DeliveryError("the server sends to another address: not followed")
            words = str(status, "utf-8") if status.isdigit() else "something that is no HTTP"
            raise DeliveryError("the server answers %s" % words)
        self._last = line[0] != b"HTTP/1.1"
        length = span = None
        while True:
            line = self._line()
            if not line:
                break
            name, _, value = line.partition(b":")
            name = name.lower()
            value = value.strip()
            if name == b"content-length":
                if length not in (None, value):
                    raise DeliveryError("the server says two lengths")
                length = value
            elif name == b"content-range":
                span = value
            elif name == b"connection":
                self._last = self._last or b"close" in value.lower()
            elif name == b"transfer-encoding" or (
                name == b"content-encoding" and value.lower() != b"identity"
            ):
                raise DeliveryError("the server sends it in a form that is not taken")
        self._begins(status, length, span, at, last)

    def _begins(self, status, length, span, at, last):
        """Hold the head against the question."""
        length = _number(length)
        if status == b"200":
            self._place, total = 0, length
        else:
            # bytes FIRST-LAST/TOTAL
            first, _, rest = (span or b"").partition(b"-")
            end, _, total = rest.partition(b"/")
            total = _number(total)
            last = min(last, total - 1)
            if first != b"bytes %d" % at or _number(end) != last or length != last + 1 - at:
                raise DeliveryError("the server sends another range than it was asked for")
            self._place = at
        if self.size is None and 0 < total <= self._most:
            self.size = total
        if total != self.size:
            raise DeliveryError("the file has %d bytes there, which is not what is wanted" % total)
        self._left = length

    def _line(self):
        """The next line of the head without its end; of a long one the beginning."""
        line = b""
        while True:
            if self._at == self._end:
                self._fill()
            n = self._buffer.find(b"\n", self._at, self._end)
            end = self._end if n < 0 else n
            self._quota -= 1 + end - self._at
            if self._quota <= 0:
                raise DeliveryError("the server's head is longer than 4 KB")
            if len(line) < 256:
                line += bytes(self._buffer[self._at : min(end, self._at + 256)])
            self._at = end
            if n >= 0:
                self._at += 1
                return line.rstrip()

    def _fill(self):
        """Wait for bytes in the buffer."""
        self._at = self._end = 0
        self._end = self._wait(memoryview(self._buffer))

    def _some(self, view):
        """Bytes of the body, at least one."""
        n = min(len(view), self._end - self._at)
        if n:
            view[:n] = self._buffer[self._at : self._at + n]
            self._at += n
            return n
        return self._wait(view)

    def _wait(self, view):
        while True:
            left = time.ticks_diff(self._deadline, time.ticks_ms())
            if left <= 0:
                raise DeliveryError("the server is too slow: %d s for a piece" % (piece_ms // 1000))
            n = self._stream.read_some(view)
            if n:
                return n
            self._stream.wait(min(left, 500))


def _number(text):
    if not text or len(text) > 9 or not text.isdigit():
        raise DeliveryError("the server does not say how long it is")
    return int(text)
