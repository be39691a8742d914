"""The NVS partition of one device: its id, its keys, its clock's floor, encrypted where asked.

Espressif's own generator writes the format; the record in it is lib/outpost/keystore.py's. It owns
nothing once the bytes are made, and never prints what went in.
"""

import base64
import io
import secrets
import struct
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from outpost_tools import agreed
from outpost_tools.errors import OutpostError
from outpost_tools.registry import Device

PAGE_BYTES = 4096
XTS_KEY_BYTES = 64  # two AES-256 keys, as ESP-IDF keeps them


@dataclass(frozen=True)
class Identity:
    """What goes into a device's NVS beside its id.

    Symmetric keys are base64 text, empty where there are none; `chain` is DER, leaf first, and
    `private` the DER of its key where that was made on the host. All empty: the board makes its
    own key at its first boot.
    """

    device_id: str
    primary_key: str = field(default="", repr=False)
    secondary_key: str = field(default="", repr=False)
    chain: bytes = field(default=b"", repr=False)
    private: bytes = field(default=b"", repr=False)
    payload: bytes = field(default=b"", repr=False)  # for bodies encrypted from end to end
    seal: bytes = field(default=b"", repr=False)  # a stock board's key to open sealed secrets

    @classmethod
    def with_certificate(cls, device_id: str, certificate: Path, key: Path) -> "Identity":
        """From the files of a chain (PEM or DER) and of its key (PEM, no passphrase), judged."""
        from outpost_tools import proof, vault

        try:
            content = certificate.read_bytes()
            private = serialization.load_pem_private_key(key.read_bytes(), None)
        except OSError as why:
            raise OutpostError(f"Cannot read {why.filename} ({why.strerror}).") from None
        except (ValueError, TypeError):
            raise OutpostError(
                f"{key} is no private key in PEM form, or it has a passphrase."
            ) from None
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise OutpostError(f"The key in {key} is not of the curve P-256.")
        point = proof.point(private.public_key(), "The device's")
        chain = proof.read_chain(content)
        proof.check_chain(chain, device_id, point)
        packed = proof.pack_chain(chain)
        return cls(device_id, chain=packed, private=vault.private_der(private))

    @classmethod
    def of(cls, device: Device) -> "Identity":
        """As the registry has it; of a device with a certificate the registry has the id alone."""
        return cls(device.device_id, device.primary_key, device.secondary_key)

    def with_payload_key(self, file: Path) -> "Identity":
        """With the 32 raw bytes of a file as the key for protected bodies."""
        try:
            key = file.read_bytes()
        except OSError as why:
            raise OutpostError(f"Cannot read {file} ({why.strerror}).") from None
        if len(key) != agreed.PAYLOAD_KEY_BYTES:
            raise OutpostError(
                f"{file} holds {len(key)} bytes, not {agreed.PAYLOAD_KEY_BYTES}: make it with "
                f"'openssl rand {agreed.PAYLOAD_KEY_BYTES} > FILE'."
            )
        return replace(self, payload=key)

    @property
    def holds(self) -> Literal["symmetric", "x509", "born"]:
        """What the device proves itself with; "born" where it makes that itself."""
        return "symmetric" if self.primary_key else "x509" if self.chain else "born"


def x509_record(chain: bytes, private: bytes, seq: int = 1) -> bytes:
    """An identity record with a certificate chain and the key that was made on the host."""
    if not 0 < len(chain) <= agreed.CHAIN_MAX_BYTES:
        raise OutpostError(
            f"The chain has {len(chain)} bytes, not 1 to {agreed.CHAIN_MAX_BYTES}: leave the root "
            "out."
        )
    if not 0 < len(private) <= agreed.PRIVATE_KEY_MAX_BYTES:
        raise OutpostError("The device's private key is no EC P-256 key in DER.")
    body = struct.pack("<BH", agreed.SLOT_NONE, len(chain)) + chain
    body += struct.pack("<H", len(private)) + private
    return _record(agreed.RECORD_X509, body, seq)


def _record(kind: int, body: bytes, seq: int) -> bytes:
    whole = struct.pack("<4sIB", agreed.RECORD_MAGIC, seq, kind) + body
    return whole + struct.pack("<I", zlib.crc32(whole))


def new_keys() -> bytes:
    """A key for NVS encryption. Espressif's generator takes its own from a predictable source
    (Python's `random`), so it is made here and handed over."""
    return secrets.token_bytes(XTS_KEY_BYTES)


def keys_partition(keys: bytes, size: int = PAGE_BYTES) -> bytes:
    """The partition `nvs_keys` as ESP-IDF reads it: both keys and their CRC-32."""
    if len(keys) != XTS_KEY_BYTES or keys[:32] == keys[32:]:
        raise OutpostError("A key for NVS encryption has 64 bytes, its halves different.")
    crc = zlib.crc32(keys, 0xFFFFFFFF)
    return (keys + struct.pack("<I", crc)).ljust(size, b"\xff")


def nvs_partition(
    identity: Identity | None,
    build_time_s: int,
    size: int,
    keys: bytes | None = None,
    production: bool = False,
) -> bytes:
    """The partition in format version 2; encrypted with `keys` where they are given."""
    # Slow to import, and says so little: only where an image is built.
    from esp_idf_nvs_partition_gen import nvs_partition_gen as nvs

    out = io.BytesIO()
    # The generator adds the page that NVS keeps free to what it is told.
    store = nvs.nvs_open(
        out,
        size - PAGE_BYTES,
        version=nvs.Page.VERSION2,
        is_encrypt=keys is not None,
        key=keys.hex() if keys else None,
    )
    try:
        nvs.write_entry(store, agreed.NVS_NAMESPACE, "namespace", "", "")
        for key, blob in _blobs(identity):
            # "base64" is the generator's word for a blob: it stores what this decodes to.
            nvs.write_entry(store, key, "data", "base64", base64.b64encode(blob).decode())
        if identity is not None and identity.chain:
            nvs.write_entry(store, agreed.NVS_CURRENT, "data", "i32", "0")
        floor = str(build_time_s - agreed.UNIX_2000)
        nvs.write_entry(store, agreed.NVS_TIME_FLOOR, "data", "i32", floor)
        if production:
            nvs.write_entry(store, agreed.NVS_PRODUCTION, "data", "i32", "1")
        nvs.nvs_close(store)
    except (nvs.InsufficientSizeError, nvs.PageFullError):
        raise OutpostError(
            f"The device's keys and certificates do not fit into an NVS of {size >> 10} KiB: use "
            "a shorter chain."
        ) from None
    return out.getvalue()


def _blobs(identity: Identity | None) -> list[tuple[str, bytes]]:
    if identity is None:
        return []
    held = [(agreed.NVS_DEVICE_ID, identity.device_id.encode())]
    if identity.primary_key:
        held.append((agreed.NVS_KEY_PRIMARY, identity.primary_key.encode()))
    if identity.secondary_key:
        held.append((agreed.NVS_KEY_SECONDARY, identity.secondary_key.encode()))
    if identity.chain:
        held.append((agreed.NVS_RECORDS[0], x509_record(identity.chain, identity.private)))
    if identity.payload:
        held.append((agreed.NVS_PAYLOAD_KEY, identity.payload))
    if identity.seal:
        held.append((agreed.NVS_SEAL, identity.seal))
    return held
