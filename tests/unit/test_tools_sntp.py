"""The SNTP stand-in: what it answers, and each way in which it can be told to misbehave."""

import socket
import struct
import time

import pytest
from outpost_tools.errors import OutpostError
from outpost_tools.sntp import NTP_EPOCH_OFFSET_S, SntpServer

QUESTION = b"\x23" + bytes(39) + b"\x01\x02\x03\x04\x05\x06\x07\x08"


def ask(server: SntpServer, question: bytes = QUESTION, wait_s: float = 2.0) -> bytes | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(wait_s)
        client.sendto(question, (server.host, server.port))
        try:
            return client.recv(512)
        except TimeoutError:
            return None


def seconds(answer: bytes) -> float:
    whole, fraction = struct.unpack("!II", answer[40:48])
    return whole - NTP_EPOCH_OFFSET_S + fraction / 2**32


def test_answer_has_the_hosts_time_and_the_questions_stamp():
    with SntpServer() as server:
        answer = ask(server)
        assert answer is not None and len(answer) == 48
        assert abs(seconds(answer) - time.time()) < 2
        assert answer[24:32] == QUESTION[40:48]
        assert answer[0] == 0x24  # no leap second, version of the question, mode: server
        assert 1 <= answer[1] <= 15
        assert server.requests == 1


def test_micropythons_own_question_is_answered():
    with SntpServer() as server:
        answer = ask(server, b"\x1b" + bytes(47))
        assert answer is not None and answer[0] & 0x3F == 0x1C


def test_offset_shifts_the_answer():
    with SntpServer(offset_s=-86400) as server:
        answer = ask(server)
        assert answer is not None
        assert abs(seconds(answer) - (time.time() - 86400)) < 2


def test_silent_server_takes_the_question_and_says_nothing():
    with SntpServer(behaviour="silent") as server:
        assert ask(server, wait_s=0.3) is None
        assert server.requests == 1


@pytest.mark.parametrize(
    ("behaviour", "property_of"),
    [
        ("garbage", lambda a: a == b"\xa5" * 48),
        ("short", lambda a: len(a) == 20),
        ("kiss", lambda a: a[1] == 0),
        ("unsynchronised", lambda a: a[0] >> 6 == 3),
        ("wrong-origin", lambda a: a[24:32] != QUESTION[40:48]),
        ("zero", lambda a: a[40:48] == bytes(8)),
    ],
)
def test_misbehaves_as_named(behaviour, property_of):
    with SntpServer(behaviour=behaviour) as server:
        answer = ask(server)
        assert answer is not None and property_of(answer)


@pytest.mark.parametrize("question", [b"", b"x", bytes(48), b"\x24" + bytes(47)])
def test_what_is_no_question_gets_no_answer_and_the_server_goes_on(question):
    with SntpServer() as server:
        assert ask(server, question, wait_s=0.2) is None
        assert ask(server) is not None


def test_port_in_use_is_one_sentence():
    with SntpServer() as first:
        with pytest.raises(OutpostError, match="give another port"):
            SntpServer(port=first.port).start()
