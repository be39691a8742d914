"""The device registry: who may connect, and with which keys.

It owns one SQLite file, `registry.db`, and answers from it alone, so that what one process writes
the next lookup of another sees. A change is on disk before the call returns (WAL, synchronous
FULL).
It never prints or logs a key: `Device` hides them from its repr.
"""

import base64
import binascii
import re
import secrets
import sqlite3
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from outpost_tools import agreed
from outpost_tools.errors import OutpostError
from outpost_tools.paths import private_dir

DEVICE_ID_PATTERN = re.compile(f"[A-Za-z0-9{re.escape(agreed.DEVICE_ID_PUNCTUATION)}]+")
KEY_BYTES = 32
SCHEMA_VERSION = 1

SCHEMA = """
CREATE TABLE device (
    device_id      TEXT PRIMARY KEY,
    generation_id  TEXT NOT NULL,
    etag           TEXT NOT NULL,
    status         TEXT NOT NULL CHECK (status IN ('enabled', 'disabled')),
    status_reason  TEXT NOT NULL DEFAULT '',
    primary_key    TEXT NOT NULL,
    secondary_key  TEXT NOT NULL,
    created_s      INTEGER NOT NULL
) STRICT
"""


@dataclass(frozen=True)
class Device:
    """One entry of the registry. Keys are base64 text, as IoT Hub shows them."""

    device_id: str
    generation_id: str
    etag: str
    status: str
    status_reason: str
    primary_key: str = field(repr=False)
    secondary_key: str = field(repr=False)
    created_s: int

    @property
    def enabled(self) -> bool:
        return self.status == "enabled"


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


class Registry:
    """The registry in the folder `data`; the file is made on first use."""

    def __init__(self, data: Path) -> None:
        self.path = private_dir(Path(data)) / "registry.db"
        self._lock = threading.Lock()
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

    def _prepare(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                self._db.execute(SCHEMA)
                self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            elif version != SCHEMA_VERSION:
                raise OutpostError(
                    f"The registry {self.path} has format {version}, this program reads "
                    f"{SCHEMA_VERSION}: use the newer `outpost`."
                )
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def add(
        self,
        device_id: str,
        primary_key: str | None = None,
        secondary_key: str | None = None,
        status: str = "enabled",
    ) -> Device:
        """A new device, with keys made here unless they are given."""
        check_device_id(device_id)
        device = Device(
            device_id=device_id,
            generation_id=str(time.time_ns()),
            etag=secrets.token_urlsafe(9),
            status=status,
            status_reason="",
            primary_key=check_key(primary_key, "primary key") if primary_key else new_key(),
            secondary_key=check_key(secondary_key, "secondary key") if secondary_key else new_key(),
            created_s=int(time.time()),
        )
        row = tuple(vars(device).values())
        try:
            with self._lock:
                self._db.execute("INSERT INTO device VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        except sqlite3.IntegrityError:
            raise OutpostError(
                f"There is a device {device_id!r} already in {self.path}: choose another id."
            ) from None
        except sqlite3.Error as why:
            raise OutpostError(f"The registry {self.path} cannot be written ({why}).") from None
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

    def set_status(self, device_id: str, status: str, reason: str = "") -> Device:
        """Enable or disable: a disabled device is refused at its next connection."""
        if status not in ("enabled", "disabled"):
            raise OutpostError(f"A device is enabled or disabled, not {status!r}.")
        self.get(device_id)
        with self._lock:
            self._db.execute(
                "UPDATE device SET status = ?, status_reason = ?, etag = ? WHERE device_id = ?",
                (status, reason, secrets.token_urlsafe(9), device_id),
            )
        return self.get(device_id)

    def remove(self, device_id: str) -> None:
        """Forget a device and its keys: its next connection is refused."""
        self.get(device_id)
        with self._lock:
            self._db.execute("DELETE FROM device WHERE device_id = ?", (device_id,))

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def __enter__(self) -> "Registry":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
