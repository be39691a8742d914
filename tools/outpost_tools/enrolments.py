"""Enrolments: who may provision itself, and to which hub.

It owns one SQLite file, `enrolments.db` in the data folder: individual enrolments and groups in the
JSON form of Azure's provisioning service (`enrolment`), the hubs that devices can be sent to, what
became of each registration, and the id scope. A change is on disk before the call returns.
"""

import contextlib
import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outpost_tools.enrolment import Enrolment, Registration, check_registration_id, complete
from outpost_tools.errors import OutpostError
from outpost_tools.paths import private_dir

CREDENTIAL_DAYS_MAX = 90
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
class LinkedHub:
    """A hub that devices can be assigned to: its host name, and the folder of its registry."""

    host: str
    data: Path
    weight: int


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
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
                self._db.execute("COMMIT")
            except sqlite3.Error as why:
                raise OutpostError(
                    f"The enrolments {self.path} cannot be written ({why})."
                ) from None

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
