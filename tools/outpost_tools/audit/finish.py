"""A whole handshake by Python's own TLS, without a client certificate, and nothing after it.

Only the end of a handshake tells whether a server that asks for a certificate insists on one. The
chain is not verified here, because it is judged elsewhere, and nothing is said to the server. It
owns one socket for as long as it takes.
"""

import ipaddress
import socket
import ssl
import time
import warnings
from collections.abc import Sequence

from outpost_tools.audit.suites import Suite

# SSL_OP_LEGACY_SERVER_CONNECT, which Python names from 3.12 on. mbedtls has no such demand.
LEGACY_SERVER_CONNECT = 0x4


def openssl_name(suite: Suite) -> str:
    name = suite.name.removeprefix("TLS_").replace("_WITH_", "_").replace("_CBC_", "_")
    return name.replace("_", "-").replace("AES-", "AES")


def finish(
    address: tuple[str, int], name: str, suites: Sequence[Suite], patience_s: float
) -> str | None:
    """None where the handshake went through; else why it did not, in a few words."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    # What is too weak for OpenSSL and what for a device are two questions.
    context.set_ciphers(":".join(openssl_name(suite) for suite in suites) + ":@SECLEVEL=0")
    context.options |= LEGACY_SERVER_CONNECT
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=None if _numeric(name) else name)
    deadline = time.monotonic() + patience_s
    try:
        with socket.create_connection(address, patience_s) as connection:
            while True:
                try:
                    tls.do_handshake()
                    return None
                except ssl.SSLWantReadError:
                    connection.sendall(outgoing.read())
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise TimeoutError from None
                    connection.settimeout(left)
                    data = connection.recv(16384)
                    if not data:
                        return "it closed the connection"
                    incoming.write(data)
    except ssl.SSLError as why:
        return (why.reason or "no reason given").lower().replace("_", " ")
    except TimeoutError:
        return "it did not finish in time"
    except OSError as why:
        return why.strerror or "the connection broke"


def _numeric(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
