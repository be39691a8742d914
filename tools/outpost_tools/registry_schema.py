"""The tables of `registry.db`, and how a file of an older format becomes one of the present.

It owns the format's number. A file of a newer program is refused, never changed.
"""

import sqlite3
from collections.abc import Iterator

from outpost_tools.entries import FIRST_POLICIES, new_key
from outpost_tools.errors import OutpostError

SCHEMA_VERSION = 3

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
-- feedback
CREATE TABLE feedback (
    number         INTEGER PRIMARY KEY AUTOINCREMENT,
    device_id      TEXT NOT NULL,
    generation_id  TEXT NOT NULL,
    message_id     TEXT NOT NULL,
    outcome        TEXT NOT NULL,
    at_s           REAL NOT NULL
) STRICT;
-- device removed
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


def version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def prepare(db: sqlite3.Connection, path: object) -> None:
    """Inside a transaction: make the tables, or bring them to the present format."""
    found = version(db)
    if found == SCHEMA_VERSION:  # another process was quicker
        return
    if found not in (0, 1, 2):
        raise OutpostError(
            f"The registry {path} has format {found}, this program reads "
            f"{SCHEMA_VERSION}: use the newer `outpost`."
        )
    if found == 1:
        db.execute("ALTER TABLE device RENAME TO device_1")
    since = SCHEMA[SCHEMA.index("-- feedback") : SCHEMA.index("-- device removed")]
    for statement in _statements(since if found == 2 else SCHEMA):
        db.execute(statement)
    if found == 1:
        db.execute(f"INSERT INTO device ({FORMAT_1}) SELECT {FORMAT_1} FROM device_1")
        db.execute("DROP TABLE device_1")
    for name, rights in FIRST_POLICIES.items() if found < 2 else ():
        db.execute(
            "INSERT INTO policy VALUES (?, ?, ?, ?)",
            (name, new_key(), new_key(), ",".join(rights)),
        )
    db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")


def _statements(script: str) -> Iterator[str]:
    """The statements of a script one by one: `executescript` would end the transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
