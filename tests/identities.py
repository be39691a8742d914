"""Identities for a device under test: records written into its image's NVS, by packing of our own,
and every form in which a secret could show itself.

It owns no file but the image that it is told to change. A second writer of the format that
lib/outpost/keystore.py reads (docs/identity-device.md): what one gets wrong the other finds.
"""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path

from chip import Chip, ChipError
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

NVS = (0x9000, 0x6000)
SYMMETRIC, X509, SIGNER = 1, 2, 3


def symmetric(primary: bytes, secondary: bytes = b"", seq: int = 1) -> bytes:
    body = bytes([len(primary)]) + primary + bytes([len(secondary)]) + secondary
    return _closed(SYMMETRIC, seq, body)


def x509(chain: bytes, *, slot: int = 255, private: bytes = b"", seq: int = 1, kind=X509) -> bytes:
    body = struct.pack("<BH", slot, len(chain)) + chain
    return _closed(kind, seq, body + struct.pack("<H", len(private)) + private)


def _closed(kind: int, seq: int, body: bytes) -> bytes:
    whole = b"OPK1" + struct.pack("<IB", seq, kind) + body
    return whole + struct.pack("<I", zlib.crc32(whole))


def sec1(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def edit(flash: Path, **entries: int | bytes | None) -> None:
    """Set entries of the namespace `outpost` in an image; None takes one out."""
    chip = Chip(flash)
    try:
        assert chip.start(*NVS) == 0
        ns = chip.namespace("outpost")
        for name, value in entries.items():
            if value is not None:
                chip.set(ns, name, value)
            elif chip.get(ns, name) is not None:
                chip.erase_key(ns, name)
    finally:
        chip.close()


def entries(flash: Path, *names: str, namespace: str = "outpost") -> dict[str, int | bytes | None]:
    """What the image holds under these names."""
    chip = Chip(flash)
    try:
        assert chip.start(*NVS) == 0
        try:
            ns = chip.namespace(namespace, False)
        except ChipError:
            return dict.fromkeys(names)
        return {name: chip.get(ns, name) for name in names}
    finally:
        chip.close()


def forms(secret: bytes) -> list[bytes]:
    """A secret as it could stand in a text or a packet: raw, hex, base64, base64url, decimal."""
    shown = [secret, secret.hex().encode(), secret.hex().upper().encode()]
    for shift in range(3):  # base64 of something that has the secret in it
        # The first and last characters depend on what is around it.
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            shown.append(encode(bytes(shift) + secret)[4 if shift else 0 :].rstrip(b"=")[:-1])
    numbers = ", ".join(map(str, secret))
    escaped = "".join(f"\\x{b:02x}" for b in secret)
    shown.append(repr(secret).encode()[2:-1])
    return [*shown, numbers.encode(), numbers.replace(", ", ",").encode(), escaped.encode()]


def found_in(haystack: bytes, secrets: dict[str, bytes]) -> list[str]:
    """Names of the secrets of which any form is in the bytes, or the first half of one."""
    halves = {name: secret[: max(12, len(secret) // 2)] for name, secret in secrets.items()}
    return [name for name, half in halves.items() if any(f in haystack for f in forms(half))]
