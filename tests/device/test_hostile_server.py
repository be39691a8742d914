"""A server with a good certificate and bad manners: it costs the connection, or nothing.

Each case is what comes after a good CONNACK; the device names it, lives, and comes back.
"""

from __future__ import annotations

import contextlib
import time

import pytest
from legs import OURS
from test_bad_input import TlsServer, server_context
from world import line_number

CONNACK = b"\x20\x02\x00\x00"
LEGS_HERE = OURS

IDLE = b"from outpost import Device\nd = Device()\nd.run()\n"


def serve(world, after, config=None, main=None):
    context = server_context(world.ca.leaf("ecdsa", ["localhost"]))

    def talk(tls) -> None:
        with contextlib.suppress(OSError):
            tls.recv(4096)
            after(tls)

    server = TlsServer(world, context, talk)
    files = {"/main.py": main} if main else {}
    return world.board(world.image(server.port, config=config, files=files)), server


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"\x90\x03\x00\x01\x00", "packet of type 0x90"),
        (b"\x20\x02\x00\x00", "packet of type 0x20"),
        (b"\x40\x01\x00", "PUBACK of 1 bytes"),
        (b"\x30\xff\xff\xff\x7f", "more than the 4096"),
        (b"\x30\xff\xff\xff\xff\x01", "length that MQTT does not allow"),
        (b"\x36\x05\x00\x01a\x00\x01", "never asked for"),
        (b"", "closed the connection"),
    ],
)
def test_packet_that_breaks_the_protocol_is_named_and_the_device_comes_back(world, sent, words):
    board, server = serve(world, lambda tls: tls.sendall(CONNACK + sent), main=IDLE)
    at = line_number(board, rf"error +mqtt: .*{words}")
    line_number(board, rf"error +mqtt: .*{words}", at + 1)
    assert "Traceback" not in board.text and len(server.finished) >= 2


def test_what_nobody_asked_for_and_breaks_nothing_is_borne(world):
    def after(tls) -> None:
        # PUBACKs for nothing, PINGRESPs, messages at QoS 0 and 1, a flood of them.
        noise = b"\x40\x02\x00\x63" + b"\xd0\x00" + b"\x30\x04\x00\x01ab"
        tls.sendall(CONNACK + (noise + b"\x32\x07\x00\x02xy\x12\x34z") * 500)
        time.sleep(8)

    board, _ = serve(world, after)
    at = line_number(board, r"hub +connected")
    line_number(board, r"sent id=3", at)
    assert "error" not in board.text


def test_answer_that_drips_byte_by_byte_is_taken(world):
    def after(tls) -> None:
        for byte in CONNACK:
            time.sleep(0.5)
            tls.sendall(bytes((byte,)))
        tls.recv(4096)

    board, _ = serve(world, after)
    line_number(board, r"hub +connected")


def test_server_that_stops_in_the_middle_of_a_packet_is_left(world):
    def after(tls) -> None:
        tls.sendall(CONNACK + b"\x40\x02\x00")
        time.sleep(25)

    board, _ = serve(world, after, main=IDLE)
    line_number(board, r"error +mqtt: the server sent half a packet and then nothing", 0, 40)
