"""A hub that knows the device and means it ill: floods, bombs, lies about packets, half a word.

Each is played by a server with a good certificate after a good CONNACK; the device names it or
bears it, goes on, and comes back.
"""

from __future__ import annotations

import contextlib
import time

import pytest
from test_bad_input import TlsServer, server_context
from world import line_number

LEGS_HERE = ("outpost32", "stock32")
CONNACK = b"\x20\x02\x00\x00"

MAIN = b"""
import gc
from outpost import Device
d = Device()

@d.method("m")
def m(payload):
    return payload

@d.method("slow")
def slow(payload):
    for _ in range(3):
        yield 100

@d.desired("interval")
def interval(value):
    print("INTERVAL", value)

@d.message
def message(body, properties):
    print("GOT", bytes(body)[:20])

@d.every(seconds=0.5)
def alive():
    print("ALIVE")

d.run()
"""


def length(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes(out + bytes((n,)))


def publish(topic: bytes, body: bytes = b"", pid: int | None = None) -> bytes:
    rest = len(topic).to_bytes(2, "big") + topic
    rest += b"" if pid is None else pid.to_bytes(2, "big")
    return bytes((0x30 if pid is None else 0x32,)) + length(len(rest + body)) + rest + body


def suback(packet: bytes, codes: bytes) -> bytes:
    at = packet.index(b"\x82")
    while packet[at + 1] & 0x80:
        at += 1
    return b"\x90" + length(2 + len(codes)) + packet[at + 2 : at + 4] + codes


class Ill:
    """What came from the device, connection by connection; `after` is called in each."""

    def __init__(self, world, after, main=MAIN):
        self.heard: list[bytes] = []

        def talk(tls) -> None:
            with contextlib.suppress(OSError):
                tls.settimeout(10)
                tls.recv(4096)
                tls.sendall(CONNACK)
                asked = tls.recv(4096)
                after(self, tls, asked)

        context = server_context(world.ca.leaf("ecdsa", ["localhost"]))
        self.server = TlsServer(world, context, talk)
        flash = world.image(self.server.port, files={"/main.py": main})
        self.board = world.board(flash)

    def listen(self, tls, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            tls.settimeout(max(0.05, end - time.monotonic()))
            with contextlib.suppress(TimeoutError):
                got = tls.recv(4096)
                if not got:
                    return
                self.heard.append(got)


METHOD = b"$iothub/methods/POST/m/?$rid="
BOUND = b"devices/press-7/messages/devicebound/"
DESIRED = b"$iothub/twin/PATCH/properties/desired/?$version="

BORNE = {
    "refused subscriptions": lambda asked: suback(asked, b"\x80\x80\x80\x80"),
    "a topic of 65,535 bytes": lambda _: publish(b"t" * 65535) + publish(b"t" * 65535, b"x", 7),
    "invalid UTF-8 in every place": lambda _: b"".join(
        publish(topic, b"\xff\xfe", pid)
        for pid in (None, 9)
        for topic in (
            b"\xff\xfe",
            b"$iothub/methods/POST/\xff/?$rid=1",
            METHOD + b"\xff",
            BOUND + b"\xff=\xff&%ff=%fe&%zz=%",
            b"$iothub/twin/res/\xff/?$rid=\xff",
            DESIRED + b"\xff",
        )
    ),
    "request ids that are none": lambda _: b"".join(
        publish(METHOD + rid, b"1")
        for rid in (b"", b"#", b"a/b", b"x" * 129, b"\x00", b"+", b" ", b"1&$rid=2", b"?")
    ),
    "JSON bombs": lambda _: b"".join(
        publish(METHOD + b"1", bomb) + publish(DESIRED + b"2", bomb)
        for bomb in (b"[" * 3900, b'{"a":' * 700, b"[1" + b",1" * 1900, b'"' * 3000, b"9" * 3000)
    ),
    "twin bombs": lambda _: (
        b"".join(
            publish(DESIRED + b"%d" % n, b'{"interval": %d, "$version": %d}' % (n, n))
            for n in (5, 3, 1 << 70, 0, 2, 9, 9)
        )
        + publish(b"$iothub/twin/res/200/?$rid=g77", b'{"desired": {"interval": 666}}')
        + publish(b"$iothub/twin/res/200/?$rid=", b"{}")
    ),
    "acknowledgements for nothing": lambda _: b"\x40\x02\x12\x34\xd0\x00" * 300,
    "messages that are too long": lambda _: (
        publish(BOUND + b"$.mid=1", b"x" * 200_000, 3) + publish(METHOD + b"1", b"x" * 100_000)
    ),
    "a flood of calls": lambda _: publish(METHOD + b"1", b"7") * 400,
}


@pytest.mark.parametrize("name", BORNE)
def test_hub_that_means_it_ill_is_borne(world, name):
    def after(ill, tls, asked):
        tls.sendall(BORNE[name](asked))
        ill.listen(tls, 3)
        tls.sendall(publish(METHOD + b"last", b'"still here"'))
        ill.listen(tls, 4)

    ill = Ill(world, after)
    at = line_number(ill.board, r"hub +connected")
    answered = line_number(ill.board, r"answered status=200 bytes=12", at)
    text = "\n".join(line.text for line in ill.board.lines[:answered])
    assert "error" not in text and "a fault in the software" not in text
    assert "INTERVAL" not in text
    assert ("GOT" in text) == (name == "invalid UTF-8 in every place")  # bytes are a message


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"\x30\xff\xff\xff\x7f", "more than the 4096"),
        (b"\x90\x06\x77\x77\x00\x00\x00\x00", "SUBACK for nothing"),
        (b"\x82\x05\x00\x01\x00\x01a", "packet of type 0x82"),
        (b"\xd0\x82\x20" + bytes(5000), "more than the 4096"),
        (publish(b"", b"x"), "topic does not fit"),
    ],
)
def test_packet_that_breaks_the_protocol_costs_the_connection_and_it_comes_back(world, sent, words):
    ill = Ill(world, lambda ill, tls, asked: (tls.sendall(sent), ill.listen(tls, 5)))
    at = line_number(ill.board, rf"error +mqtt: .*{words}.* kind=network")
    line_number(ill.board, rf"error +mqtt: .*{words}", at + 1)
    assert "Traceback" not in ill.board.text


STATES = {
    "before SUBACK": lambda asked: b"",
    "in the middle of a fixed header": lambda asked: b"\x32\x80",
    "in the middle of a topic": lambda asked: publish(BOUND, b"x" * 9, 3)[:10],
    "in the middle of a message": lambda asked: publish(BOUND, b"x" * 900, 3)[:-5],
    "in the middle of one that is too long": lambda asked: publish(BOUND, b"x" * 90_000, 3)[:-5],
    "after SUBACK": lambda asked: suback(asked, bytes(4)),
    "with a call under way": lambda asked: publish(b"$iothub/methods/POST/slow/?$rid=1"),
}


@pytest.mark.parametrize("state", STATES)
def test_hub_that_closes_in_any_state_is_met_again(world, state):
    ill = Ill(world, lambda ill, tls, asked: tls.sendall(STATES[state](asked)))
    at = 0
    for _ in range(3):
        at = line_number(ill.board, r"error +mqtt: .*next attempt", at) + 1
    assert "Traceback" not in ill.board.text and "a fault" not in ill.board.text


FILL = MAIN.replace(b"seconds=0.5", b"seconds=0.01").replace(
    b'print("ALIVE")',
    b"""if d.online:
        for _ in range(8):
            d.send(b"x" * 900, durable=False)""",
)


def test_hub_that_stops_reading_is_left_at_the_deadline(world):
    def after(ill, tls, asked):
        # Messages are answered before they were read: so the window does not close for a while.
        for pid in range(1, 200):
            tls.sendall(b"\x40\x02" + pid.to_bytes(2, "big"))
            time.sleep(0.02)
        time.sleep(45)

    ill = Ill(world, after, main=FILL)
    at = line_number(ill.board, r"send +sent id=r9 ")
    line_number(
        ill.board, r"error +mqtt: the server (took no data|acknowledged nothing) for", at, 75
    )


def test_one_byte_a_second_does_not_stop_the_loop_and_ends_at_the_deadline(world):
    def after(ill, tls, asked):
        for byte in publish(BOUND, b"x" * 2000):
            tls.sendall(bytes((byte,)))
            time.sleep(1)

    ill = Ill(world, after)
    at = line_number(ill.board, r"hub +connected")
    ended = line_number(ill.board, r"error +mqtt: the server sent half a packet", at, 60)
    alive = sum(line.text == "ALIVE" for line in ill.board.lines[at:ended])
    assert alive > 30
