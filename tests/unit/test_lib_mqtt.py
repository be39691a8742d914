"""The faults of umqtt.simple, each shown mended, against a scripted peer."""

import pytest

PRELUDE = """
import time
from outpost.mqtt import Session
from outpost.errors import MqttError, Refused

class Peer:
    '''A Stream whose other end is a script: `incoming` is what the server sends.'''
    timeout_ms = 50
    def __init__(self, incoming=b"", step=1000):
        self.incoming = bytearray(incoming)
        self.step = step
        self.sent = bytearray()
        self.out = bytearray()
        self.flushes = 0
        self.closed = False
    def write(self, data, n=None):
        if isinstance(data, str):
            data = data.encode()
        self.out.extend(data if n is None else bytes(data[:n]))
    def flush(self):
        self.flushes += 1
        self.sent.extend(self.out)
        self.out = bytearray()
    def read_some(self, view):
        n = min(len(view), len(self.incoming), self.step)
        view[:n] = self.incoming[:n]
        self.incoming = self.incoming[n:]
        return n
    def wait(self, ms):
        time.sleep_ms(min(ms, 5))
    def close(self):
        self.closed = True

def session(incoming=b"", keepalive=60, step=1000, connack=b"\\x20\\x02\\x00\\x00", **k):
    peer = Peer(connack + incoming, step)
    s = Session("dev", "user", "pass", keepalive, **k)
    s.connect(peer, False, 100)
    return s, peer

def expect(error, words, f, *a, **k):
    try:
        f(*a, **k)
    except error as e:
        assert words in str(e), str(e)
    else:
        raise AssertionError("no " + error.__name__)
"""


@pytest.fixture
def run(micropython):
    return lambda script: micropython(PRELUDE + script)


def test_connect_is_one_record_and_counts_bytes_not_characters(run):
    run("""
peer = Peer(b"\\x20\\x02\\x01\\x00")
s = Session("dev", "us\\u00e9r", "pw", 300)
assert s.connect(peer, False) is True
assert peer.flushes == 1
body = b"\\x00\\x04MQTT\\x04\\xc0\\x01\\x2c\\x00\\x03dev\\x00\\x05us\\xc3\\xa9r\\x00\\x02pw"
assert bytes(peer.sent) == bytes((0x10, len(body))) + body, peer.sent
""")


@pytest.mark.parametrize(
    ("code", "person"), [(1, True), (2, True), (3, False), (4, True), (5, True), (77, False)]
)
def test_refused_connack_is_a_typed_error(run, code, person):
    run(f"""
try:
    session(connack=bytes((0x20, 2, 0, {code})))
except Refused as e:
    assert e.code == {code} and e.person is {person}
else:
    raise AssertionError
""")


def test_connack_that_never_comes_ends_at_its_deadline(run):
    run("""
start = time.ticks_ms()
expect(MqttError, "no CONNACK", session, connack=b"")
assert time.ticks_diff(time.ticks_ms(), start) < 2000
expect(MqttError, "not a CONNACK", session, connack=b"\\x30\\x02\\x00\\x00")
expect(MqttError, "not a CONNACK", session, connack=b"\\x20\\x03\\x00\\x00\\x00")
""")


def test_packet_ids_wrap_and_skip_those_in_flight(run):
    run("""
s, peer = session()
assert s.publish("t", b"1") == 1
s.pid = 65534
assert s.publish("t", b"2") == 65535
assert s.publish("t", b"3") == 2      # 0 is not allowed, 1 is in flight
assert sorted(s.inflight) == [1, 2, 65535]
""")


def test_publish_again_is_flagged_as_duplicate(run):
    run("""
s, peer = session()
peer.sent = bytearray()
pid = s.publish("t", b"x")
s.publish("t", b"x", pid=pid)
rest = b"\\x06\\x00\\x01t\\x00\\x01x"
assert bytes(peer.sent) == b"\\x32" + rest + b"\\x3a" + rest, peer.sent
assert len(s.inflight) == 1
""")


def test_pubacks_release_in_any_order_and_one_for_nothing_changes_nothing(run):
    run("""
for step in (1, 2, 3, 1000):
    s, peer = session(step=step)
    done = []
    s.acknowledged = done.append
    for _ in range(3):
        s.publish("t", b"x")
    peer.incoming.extend(b"\\x40\\x02\\x00\\x03\\x40\\x02\\x00\\x63\\x40\\x02\\x00\\x01\\x40\\x02\\x00\\x03")
    for _ in range(100):
        s.check_msg()
    assert done == [3, 1], done
    assert list(s.inflight) == [2]
""")


def test_incoming_length_is_checked_before_memory_is_taken(run):
    run("""
import gc
s, peer = session(b"\\x30\\xff\\xff\\xff\\x7f")   # 268,435,455 bytes
gc.collect(); before = gc.mem_alloc()
expect(MqttError, "268435455 bytes", s.check_msg)
gc.collect()
assert gc.mem_alloc() - before < 2000
s, peer = session(b"\\x30\\x80\\x80\\x80\\x80\\x01")
expect(MqttError, "length that MQTT does not allow", s.check_msg)
s, peer = session(b"\\xd0\\x65" + bytes(101), limit=100)
expect(MqttError, "101 bytes", s.check_msg)
""")


@pytest.mark.parametrize("topic", [1, 90, 251, 252, 253, 254, 255, 300, 65535])
def test_message_that_is_too_long_goes_by_and_is_acknowledged(run, topic):
    run(f"""
def length(n):
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    out.append(n)
    return out
for step in (1, 7, 1000) if {topic} < 999 else (1000,):
    for qos in (0, 1):
        size = 2 + {topic} + 2 * qos + 1500
        s, peer = session(limit=1024, step=step)
        heard = []
        s.too_long = lambda topic, size: heard.append((topic, size))
        s.received = s.cb = None
        head = bytes((0x30 | qos << 1,)) + length(size) + bytes(({topic} >> 8, {topic} & 255))
        def pieces():
            yield head
            for n in range(0, {topic}, 200):
                yield b"t" * min(200, {topic} - n)
            yield b"\\x12\\x34" * qos
            for n in range(15):
                yield bytes(100)
            yield b"\\xd0\\x00"
        peer.sent = bytearray()
        s._ping = 1
        for piece in pieces():
            peer.incoming.extend(piece)
            for _ in range(250 // step + 2):
                s.check_msg()
        assert s._ping is None, "what came behind it was not understood"
        assert heard == [(b"t" * min({topic}, 254), size)], heard
        assert bytes(peer.sent) == b"\\x40\\x02\\x12\\x34" * qos, peer.sent
""")


def test_every_filter_goes_into_one_packet_and_its_answer_is_not_waited_for(run):
    run("""
s, peer = session()
peer.sent = bytearray()
got = []
s.ask([("a/#", 0), ("b", 1)], got.append)
assert bytes(peer.sent) == b"\\x82\\x0c\\x00\\x01\\x00\\x03a/#\\x00\\x00\\x01b\\x01", peer.sent
assert s.asking() and s.check_msg() is None
peer.incoming.extend(b"\\x90\\x04\\x00\\x01\\x80\\x01")
s.check_msg()
assert got == [b"\\x80\\x01"] and not s.asking() and not s.inflight
s.ask([("a", 0)], got.append)
peer.incoming.extend(b"\\x90\\x03\\x00\\x07\\x00")
expect(MqttError, "SUBACK for nothing", s.check_msg)
s, peer = session()
s.ask([("a", 0)], got.append)
s.service(50)
time.sleep_ms(70)
expect(MqttError, "acknowledged nothing", s.service, 50)
""")


def test_one_who_does_not_read_pings_on_and_calls_nothing_late(run):
    run("""
s, peer = session(keepalive=0)
s.keepalive = 0.2
s.publish("t", b"x")
peer.sent = bytearray()
for _ in range(20):
    s.service(50, False)
    time.sleep_ms(30)
assert peer.sent.count(b"\\xc0\\x00") >= 3, peer.sent
s.service(50)                       # reading again: the deadlines begin anew
time.sleep_ms(60)
expect(MqttError, "acknowledged nothing", s.service, 50)
""")


def test_half_a_packet_ends_at_its_deadline(run):
    run("""
for half in (b"\\x40", b"\\x40\\x02", b"\\x40\\x02\\x00", b"\\x30\\x80"):
    s, peer = session(half)
    assert s.check_msg() is None
    time.sleep_ms(80)
    expect(MqttError, "half a packet", s.check_msg)
""")


def test_incoming_message_reaches_the_callback_and_is_acknowledged(run):
    run("""
s, peer = session(b"\\x30\\x04\\x00\\x01ab" + b"\\x32\\x07\\x00\\x02xy\\x12\\x34z", step=1)
got = []
s.set_callback(lambda topic, msg: got.append((topic, msg)))
peer.sent = bytearray()
for _ in range(100):
    s.check_msg()
assert got == [(b"a", b"b"), (b"xy", b"z")], got
assert bytes(peer.sent) == b"\\x40\\x02\\x12\\x34"
""")


@pytest.mark.parametrize(
    ("packet", "words"),
    [
        (rb"\x30\x01\x00", "never asked for"),
        (rb"\x36\x05\x00\x01a\x00\x01", "never asked for"),
        (rb"\x34\x05\x00\x01a\x00\x01", "never asked for"),
        (rb"\x30\x03\x00\x05a", "does not fit"),
        (rb"\x32\x03\x00\x01a", "does not fit"),
        (rb"\x30\x02\x00\x00", "does not fit"),
        (rb"\x90\x03\x00\x01\x00", "type 0x90"),
        (rb"\xd0\x01\x00", "type 0xd0"),
        (rb"\x40\x03\x00\x01\x00", "PUBACK of 3"),
        (rb"\x00\x00", "type 0x00"),
        (rb"\x10\x00", "type 0x10"),
        (rb"\xf0\x00", "type 0xf0"),
        (rb"\xd1\x00", "type 0xd1"),
        (rb"\x20\x02\x00\x00", "type 0x20"),
    ],
)
def test_peer_that_breaks_the_protocol_is_left(run, packet, words):
    run(f'''
s, peer = session(b"{packet.decode()}")
expect(MqttError, "{words}", s.check_msg)
''')


def test_message_that_nothing_subscribed_to_is_left_with_the_server(run):
    # A server keeps the subscriptions of earlier software: this must not end the connection.
    run("""
s, peer = session(b"\\x30\\x04\\x00\\x01ab" + b"\\x32\\x07\\x00\\x02xy\\x12\\x34z")
peer.sent = bytearray()
assert s.check_msg() == 0x30 and s.check_msg() == 0x32 and s.check_msg() is None
assert not peer.sent
""")


@pytest.mark.parametrize("after", range(1, 6))
def test_half_a_packet_is_never_ended_by_another(run, after):
    # The peer would take DISCONNECT's two bytes for the end of the message.
    run(f"""
s, peer = session()
class Short(Peer):
    def write(self, data, n=None):
        self.left -= 1
        if not self.left:
            raise MemoryError
        super().write(data, n)
s.sock = peer = Short()
peer.left = {after}
try:
    s.publish("t", b"xy")
except MemoryError:
    s.disconnect()
    assert not peer.sent and peer.closed and s.sock is None
else:
    s.disconnect()
    assert bytes(peer.sent[-4:]) == b"xy\\xe0\\x00", peer.sent
    assert {after} > 4
""")


def test_unanswered_ping_means_the_connection_is_dead(run):
    run("""
s, peer = session(keepalive=0)
s.keepalive = 0.2   # half of it is 100 ms
assert s.service(10000) <= 100
time.sleep_ms(110)
s.service(10000)
assert bytes(peer.sent[-2:]) == b"\\xc0\\x00"
time.sleep_ms(110)
expect(MqttError, "ping", s.service, 10000)
s._ping = time.ticks_ms()
peer.incoming.extend(b"\\xd0\\x00")
s.check_msg()
assert s._ping is None
""")


def test_unacknowledged_publish_ends_at_its_deadline(run):
    run("""
s, peer = session()
s.publish("t", b"x")
s.service(100)
time.sleep_ms(120)
expect(MqttError, "acknowledged nothing", s.service, 100)
""")


def test_long_topic_filter_is_subscribed(run):
    run("""
s, peer = session()
s.set_callback(print)
topic = "devices/" + "d" * 128 + "/messages/devicebound/#"
peer.sent = bytearray()
peer.incoming.extend(b"\\x90\\x03\\x00\\x01\\x01")
assert s.subscribe(topic, 1) == 1
size = 2 + 2 + len(topic) + 1
assert bytes(peer.sent[:3]) == bytes((0x82, size & 0x7f | 0x80, size >> 7)), peer.sent[:3]
peer.incoming.extend(b"\\x90\\x03\\x00\\x02\\x80")
expect(MqttError, "refused the subscription", s.subscribe, "x")
expect(MqttError, "no SUBACK", s.subscribe, "x", 0, 50)
peer.incoming.extend(b"\\x90\\x03\\x00\\x63\\x00")
expect(MqttError, "SUBACK for nothing", s.subscribe, "x")
""")


def test_remaining_length_of_every_size(micropython):
    # Before the library is compiled: behind it a stock board has no such piece left.
    message = "message = memoryview(bytes(16400))\n"
    script = """
class Count(Peer):
    def write(self, data, n=None):
        n = len(data) if n is None else n
        self.total += n
        if len(self.first) < 6:
            self.first.extend(bytes(data[:min(n, 6)]))
s, peer = session()
s.sock = peer = Count()
for n in (0, 122, 123, 124, 125, 16376, 16377, 16378, 16379, 16380, 16381, 16400):
    peer.total, peer.first = 0, bytearray()
    s.publish("t", message[:n], qos=0)
    size, shift, i = 0, 0, 1
    while True:
        size |= (peer.first[i] & 0x7f) << shift
        shift += 7
        i += 1
        if not peer.first[i - 1] & 0x80:
            break
    assert size == 3 + n == peer.total - i, (n, size, peer.total)
"""
    micropython(message + PRELUDE + script)
