"""A TLS server that takes no notice of the record size that a device asks for, for tests.

OpenSSL honours max_fragment_length and cannot be told not to; tlslite-ng does not know it, and
sends records of 16 KiB. It owns two threads for each connection, which carry the plain text between
the device and the hub. It is slow, and never what a hub runs with unless told.
"""

import contextlib
import socket
import threading
import warnings
from collections.abc import Sequence

from outpost_tools.errors import OutpostError
from outpost_tools.pki import Leaf

CHUNK_BYTES = 65536


class IgnoringTls:
    """TLS 1.2 with the design's suites; the last certificate given is the one that is shown."""

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of asyncore, which it offers and we do not use
                import tlslite.tlsconnection  # noqa: F401
            from tlslite.handshakesettings import HandshakeSettings
            from tlslite.utils.keyfactory import parsePEMKey
            from tlslite.x509certchain import X509CertChain
        except ImportError:
            raise OutpostError(
                "Ignoring the record size needs the package tlslite-ng: install it, or leave "
                "--ignore-record-size out."
            ) from None
        self._chain = X509CertChain()
        self._chain.parsePemList(leaves[-1].chain.read_text())
        self._key = parsePEMKey(leaves[-1].key.read_text(), private=True)
        self._settings = HandshakeSettings()
        self._settings.minVersion = self._settings.maxVersion = (3, 3)
        self._settings.cipherNames = ["aes128gcm", "aes256gcm", "aes128", "aes256"]
        self._settings.macNames = ["sha256", "sha384", "aead"]
        self._settings.keyExchangeNames = ["ecdhe_ecdsa", "ecdhe_rsa"]
        self._settings.record_size_limit = None

    def accept(
        self, connection: socket.socket, patience_s: float
    ) -> tuple[socket.socket, str, list[bytes]]:
        """Shake hands (this blocks).

        Gives a socket of plain text, the cipher's name and the client's certificates.
        """
        from tlslite.tlsconnection import TLSConnection

        connection.settimeout(patience_s)
        tls = TLSConnection(connection)
        tls.handshakeServer(
            certChain=self._chain, privateKey=self._key, reqCert=True, settings=self._settings
        )
        shown = tls.session.clientCertChain
        certificates = [bytes(one.writeBytes()) for one in shown.x509List] if shown else []
        connection.settimeout(None)
        ours, theirs = socket.socketpair()
        for carry in (_to_hub, _to_device):
            threading.Thread(target=carry, args=(tls, connection, ours), daemon=True).start()
        return theirs, f"{tls.getCipherName()} (record size ignored)", certificates


def _to_hub(tls, connection: socket.socket, plain: socket.socket) -> None:  # type: ignore[no-untyped-def]
    with contextlib.suppress(Exception):
        while data := tls.read(max=CHUNK_BYTES, min=1):
            plain.sendall(data)
    with contextlib.suppress(OSError):
        plain.shutdown(socket.SHUT_WR)


def _to_device(tls, connection: socket.socket, plain: socket.socket) -> None:  # type: ignore[no-untyped-def]
    with contextlib.suppress(Exception):
        while data := plain.recv(CHUNK_BYTES):
            tls.write(data)
        tls.close()
    # Wakes the other thread, whatever it waits for.
    for side in (connection, plain):
        with contextlib.suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)
        side.close()
