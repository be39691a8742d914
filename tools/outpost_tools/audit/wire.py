"""One question to a TLS server: a connection, a ClientHello, and what is answered in the clear.

Up to TLS 1.2 the server's whole first flight can be read without a key: which version and suite it
takes, whether it grants the record size, its certificates, and how long its records really are.
It owns one socket for each question. It waits no longer than it was told to, keeps no more than
64 KiB of an answer, and sends nothing after the ClientHello.
"""

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from outpost_tools import agreed

ALERT, HANDSHAKE = 21, 22
SERVER_HELLO, CERTIFICATE, KEY_EXCHANGE, REQUEST, DONE = 2, 11, 12, 13, 14
MAX_RECORD_BYTES = 16384 + 2048
MAX_FLIGHT_BYTES = 65536
UNRECOGNIZED_NAME = 112  # a warning that some servers send before they go on

Outcome = Literal["answered", "alert", "closed", "silent", "not-tls", "broken", "unreachable"]


@dataclass
class Flight:
    """What a server answered to one ClientHello."""

    outcome: Outcome = "silent"
    why: str = ""
    alert: int | None = None
    version: int | None = None
    suite: int | None = None
    granted: int | None = None
    records: list[int] = field(default_factory=list)  # the lengths of its handshake records
    certificates: list[bytes] = field(default_factory=list)
    group: int | None = None
    signature: int | None = None
    certificate_bytes: int = 0
    wants_certificate: bool = False
    whole: bool = False  # up to and with ServerHelloDone

    @property
    def chosen(self) -> bool:
        return self.suite is not None


class _Bad(Exception):
    def __init__(self, outcome: Outcome, why: str) -> None:
        super().__init__(why)
        self.outcome = outcome


def ask(
    address: tuple[str, int], hello: bytes, patience_s: float, only_hello: bool = False
) -> Flight:
    """The server's answer; whatever it does, this ends within `patience_s`."""
    flight = Flight()
    deadline = time.monotonic() + patience_s
    try:
        connection = socket.create_connection(address, patience_s)
    except OSError as why:
        flight.outcome, flight.why = "unreachable", why.strerror or str(why)
        return flight
    with connection:
        try:
            connection.sendall(hello)
        except OSError as why:
            flight.outcome, flight.why = "closed", why.strerror or str(why)
            return flight
        listen(connection, deadline, flight, only_hello)
    return flight


def listen(connection: socket.socket, deadline: float, flight: Flight, only_hello: bool) -> None:
    """Reads the answer into `flight` until it is whole, wrong, or late. Never raises."""
    try:
        for kind, body in _messages(connection, deadline, flight):
            _take(kind, body, flight)
            if flight.whole or (only_hello and flight.chosen):
                break
        flight.outcome = "answered"
    except _Bad as why:
        flight.outcome, flight.why = why.outcome, str(why)
    except TimeoutError:
        flight.outcome, flight.why = "silent", "no whole answer in time"
    except OSError as why:
        flight.outcome, flight.why = "closed", why.strerror or str(why)
    except (IndexError, ValueError):
        flight.outcome, flight.why = "broken", "its handshake messages make no sense"


def _messages(
    connection: socket.socket, deadline: float, flight: Flight
) -> Iterator[tuple[int, bytes]]:
    """The handshake messages one by one, put together from their records."""
    waiting, total = b"", 0
    while True:
        head = _read(connection, 5, deadline)
        kind, length = head[0], int.from_bytes(head[3:5], "big")
        if kind not in (ALERT, HANDSHAKE) or head[1] != 3:
            said = "".join(chr(b) if 32 <= b < 127 else "." for b in head)
            raise _Bad("not-tls", f"it answers {said!r}, which is not TLS")
        if length > MAX_RECORD_BYTES or length == 0:
            raise _Bad("broken", f"it sends a record of {length} bytes")
        total += length
        if total > MAX_FLIGHT_BYTES:
            raise _Bad("broken", f"its answer is longer than {MAX_FLIGHT_BYTES} bytes")
        body = _read(connection, length, deadline)
        if kind == ALERT:
            if len(body) == 2 and body[0] == 1 and body[1] == UNRECOGNIZED_NAME:
                continue
            flight.alert = body[1] if len(body) == 2 else None
            raise _Bad("alert", f"TLS alert {flight.alert}{_ALERTS.get(flight.alert or 0, '')}")
        flight.records.append(length)
        waiting += body
        while len(waiting) >= 4 and len(waiting) >= (n := 4 + int.from_bytes(waiting[1:4], "big")):
            yield waiting[0], waiting[4:n]
            waiting = waiting[n:]


_ALERTS = {
    40: " (handshake failure)",
    42: " (bad certificate)",
    47: " (illegal parameter)",
    70: " (protocol version)",
    71: " (insufficient security)",
    80: " (internal error)",
    109: " (missing extension)",
    112: " (unrecognized name)",
    116: " (certificate required)",
}


def _read(connection: socket.socket, count: int, deadline: float) -> bytes:
    data = b""
    while len(data) < count:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        got = connection.recv(count - len(data))
        if not got:
            raise _Bad("closed", "it closed the connection")
        data += got
    return data


def _take(kind: int, body: bytes, flight: Flight) -> None:
    if kind == SERVER_HELLO and not flight.chosen:
        _server_hello(body, flight)
    elif kind == CERTIFICATE:
        flight.certificate_bytes = 4 + len(body)
        flight.certificates = list(_certificates(body))
    elif kind == KEY_EXCHANGE and body[0] == 3:
        flight.group = int.from_bytes(body[1:3], "big")
        at = 4 + body[3]
        flight.signature = int.from_bytes(body[at : at + 2], "big")
    elif kind == REQUEST:
        flight.wants_certificate = True
    elif kind == DONE:
        flight.whole = True


def _server_hello(body: bytes, flight: Flight) -> None:
    version = int.from_bytes(body[0:2], "big")
    at = 2 + 32
    at += 1 + body[at]
    suite = int.from_bytes(body[at : at + 2], "big")
    if len(body) < at + 3:
        raise ValueError
    at += 3
    end = at + 2 + int.from_bytes(body[at : at + 2], "big")
    at += 2
    while at + 4 <= min(end, len(body)):
        kind, length = (int.from_bytes(body[at + i : at + i + 2], "big") for i in (0, 2))
        content = body[at + 4 : at + 4 + length]
        if kind == 1 and len(content) == 1 and 1 <= content[0] <= len(agreed.RECORD_SIZES):
            flight.granted = agreed.RECORD_SIZES[content[0] - 1]
        if kind == 43 and len(content) == 2:
            version = int.from_bytes(content, "big")
        at += 4 + length
    flight.version, flight.suite = version, suite


def _certificates(body: bytes) -> Iterator[bytes]:
    at, end = 3, 3 + int.from_bytes(body[0:3], "big")
    if end != len(body):
        raise ValueError
    while at < end:
        size = int.from_bytes(body[at : at + 3], "big")
        if size == 0 or at + 3 + size > end:
            raise ValueError
        yield body[at + 3 : at + 3 + size]
        at += 3 + size
