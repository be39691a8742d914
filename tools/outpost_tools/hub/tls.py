"""TLS 1.2 for the listeners: the design's suites, and a client certificate asked for.

Python's own ssl module ends the handshake where a client certificate does not lead to an authority
that it knows; IoT Hub knows devices by the thumbprints of certificates that they signed themselves.
So the handshake here is pyOpenSSL's: it proves that the device has the certificate's key, and
whether the certificate is one of a device's is for auth to say. It owns the way of the bytes
between the socket and asyncio's streams.
"""

import asyncio
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

from outpost_tools import agreed

CHUNK_BYTES = 65536
CHAIN_MAX = 8


def openssl_suites() -> str:
    """The design's suites by OpenSSL's names, in order."""
    return ":".join(
        name.removeprefix("TLS-").replace("-WITH-", "-").replace("AES-", "AES").replace("-CBC", "")
        for name in agreed.SUITES
    )


def server_context(leaves: Sequence[tuple[Path, Path]]) -> ssl.SSLContext:
    """TLS 1.2 exactly, for servers that ask for no client certificate (aiohttp, tests).

    One (chain, key) pair of files for each kind of certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(openssl_suites())
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_RENEGOTIATION
    for chain, key in leaves:
        context.load_cert_chain(chain, key)
    return context


def device_context(leaves: Sequence[tuple[Path, Path]]) -> SSL.Context:
    """The same, with a client certificate asked for and taken as it is."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(openssl_suites().encode())
    context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE | SSL.OP_NO_RENEGOTIATION)
    context.set_session_id(b"outpost hub")
    context.set_verify(SSL.VERIFY_PEER, lambda *_: True)
    context.set_verify_depth(CHAIN_MAX)
    for chain, key in leaves:
        context.use_certificate_chain_file(str(chain))
        context.use_privatekey_file(str(key))
        context.check_privatekey()
    return context


class TlsTransport(asyncio.Transport):
    """What a StreamWriter writes to."""

    def __init__(self, bridge: "_Bridge") -> None:
        super().__init__()
        self._bridge = bridge

    def write(self, data: Any) -> None:
        self._bridge.send(bytes(data))

    def close(self) -> None:
        self._bridge.close()

    def abort(self) -> None:
        self._bridge.raw.abort()

    def is_closing(self) -> bool:
        return self._bridge.raw.is_closing()

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self._bridge.raw.pause_reading()

    def resume_reading(self) -> None:
        self._bridge.raw.resume_reading()

    def is_reading(self) -> bool:
        return self._bridge.raw.is_reading()

    def get_write_buffer_size(self) -> int:
        return self._bridge.raw.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._bridge.raw.set_write_buffer_limits(high, low)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._bridge.raw.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._bridge.upper = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._bridge.upper


class _Bridge(asyncio.Protocol):
    """Below it the socket, above it asyncio's stream, between them OpenSSL in memory."""

    raw: asyncio.Transport

    def __init__(self, context: SSL.Context, upper: asyncio.Protocol) -> None:
        self.upper = upper
        self.tls = SSL.Connection(context, None)
        self.tls.set_accept_state()
        self.shaken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport = TlsTransport(self)
        self._open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.raw = transport

    def data_received(self, data: bytes) -> None:
        self.tls.bio_write(data)
        if not self._open:
            self._shake()
        if self._open:
            self._receive()

    def eof_received(self) -> bool:
        self._fail(ConnectionResetError())
        if self._open:
            self.upper.eof_received()
        return True

    def connection_lost(self, why: Exception | None) -> None:
        self._fail(why or ConnectionResetError())
        if self._open:
            self._open = False
            self.upper.connection_lost(why)

    def pause_writing(self) -> None:
        if self._open:
            self.upper.pause_writing()

    def resume_writing(self) -> None:
        if self._open:
            self.upper.resume_writing()

    def send(self, data: bytes) -> None:
        if data and not self.raw.is_closing():
            try:
                self.tls.sendall(data)
            except SSL.Error:
                self.raw.abort()
                return
            self._flush()

    def close(self) -> None:
        if not self.raw.is_closing():
            try:
                self.tls.shutdown()
            except SSL.Error:
                pass
            self._flush()
            self.raw.close()

    def _fail(self, why: Exception) -> None:
        if not self.shaken.done():
            self.shaken.set_exception(why)

    def _shake(self) -> None:
        try:
            self.tls.do_handshake()
        except SSL.WantReadError:
            self._flush()
            return
        except SSL.Error as why:
            self._flush()  # the alert
            self._fail(why)
            return
        self._flush()
        self._open = True
        self.upper.connection_made(self.transport)
        if not self.shaken.done():
            self.shaken.set_result(None)

    def _receive(self) -> None:
        while True:
            try:
                data = self.tls.recv(CHUNK_BYTES)
            except SSL.WantReadError:
                break
            except SSL.ZeroReturnError:
                self.upper.eof_received()
                break
            except SSL.Error:
                self._flush()  # the alert
                self.raw.abort()
                return
            self.upper.data_received(data)
        self._flush()

    def _flush(self) -> None:
        while True:
            try:
                data = self.tls.bio_read(CHUNK_BYTES)
            except SSL.WantReadError:
                return
            if self.raw.is_closing():
                return
            self.raw.write(data)

    def certificates(self) -> list[bytes]:
        """The client's, leaf first, as DER."""
        leaf = self.tls.get_peer_certificate(as_cryptography=True)
        if leaf is None:
            return []
        found = [leaf.public_bytes(Encoding.DER)]
        for certificate in self.tls.get_peer_cert_chain(as_cryptography=True) or ():
            der = certificate.public_bytes(Encoding.DER)
            if der not in found:
                found.append(der)
        return found[:CHAIN_MAX]


async def accept(
    connection: socket.socket, context: SSL.Context, patience_s: float
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, dict[str, str], list[bytes]]:
    """Shake hands; gives the streams, facts of the handshake and the client's certificates."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    stream = asyncio.StreamReaderProtocol(reader)
    transport, bridge = await loop.connect_accepted_socket(
        lambda: _Bridge(context, stream), connection
    )
    try:
        async with asyncio.timeout(patience_s):
            await bridge.shaken
        certificates = bridge.certificates()
    except TimeoutError:
        transport.abort()
        raise ConnectionAbortedError from None
    except BaseException:
        transport.close()
        raise
    writer = asyncio.StreamWriter(bridge.transport, stream, reader, loop)
    facts = {
        "tls": bridge.tls.get_protocol_version_name(),
        "cipher": bridge.tls.get_cipher_name() or "",
    }
    return reader, writer, facts, certificates


def failure(why: Exception, patience_s: float) -> str:
    """OpenSSL's word for a handshake that failed, made readable."""
    reason = getattr(why, "reason", None)
    if isinstance(why, SSL.Error) and why.args and why.args[0]:
        reason = why.args[0][-1][-1]
    if isinstance(why, ssl.SSLError | SSL.Error) and reason:
        text = str(reason).lower().replace("_", " ")
        for prefix in ("tlsv1 alert ", "sslv3 alert ", "tlsv13 alert ", "ssl/tls alert "):
            if text.startswith(prefix):
                return f"the device refused: {text.removeprefix(prefix)}"
        return text
    if isinstance(why, ConnectionAbortedError):
        return f"not finished within {patience_s:g} s"
    return "the connection broke"
