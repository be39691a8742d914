"""Whatever answers an audit, it ends in time, keeps little, and finds no broken server good."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pki
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from outpost_tools.audit import NotAsked, Target, survey, wire
from outpost_tools.cli import app
from typer.testing import CliRunner

PATIENCE_S = 0.3
CHAIN = pki.chain("rsa")


@contextlib.contextmanager
def server(talk: Callable[[socket.socket, bytes], None]) -> Iterator[int]:
    """Each connection's ClientHello is read, then `talk` has it."""
    ending = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(5)
            hello = connection.recv(4096)
            talk(connection, hello)

    def accept() -> None:
        while not ending.is_set():
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            ending.set()
            thread.join(5)


def record(kind: int, body: bytes) -> bytes:
    return bytes([kind, 3, 3]) + len(body).to_bytes(2, "big") + body


def message(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + len(body).to_bytes(3, "big") + body


def server_hello(suite: int = 0xC02F, extensions: bytes = b"") -> bytes:
    body = b"\x03\x03" + bytes(32) + b"\0" + suite.to_bytes(2, "big") + b"\0"
    return message(2, body + len(extensions).to_bytes(2, "big") + extensions)


def certificates(*ders: bytes) -> bytes:
    listed = b"".join(len(der).to_bytes(3, "big") + der for der in ders)
    return message(11, len(listed).to_bytes(3, "big") + listed)


KEY_EXCHANGE = message(12, b"\x03\0\x17\x41" + bytes(65) + b"\x04\x01\0\0")
DONE = message(14, b"")


def flight(*messages: bytes) -> bytes:
    return b"".join(record(22, one) for one in messages)


def says(data: bytes) -> Callable[[socket.socket, bytes], None]:
    return lambda connection, _: connection.sendall(data)


def forever(data: bytes, pause_s: float = 0.0) -> Callable[[socket.socket, bytes], None]:
    def talk(connection: socket.socket, _: bytes) -> None:
        end = time.monotonic() + 5
        while time.monotonic() < end:
            connection.sendall(data)
            time.sleep(pause_s)

    return talk


def drips(data: bytes) -> Callable[[socket.socket, bytes], None]:
    def talk(connection: socket.socket, _: bytes) -> None:
        for byte in data:
            connection.sendall(bytes([byte]))
            time.sleep(0.1)

    return talk


GOOD = flight(
    server_hello(),
    certificates(CHAIN.leaf.der, CHAIN.intermediate.der),
    KEY_EXCHANGE,
    DONE,
)
# What it does, and whether that leaves the endpoint unasked (True) or asked and found unfit.
HOSTILE: dict[str, tuple[Callable[[socket.socket, bytes], None], bool]] = {
    "is silent": (lambda connection, _: time.sleep(2), True),
    "closes": (lambda connection, _: None, True),
    "is not TLS": (says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), True),
    "is SSH": (says(b"SSH-2.0-OpenSSH_9.2\r\n"), True),
    "echoes": (lambda connection, hello: connection.sendall(hello), True),
    "drips": (drips(GOOD), True),
    "an empty record": (says(b"\x16\x03\x03\0\0"), True),
    "a record too long": (says(b"\x16\x03\x03\xff\xff" + bytes(70000)), True),
    "one endless message": (forever(record(22, b"\x0b\xff\xff\xff" + bytes(16000))), True),
    "endless messages": (forever(flight(message(99, bytes(10000)))), True),
    "endless warnings": (forever(record(21, b"\x01\x70") * 100), True),
    "cut off": (says(GOOD[:300]), False),
    "a hello that is cut": (says(flight(message(2, b"\x03\x03" + bytes(10)))), True),
    "certificates that lie": (
        says(flight(server_hello(), message(11, b"\0\0\xff\0\0\x01\x30"), DONE)),
        False,
    ),
    "a certificate of none": (says(flight(server_hello(), certificates(), DONE)), False),
    "a certificate of zeros": (
        says(flight(server_hello(), certificates(bytes(500)), KEY_EXCHANGE, DONE)),
        False,
    ),
    "no key exchange": (says(flight(server_hello(), certificates(CHAIN.leaf.der), DONE)), False),
    "only alerts": (says(record(21, b"\x02\x28")), False),
    "a handshake that never ends": (says(GOOD), False),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_server_is_done_with_in_time_and_is_never_good(case: str) -> None:
    talk, unasked = HOSTILE[case]
    began = time.monotonic()
    with server(talk) as port:
        target = Target("127.0.0.1", port, "localhost", PATIENCE_S, 6)
        try:
            found = survey(target, [CHAIN.root.der])
        except NotAsked as why:
            assert unasked and str(why).endswith(".") and len(str(why)) < 200
        else:
            assert not unasked
            assert all(v.stops and not v.connects for v in found.verdicts.values())
    assert time.monotonic() - began < 12


def test_a_record_size_that_is_granted_and_not_kept_is_seen_and_stops_devices() -> None:
    def talk(connection: socket.socket, hello: bytes) -> None:
        at = hello.find(b"\0\x01\0\x01")  # the extension that asks for a record size
        granted = hello[at : at + 5] if at >= 0 else b""
        connection.sendall(
            flight(
                server_hello(extensions=granted),
                certificates(CHAIN.leaf.der, CHAIN.intermediate.der),
                KEY_EXCHANGE,
                DONE,
            )
        )

    with server(talk) as port:
        found = survey(Target("127.0.0.1", port, "localhost", PATIENCE_S), [CHAIN.root.der])
    sizes = {size.asked: size for size in found.sizes}
    assert [sizes[n].granted for n in (512, 1024, 2048, 4096, None)] == [
        512,
        1024,
        2048,
        4096,
        None,
    ]
    assert sizes[512].kept is False and not sizes[512].usable
    assert sizes[1024].kept is False and sizes[1024].largest > 1500
    assert sizes[2048].kept is None and sizes[2048].usable
    assert found.verdicts["all"].record_size == 2048


def test_a_server_that_answers_with_another_size_is_not_taken_for_granted() -> None:
    answer = server_hello(extensions=b"\0\x01\0\x01\x04")
    sent = flight(answer, certificates(CHAIN.leaf.der), KEY_EXCHANGE, DONE)
    with server(says(sent)) as port:
        found = survey(Target("127.0.0.1", port, "localhost", PATIENCE_S), [CHAIN.root.der])
    assert [size.usable for size in found.sizes] == [False, False, False, True, False]


@pytest.mark.parametrize("case", ["nobody", "silent", "name", "bundle", "endpoint"])
def test_what_could_not_be_asked_has_its_own_exit_status(case: str, tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        words = {
            "nobody": ["127.0.0.1:1"],
            "silent": [f"127.0.0.1:{port}", "--timeout", "0.2"],
            "name": ["no-such-name.invalid"],
            "bundle": [f"127.0.0.1:{port}", "--bundle", str(tmp_path / "none.bin")],
            "endpoint": ["https://127.0.0.1"],
        }[case]
        done = CliRunner().invoke(app, ["audit", *words])
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("outpost: ") and done.stderr.strip().endswith(".")
    assert len(done.stderr.strip().splitlines()) == 1


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=400), st.integers(0, len(GOOD)), st.integers(0, 255))
def test_no_bytes_of_a_server_make_the_reader_raise(noise: bytes, at: int, byte: int) -> None:
    """Any bytes, and a good answer with one byte changed and the rest cut off or replaced."""
    changed = GOOD[:at] + bytes([byte]) + GOOD[at + 1 :]
    for data in (noise, changed, GOOD[:at] + noise):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(data)
            theirs.shutdown(socket.SHUT_WR)
            found = wire.Flight()
            wire.listen(ours, time.monotonic() + 2, found, False)
        assert found.outcome in ("answered", "alert", "closed", "not-tls", "broken")
        assert sum(found.records) <= len(data)
