"""An HTTPS server that says exactly what a test tells it to, byte for byte, TLS 1.2 alone.

It owns its threads and its listening socket.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from pki import Signer, key, make

Answer = Callable[["Conversation"], None]


class Conversation:
    """One question: its text, and a way to answer it."""

    def __init__(self, connection: ssl.SSLSocket, question: str) -> None:
        self.connection, self.question = connection, question

    @property
    def span(self) -> tuple[int, int]:
        line = next(x for x in self.question.split("\r\n") if x.startswith("Range: bytes="))
        first, last = line.removeprefix("Range: bytes=").split("-")
        return int(first), int(last)

    def say(self, *parts: str | bytes) -> None:
        for part in parts:
            self.connection.sendall(part.encode() if isinstance(part, str) else part)

    def piece(self, data: bytes, more: str = "", total: int | None = None) -> None:
        """As a good server answers."""
        first, last = self.span
        part = data[first : last + 1]
        self.say(
            f"HTTP/1.1 206 Partial Content\r\nContent-Length: {len(part)}\r\n{more}"
            f"Content-Range: bytes {first}-{first + len(part) - 1}/{total or len(data)}\r\n\r\n",
            part,
        )


class RawHttps:
    def __init__(self, folder: Path, chain: tuple[Signer, ...], answer: Answer) -> None:
        self.answer = answer
        self.questions: list[str] = []
        self.connections = 0
        self.open = 0
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(*write(folder, chain))
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> RawHttps:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                raw, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(raw,), daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        self.connections += 1
        self.open += 1
        raw.settimeout(40)
        with contextlib.suppress(OSError), raw:
            connection = self._context.wrap_socket(raw, server_side=True)
            with contextlib.suppress(OSError), connection:
                while question := self._question(connection):
                    self.questions.append(question)
                    self.answer(Conversation(connection, question))
        self.open -= 1

    def _question(self, connection: ssl.SSLSocket) -> str:
        text = b""
        while not text.endswith(b"\r\n\r\n"):
            part = connection.recv(4096)
            if not part:
                return ""
            text += part
        return text.decode()


def authority(number: int = 0, **dates) -> Signer:
    return make("Test Root", key("p256", 50 + number), **dates)


def leaf(root: Signer, host: str = "localhost", number: int = 0, **dates) -> Signer:
    return make(host, key("p256", 60 + number), root, [host], **dates)


def write(folder: Path, chain: tuple[Signer, ...]) -> tuple[Path, Path]:
    """The server's certificate and what goes with it, and its key, as PEM files."""
    folder.mkdir(parents=True, exist_ok=True)
    names = folder / f"{id(chain)}.pem", folder / f"{id(chain)}.key"
    names[0].write_bytes(b"".join(signer.pem for signer in chain))
    names[1].write_bytes(
        chain[0].key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return names
