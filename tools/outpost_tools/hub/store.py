"""Telemetry on disk, before it is acknowledged; kept for seven days or up to a size.

It owns `telemetry.db` in the data folder and one thread that writes it. What arrives while a commit
runs goes into the next one together, so that many devices share the cost of reaching the disk. The
same thread forgets what is too old or too much, oldest first.
"""

import asyncio
import base64
import contextlib
import json
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outpost_tools.errors import OutpostError
from outpost_tools.hub import limits
from outpost_tools.paths import private_dir

SCHEMA = """
CREATE TABLE IF NOT EXISTS telemetry (
    number       INTEGER PRIMARY KEY AUTOINCREMENT,
    device_id    TEXT NOT NULL,
    received_s   REAL NOT NULL,
    qos          INTEGER NOT NULL,
    dup          INTEGER NOT NULL,
    properties   TEXT NOT NULL,
    body         BLOB NOT NULL,
    made_s       REAL NOT NULL DEFAULT 0
) STRICT
"""
INDEX = "CREATE INDEX IF NOT EXISTS telemetry_received ON telemetry (received_s)"
INSERT = (
    "INSERT INTO telemetry (device_id, received_s, qos, dup, properties, body, made_s) "
    "VALUES (?, ?, ?, ?, ?, ?, ?)"
)
COLUMNS = "number, device_id, received_s, qos, dup, properties, body, made_s"
PROPERTIES, BODY = 5, 6  # among the columns
BATCH = 1000
BATCH_BYTES = 16 << 20
KEEP_BYTES = 1 << 30
FORGET_EVERY_S = 60.0
# A reading ends with the message that reaches this; the next one goes on after it.
READ_MAX_BYTES = 4 << 20
# A share of what is kept goes at a time where it is too much.
FORGET_SHARE = 20

_Row = tuple[str, float, int, int, str, bytes, float]
_Entry = tuple[_Row, "asyncio.Future[int]", asyncio.AbstractEventLoop]


@dataclass(frozen=True)
class Telemetry:
    """One message from a device. `made_s` is what the device says, else when it arrived."""

    device_id: str
    body: bytes
    properties: dict[str, str]  # the application's, and the system's by names such as "$.ct"
    qos: int
    dup: bool
    packet_id: int | None
    received_s: float = field(default_factory=time.time)
    made_s: float = 0.0

    @property
    def text(self) -> str:
        return self.body.decode(errors="backslashreplace")

    def as_event(self, number: int) -> dict[str, Any]:
        """As it is shown and read again; `base64` has the body where it is no UTF-8."""
        event = {
            "number": number,
            "device": self.device_id,
            "qos": self.qos,
            "dup": self.dup,
            "properties": {k: v for k, v in self.properties.items() if k[:2] != "$."},
            "system": {k: v for k, v in self.properties.items() if k[:2] == "$."},
            "body": self.text,
            "made_s": round(self.made_s or self.received_s, 3),
            "received_s": round(self.received_s, 3),
        }
        try:
            self.body.decode()
        except UnicodeDecodeError:
            event["base64"] = base64.b64encode(self.body).decode()
        return event


class TelemetryStore:
    def __init__(
        self,
        data: Path,
        now_s: Callable[[], float] = time.time,
        keep_s: float = limits.TELEMETRY_KEPT_S,
        keep_bytes: int = KEEP_BYTES,
    ) -> None:
        self.path = private_dir(Path(data)) / "telemetry.db"
        self.now_s, self.keep_s, self.keep_bytes = now_s, keep_s, keep_bytes
        self._forget_at = 0.0
        self._reading = threading.Lock()
        try:
            self.path.touch(mode=0o600, exist_ok=True)
            self._db = self._open()
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(SCHEMA)
            if "made_s" not in [row[1] for row in self._db.execute("PRAGMA table_info(telemetry)")]:
                self._db.execute("ALTER TABLE telemetry ADD COLUMN made_s REAL NOT NULL DEFAULT 0")
            self._db.execute(INDEX)
            self._reader = self._open()
        except (sqlite3.Error, OSError) as why:
            raise OutpostError(
                f"The telemetry store {self.path} cannot be opened ({why}): move it away, or give "
                "another folder with --data."
            ) from None
        self._queue: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="telemetry", daemon=True)
        self._thread.start()

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=10, isolation_level=None, check_same_thread=False)

    def add(self, telemetry: Telemetry) -> "asyncio.Future[int]":
        """A future that has the message's number once it is on disk."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[int] = loop.create_future()
        row = (
            telemetry.device_id,
            telemetry.received_s,
            telemetry.qos,
            int(telemetry.dup),
            json.dumps(telemetry.properties),
            telemetry.body,
            telemetry.made_s or telemetry.received_s,
        )
        self._queue.put((row, done, loop))
        return done

    def read(
        self,
        since_s: float | None = None,
        device_id: str | None = None,
        after_number: int = 0,
        limit: int = 1000,
    ) -> list[dict[str, Any]]:
        """What is kept, in the order of arrival, as events.

        No more than `limit`, and fewer where they are large; none only where there are no more.
        """
        rows, size = [], 0
        with self._reading, contextlib.closing(self._reader.cursor()) as cursor:
            cursor.execute(
                f"SELECT {COLUMNS} FROM telemetry WHERE number > max(?1, coalesce((SELECT "
                "min(number) - 1 FROM telemetry WHERE ?2 IS NOT NULL AND received_s >= ?2), 0)) "
                "AND (?2 IS NULL OR received_s >= ?2) AND (?3 IS NULL OR device_id = ?3) "
                "ORDER BY number LIMIT ?4",
                (after_number, since_s, device_id, limit),
            )
            for row in cursor:
                rows.append(row)
                size += len(row[BODY]) + len(row[PROPERTIES])
                if size >= READ_MAX_BYTES:
                    break
        return [_event(row) for row in rows]

    def close(self) -> None:
        """Write what is waiting, then close."""
        self._queue.put(None)
        self._thread.join()
        self._db.close()
        with self._reading:
            self._reader.close()

    def forget(self) -> None:
        """Drop what is too old, and the oldest while the file holds too much."""
        self._db.execute(
            "DELETE FROM telemetry WHERE received_s < ?", (self.now_s() - self.keep_s,)
        )
        while self._used_bytes() > self.keep_bytes:
            first, last = self._db.execute(
                "SELECT min(number), max(number) FROM telemetry"
            ).fetchone()
            if first is None:
                return
            share = (last - first) // FORGET_SHARE
            self._db.execute("DELETE FROM telemetry WHERE number <= ?", (first + share,))

    def _used_bytes(self) -> int:
        pages, free, size = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    def _write(self) -> None:
        ended = False
        while not ended:
            batch, ended = self._batch()
            if batch:
                _tell(batch, *self._store(batch))
            if not ended and time.monotonic() >= self._forget_at:
                self._forget_at = time.monotonic() + FORGET_EVERY_S
                with contextlib.suppress(sqlite3.Error):
                    self.forget()

    def _batch(self) -> tuple[list[_Entry], bool]:
        """What waits, or comes before it is time to forget; and whether it was the last."""
        batch: list[_Entry] = []
        size = 0
        patience_s = max(0.0, self._forget_at - time.monotonic())
        with contextlib.suppress(queue.Empty):
            while len(batch) < BATCH and size < BATCH_BYTES:
                entry = self._queue.get(timeout=0.0 if batch else patience_s)
                if entry is None:
                    return batch, True
                batch.append(entry)
                size += len(entry[0][BODY - 1])
        return batch, False

    def _store(self, batch: list[_Entry]) -> tuple[list[int], Exception | None]:
        """All of them or none; their numbers, and why not."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            numbers = [self._db.execute(INSERT, row).lastrowid or 0 for row, _, _ in batch]
            self._db.execute("COMMIT")
            return numbers, None
        except Exception as why:  # whatever it is, this thread has to go on
            with contextlib.suppress(sqlite3.Error):
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
            return [0] * len(batch), why


def _tell(batch: list[_Entry], numbers: list[int], failure: Exception | None) -> None:
    """Let those know who wait for it, each in its own loop."""
    results: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[int], int]]] = {}
    for (_, done, loop), number in zip(batch, numbers, strict=True):
        results.setdefault(loop, []).append((done, number))
    for loop, settled in results.items():
        # The hub may have stopped meanwhile: the message is on disk, nobody waits for it.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, settled, failure)


def _event(row: tuple[Any, ...]) -> dict[str, Any]:
    number, device_id, received_s, qos, dup, properties, body, made_s = row
    message = Telemetry(
        device_id, body, json.loads(properties), qos, bool(dup), None, received_s, made_s
    )
    return {"event": "telemetry", "at_s": round(received_s, 3), **message.as_event(number)}


def _settle(settled: list[tuple["asyncio.Future[int]", int]], failure: Exception | None) -> None:
    for done, number in settled:
        if done.cancelled():
            continue
        if failure is None:
            done.set_result(number)
        else:
            done.set_exception(failure)
