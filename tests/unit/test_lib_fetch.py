"""A file fetched over HTTPS in ranges: exact bytes from a good server, a sentence and an end within
the deadline from any other, and nothing said about the device."""

from __future__ import annotations

import random
import time

import pytest
from rawhttps import Conversation, RawHttps, authority, leaf

DATA = random.Random(3).randbytes(9000)

RUN = """
import hashlib, time
from outpost import fetch
from outpost.errors import OutpostError
from outpost.walk import Endpoint

fetch.piece_ms = %(piece_ms)d

def roots():
    with open(%(root)r, "rb") as f:
        yield f.read()

where = Endpoint("localhost", %(port)d, False)
f = fetch.Fetch(where, "/fleet/file.bin?v=1", roots, %(size)s, 16384)
buffer = memoryview(bytearray(2048))
digest = hashlib.sha256()
at = %(at)d
start = time.ticks_ms()
try:
    while f.size is None or at < f.size:
        n = f.read(at, buffer)
        digest.update(buffer[:n])
        at += n
        assert n == 2048 or at == f.size
    print("FETCHED", at, "".join(["%%02x" %% b for b in digest.digest()]))
except OutpostError as e:
    print("REFUSED", e)
    assert f._stream is None
f.close()
print("MS", time.ticks_diff(time.ticks_ms(), start))
"""


@pytest.fixture
def fetch(micropython, tmp_path):
    def run(answer, size=9000, at=0, piece_ms=20000, name="localhost"):
        root = authority()
        (tmp_path / "root.der").write_bytes(root.der)
        with RawHttps(tmp_path / "tls", (leaf(root, name),), answer) as server:
            values = {
                "port": server.port,
                "size": size,
                "at": at,
                "piece_ms": piece_ms,
                "root": str(tmp_path / "root.der"),
            }
            said = micropython(RUN % values).splitlines()
        return server, next(x for x in said if x.split()[0] in ("FETCHED", "REFUSED")), said[-1]

    return run


def good(talk: Conversation) -> None:
    talk.piece(DATA)


def digest(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


WHOLE = f"FETCHED {len(DATA)} {digest(DATA)}"


def test_file_comes_in_ranges_over_one_connection_and_nothing_is_said_of_the_device(fetch):
    server, said, _ = fetch(good)
    assert said == WHOLE
    assert server.connections == 1
    spans = [(n, min(n + 2048, 9000) - 1) for n in range(0, 9000, 2048)]
    assert server.questions == [
        "GET /fleet/file.bin?v=1 HTTP/1.1\r\n"
        f"Host: localhost:{server.port}\r\n"
        f"Range: bytes={first}-{last}\r\nAccept-Encoding: identity\r\n\r\n"
        for first, last in spans
    ]


def test_size_that_is_not_known_is_learnt_from_the_first_answer(fetch):
    assert fetch(good, size=None)[1] == WHOLE
    assert fetch(lambda talk: talk.piece(b"x" * 100), size=None)[1].startswith("FETCHED 100")
    said = fetch(lambda talk: talk.piece(b"x" * 20000), size=None)[1]
    assert "has 20000 bytes there" in said


def test_fetch_goes_on_where_it_stood(fetch):
    server, said, _ = fetch(good, at=4096)
    assert said.startswith(f"FETCHED 9000 {digest(DATA[4096:])}")
    assert "bytes=4096-6143" in server.questions[0]


def test_server_that_closes_after_each_answer_is_asked_over_another_connection(fetch):
    def closes(talk):
        talk.piece(DATA, "Connection: close\r\n")
        talk.connection.close()

    server, said, _ = fetch(closes)
    assert said == WHOLE and server.connections == 5


def test_server_that_ends_an_idle_connection_without_a_word_is_asked_over_another(fetch):
    def ends(talk):
        talk.piece(DATA)
        talk.connection.unwrap()

    server, said, _ = fetch(ends)
    assert said == WHOLE and server.connections == 5

    def ends_in_the_middle(talk):
        talk.say("HTTP/1.1 206 P") if server_said else talk.piece(DATA)
        if server_said:
            talk.connection.unwrap()
        server_said.append(1)

    server_said: list[int] = []
    server, said, _ = fetch(ends_in_the_middle)
    assert "closed the connection" in said and server.connections == 1


def whole_at_once(talk: Conversation) -> None:
    talk.say(f"HTTP/1.1 200 OK\r\ncontent-LENGTH:  {len(DATA)} \r\n\r\n", DATA)


def test_server_without_ranges_is_read_once_from_the_beginning(fetch):
    server, said, _ = fetch(whole_at_once)
    assert said == WHOLE and len(server.questions) == 1
    server, said, _ = fetch(whole_at_once, at=5000)
    assert said == f"FETCHED 9000 {digest(DATA[5000:])}" and len(server.questions) == 1


def head(status="206 Partial Content", length="2048", span="bytes 0-2047/9000", more=""):
    lines = [f"HTTP/1.1 {status}"]
    lines += [f"Content-Length: {length}"] if length is not None else []
    lines += [f"Content-Range: {span}"] if span is not None else []
    return "\r\n".join(lines) + "\r\n" + more + "\r\n"


REFUSED = {
    "redirect": (head("302 Found", "0", None, "Location: https://localhost/\r\n"), "not followed"),
    "not there": (head("404 Not Found", "0", None), "answers 404"),
    "wait": ("HTTP/1.1 100 Continue\r\n\r\n", "answers 100"),
    "chunked": (head(length=None, more="Transfer-Encoding: chunked\r\n"), "form that is not taken"),
    "packed": (head(more="Content-Encoding: gzip\r\n"), "form that is not taken"),
    "two lengths": (head(more="Content-Length: 4096\r\n"), "two lengths"),
    "no length": (head(length=None), "does not say how long"),
    "negative": (head(length="-1"), "does not say how long"),
    "endless": (head(length="9" * 30), "does not say how long"),
    "no range": (head(span=None), "does not say how long"),
    "another range": (head(span="bytes 2048-4095/9000"), "another range"),
    "shorter range": (head(length="100", span="bytes 0-99/9000"), "another range"),
    "longer range": (head(length="9000", span="bytes 0-8999/9000"), "another range"),
    "lying length": (head(length="2047"), "another range"),
    "unknown total": (head(span="bytes 0-2047/*"), "does not say how long"),
    "another version": (head(span="bytes 0-2047/9001"), "has 9001 bytes there"),
    "whole of another": (head("200 OK", "9001", None), "has 9001 bytes there"),
    "smaller whole": (head("200 OK", "10", None), "has 10 bytes there"),
    "no http": ("SSH-2.0-OpenSSH\r\n\r\n", "no HTTP"),
    "many headers": ("HTTP/1.1 206 X\r\n" + "A: b\r\n" * 1000, "longer than 4 KB"),
    "long header": ("HTTP/1.1 206 X\r\nA: " + "b" * 100_000, "longer than 4 KB"),
    "long status": ("HTTP/1.1 206 " + "b" * 100_000, "longer than 4 KB"),
    "bare": ("\r\n" * 3000, "no HTTP"),
    "closed": ("", "closed the connection"),
    "truncated": (head() + "x" * 100, "closed the connection"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_answer_that_is_not_what_was_asked_for_is_refused(fetch, case):
    text, words = REFUSED[case]

    def answer(talk):
        talk.say(text)
        talk.connection.unwrap()

    _, said, _ = fetch(answer)
    assert said.startswith("REFUSED") and words in said


def test_slow_drip_ends_at_the_deadline_in_head_and_body(fetch):
    def drip(talk, text):
        for c in text:
            talk.say(c)
            time.sleep(0.05)

    for answer in (
        lambda talk: drip(talk, "HTTP/1.1 206 " + "x" * 200),
        lambda talk: (talk.say(head()), drip(talk, "x" * 200)),
        lambda talk: time.sleep(3),
    ):
        _, said, ms = fetch(answer, piece_ms=1000)
        assert "too slow" in said
        assert int(ms.split()[1]) < 2500


def test_server_that_says_more_than_its_answer_does_not_get_it_into_the_file(fetch):
    def more(talk):
        talk.piece(DATA)
        talk.say("surplus" * 20)

    server, said, _ = fetch(more)
    # Met while the next answer is read, or before the question was asked: never taken for the file.
    assert said == WHOLE or "no HTTP" in said


def test_server_of_another_name_or_of_no_root_is_asked_nothing(fetch):
    server, said, _ = fetch(good, name="elsewhere")
    assert "names another host" in said
    assert server.questions == []


PARTS = """
from outpost import plan
from outpost.errors import OutpostError
for url in %r:
    try:
        print(plan.parts(url))
    except OutpostError:
        print("refused")
"""


def test_only_a_plain_https_address_is_one(micropython):
    good = ["https://Depot.Example.com/a/b.bin?x=1", "HTTPS://d:8443/"]
    bad = [
        None,
        7,
        "http://d/x",
        "https://d",
        "https:///x",
        "https://user@d/x",
        "https://d/x#y",
        "https://d:0/x",
        "https://d:65536/x",
        "https://d:x/",
        "https://d/a b",
        "https://d/a\r\nX: y",
        "https://d/\u00fc",
        "https://d/" + "x" * 600,
        "https://[::1]/x",
        "https://d?x/y",
    ]
    said = micropython(PARTS % (good + bad)).splitlines()
    assert said[:2] == [
        "('depot.example.com', 443, '/a/b.bin?x=1')",
        "('d', 8443, '/')",
    ]
    assert said[2:] == ["refused"] * len(bad)
