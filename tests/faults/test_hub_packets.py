"""Packets made by Hypothesis: cut, bent, too long, in any order. The connection may end; the hub
may not, and it says why once."""

import asyncio
import socket
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from outpost_tools.hub.load import Load
from pahodevice import RawSession, World, packet, text

TOPICS = [
    "devices/pump-7/messages/events/",
    "devices/pump-7/messages/events/a=1&%24.ct=%FF&=&&x",
    "devices/pump-7/messages/devicebound/#",
    "devices/pump-8/messages/events/",
    "$iothub/methods/POST/#",
    "$iothub/methods/res/200/?$rid=1",
    "$iothub/methods/res/-/?$rid=",
    "$iothub/methods/res/²/?$rid=1",
    "$iothub/twin/res/#",
    "$iothub/twin/GET/?$rid=1",
    "$iothub/twin/GET/",
    "$iothub/twin/PATCH/properties/reported/?$rid=2",
    "$iothub/twin/PATCH/properties/desired/#",
    "$dps/registrations/PUT/iotdps-register/?$rid=1",
    "#",
    "",
]
BODIES = [b"", b"{}", b'{"a": 1}', b"[" * 3000, b'{"a": NaN}', b"\xff\xfe", b'"\\ud800"', b"null"]

ids = st.sampled_from([b"\0\0", b"\0\1", b"\0\2", b"\xff\xff"])
topics = st.sampled_from([t.encode() for t in TOPICS]) | st.binary(max_size=20)
bodies = st.sampled_from(BODIES) | st.binary(max_size=60)


def publishes():
    def build(qos, flags, topic, packet_id, body):
        middle = packet_id if qos else b""
        return packet(0x30 | flags | qos << 1, text(topic) + middle + body)

    return st.builds(build, st.integers(0, 3), st.sampled_from([0, 1, 8, 9]), topics, ids, bodies)


subscribes = st.builds(
    lambda i, found: packet(0x82, i + b"".join(text(t) + bytes([q]) for t, q in found)),
    ids,
    st.lists(st.tuples(topics, st.integers(0, 4)), max_size=3),
)
unsubscribes = st.builds(
    lambda i, found: packet(0xA2, i + b"".join(map(text, found))), ids, st.lists(topics, max_size=3)
)
pubacks = ids.map(lambda i: packet(0x40, i))
others = st.builds(
    lambda first, body: packet(first, body), st.integers(0, 255), st.binary(max_size=30)
)
ping = st.just(b"\xc0\0")
whole = publishes() | subscribes | unsubscribes | pubacks | ping | others


@st.composite
def bent(draw):
    """A packet with a byte changed, cut short, or with something after it."""
    data = bytearray(draw(whole))
    how = draw(st.sampled_from(["change", "cut", "more"]))
    at = draw(st.integers(0, max(0, len(data) - 1)))
    if how == "change" and data:
        data[at] = draw(st.integers(0, 255))
    elif how == "cut":
        del data[at:]
    else:
        data[at:at] = draw(st.binary(min_size=1, max_size=5))
    return bytes(data)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("packets") / "data")
    yield world
    world.hub.stop()


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.lists(whole | bent(), min_size=1, max_size=8))
def test_whatever_comes_after_connect_the_hub_lives_and_says_why_once(world, sent):
    before = len(world.hub.events)
    with RawSession(world) as raw:
        try:
            raw.send(b"".join(sent))
            raw.tls.shutdown(socket.SHUT_WR)
            while raw.tls.recv(4096):
                pass
        except OSError:
            pass
    assert world.hub.wait_until(
        lambda: [e for e in world.hub.events[before:] if e["event"] == "closed"], 10
    )
    closed = [e for e in world.hub.events[before:] if e["event"] == "closed"]
    assert len(closed) == 1 and "fault in the hub" not in closed[0]["reason"]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(packet(0x10, b""), id="a second CONNECT"),
        pytest.param(b"\x30\xff\xff\xff\x7f", id="a PUBLISH of 256 MB"),
        pytest.param(b"\x30\x80\x80\x80\x80\x01", id="a length of five bytes"),
        pytest.param(packet(0x40, b"\0\7"), id="a PUBACK for nothing"),
        pytest.param(packet(0x82, b"\0\1"), id="a SUBSCRIBE to nothing"),
        pytest.param(packet(0x82, b"\0\1" + text(b"\xff") + b"\0"), id="a filter of bad UTF-8"),
        pytest.param(packet(0xA2, b"\0\0" + text(b"a")), id="an UNSUBSCRIBE with packet id 0"),
        pytest.param(packet(0x50, b"\0\1"), id="a PUBREC"),
        pytest.param(packet(0x90, b"\0\1\0"), id="a SUBACK from the device"),
    ],
)
def test_what_is_out_of_order_ends_the_connection_with_one_line(world, data):
    before = len(world.hub.events)
    with RawSession(world) as raw:
        raw.send(data)
        try:
            while raw.tls.recv(4096):
                pass
        except OSError:
            pass
    assert world.hub.wait_until(lambda: len(world.hub.events) == before + 2)
    assert [e["event"] for e in world.hub.events[before:]] == ["connected", "closed"]


def test_a_device_that_floods_and_reads_nothing_does_not_stop_the_others(world):
    deaf = RawSession(world)
    flood = threading.Thread(target=send_all, args=(deaf, b"\xc0\0" * 300000))
    flood.start()
    load = Load(world.data, 1, 50.0, "127.0.0.1", world.hub.port, 100, "localhost")
    result = asyncio.run(load.run(1.5))
    load.look_into_the_store()
    deaf.tls.close()
    flood.join()
    assert result.acknowledged > 40 and result.lost == 0


def send_all(raw, data):
    try:
        raw.tls.settimeout(2)
        raw.send(data)
    except OSError:
        pass
