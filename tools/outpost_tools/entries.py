"""What the registry holds of a device and of a shared access policy, and what may stand in it.

It owns the rules for ids, keys, thumbprints and names, each with the sentence that says what is
wrong; it reaches no file. Keys are hidden from every repr.
"""

import base64
import binascii
import re
import secrets
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from cryptography.hazmat.primitives import hashes

from outpost_tools import agreed
from outpost_tools.errors import OutpostError

DEVICE_ID_PATTERN = re.compile(f"[A-Za-z0-9{re.escape(agreed.DEVICE_ID_PUNCTUATION)}]+")
KEY_BYTES = 32

Rotation = Literal["both", "primary", "secondary", "swap"]

AUTHS = ("sas", "selfSigned", "certificateAuthority")
RIGHTS = ("RegistryRead", "RegistryReadWrite", "ServiceConnect", "DeviceConnect")
# What a new IoT Hub has; RegistryReadWrite goes with RegistryRead.
FIRST_POLICIES = {
    "iothubowner": RIGHTS,
    "service": ("ServiceConnect",),
    "device": ("DeviceConnect",),
    "registryRead": ("RegistryRead",),
    "registryReadWrite": ("RegistryRead", "RegistryReadWrite"),
}


@dataclass(frozen=True)
class Device:
    """One entry of the registry.

    Keys are base64 text, as IoT Hub shows them, and empty where `auth` is not "sas"; thumbprints
    are SHA-1 or SHA-256 in upper-case hexadecimal, and empty where `auth` is not "selfSigned".
    """

    device_id: str
    generation_id: str
    etag: str
    status: str
    status_reason: str
    primary_key: str = field(repr=False)
    secondary_key: str = field(repr=False)
    created_s: int
    auth: str = "sas"
    primary_thumbprint: str = ""
    secondary_thumbprint: str = ""
    status_updated_s: float = 0.0
    last_activity_s: float = 0.0

    @property
    def enabled(self) -> bool:
        return self.status == "enabled"

    @property
    def keys(self) -> tuple[str, ...]:
        """The symmetric keys; none where the device has certificates."""
        return (self.primary_key, self.secondary_key) if self.auth == "sas" else ()

    @property
    def thumbprints(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.primary_thumbprint, self.secondary_thumbprint)))


COLUMNS = tuple(column.name for column in fields(Device))


@dataclass(frozen=True)
class Policy:
    """A shared access policy: a key pair with rights, for services and token services."""

    name: str
    primary_key: str = field(repr=False)
    secondary_key: str = field(repr=False)
    rights: frozenset[str]

    @property
    def keys(self) -> tuple[str, str]:
        return self.primary_key, self.secondary_key


def check_device_id(device_id: str) -> str:
    """The id itself, or a sentence that says what IoT Hub does not take in it."""
    if not device_id:
        raise OutpostError("A device id needs at least one character.")
    if len(device_id) > agreed.DEVICE_ID_MAX:
        raise OutpostError(
            f"A device id has at most {agreed.DEVICE_ID_MAX} characters; "
            f"this one has {len(device_id)}."
        )
    if not DEVICE_ID_PATTERN.fullmatch(device_id):
        bad = next(c for c in device_id if not DEVICE_ID_PATTERN.fullmatch(c))
        raise OutpostError(
            f"The device id {device_id!r} has {bad!r} in it: IoT Hub takes ASCII letters, digits "
            f"and {' '.join(agreed.DEVICE_ID_PUNCTUATION)}"
        )
    return device_id


def check_key(key: str, name: str = "key") -> str:
    """A symmetric key as base64 text of 16 to 64 bytes. The message never quotes it."""
    try:
        raw = base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        raise OutpostError(f"The {name} is not base64: copy it again, whole.") from None
    if not agreed.KEY_MIN_BYTES <= len(raw) <= agreed.KEY_MAX_BYTES:
        raise OutpostError(
            f"The {name} has {len(raw)} bytes; IoT Hub takes {agreed.KEY_MIN_BYTES} to "
            f"{agreed.KEY_MAX_BYTES}."
        )
    return key


def new_key() -> str:
    return base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()


def check_thumbprint(text: str) -> str:
    """SHA-1 or SHA-256 of a certificate, as upper-case hexadecimal without separators."""
    plain = text.replace(":", "").replace(" ", "").upper()
    if len(plain) not in (40, 64) or not all(c in "0123456789ABCDEF" for c in plain):
        raise OutpostError(
            "A thumbprint is the SHA-1 or SHA-256 of the certificate: 40 or 64 hexadecimal digits."
        )
    return plain


def thumbprints(certificate_der: bytes) -> tuple[str, str]:
    """The SHA-256 and the SHA-1 of a certificate, as `check_thumbprint` writes them."""
    digests = []
    for kind in (hashes.SHA256(), hashes.SHA1()):
        digest = hashes.Hash(kind)
        digest.update(certificate_der)
        digests.append(digest.finalize().hex().upper())
    return digests[0], digests[1]


def check_policy_name(name: str) -> str:
    if not (0 < len(name) <= 64 and re.fullmatch(r"[A-Za-z0-9!._-]+", name)):
        raise OutpostError(
            f"{name!r} cannot name a policy: 1 to 64 letters, digits and ! . _ - are taken."
        )
    return name


def new_etag() -> str:
    # As IoT Hub's own: base64 of eight bytes.
    return base64.b64encode(secrets.token_bytes(8)).decode()


def checked(device: Device) -> Device:
    """The device with its parts in their one form, or a sentence that says what is wrong."""
    if device.status not in ("enabled", "disabled"):
        raise OutpostError(f"A device is enabled or disabled, not {device.status!r}.")
    if len(device.status_reason) > 128:
        raise OutpostError("The reason of a status has at most 128 characters.")
    if device.auth not in AUTHS:
        raise OutpostError(f"A device's authentication is one of {', '.join(AUTHS)}.")
    if device.auth == "sas":
        check_key(device.primary_key, "primary key")
        check_key(device.secondary_key, "secondary key")
    if device.auth != "selfSigned":
        return replace(device, primary_thumbprint="", secondary_thumbprint="")
    if not device.primary_thumbprint and not device.secondary_thumbprint:
        raise OutpostError("A device with a certificate of its own needs its thumbprint.")
    return replace(
        device,
        primary_thumbprint=device.primary_thumbprint
        and check_thumbprint(device.primary_thumbprint),
        secondary_thumbprint=device.secondary_thumbprint
        and check_thumbprint(device.secondary_thumbprint),
    )


def row_of(device: Device) -> tuple[Any, ...]:
    return tuple(getattr(device, name) for name in COLUMNS)
