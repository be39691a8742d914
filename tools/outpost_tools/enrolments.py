"""Enrolments: who may provision itself, and to which hub.

It owns one SQLite file, `enrolments.db` in the data folder: individual enrolments and groups in the
JSON form of Azure's provisioning service, the hubs that devices can be sent to, what became of each
registration, and the id scope. A change is on disk before the call returns. A key is never shown:
`Enrolment` hides its document from its repr, and no message quotes one.
"""

import base64
import binascii
import contextlib
import hashlib
import hmac
import json
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from outpost_tools.errors import OutpostError
from outpost_tools.paths import private_dir
from outpost_tools.registry import check_device_id, check_key, new_key

REGISTRATION_ID_PATTERN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:-]{0,126}[A-Za-z0-9-])?")
REGISTRATION_ID_MAX = 128
ALLOCATIONS = ("hashed", "geoLatency", "static", "custom")
ATTESTATIONS = ("symmetricKey", "x509")
DEFAULT_ALLOCATION = "hashed"
CREDENTIAL_DAYS_MAX = 90
DOCUMENT_MAX_BYTES = 65536
SCHEMA_VERSION = 1

SCHEMA = (
    """
CREATE TABLE enrolment (
    name        TEXT NOT NULL COLLATE NOCASE,
    is_group    INTEGER NOT NULL,
    document    TEXT NOT NULL,
    etag        TEXT NOT NULL,
    created_s   REAL NOT NULL,
    updated_s   REAL NOT NULL,
    PRIMARY KEY (name, is_group)
) STRICT
""",
    """
CREATE TABLE registration (
    registration_id  TEXT PRIMARY KEY COLLATE NOCASE,
    group_name       TEXT,
    device_id        TEXT NOT NULL,
    assigned_hub     TEXT NOT NULL,
    status           TEXT NOT NULL,
    substatus        TEXT NOT NULL,
    payload          TEXT NOT NULL,
    etag             TEXT NOT NULL,
    created_s        REAL NOT NULL,
    updated_s        REAL NOT NULL
) STRICT
""",
    """
CREATE TABLE linked_hub (
    host    TEXT PRIMARY KEY COLLATE NOCASE,
    data    TEXT NOT NULL,
    weight  INTEGER NOT NULL CHECK (weight BETWEEN 0 AND 1000)
) STRICT
""",
    "CREATE TABLE credential_policy (name TEXT PRIMARY KEY, days INTEGER NOT NULL) STRICT",
    "CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT",
)


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


@dataclass(frozen=True)
class LinkedHub:
    """A hub that devices can be assigned to: its host name, and the folder of its registry."""

    host: str
    data: Path
    weight: int


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


class Enrolments:
    """The enrolments in the folder `data`; the file and the id scope are made on first use."""

    def __init__(self, data: Path) -> None:
        self.data = private_dir(Path(data))
        self.path = self.data / "enrolments.db"
        self._lock = threading.Lock()
        try:
            self.path.touch(mode=0o600, exist_ok=True)
            self._db = sqlite3.connect(
                self.path, timeout=10, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            with self._change():
                self._prepare()
        except (sqlite3.Error, OSError) as why:
            raise OutpostError(
                f"The enrolments {self.path} cannot be opened ({why}): restore them from a copy, "
                "or give another folder with --data."
            ) from None

    def _prepare(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            for statement in SCHEMA:
                self._db.execute(statement)
            scope = f"0ne{secrets.token_hex(4).upper()}"
            self._db.execute("INSERT INTO setting VALUES ('id_scope', ?)", (scope,))
            self._db.execute("INSERT INTO credential_policy VALUES ('default', 30)")
            self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        elif version != SCHEMA_VERSION:
            raise OutpostError(
                f"The enrolments {self.path} have format {version}, this program reads "
                f"{SCHEMA_VERSION}: use the newer `outpost`."
            )

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        """One transaction: all of it is on disk when the block ends, or none."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _rows(self, statement: str, *values: Any) -> list[Any]:
        with self._lock:
            return self._db.execute(statement, values).fetchall()

    @property
    def id_scope(self) -> str:
        """What devices name this provisioning service by; made once."""
        return str(self._rows("SELECT value FROM setting WHERE name = 'id_scope'")[0][0])

    # Enrolments

    def put(self, document: dict[str, Any], if_match: str | None = None) -> Enrolment:
        """Make an enrolment, or replace the one of that name.

        if_match  None: make a new one; "*": replace whatever stands; else only that etag
        """
        name, is_group, kept = complete(document)
        now_s = time.time()
        etag = secrets.token_urlsafe(9)
        with self._change():
            row = self._db.execute(
                "SELECT etag, created_s FROM enrolment WHERE name = ? AND is_group = ?",
                (name, is_group),
            ).fetchone()
            if row is not None and if_match is None:
                raise OutpostError(f"There is an enrolment {name!r} already: choose another name.")
            if row is None and if_match is not None:
                raise OutpostError(f"There is no enrolment {name!r} to replace.")
            if row is not None and if_match not in ("*", row[0]):
                raise OutpostError(f"The enrolment {name!r} was changed meanwhile: read it again.")
            created_s = row[1] if row else now_s
            self._db.execute(
                "INSERT OR REPLACE INTO enrolment VALUES (?, ?, ?, ?, ?, ?)",
                (name, is_group, json.dumps(kept), etag, created_s, now_s),
            )
        return Enrolment(name, is_group, etag, created_s, now_s, kept)

    def find(self, name: str, group: bool = False) -> Enrolment | None:
        rows = self._rows(
            "SELECT name, is_group, etag, created_s, updated_s, document FROM enrolment "
            "WHERE name = ? AND is_group = ?",
            name,
            group,
        )
        return _enrolment(rows[0]) if rows else None

    def get(self, name: str, group: bool = False) -> Enrolment:
        found = self.find(name, group)
        if found is None:
            what = "enrolment group" if group else "enrolment"
            raise OutpostError(f"There is no {what} {name!r} in {self.path}.")
        return found

    def still(self, enrolment: Enrolment, registration_id: str) -> Enrolment | None:
        """The enrolment as it stands now, for a device that has shown itself by it before.

        None where it is gone or asks for another key or certificate. A device of a group that has
        an enrolment of its own by now is not of the group: where that one is disabled it is given.
        """
        own = self.find(registration_id) if enrolment.is_group else None
        if own is not None:
            return None if own.enabled else own
        present = self.find(enrolment.name, enrolment.is_group)
        if present is None or present.document["attestation"] != enrolment.document["attestation"]:
            return None
        return present

    def all(self, group: bool | None = None) -> list[Enrolment]:
        """Every enrolment: individual ones, then groups; or those of one sort."""
        rows = self._rows(
            "SELECT name, is_group, etag, created_s, updated_s, document FROM enrolment "
            "WHERE ? IS NULL OR is_group = ? ORDER BY is_group, name",
            group,
            group,
        )
        return [_enrolment(row) for row in rows]

    def set_status(self, name: str, status: str, group: bool = False) -> Enrolment:
        """Enable or disable: a disabled enrolment assigns nobody."""
        held = self.get(name, group)
        return self.put({**held.document, "provisioningStatus": status}, if_match=held.etag)

    def remove(self, name: str, group: bool = False) -> None:
        """Forget an enrolment and its registrations; devices that a hub knows stay there."""
        self.get(name, group)
        column = "group_name" if group else "registration_id"
        with self._change():
            self._db.execute("DELETE FROM enrolment WHERE name = ? AND is_group = ?", (name, group))
            self._db.execute(f"DELETE FROM registration WHERE {column} = ?", (name,))

    # Registrations

    def keep_registration(
        self,
        registration_id: str,
        group_name: str | None,
        device_id: str,
        assigned_hub: str,
        substatus: str,
        payload: Any = None,
    ) -> Registration:
        now_s = time.time()
        etag = secrets.token_urlsafe(9)
        with self._change():
            row = self._db.execute(
                "SELECT created_s FROM registration WHERE registration_id = ?", (registration_id,)
            ).fetchone()
            made = Registration(
                registration_id,
                group_name,
                device_id,
                assigned_hub,
                "assigned",
                substatus,
                payload,
                etag,
                row[0] if row else now_s,
                now_s,
            )
            values = {**vars(made), "payload": json.dumps(payload)}
            self._db.execute(
                "INSERT OR REPLACE INTO registration VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                tuple(values.values()),
            )
        return made

    def registration(self, registration_id: str) -> Registration | None:
        rows = self._rows("SELECT * FROM registration WHERE registration_id = ?", registration_id)
        return _registration(rows[0]) if rows else None

    def registrations(self, group_name: str | None = None) -> list[Registration]:
        rows = self._rows(
            "SELECT * FROM registration WHERE ? IS NULL OR group_name = ? ORDER BY registration_id",
            group_name,
            group_name,
        )
        return [_registration(row) for row in rows]

    def remove_registration(self, registration_id: str) -> None:
        with self._change():
            self._db.execute(
                "DELETE FROM registration WHERE registration_id = ?", (registration_id,)
            )

    # Hubs and credential policies

    def link_hub(self, host: str, data: Path, weight: int = 1) -> None:
        """Let devices be assigned to the hub `host` whose registry is in the folder `data`."""
        if not host or "/" in host or len(host) > 253:
            raise OutpostError(f"{host!r} is not a host name.")
        if not 0 <= weight <= 1000:
            raise OutpostError("A hub's weight is 0 to 1000.")
        with self._change():
            self._db.execute(
                "INSERT OR REPLACE INTO linked_hub VALUES (?, ?, ?)",
                (host, str(Path(data).resolve()), weight),
            )

    def unlink_hub(self, host: str) -> None:
        with self._change():
            self._db.execute("DELETE FROM linked_hub WHERE host = ?", (host,))

    def hubs(self) -> list[LinkedHub]:
        rows = self._rows("SELECT host, data, weight FROM linked_hub ORDER BY host")
        return [LinkedHub(host, Path(data), weight) for host, data, weight in rows]

    def put_credential_policy(self, name: str, days: int) -> None:
        """How long the certificates live that are issued under the policy `name`."""
        check_registration_id(name, "policy name")
        if not 1 <= days <= CREDENTIAL_DAYS_MAX:
            raise OutpostError(f"Issued certificates live 1 to {CREDENTIAL_DAYS_MAX} days.")
        with self._change():
            self._db.execute("INSERT OR REPLACE INTO credential_policy VALUES (?, ?)", (name, days))

    def credential_policies(self) -> dict[str, int]:
        return dict(self._rows("SELECT name, days FROM credential_policy ORDER BY name"))

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def __enter__(self) -> "Enrolments":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _enrolment(row: Any) -> Enrolment:
    name, is_group, etag, created_s, updated_s, document = row
    return Enrolment(name, bool(is_group), etag, created_s, updated_s, json.loads(document))


def _registration(row: Any) -> Registration:
    values = list(row)
    values[6] = json.loads(values[6])
    return Registration(*values)
