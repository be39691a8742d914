"""The device registry: who may connect, and with which keys or certificates.

It owns one SQLite file, `registry.db`, and answers from it alone, so that what one process writes
the next lookup of another sees. A change is on disk before the call returns (WAL, synchronous
FULL). In the same file are the shared access policies, the authorities that device certificates
may come from, and what the hub keeps for each device (its twin, its commands, its subscriptions):
all of a device goes with it, in one transaction.
It never prints or logs a key: `Device` and `Policy` hide them from their repr.
"""

import base64
import binascii
import json
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from outpost_tools import agreed
from outpost_tools.errors import OutpostError
from outpost_tools.paths import private_dir

DEVICE_ID_PATTERN = re.compile(f"[A-Za-z0-9{re.escape(agreed.DEVICE_ID_PUNCTUATION)}]+")
KEY_BYTES = 32
SCHEMA_VERSION = 2

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

SCHEMA = """
CREATE TABLE device (
    device_id             TEXT PRIMARY KEY,
    generation_id         TEXT NOT NULL,
    etag                  TEXT NOT NULL,
    status                TEXT NOT NULL CHECK (status IN ('enabled', 'disabled')),
    status_reason         TEXT NOT NULL DEFAULT '',
    primary_key           TEXT NOT NULL,
    secondary_key         TEXT NOT NULL,
    created_s             INTEGER NOT NULL,
    auth                  TEXT NOT NULL DEFAULT 'sas'
                          CHECK (auth IN ('sas', 'selfSigned', 'certificateAuthority')),
    primary_thumbprint    TEXT NOT NULL DEFAULT '',
    secondary_thumbprint  TEXT NOT NULL DEFAULT '',
    status_updated_s      REAL NOT NULL DEFAULT 0,
    last_activity_s       REAL NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE policy (
    name           TEXT PRIMARY KEY,
    primary_key    TEXT NOT NULL,
    secondary_key  TEXT NOT NULL,
    rights         TEXT NOT NULL
) STRICT;
CREATE TABLE authority (
    name  TEXT PRIMARY KEY,
    pem   TEXT NOT NULL
) STRICT;
CREATE TABLE twin (
    device_id      TEXT PRIMARY KEY,
    etag           TEXT NOT NULL,
    version        INTEGER NOT NULL,
    tags           TEXT NOT NULL,
    desired        TEXT NOT NULL,
    desired_meta   TEXT NOT NULL,
    reported       TEXT NOT NULL,
    reported_meta  TEXT NOT NULL
) STRICT;
CREATE TABLE command (
    number       INTEGER PRIMARY KEY AUTOINCREMENT,
    device_id    TEXT NOT NULL,
    message_id   TEXT NOT NULL,
    state        TEXT NOT NULL,
    body         BLOB NOT NULL,
    properties   TEXT NOT NULL,
    system       TEXT NOT NULL,
    ack          TEXT NOT NULL,
    deliveries   INTEGER NOT NULL,
    enqueued_s   REAL NOT NULL,
    expiry_s     REAL NOT NULL,
    settled_s    REAL NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX command_waiting ON command (device_id, number) WHERE state IN ('queued', 'sent');
CREATE TABLE mqtt_session (
    device_id      TEXT PRIMARY KEY,
    subscriptions  TEXT NOT NULL
) STRICT;
CREATE TRIGGER device_removed AFTER DELETE ON device BEGIN
    DELETE FROM twin WHERE device_id = old.device_id;
    DELETE FROM command WHERE device_id = old.device_id;
    DELETE FROM mqtt_session WHERE device_id = old.device_id;
END;
"""

# What format 1 held of a device.
FORMAT_1 = (
    "device_id, generation_id, etag, status, status_reason, primary_key, secondary_key, created_s"
)


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


class StaleEtag(OutpostError):
    """The entry was changed since the caller read it."""


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


def _new_etag() -> str:
    # As IoT Hub's own: base64 of eight bytes.
    return base64.b64encode(secrets.token_bytes(8)).decode()


class Registry:
    """The registry in the folder `data`; the file is made on first use."""

    def __init__(self, data: Path) -> None:
        self.path = private_dir(Path(data)) / "registry.db"
        self._lock = threading.RLock()
        try:
            # The file exists with its owner's rights alone before any key goes in.
            self.path.touch(mode=0o600, exist_ok=True)
            self._db = sqlite3.connect(
                self.path, timeout=10, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._prepare()
        except (sqlite3.Error, OSError) as why:
            raise OutpostError(
                f"The registry {self.path} cannot be opened ({why}): restore it from a copy, or "
                "give another folder with --data."
            ) from None

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, seen whole by others or not at all."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
                self._db.execute("COMMIT")
            except sqlite3.IntegrityError:
                raise
            except sqlite3.Error as why:
                raise OutpostError(f"The registry {self.path} cannot be written ({why}).") from None

    def _prepare(self) -> None:
        with self._lock:
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version == SCHEMA_VERSION:
            return
        with self._writing() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == SCHEMA_VERSION:  # another process was quicker
                return
            if version not in (0, 1):
                raise OutpostError(
                    f"The registry {self.path} has format {version}, this program reads "
                    f"{SCHEMA_VERSION}: use the newer `outpost`."
                )
            if version == 1:
                db.execute("ALTER TABLE device RENAME TO device_1")
            for statement in _statements(SCHEMA):
                db.execute(statement)
            if version == 1:
                db.execute(f"INSERT INTO device ({FORMAT_1}) SELECT {FORMAT_1} FROM device_1")
                db.execute("DROP TABLE device_1")
            for name, rights in FIRST_POLICIES.items():
                db.execute(
                    "INSERT INTO policy VALUES (?, ?, ?, ?)",
                    (name, new_key(), new_key(), ",".join(rights)),
                )
            db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    # Devices.

    def add(
        self,
        device_id: str,
        primary_key: str | None = None,
        secondary_key: str | None = None,
        status: str = "enabled",
        *,
        auth: str = "sas",
        primary_thumbprint: str = "",
        secondary_thumbprint: str = "",
        status_reason: str = "",
    ) -> Device:
        """A new device, with keys made here unless they are given; see `Device` for the rest."""
        check_device_id(device_id)
        if auth == "sas":
            primary_key, secondary_key = primary_key or new_key(), secondary_key or new_key()
        now_ns = time.time_ns()
        device = _checked(
            Device(
                device_id=device_id,
                generation_id=str(now_ns),
                etag=_new_etag(),
                status=status,
                status_reason=status_reason,
                primary_key=primary_key or "",
                secondary_key=secondary_key or "",
                created_s=int(time.time()),
                auth=auth,
                primary_thumbprint=primary_thumbprint,
                secondary_thumbprint=secondary_thumbprint,
            )
        )
        marks = ", ".join("?" * len(COLUMNS))
        try:
            with self._writing() as db:
                db.execute(f"INSERT INTO device VALUES ({marks})", _row(device))
        except sqlite3.IntegrityError:
            raise OutpostError(
                f"There is a device {device_id!r} already in {self.path}: choose another id."
            ) from None
        return device

    def find(self, device_id: str) -> Device | None:
        with self._lock:
            row = self._db.execute(
                "SELECT * FROM device WHERE device_id = ?", (device_id,)
            ).fetchone()
        return Device(*row) if row else None

    def get(self, device_id: str) -> Device:
        """The device, or a sentence that says how to make it."""
        device = self.find(check_device_id(device_id))
        if device is None:
            raise OutpostError(
                f"There is no device {device_id!r} in {self.path}: make it with "
                f"`outpost device new`."
            )
        return device

    def devices(self) -> list[Device]:
        with self._lock:
            rows = self._db.execute("SELECT * FROM device ORDER BY device_id").fetchall()
        return [Device(*row) for row in rows]

    def counts(self) -> tuple[int, int]:
        """How many devices there are, and how many of them are enabled."""
        with self._lock:
            total, enabled = self._db.execute(
                "SELECT count(*), count(*) FILTER (WHERE status = 'enabled') FROM device"
            ).fetchone()
        return total, enabled

    def update(self, device_id: str, *, if_match: str | None = None, **changes: Any) -> Device:
        """Change status, status_reason, primary_key, secondary_key, auth or the thumbprints.

        `if_match` is the etag that the caller read; StaleEtag where it is no longer the present
        one. Going over to certificates forgets the keys, going back to keys makes new ones where
        none are given.
        """
        takes = {"status", "status_reason", "primary_key", "secondary_key", "auth"}
        takes |= {"primary_thumbprint", "secondary_thumbprint"}
        if unknown := changes.keys() - takes:
            raise TypeError(f"a device has no changeable {', '.join(sorted(unknown))}")
        with self._writing() as db:
            before = self.get(device_id)
            _check_etag(before, if_match)
            device = replace(before, **changes, etag=_new_etag())
            if device.auth == "sas":
                device = replace(
                    device,
                    primary_key=device.primary_key or new_key(),
                    secondary_key=device.secondary_key or new_key(),
                    primary_thumbprint="",
                    secondary_thumbprint="",
                )
            else:
                device = replace(device, primary_key="", secondary_key="")
                if device.auth != "selfSigned":
                    device = replace(device, primary_thumbprint="", secondary_thumbprint="")
            if device.status != before.status:
                device = replace(device, status_updated_s=time.time())
            device = _checked(device)
            sets = ", ".join(f"{name} = ?" for name in COLUMNS)
            db.execute(f"UPDATE device SET {sets} WHERE device_id = ?", (*_row(device), device_id))
        return device

    def set_status(self, device_id: str, status: str, reason: str = "") -> Device:
        """Enable or disable: a disabled device loses its connection and is refused the next."""
        return self.update(device_id, status=status, status_reason=reason)

    def rotate(self, device_id: str, which: Rotation = "both") -> Device:
        """New keys, or the two exchanged; a token made with a key that went is refused."""
        with self._writing():
            device = self.get(device_id)
            if device.auth != "sas":
                raise OutpostError(
                    f"The device {device_id!r} connects with a certificate: it has no keys."
                )
        changes = {
            "both": {"primary_key": new_key(), "secondary_key": new_key()},
            "primary": {"primary_key": new_key()},
            "secondary": {"secondary_key": new_key()},
            "swap": {"primary_key": device.secondary_key, "secondary_key": device.primary_key},
        }
        return self.update(device_id, if_match=device.etag, **changes[which])

    def remove(self, device_id: str, if_match: str | None = None) -> None:
        """Forget a device, its keys, its twin and its commands."""
        with self._writing() as db:
            _check_etag(self.get(device_id), if_match)
            db.execute("DELETE FROM device WHERE device_id = ?", (device_id,))

    def heard_of(self, device_ids: Iterable[tuple[str, float]]) -> None:
        """Keep when each device was last active (Unix seconds)."""
        with self._writing() as db:
            db.executemany(
                "UPDATE device SET last_activity_s = ?2 WHERE device_id = ?1", list(device_ids)
            )

    # Shared access policies.

    def policies(self) -> list[Policy]:
        with self._lock:
            rows = self._db.execute("SELECT * FROM policy ORDER BY name").fetchall()
        return [_policy(row) for row in rows]

    def policy(self, name: str) -> Policy | None:
        with self._lock:
            row = self._db.execute("SELECT * FROM policy WHERE name = ?", (name,)).fetchone()
        return _policy(row) if row else None

    def add_policy(self, name: str, rights: Iterable[str]) -> Policy:
        given = frozenset(rights)
        if not given or not given <= set(RIGHTS):
            raise OutpostError(f"A policy has one or more of the rights {', '.join(RIGHTS)}.")
        row = (check_policy_name(name), new_key(), new_key(), ",".join(sorted(given)))
        try:
            with self._writing() as db:
                db.execute("INSERT INTO policy VALUES (?, ?, ?, ?)", row)
        except sqlite3.IntegrityError:
            raise OutpostError(f"There is a policy {name!r} already: choose another.") from None
        return _policy(row)

    def rotate_policy(self, name: str, which: Rotation = "both") -> Policy:
        """New keys for a policy: tokens made with a key that went are refused."""
        with self._writing() as db:
            policy = self._policy(name)
            primary, secondary = policy.keys
            primary, secondary = {
                "both": (new_key(), new_key()),
                "primary": (new_key(), secondary),
                "secondary": (primary, new_key()),
                "swap": (secondary, primary),
            }[which]
            db.execute(
                "UPDATE policy SET primary_key = ?, secondary_key = ? WHERE name = ?",
                (primary, secondary, name),
            )
        return replace(policy, primary_key=primary, secondary_key=secondary)

    def remove_policy(self, name: str) -> None:
        with self._writing() as db:
            self._policy(name)
            db.execute("DELETE FROM policy WHERE name = ?", (name,))

    def _policy(self, name: str) -> Policy:
        policy = self.policy(name)
        if policy is None:
            names = ", ".join(p.name for p in self.policies())
            raise OutpostError(f"There is no policy {name!r}: there are {names or 'none'}.")
        return policy

    # Authorities that device certificates may come from.

    def add_authority(self, name: str, pem: str) -> None:
        """A CA certificate; device certificates may be signed by it, or by an intermediate of it
        that the device sends."""
        try:
            certificate = x509.load_pem_x509_certificate(pem.encode())
            basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        except (ValueError, x509.ExtensionNotFound):
            raise OutpostError(
                f"The authority {name!r} is not a CA certificate in PEM form."
            ) from None
        if not basic.ca:
            raise OutpostError(f"The certificate of the authority {name!r} is not a CA's.")
        try:
            with self._writing() as db:
                db.execute("INSERT INTO authority VALUES (?, ?)", (check_policy_name(name), pem))
        except sqlite3.IntegrityError:
            raise OutpostError(
                f"There is an authority {name!r} already: remove it first."
            ) from None

    def authorities(self) -> dict[str, x509.Certificate]:
        with self._lock:
            rows = self._db.execute("SELECT name, pem FROM authority ORDER BY name").fetchall()
        return {name: x509.load_pem_x509_certificate(pem.encode()) for name, pem in rows}

    def remove_authority(self, name: str) -> None:
        with self._writing() as db:
            if not db.execute("DELETE FROM authority WHERE name = ?", (name,)).rowcount:
                raise OutpostError(f"There is no authority {name!r}.")

    # For the hub.

    def changes(self) -> int:
        """A number that differs once another connection, of any process, has written."""
        with self._lock:
            return self._db.execute("PRAGMA data_version").fetchone()[0]

    def standing(self, device_ids: Iterable[str]) -> tuple[object, dict[str, str]]:
        """What the rights of these devices hang on: one thing for all of them (policies and
        authorities), and the etag of each that is there. Where both are as before, nothing that
        matters to a connection has changed."""
        with self._lock:
            policies = self._db.execute("SELECT * FROM policy ORDER BY name").fetchall()
            authorities = self._db.execute("SELECT * FROM authority ORDER BY name").fetchall()
            etags = self._db.execute(
                "SELECT device_id, etag FROM device "
                "WHERE device_id IN (SELECT value FROM json_each(?))",
                (json.dumps(list(device_ids)),),
            ).fetchall()
        return (policies, authorities), dict(etags)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def __enter__(self) -> "Registry":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _statements(script: str) -> Iterator[str]:
    """The statements of a script one by one: `executescript` would end the transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _row(device: Device) -> tuple[Any, ...]:
    return tuple(getattr(device, name) for name in COLUMNS)


def _policy(row: tuple[str, str, str, str]) -> Policy:
    return Policy(row[0], row[1], row[2], frozenset(row[3].split(",")))


def _check_etag(device: Device, if_match: str | None) -> None:
    if if_match not in (None, "*", device.etag):
        raise StaleEtag(
            f"The device {device.device_id!r} was changed by someone else: read it again."
        )


def _checked(device: Device) -> Device:
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
