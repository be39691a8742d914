"""A stand-in for an SNTP server, on loopback, for tests and for `make run`.

It owns one UDP socket and one thread. It answers with the host's clock, shifted where asked, or
misbehaves in one named way; it never sets any clock and never listens beyond the host it was given.
"""

import select
import socket
import struct
import threading
import time
from typing import Literal

from outpost_tools.errors import OutpostError

NTP_EPOCH_OFFSET_S = 2208988800  # 1900 to 1970
PACKET_BYTES = 48

Behaviour = Literal[
    "ok",  # answers rightly
    "silent",  # takes the question and never answers
    "first-lost",  # answers from the second question on
    "garbage",  # 48 bytes that are no answer
    "short",  # a datagram that ends early
    "kiss",  # stratum 0: "kiss of death", go away
    "unsynchronised",  # says itself that its clock is not set
    "wrong-origin",  # answers a question that was not asked, as a forger off the path would
    "zero",  # a transmit time of nought
]


def _ntp_time(unix_s: float) -> bytes:
    whole = int(unix_s // 1)
    fraction = int((unix_s - whole) * (1 << 32))
    # NTP's 32 bits of seconds start again in 2036, as on the wire.
    return struct.pack("!II", (whole + NTP_EPOCH_OFFSET_S) & 0xFFFFFFFF, fraction)


class SntpServer:
    """`with SntpServer(offset_s=-3600) as server: server.address`."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        offset_s: float = 0.0,
        behaviour: Behaviour = "ok",
    ) -> None:
        self.host, self.port = host, port
        self.offset_s = offset_s
        self.behaviour: Behaviour = behaviour
        self.requests = 0
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._wake_r, self._wake_w = socket.socketpair()

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def start(self) -> str:
        """Listen; gives "host:port"."""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.bind((self.host, self.port))
        except OSError as why:
            self._socket.close()
            raise OutpostError(
                f"Cannot answer SNTP on {self.host}:{self.port} ({why.strerror}): "
                "give another port, or 0 for any."
            ) from None
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, name="sntp", daemon=True)
        self._thread.start()
        return self.address

    def stop(self) -> None:
        if self._thread is not None:
            self._wake_w.send(b"x")
            self._thread.join()
            self._thread = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._wake_r.close()
        self._wake_w.close()

    def _serve(self) -> None:
        assert self._socket is not None
        while True:
            ready, _, _ = select.select([self._socket, self._wake_r], [], [])
            if self._wake_r in ready:
                return
            try:
                question, sender = self._socket.recvfrom(512)
                self.requests += 1
                answer = self.answer(question, time.time() + self.offset_s)
                if answer:
                    self._socket.sendto(answer, sender)
            except OSError:
                continue  # the asker has gone: ICMP says so on our next call

    def answer(self, question: bytes, now_s: float) -> bytes:
        """The datagram for one question; empty where there is none to give."""
        if self.behaviour == "silent" or (self.behaviour == "first-lost" and self.requests < 2):
            return b""
        if self.behaviour == "garbage":
            return b"\xa5" * PACKET_BYTES
        if len(question) < PACKET_BYTES or question[0] & 7 != 3:
            return b""  # not a client's question
        version = question[0] & 0x38
        leap = 0xC0 if self.behaviour == "unsynchronised" else 0x00
        stratum = 0 if self.behaviour == "kiss" else 2
        reference = b"RATE" if stratum == 0 else b"\x7f\x00\x00\x01"
        origin = question[40:48]
        if self.behaviour == "wrong-origin":
            origin = bytes(255 - byte for byte in origin)
        stamp = _ntp_time(now_s)
        transmit = bytes(8) if self.behaviour == "zero" else stamp
        head = struct.pack("!BBbbII", leap | version | 4, stratum, 6, -20, 0, 0) + reference
        answer = head + _ntp_time(now_s - 16) + origin + stamp + transmit
        return answer[:20] if self.behaviour == "short" else answer

    def __enter__(self) -> "SntpServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
