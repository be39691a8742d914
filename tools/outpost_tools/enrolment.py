"""One enrolment: the form that Azure's provisioning service gives it, checked and completed.

It owns the names of members and what may stand in them, and how a group's device gets its key. It
keeps nothing: that is `enrolments`. A key is never shown: `Enrolment` hides its document from its
repr, and no message quotes one.
"""

import base64
import binascii
import hashlib
import hmac
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from outpost_tools.errors import OutpostError
from outpost_tools.registry import check_device_id, check_key, new_key

REGISTRATION_ID_PATTERN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:-]{0,126}[A-Za-z0-9-])?")
REGISTRATION_ID_MAX = 128
ALLOCATIONS = ("hashed", "geoLatency", "static", "custom")
ATTESTATIONS = ("symmetricKey", "x509")
DEFAULT_ALLOCATION = "hashed"
DOCUMENT_MAX_BYTES = 65536


@dataclass(frozen=True)
class Enrolment:
    """One individual enrolment or group. `document` is what was asked for, checked and complete."""

    name: str
    is_group: bool
    etag: str
    created_s: float
    updated_s: float
    document: dict[str, Any] = field(repr=False)

    @property
    def enabled(self) -> bool:
        return self.document["provisioningStatus"] == "enabled"

    @property
    def attestation(self) -> str:
        return str(self.document["attestation"]["type"])

    @property
    def keys(self) -> tuple[str, str]:
        """The symmetric keys, the group's own for a group."""
        held = self.document["attestation"]["symmetricKey"]
        return held["primaryKey"], held["secondaryKey"]

    @property
    def certificates(self) -> list[x509.Certificate]:
        """The device's certificates, or those that sign for a group."""
        kind = "signingCertificates" if self.is_group else "clientCertificates"
        held = self.document["attestation"]["x509"][kind]
        return [
            read_certificate(held[which]["certificate"])
            for which in ("primary", "secondary")
            if held.get(which)
        ]

    @property
    def allocation(self) -> str:
        return str(self.document["allocationPolicy"])

    @property
    def updates_hub(self) -> bool:
        return bool(self.document["reprovisionPolicy"]["updateHubAssignment"])

    @property
    def migrates_data(self) -> bool:
        return bool(self.document["reprovisionPolicy"]["migrateDeviceData"])

    def to_json(self, secret: bool = False) -> dict[str, Any]:
        """As the provisioning service shows it; the keys only where `secret` asks for them."""
        shown = json.loads(json.dumps(self.document))
        if not secret and self.attestation == "symmetricKey":
            del shown["attestation"]["symmetricKey"]
        return {
            **shown,
            "etag": self.etag,
            "createdDateTimeUtc": utc(self.created_s),
            "lastUpdatedDateTimeUtc": utc(self.updated_s),
        }


@dataclass(frozen=True)
class Registration:
    """What became of one device's registration."""

    registration_id: str
    group_name: str | None
    device_id: str
    assigned_hub: str
    status: str
    substatus: str
    payload: Any
    etag: str
    created_s: float
    updated_s: float

    def to_json(self) -> dict[str, Any]:
        shown = {
            "registrationId": self.registration_id,
            "createdDateTimeUtc": utc(self.created_s),
            "assignedHub": self.assigned_hub,
            "deviceId": self.device_id,
            "status": self.status,
            "substatus": self.substatus,
            "lastUpdatedDateTimeUtc": utc(self.updated_s),
            "etag": self.etag,
        }
        return shown if self.payload is None else {**shown, "payload": self.payload}


def utc(at_s: float) -> str:
    """Seconds since 1970 as Azure writes them."""
    whole = int(at_s)
    fraction = int((at_s - whole) * 1e7)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{fraction:07}Z"


def derive_key(group_key: str, registration_id: str) -> str:
    """The key of one device of a group: HMAC-SHA256 of its registration id, in base64."""
    mac = hmac.digest(base64.b64decode(group_key), registration_id.encode(), hashlib.sha256)
    return base64.b64encode(mac).decode()


def check_registration_id(registration_id: str, what: str = "registration id") -> str:
    if not (
        len(registration_id) <= REGISTRATION_ID_MAX
        and REGISTRATION_ID_PATTERN.fullmatch(registration_id)
    ):
        raise OutpostError(
            f"{registration_id[:140]!r} cannot be a {what}: 1 to 128 letters, digits and - . _ :, "
            "beginning with a letter or digit and ending with one or with -."
        )
    return registration_id


def read_certificate(text: str) -> x509.Certificate:
    """A certificate as enrolments hold it: PEM, or the base64 of its DER."""
    try:
        if "-----BEGIN" in text:
            return x509.load_pem_x509_certificate(text.encode())
        return x509.load_der_x509_certificate(base64.b64decode(text, validate=True))
    except (ValueError, binascii.Error):
        raise OutpostError(
            "A certificate of the enrolment is neither PEM nor the base64 of DER: export it again."
        ) from None


def write_certificate(certificate: x509.Certificate) -> str:
    return base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()


def complete(document: dict[str, Any], now_s: float | None = None) -> tuple[str, bool, dict]:  # type: ignore[type-arg]
    """Check an enrolment in Azure's form and fill in what it leaves out.

    Gives its name, whether it is a group, and the document to keep. Unknown members stay, so that
    an enrolment exported from the real service can be brought here and back.
    """
    if not isinstance(document, dict):
        raise OutpostError("An enrolment is a JSON object.")
    kept = {
        name: value
        for name, value in document.items()
        if name not in ("etag", "createdDateTimeUtc", "lastUpdatedDateTimeUtc", "registrationState")
    }
    is_group = "enrollmentGroupId" in kept
    if is_group == ("registrationId" in kept):
        raise OutpostError(
            "An enrolment has either registrationId (one device) or enrollmentGroupId (a group)."
        )
    key = "enrollmentGroupId" if is_group else "registrationId"
    name = check_registration_id(_text(kept, key), "group name" if is_group else "registration id")
    attestation = _object(kept, "attestation")
    kind = attestation.get("type")
    if kind not in ATTESTATIONS:
        raise OutpostError(f"An enrolment's attestation is one of {', '.join(ATTESTATIONS)}.")
    if kind == "symmetricKey":
        keys = _object(attestation, "symmetricKey") if "symmetricKey" in attestation else {}
        attestation = {
            "type": kind,
            "symmetricKey": {
                which: check_key(keys[which], which) if keys.get(which) else new_key()
                for which in ("primaryKey", "secondaryKey")
            },
        }
    else:
        attestation = {"type": kind, "x509": _certificates(attestation, is_group)}
    kept["attestation"] = attestation
    if kept.setdefault("provisioningStatus", "enabled") not in ("enabled", "disabled"):
        raise OutpostError("An enrolment's provisioningStatus is enabled or disabled.")
    if not is_group and kept.get("deviceId"):
        check_device_id(_text(kept, "deviceId"))
    hubs = kept.get("iotHubs") or ([kept["iotHubHostName"]] if kept.get("iotHubHostName") else [])
    if not (isinstance(hubs, list) and all(isinstance(hub, str) for hub in hubs)):
        raise OutpostError("An enrolment's iotHubs is a list of host names.")
    kept["iotHubs"] = hubs
    kept.setdefault("allocationPolicy", "static" if kept.get("iotHubHostName") else None)
    kept["allocationPolicy"] = kept["allocationPolicy"] or DEFAULT_ALLOCATION
    if kept["allocationPolicy"] not in ALLOCATIONS:
        raise OutpostError(f"An enrolment's allocationPolicy is one of {', '.join(ALLOCATIONS)}.")
    if kept["allocationPolicy"] == "custom":
        webhook = _object(kept, "customAllocationDefinition").get("webhookUrl")
        if not (isinstance(webhook, str) and webhook.startswith(("http://", "https://"))):
            raise OutpostError("Custom allocation needs customAllocationDefinition.webhookUrl.")
    policy = kept.get("reprovisionPolicy") or {}
    if not isinstance(policy, dict) or not all(
        isinstance(policy.get(part, True), bool)
        for part in ("updateHubAssignment", "migrateDeviceData")
    ):
        raise OutpostError("An enrolment's reprovisionPolicy holds two truth values.")
    kept["reprovisionPolicy"] = {"updateHubAssignment": True, "migrateDeviceData": True, **policy}
    twin = kept.get("initialTwin")
    if twin is not None:
        _object(kept, "initialTwin")
        _object(twin, "tags", {})
        _object(_object(twin, "properties", {}), "desired", {})
    if len(json.dumps(kept)) > DOCUMENT_MAX_BYTES:
        raise OutpostError(f"An enrolment has at most {DOCUMENT_MAX_BYTES} bytes.")
    return name, is_group, kept


def _certificates(attestation: dict[str, Any], is_group: bool) -> dict[str, Any]:
    kind = "signingCertificates" if is_group else "clientCertificates"
    held = _object(_object(attestation, "x509"), kind)
    kept = {}
    for which in ("primary", "secondary"):
        if held.get(which):
            certificate = read_certificate(_text(_object(held, which), "certificate"))
            kept[which] = {
                "certificate": write_certificate(certificate),
                "info": {
                    "subjectName": certificate.subject.rfc4514_string(),
                    "issuerName": certificate.issuer.rfc4514_string(),
                    "sha256Thumbprint": thumbprint(certificate),
                    "notBeforeUtc": utc(certificate.not_valid_before_utc.timestamp()),
                    "notAfterUtc": utc(certificate.not_valid_after_utc.timestamp()),
                    "serialNumber": f"{certificate.serial_number:X}",
                },
            }
    if "primary" not in kept:
        raise OutpostError(f"An X.509 enrolment needs x509.{kind}.primary.certificate.")
    return {kind: kept}


def thumbprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the DER, in upper-case hex digits as Azure writes it."""
    der = certificate.public_bytes(serialization.Encoding.DER)
    return hashlib.sha256(der).hexdigest().upper()


def _object(holder: dict[str, Any], name: str, default: dict[str, Any] | None = None) -> Any:
    value = holder.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, dict):
        raise OutpostError(f"An enrolment's {name} is a JSON object.")
    return value


def _text(holder: dict[str, Any], name: str) -> str:
    value = holder.get(name)
    if not isinstance(value, str):
        raise OutpostError(f"An enrolment's {name} is a text.")
    return value
