"""A provisioning service with a good certificate and bad manners, packet by packet: it costs an
attempt, and nothing in flash."""

from __future__ import annotations

import base64
import contextlib
import json

import pytest
from authority import Authority
from identities import edit, entries
from test_bad_input import TlsServer, server_context
from world import DEVICE_ID, line_number

LEGS_HERE = ("outpost32", "stock32")
CONNACK = b"\x20\x02\x00\x00"


def remaining(n: int) -> bytes:
    out = b""
    while True:
        out += bytes([n & 0x7F | (0x80 if n > 0x7F else 0)])
        n >>= 7
        if not n:
            return out


def publish(topic: str, body: bytes) -> bytes:
    name = topic.encode()
    content = len(name).to_bytes(2, "big") + name + body
    return b"\x30" + remaining(len(content)) + content


def answer(told, status: int = 200, rid: str = "1", more: str = "") -> bytes:
    body = told if isinstance(told, bytes) else json.dumps(told).encode()
    return publish(f"$dps/registrations/res/{status}/?$rid={rid}{more}", body)


def assigned(**state) -> dict:
    full = {"registrationId": DEVICE_ID, "assignedHub": "hub.example", "deviceId": DEVICE_ID}
    return {"status": "assigned", "registrationState": {**full, **state}}


def whole(tls) -> bytes:
    """One packet of less than 16 KiB, from however many records it came in."""
    got = b""
    while len(got) < 3 or len(got) < length_of(got):
        piece = tls.recv(4096)
        if not piece:
            return got
        got += piece
    return got


def length_of(packet: bytes) -> int:
    first, second = packet[1], packet[2]
    return 2 + first if first < 128 else 3 + (first & 127 | second << 7)


def body_of(packet: bytes) -> bytes:
    """Of a PUBLISH at QoS 1."""
    at = 2 if packet[1] < 128 else 3
    return packet[at + 2 + int.from_bytes(packet[at : at + 2], "big") + 2 :]


@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
def test_an_issued_chain_three_times_the_usual_fits_into_the_memory_there_is(world):
    authority = Authority()

    def issue(publish_packet: bytes) -> bytes:
        csr = base64.b64decode(json.loads(body_of(publish_packet))["csr"])
        chain = authority.sign(csr, extra=1500)
        assert 2100 < len(chain) <= 3072
        at = 4 + int.from_bytes(chain[2:4], "big")
        issued = [base64.b64encode(der).decode() for der in (chain[:at], chain[at:])]
        return answer(assigned(assignedHub="localhost", issuedCertificateChain=issued))

    board, flash = serve(world, issue, csr=True)
    board.wait_for(r"dps +assigned hub=localhost device=press-7", 60)
    board.stop()
    assert len(entries(flash, "ida")["ida"]) > 2100


def serve(world, *answers, connack: bytes = CONNACK, suback: int = 1, csr: bool = False):
    """Each packet that the device publishes is answered with the next of `answers`: bytes, or
    what makes them of the packet."""

    def talk(tls) -> None:
        with contextlib.suppress(OSError):
            tls.recv(4096)
            tls.sendall(connack)
            subscribe = tls.recv(4096)
            tls.sendall(b"\x90\x03" + subscribe[2:4] + bytes([suback]))
            for given in answers:
                asked = whole(tls)
                tls.sendall(given(asked) if callable(given) else given)
            while tls.recv(4096):
                pass

    context = server_context(world.ca.leaf("ecdsa", ["127.0.0.1"]))
    server = TlsServer(world, context, talk)
    dps = {"id_scope": "0ne00000001", "host": "127.0.0.1"} | ({"csr": True} if csr else {})
    flash = world.image(server.port, config={"dps": dps}, drop=("hub",))
    return world.board(flash), flash


CASES = {
    "huge": (answer(b"x" * 100_000), r"packet of 100\d\d\d bytes, more than the 5120"),
    "hub name of 10,000 bytes": (
        answer(assigned(assignedHub="h" * 10_000)),
        r"packet of 10\d\d\d bytes, more than the 5120",
    ),
    "hub name of 4,700 bytes": (
        answer(assigned(assignedHub="h" * 4_700)),
        "(is no host name|out of memory)",
    ),
    "hub name with a path": (answer(assigned(assignedHub="evil/devices/x?")), "is no host name"),
    "hub name with a line end": (answer(assigned(assignedHub="a\n1.0 hub ok")), "is no host name"),
    "device id of a path": (answer(assigned(deviceId="../x/y")), "no usable device id"),
    "another device": (answer(assigned(registrationId="press-8")), "for another device"),
    "JSON cut off": (answer(json.dumps(assigned()).encode()[:-20]), "no JSON object"),
    "no JSON": (answer(b"\x00\xff"), "no JSON object"),
    "packet cut off": (answer(assigned())[:-9], r"(half a packet|closed the connection)"),
    "unknown status": (answer({"message": "no\x1b[31m"}, 418), r"\(status 418"),
}


@pytest.mark.parametrize("name", CASES)
def test_lying_service_costs_an_attempt_and_nothing_in_flash(world, name):
    sent, words = CASES[name]
    board, flash = serve(world, sent)
    at = line_number(board, rf"error +(dps|mqtt|device): .*{words}", 0, 60)
    line_number(board, r"dps +asking", at, 60)
    assert "Traceback" not in board.text and "a fault in" not in board.text
    assert "\x1b" not in board.text
    board.stop()
    assert entries(flash, "hub")["hub"] is None


def test_second_answer_and_one_for_another_operation_are_not_taken(world):
    first = answer({"operationId": "4.a", "status": "assigning"}, 202, "1", "&retry-after=1")
    evil = answer(assigned(assignedHub="evil.example") | {"operationId": "5.b"}, 200, "1")
    lie = answer(assigned(assignedHub="evil.example") | {"operationId": "5.b"}, 200, "2")
    board, flash = serve(world, first + evil, lie)
    board.wait_for(r"error +dps: the provisioning service answered for another operation", 60)
    board.stop()
    assert entries(flash, "hub")["hub"] is None and "evil" not in board.text


def test_answer_that_comes_twice_is_taken_once(world):
    good = answer(assigned(assignedHub="localhost"))
    board, flash = serve(world, good + good)
    board.wait_for(r"dps +assigned hub=localhost device=press-7", 60)
    board.stop()
    kept = entries(flash, "hub")["hub"]
    assert kept == b"localhost\npress-7\n0ne00000001\npress-7"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"suback": 0x80}, "refused the subscription"),
        ({"connack": b"\x20\x02\x00\x03"}, "the server is not available now"),
        ({"connack": b"\x20\x02\x00\x05"}, "does not authorise this device"),
        ({"connack": b"\x30\x00"}, "not a CONNACK"),
    ],
)
def test_service_that_takes_no_question_is_named_and_asked_again(world, options, words):
    board, _ = serve(world, **options)
    at = line_number(board, rf"error .*{words}")
    line_number(board, r"dps +asking", at, 60)


@pytest.mark.parametrize(
    "kept",
    [
        b"",
        b"\xff\xfe",
        b"h",
        b"a\nb\nc",
        b"evil/x\npress-7\n0ne00000001\npress-7",
        b"h.example\npress 7\n0ne00000001\npress-7",
        b"h.example\npress-7\n0neOTHER\npress-7",
        b"h" * 700,
        7,
    ],
)
def test_damaged_or_foreign_assignment_in_flash_is_asked_for_anew(world, kept):
    good = answer(assigned(assignedHub="localhost"))
    dps = {"id_scope": "0ne00000001", "host": "127.0.0.1"}

    def talk(tls) -> None:
        with contextlib.suppress(OSError):
            tls.recv(4096)
            tls.sendall(CONNACK)
            subscribe = tls.recv(4096)
            tls.sendall(b"\x90\x03" + subscribe[2:4] + b"\x01")
            tls.recv(4096)
            tls.sendall(good)

    context = server_context(world.ca.leaf("ecdsa", ["127.0.0.1"]))
    server = TlsServer(world, context, talk)
    flash = world.image(server.port, config={"dps": dps}, drop=("hub",))
    edit(flash, hub=kept)
    board = world.board(flash)
    board.wait_for(r"dps +assigned hub=localhost device=press-7", 60)
