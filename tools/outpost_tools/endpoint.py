"""Whether devices with certain roots will connect to an endpoint as it is now, really tried.

One connection under the devices' policy (TLS 1.2, their suites, host name and dates verified)
decides; a second looks at the chain, to say which roots carry it and when it ends. Nothing is sent
but the handshakes. It owns nothing.
"""

import contextlib
import datetime as dt
import re
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL, crypto

from outpost_tools.errors import OutpostError
from outpost_tools.hub.tls import openssl_suites

PORT = 8883
PATIENCE_S = 10.0


@dataclass(frozen=True)
class Endpoint:
    """host is the name that the certificate must have; address is where it is, if elsewhere."""

    host: str
    port: int = PORT
    address: str | None = None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Seen:
    """What an endpoint shows, held against some roots.

    why      empty where devices with these roots connect, else what stops them, a sentence
    anchors  indices of the roots that carry its chain by themselves
    chain    what it sends, leaf first, then the root that carries it
    """

    endpoint: Endpoint
    why: str
    anchors: tuple[int, ...] = ()
    chain: tuple[x509.Certificate, ...] = ()

    @property
    def good(self) -> bool:
        return not self.why

    @property
    def ends(self) -> dt.datetime | None:
        """When the first certificate of its chain expires."""
        return min((one.not_valid_after_utc for one in self.chain), default=None)


def parse(text: str) -> Endpoint:
    """HOST or HOST:PORT."""
    match = re.fullmatch(r"([A-Za-z0-9_.-]{1,253})(?::(\d{1,5}))?", text)
    if match is None or not 1 <= int(match[2] or PORT) <= 65535:
        raise OutpostError(f"{text!r} is not an endpoint: give HOST or HOST:PORT.")
    return Endpoint(match[1], int(match[2] or PORT))


def look(
    endpoint: Endpoint,
    roots: Sequence[bytes],
    *,
    ecc_only: bool = False,
    patience_s: float = PATIENCE_S,
) -> Seen:
    """Connect as a device with these roots (DER) would. A network fault is an OutpostError."""
    suites = openssl_suites()
    if ecc_only:
        suites = ":".join(name for name in suites.split(":") if "ECDSA" in name)
    why = _why_not(endpoint, roots, suites, patience_s)
    chain = _chain(endpoint, suites, patience_s)
    if not chain:
        why = why or f"{endpoint} did not show its certificate."
        return Seen(endpoint, why)
    anchors = tuple(n for n, root in enumerate(roots) if _carries(root, chain))
    if why == UNKNOWN:
        last = chain[-1].issuer.rfc4514_string()
        why = f"{endpoint} shows a chain of {last}, which none of the roots signed."
    carrier = tuple(x509.load_der_x509_certificate(roots[n]) for n in anchors[:1])
    return Seen(endpoint, why, anchors, (*chain, *(one for one in carrier if one not in chain)))


UNKNOWN = "unknown"
# OpenSSL's numbers for what cannot be verified because the root is not among ours.
UNKNOWN_CODES = (2, 18, 19, 20, 21)


def _why_not(endpoint: Endpoint, roots: Sequence[bytes], suites: str, patience_s: float) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(suites)
    # The roots and nothing else: not what this machine trusts.
    context.load_verify_locations(cadata=b"".join(roots))
    with _connected(endpoint, patience_s) as plain:
        try:
            with context.wrap_socket(plain, server_hostname=endpoint.host):
                return ""
        except ssl.SSLCertVerificationError as why:
            if why.verify_code in UNKNOWN_CODES:
                return UNKNOWN
            return f"{endpoint}: {why.verify_message}."
        except ssl.SSLError as why:
            reason = (why.reason or "no agreement").replace("_", " ").lower()
            return f"{endpoint} does not agree on TLS 1.2 with the devices' suites ({reason})."
        except OSError as why:
            return f"{endpoint} ended the handshake ({why.strerror or 'no answer'})."


def _chain(endpoint: Endpoint, suites: str, patience_s: float) -> tuple[x509.Certificate, ...]:
    """What the endpoint sends, unverified: only to say what it is."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(suites.encode())
    with _connected(endpoint, patience_s) as plain:
        plain.settimeout(None)  # pyOpenSSL wants a blocking socket; the timeout is the kernel's
        span = int(patience_s).to_bytes(8, "little") + bytes(8)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, span)
        connection = SSL.Connection(context, plain)
        connection.set_connect_state()
        connection.set_tlsext_host_name(endpoint.host.encode())
        with contextlib.suppress(SSL.Error, OSError):
            connection.do_handshake()
        found = connection.get_peer_cert_chain() or []
        return tuple(one.to_cryptography() for one in found)


@contextlib.contextmanager
def _connected(endpoint: Endpoint, patience_s: float):  # type: ignore[no-untyped-def]
    try:
        plain = socket.create_connection(
            (endpoint.address or endpoint.host, endpoint.port), patience_s
        )
    except OSError as why:
        raise OutpostError(
            f"{endpoint} cannot be reached ({why.strerror or why}): nothing was verified."
        ) from None
    with plain:
        yield plain


def _carries(root: bytes, chain: Sequence[x509.Certificate]) -> bool:
    store = crypto.X509Store()
    store.add_cert(crypto.X509.from_cryptography(x509.load_der_x509_certificate(root)))
    rest = [crypto.X509.from_cryptography(one) for one in chain[1:]]
    leaf = crypto.X509.from_cryptography(chain[0])
    try:
        crypto.X509StoreContext(store, leaf, rest).verify_certificate()
    except crypto.X509StoreContextError:
        return False
    return True


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)
