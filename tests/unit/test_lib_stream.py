"""Stream: bytes in order whatever the socket takes, and a deadline on every wait."""

import pytest

PRELUDE = """
import time
from outpost import stream
from outpost.errors import MqttError, TlsError

class Poll:
    '''What select.poll() is to a Stream; keeps what it was asked.'''
    def __init__(self):
        self.waits = []
        self.registered = []
    def register(self, sock, events):
        self.registered.append(sock)
    def modify(self, sock, events):
        pass
    def unregister(self, sock):
        if sock not in self.registered:
            raise KeyError
        self.registered.remove(sock)
    def poll(self, ms):
        assert 0 < ms <= 1000, ms
        self.waits.append(ms)
        time.sleep_ms(2)

class Select:
    POLLIN, POLLOUT = 1, 4
    poll = Poll

stream.select = Select

class Sock:
    '''takes: how many bytes each write takes, None for "would block".'''
    def __init__(self, takes=(), reads=()):
        self.takes, self.reads = list(takes), list(reads)
        self.got = bytearray()
        self.closed = 0
    def write(self, view):
        n = self.takes.pop(0) if self.takes else len(view)
        if isinstance(n, Exception):
            raise n
        if n is None:
            return None
        self.got.extend(view[:n])
        return min(n, len(view))
    def readinto(self, view):
        r = self.reads.pop(0) if self.reads else None
        if isinstance(r, Exception):
            raise r
        if r:
            view[:len(r)] = r
            return len(r)
        return None if r is None else 0
    def close(self):
        self.closed += 1
        raise OSError(9)

class Stuck(Sock):
    def write(self, view):
        return super().write(view) if self.takes else None

def expect(error, words, f, *a):
    try:
        f(*a)
    except error as e:
        assert words in str(e), str(e)
    else:
        raise AssertionError("no " + error.__name__)
"""


@pytest.fixture
def run(micropython):
    return lambda script: micropython(PRELUDE + script)


def test_small_writes_travel_together_and_large_ones_in_order(run):
    run("""
calls = []
class Count(Sock):
    def write(self, view):
        calls.append(len(view))
        return super().write(view)
s = stream.Stream(Count())
s.write(b"ab")
s.write("c\\u00e9")
s.write(b"dxxxx", 1)
assert not calls
s.flush()
assert calls == [6] and bytes(s._sock.got) == b"abc\\xc3\\xa9d"
s.flush()
assert calls == [6]
data = bytes(range(256)) * 7
s = stream.Stream(Sock([1, None, 3, 500] * 3))
s.write(data)
s.flush()
assert bytes(s._sock.got) == data
""")


def test_peer_that_never_reads_ends_at_the_deadline(run):
    run("""
s = stream.Stream(Stuck([4]))
s.timeout_ms = 60
s.write(b"abcdefgh")
start = time.ticks_ms()
expect(MqttError, "took no data for", s.flush)
assert 50 < time.ticks_diff(time.ticks_ms(), start) < 1000
s = stream.Stream(Stuck())
s.timeout_ms = 60
s.write(b"x")
expect(TlsError, "handshake was not done", s.flush)
""")


def test_deadlines_hold_while_the_ticks_wrap(run):
    run("""
turn_ms = time.ticks_add(0, -1) + 1     # 2**30 on a board
class Ticks:
    now = turn_ms - 30
    ticks_diff = time.ticks_diff
    @classmethod
    def ticks_ms(cls):
        cls.now += 7
        return cls.now % turn_ms
stream.time = Ticks
s = stream.Stream(Stuck([4]))
s.timeout_ms = 60
s.write(b"abcdefgh")
expect(MqttError, "took no data for", s.flush)
assert Ticks.now < turn_ms + 200
""")


def test_lost_connection_is_one_error_before_and_after_the_handshake(run):
    run("""
s = stream.Stream(Sock([OSError(-0x7780, "MBEDTLS")]))
s.write(b"x")
expect(OSError, "", s.flush)              # the handshake's own: tls.py explains it
for e in (OSError(104), OSError()):
    s = stream.Stream(Sock([1, e]))
    s.write(b"xy")
    expect(MqttError, "connection was lost", s.flush)
    s = stream.Stream(Sock(reads=[e]))
    expect(MqttError, "connection was lost", s.read_some, bytearray(1))
""")


def test_reading_never_waits_and_tells_nothing_from_the_end(run):
    run("""
s = stream.Stream(Sock(reads=[None, b"ab", b""]))
b = bytearray(4)
assert s.read_some(b) == 0
assert s.read_some(b) == 2 and bytes(b[:2]) == b"ab"
expect(MqttError, "closed the connection", s.read_some, b)
""")


def test_wait_of_nothing_or_less_does_not_wait(run):
    run("""
s = stream.Stream(Sock())
s.wait(0)
s.wait(-5)
assert s._poll.waits == []
s.wait(5)
assert s._poll.waits == [5]
""")


def test_close_can_be_called_twice_and_never_raises(run):
    run("""
s = stream.Stream(Sock())
s.close()
s.close()
assert s._poll.registered == [] and s._sock.closed == 2
""")
