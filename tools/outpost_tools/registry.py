"""The device registry: who may connect, and with which keys or certificates.

It owns one SQLite file, `registry.db`, and answers from it alone, so that what one process writes
the next lookup of another sees. A change is on disk before the call returns (WAL, synchronous
FULL). In the same file are the shared access policies, the authorities that device certificates
may come from, and what the hub keeps for each device (its twin, its commands, its subscriptions):
all of a device goes with it, in one transaction.
It never prints or logs a key: `Device` and `Policy` hide them from their repr.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography import x509

from outpost_tools import registry_schema
from outpost_tools.entries import (
    AUTHS,
    COLUMNS,
    DEVICE_ID_PATTERN,
    RIGHTS,
    Device,
    Policy,
    Rotation,
    check_device_id,
    check_key,
    check_policy_name,
    check_thumbprint,
    checked,
    new_etag,
    new_key,
    row_of,
    thumbprints,
)
from outpost_tools.errors import OutpostError
from outpost_tools.paths import private_dir

# Whoever uses the registry finds here what stands in it, too.
__all__ = [
    "AUTHS",
    "DEVICE_ID_PATTERN",
    "Device",
    "Policy",
    "Registry",
    "StaleEtag",
    "check_device_id",
    "check_key",
    "check_thumbprint",
    "new_key",
    "thumbprints",
]


class StaleEtag(OutpostError):
    """The entry was changed since the caller read it."""


class Registry:
    """The registry in the folder `data`; the file is made on first use."""

    def __init__(self, data: Path) -> None:
        self.path = private_dir(Path(data)) / "registry.db"
        self._lock, self._read_lock = threading.RLock(), threading.Lock()
        self._writer: int | None = None  # the thread whose transaction is open
        try:
            # The file exists with its owner's rights alone before any key goes in.
            self.path.touch(mode=0o600, exist_ok=True)
            self._db = self._open()
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            if registry_schema.version(self._db) != registry_schema.SCHEMA_VERSION:
                with self._writing() as db:
                    registry_schema.prepare(db, self.path)
            self._reader = self._open()
        except (sqlite3.Error, OSError) as why:
            raise OutpostError(
                f"The registry {self.path} cannot be opened ({why}): restore it from a copy, or "
                "give another folder with --data."
            ) from None

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=10, isolation_level=None, check_same_thread=False)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """What is on disk; inside a transaction of the same thread, that with its changes.

        Reading waits for no writer: where another process holds the file, a hub goes on admitting.
        """
        if self._writer == threading.get_ident():
            yield self._db
            return
        with self._read_lock:
            yield self._reader

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, seen whole by others or not at all."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                self._writer = threading.get_ident()
                try:
                    yield self._db
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
                finally:
                    self._writer = None
                self._db.execute("COMMIT")
            except sqlite3.IntegrityError:
                raise
            except sqlite3.Error as why:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise OutpostError(f"The registry {self.path} cannot be written ({why}).") from None

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
        device = checked(
            Device(
                device_id=device_id,
                generation_id=str(now_ns),
                etag=new_etag(),
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
                db.execute(f"INSERT INTO device VALUES ({marks})", row_of(device))
        except sqlite3.IntegrityError:
            raise OutpostError(
                f"There is a device {device_id!r} already in {self.path}: choose another id."
            ) from None
        return device

    def find(self, device_id: str) -> Device | None:
        with self._reading() as db:
            row = db.execute("SELECT * FROM device WHERE device_id = ?", (device_id,)).fetchone()
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
        with self._reading() as db:
            rows = db.execute("SELECT * FROM device ORDER BY device_id").fetchall()
        return [Device(*row) for row in rows]

    def counts(self) -> tuple[int, int]:
        """How many devices there are, and how many of them are enabled."""
        with self._reading() as db:
            total, enabled = db.execute(
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
            device = replace(before, **changes, etag=new_etag())
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
            device = checked(device)
            sets = ", ".join(f"{name} = ?" for name in COLUMNS)
            db.execute(
                f"UPDATE device SET {sets} WHERE device_id = ?", (*row_of(device), device_id)
            )
        return device

    def set_status(self, device_id: str, status: str, reason: str = "") -> Device:
        """Enable or disable: a disabled device loses its connection and is refused the next."""
        return self.update(device_id, status=status, status_reason=reason)

    def rotate(self, device_id: str, which: Rotation = "both") -> Device:
        """New keys, or the two exchanged; a token made with a key that went is refused."""
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
        with self._reading() as db:
            rows = db.execute("SELECT * FROM policy ORDER BY name").fetchall()
        return [_policy(row) for row in rows]

    def policy(self, name: str) -> Policy | None:
        with self._reading() as db:
            row = db.execute("SELECT * FROM policy WHERE name = ?", (name,)).fetchone()
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
        with self._reading() as db:
            rows = db.execute("SELECT name, pem FROM authority ORDER BY name").fetchall()
        return {name: x509.load_pem_x509_certificate(pem.encode()) for name, pem in rows}

    def remove_authority(self, name: str) -> None:
        with self._writing() as db:
            if not db.execute("DELETE FROM authority WHERE name = ?", (name,)).rowcount:
                raise OutpostError(f"There is no authority {name!r}.")

    # For the hub.

    def changes(self) -> int:
        """A number that differs once another connection, of any process, has written."""
        with self._reading() as db:
            return db.execute("PRAGMA data_version").fetchone()[0]

    def standing(self, device_ids: Iterable[str]) -> tuple[object, dict[str, str]]:
        """What the rights of these devices hang on: one thing for all of them (policies and
        authorities), and the etag of each that is there. Where both are as before, nothing that
        matters to a connection has changed."""
        with self._reading() as db:
            policies = db.execute("SELECT * FROM policy ORDER BY name").fetchall()
            authorities = db.execute("SELECT * FROM authority ORDER BY name").fetchall()
            etags = db.execute(
                "SELECT device_id, etag FROM device "
                "WHERE device_id IN (SELECT value FROM json_each(?))",
                (json.dumps(list(device_ids)),),
            ).fetchall()
        return (policies, authorities), dict(etags)

    def close(self) -> None:
        with self._lock, self._read_lock:
            self._db.close()
            self._reader.close()

    def __enter__(self) -> "Registry":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _policy(row: tuple[str, str, str, str]) -> Policy:
    return Policy(row[0], row[1], row[2], frozenset(row[3].split(",")))


def _check_etag(device: Device, if_match: str | None) -> None:
    if if_match not in (None, "*", device.etag):
        raise StaleEtag(
            f"The device {device.device_id!r} was changed by someone else: read it again."
        )
