"""Telemetry on disk, before it is acknowledged.

It owns `telemetry.db` in the data folder and one thread that writes it. What arrives while a commit
runs goes into the next one together, so that many devices share the cost of reaching the disk.
"""

import asyncio
import contextlib
import json
import queue
import sqlite3
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from outpost_tools.errors import OutpostError
from outpost_tools.paths import private_dir

if TYPE_CHECKING:
    from outpost_tools.hub.session import Telemetry

SCHEMA = """
CREATE TABLE IF NOT EXISTS telemetry (
    number       INTEGER PRIMARY KEY AUTOINCREMENT,
    device_id    TEXT NOT NULL,
    received_s   REAL NOT NULL,
    qos          INTEGER NOT NULL,
    dup          INTEGER NOT NULL,
    properties   TEXT NOT NULL,
    body         BLOB NOT NULL
) STRICT
"""
INSERT = (
    "INSERT INTO telemetry (device_id, received_s, qos, dup, properties, body) "
    "VALUES (?, ?, ?, ?, ?, ?)"
)
BATCH = 1000

_Row = tuple[str, float, int, int, str, bytes]
_Entry = tuple[_Row, asyncio.Future[None], asyncio.AbstractEventLoop]


class TelemetryStore:
    def __init__(self, data: Path) -> None:
        self.path = private_dir(Path(data)) / "telemetry.db"
        try:
            self.path.touch(mode=0o600, exist_ok=True)
            self._db = sqlite3.connect(
                self.path, timeout=10, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(SCHEMA)
        except (sqlite3.Error, OSError) as why:
            raise OutpostError(
                f"The telemetry store {self.path} cannot be opened ({why}): move it away, or give "
                "another folder with --data."
            ) from None
        self._queue: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="telemetry", daemon=True)
        self._thread.start()

    def add(self, telemetry: "Telemetry") -> "asyncio.Future[None]":
        """A future that is done once the message is on disk."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        row = (
            telemetry.device_id,
            telemetry.received_s,
            telemetry.qos,
            int(telemetry.dup),
            json.dumps(telemetry.properties),
            telemetry.body,
        )
        self._queue.put((row, done, loop))
        return done

    def close(self) -> None:
        """Write what is waiting, then close."""
        self._queue.put(None)
        self._thread.join()
        self._db.close()

    def _write(self) -> None:
        ended = False
        while not ended:
            batch: list[_Entry] = []
            entry = self._queue.get()
            while True:
                if entry is None:
                    ended = True
                    break
                batch.append(entry)
                if len(batch) == BATCH or self._queue.empty():
                    break
                entry = self._queue.get()
            failure: Exception | None = None
            try:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.executemany(INSERT, [row for row, _, _ in batch])
                self._db.execute("COMMIT")
            except sqlite3.Error as why:
                failure = why
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
            for _, done, loop in batch:
                # The hub may have stopped meanwhile: the message is on disk, nobody waits for it.
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(_settle, done, failure)


def _settle(done: "asyncio.Future[None]", failure: Exception | None) -> None:
    if done.cancelled():
        return
    if failure is None:
        done.set_result(None)
    else:
        done.set_exception(failure)
