"""The bytes of a ClientHello: as a device sends it (asked with any record size), and as others do.

Python's own `ssl` cannot ask for a record size, nor for suites and versions that its OpenSSL no
longer has; a ClientHello is in the clear and short. `tests/unit/test_audit_hello.py` holds the
device's one to what a device really sends.
"""

import os
from collections.abc import Iterable, Sequence

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from outpost_tools import agreed
from outpost_tools.audit.suites import EMPTY_RENEGOTIATION_INFO, Suite

TLS_1_0, TLS_1_1, TLS_1_2, TLS_1_3 = 0x0301, 0x0302, 0x0303, 0x0304
HANDSHAKE, CLIENT_HELLO = 22, 1
SERVER_NAME, MAX_FRAGMENT, GROUPS, POINT_FORMATS, SIGNATURES = 0, 1, 10, 11, 13
ENCRYPT_THEN_MAC, EXTENDED_MASTER_SECRET, SUPPORTED_VERSIONS, KEY_SHARE = 22, 23, 43, 51

# P-256, P-384, P-521: what the device's mbedtls is built with.
DEVICE_GROUPS = (0x0017, 0x0018, 0x0019)
# ECDSA and RSA (PKCS#1 v1.5) with SHA-512, SHA-384, SHA-256.
DEVICE_SIGNATURES = (0x0603, 0x0601, 0x0503, 0x0501, 0x0403, 0x0401)
# For questions that are not a device's: X25519 and X448, PSS, and SHA-1 for old servers.
MORE_GROUPS = (0x001D, 0x0017, 0x0018, 0x0019, 0x001E)
MORE_SIGNATURES = (*DEVICE_SIGNATURES, 0x0804, 0x0805, 0x0806, 0x0807, 0x0203, 0x0201, 0x0202)


def _pairs(numbers: Iterable[int]) -> bytes:
    return b"".join(number.to_bytes(2, "big") for number in numbers)


def _sized(content: bytes, size_bytes: int = 2) -> bytes:
    return len(content).to_bytes(size_bytes, "big") + content


def _extension(kind: int, content: bytes) -> bytes:
    return kind.to_bytes(2, "big") + _sized(content)


def device_hello(name: str, suites: Sequence[Suite], record_size: int | None = None) -> bytes:
    """What a device sends that asks for this record size (None: for none)."""
    extensions = [
        _extension(SERVER_NAME, _sized(b"\0" + _sized(name.encode()))),
        _extension(GROUPS, _sized(_pairs(DEVICE_GROUPS))),
        _extension(SIGNATURES, _sized(_pairs(DEVICE_SIGNATURES))),
        _extension(POINT_FORMATS, _sized(b"\0", 1)),
    ]
    if record_size is not None:
        code = agreed.RECORD_SIZES.index(record_size) + 1
        extensions.append(_extension(MAX_FRAGMENT, bytes([code])))
    extensions.append(_extension(ENCRYPT_THEN_MAC, b""))
    extensions.append(_extension(EXTENDED_MASTER_SECRET, b""))
    return _hello(TLS_1_2, [s.code for s in suites], extensions)


def any_hello(name: str, version: int, suites: Sequence[Suite]) -> bytes:
    """A client of one version alone, with every group and signature that is about."""
    extensions = [
        _extension(SERVER_NAME, _sized(b"\0" + _sized(name.encode()))),
        _extension(GROUPS, _sized(_pairs(MORE_GROUPS))),
        _extension(POINT_FORMATS, _sized(b"\0", 1)),
    ]
    if version >= TLS_1_2:
        extensions.append(_extension(SIGNATURES, _sized(_pairs(MORE_SIGNATURES))))
    if version >= TLS_1_3:
        point = (
            ec.generate_private_key(ec.SECP256R1())
            .public_key()
            .public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        )
        extensions.append(_extension(SUPPORTED_VERSIONS, _sized(_pairs([version]), 1)))
        extensions.append(_extension(KEY_SHARE, _sized(_pairs([0x0017]) + _sized(point))))
    return _hello(min(version, TLS_1_2), [s.code for s in suites], extensions)


def _hello(version: int, suites: Sequence[int], extensions: Sequence[bytes]) -> bytes:
    session = os.urandom(32) if any(e[:2] == b"\0\x2b" for e in extensions) else b""
    body = (
        version.to_bytes(2, "big")
        + os.urandom(32)
        + _sized(session, 1)
        + _sized(_pairs([*suites, EMPTY_RENEGOTIATION_INFO]))
        + b"\x01\x00"  # no compression
        + _sized(b"".join(extensions))
    )
    message = bytes([CLIENT_HELLO]) + _sized(body, 3)
    # Servers take 3.1 on the record of a first message, or the version that is asked for.
    return bytes([HANDSHAKE]) + min(version, TLS_1_2).to_bytes(2, "big") + _sized(message)
