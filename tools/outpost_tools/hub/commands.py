"""Commands on their way to devices: kept on disk until acknowledged, expired or tried too often.

It owns the table `command` in the registry's file, so that a removed device's commands go with it.
A command is `queued`, then `sent` once a connection has it, then gone when the device's PUBACK
comes; `expired`, `undeliverable` (tried too often) and `purged` ones are the dead letters, kept for
seven days. What became of one whose sender wants to know (its `ack`) is kept as long, in the table
`feedback`, written in the same transaction. Its calls reach the disk and may block: the hub makes
them outside its event loop.
"""

import datetime as dt
import json
import secrets
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from outpost_tools.hub import faults, limits

ACKS = ("none", "positive", "negative", "full")
DEAD = ("expired", "undeliverable", "purged")
DEAD_KEPT_S = 7 * 86400.0
# The words of IoT Hub's feedback for what became of a command.
OUTCOMES = {
    "completed": "Success",
    "expired": "Expired",
    "undeliverable": "DeliveryCountExceeded",
    "purged": "Purged",
}
WANTED = {"completed": ("positive", "full")}  # by which `ack`; the others' by these:
WANTED_OF_DEAD = ("negative", "full")

COLUMNS = (
    "number, device_id, message_id, state, body, properties, system, ack, deliveries, enqueued_s, "
    "expiry_s, settled_s"
)
WAITING = "state IN ('queued', 'sent')"


@dataclass(frozen=True)
class Command:
    """One cloud-to-device message. Times are Unix seconds."""

    number: int
    device_id: str
    message_id: str
    state: str
    body: bytes = field(repr=False)
    properties: dict[str, str]
    system: dict[str, str]  # "$.cid", "$.ct", "$.ce" where they were given
    ack: str
    deliveries: int
    enqueued_s: float
    expiry_s: float
    settled_s: float = 0.0

    @property
    def topic(self) -> str:
        """Where it is published: the device's own topic with every property in it."""
        to = f"/devices/{self.device_id}/messages/devicebound"
        expiry = dt.datetime.fromtimestamp(self.expiry_s, dt.UTC).isoformat(timespec="seconds")
        named = {"$.mid": self.message_id, "$.to": to, "$.exp": expiry[:19] + "Z", **self.system}
        named["iothub-ack"] = self.ack
        named |= self.properties
        bag = "&".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in named.items())
        return f"devices/{self.device_id}/messages/devicebound/{bag}"

    def as_json(self) -> dict[str, Any]:
        """For people and programs; the body as text, what is no UTF-8 in it escaped."""
        return {
            "messageId": self.message_id,
            "deviceId": self.device_id,
            "state": self.state,
            "body": self.body.decode(errors="backslashreplace"),
            "properties": self.properties,
            "system": self.system,
            "ack": self.ack,
            "deliveryCount": self.deliveries,
            "enqueued_s": self.enqueued_s,
            "expiry_s": self.expiry_s,
        }


def _command(row: Sequence[Any]) -> Command:
    values = list(row)
    values[5], values[6] = json.loads(values[5]), json.loads(values[6])
    return Command(*values)


def open_table(data: Path) -> sqlite3.Connection:
    """A connection of one's own to the registry's file, where a part of the hub has its table."""
    db = sqlite3.connect(
        Path(data) / "registry.db", timeout=10, isolation_level=None, check_same_thread=False
    )
    db.execute("PRAGMA synchronous=FULL")
    return db


class CommandQueue:
    """`deliveries_max`, `lock_s`: how often one is tried, and after how long without a PUBACK."""

    def __init__(
        self,
        data: Path,
        now_s: Callable[[], float],
        deliveries_max: int = limits.COMMAND_DELIVERIES_MAX,
        lock_s: float = limits.COMMAND_LOCK_S,
    ) -> None:
        self.now_s, self.deliveries_max, self.lock_s = now_s, deliveries_max, lock_s
        self._lock = threading.Lock()
        self._db = open_table(data)

    def recover(self) -> None:
        """What an earlier hub had sent and not heard of again waits once more."""
        self._write("UPDATE command SET state = 'queued' WHERE state = 'sent'")

    def add(
        self,
        device_id: str,
        body: bytes,
        properties: Mapping[str, str] | None = None,
        message_id: str | None = None,
        expiry_s: float | None = None,
        ack: str = "none",
        system: Mapping[str, str] | None = None,
    ) -> Command:
        """Queue one; it is on disk when this returns."""
        now_s = self.now_s()
        command = Command(
            number=0,
            device_id=device_id,
            message_id=message_id or secrets.token_hex(16),
            state="queued",
            body=bytes(body),
            properties=dict(properties or {}),
            system=dict(system or {}),
            ack=ack,
            deliveries=0,
            enqueued_s=now_s,
            expiry_s=now_s + limits.COMMAND_LIFE_S if expiry_s is None else float(expiry_s),
        )
        _check(command, now_s)
        values = (
            device_id,
            command.message_id,
            "queued",
            command.body,
            json.dumps(command.properties),
            json.dumps(command.system),
            ack,
            now_s,
            command.expiry_s,
        )
        with self._lock, self._transaction():
            known = self._db.execute("SELECT 1 FROM device WHERE device_id = ?", (device_id,))
            if known.fetchone() is None:
                raise faults.DeviceNotFound(f"There is no device {device_id!r} in this hub.")
            (waiting,) = self._db.execute(
                f"SELECT count(*) FROM command WHERE device_id = ? AND {WAITING} AND expiry_s > ?",
                (device_id, now_s),
            ).fetchone()
            if waiting >= limits.COMMANDS_WAITING_MAX:
                raise faults.QueueFull(
                    f"{waiting} commands wait for {device_id!r} already, which is the most."
                )
            number = self._db.execute(
                "INSERT INTO command (device_id, message_id, state, body, properties, system, ack, "
                "deliveries, enqueued_s, expiry_s) VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?, ?)",
                values,
            ).lastrowid
        assert number is not None
        return Command(**{**vars(command), "number": number})

    def take(self, device_id: str, limit: int) -> tuple[list[Command], list[Command]]:
        """What is to be sent now, oldest first, each counted as one more try; and what died."""
        with self._lock, self._transaction():
            dead = self._bury(device_id)
            rows = self._db.execute(
                f"UPDATE command SET state = 'sent', deliveries = deliveries + 1 WHERE number IN "
                "(SELECT number FROM command WHERE device_id = ? AND state = 'queued' "
                f"ORDER BY number LIMIT ?) RETURNING {COLUMNS}",
                (device_id, limit),
            ).fetchall()
        return sorted(map(_command, rows), key=lambda c: c.number), dead

    def retry(self, number: int) -> tuple[Command | None, list[Command]]:
        """A sent one whose PUBACK did not come: count another try, or let it die."""
        with self._lock, self._transaction():
            rows = self._db.execute(
                "UPDATE command SET state = 'queued' WHERE number = ? AND state = 'sent' "
                f"RETURNING {COLUMNS}",
                (number,),
            ).fetchall()
            if not rows:
                return None, []
            dead = self._bury(rows[0][1])
            rows = self._db.execute(
                "UPDATE command SET state = 'sent', deliveries = deliveries + 1 "
                f"WHERE number = ? AND state = 'queued' RETURNING {COLUMNS}",
                (number,),
            ).fetchall()
        return (_command(rows[0]) if rows else None), dead

    def complete(self, number: int) -> Command | None:
        """The device has it: forget it. None where it is dead or gone already."""
        with self._lock, self._transaction():
            rows = self._db.execute(
                f"DELETE FROM command WHERE number = ? AND {WAITING} RETURNING {COLUMNS}", (number,)
            ).fetchall()
            done = [_command(row) for row in rows]
            self._feed_back(done, "completed")
        return done[0] if done else None

    def release(self, numbers: Sequence[int]) -> None:
        """The connection that had these is gone: they wait for the next."""
        with self._lock, self._transaction():
            self._db.executemany(
                "UPDATE command SET state = 'queued' WHERE number = ? AND state = 'sent'",
                [(number,) for number in numbers],
            )

    def sweep(self) -> list[Command]:
        """Bury what has expired, anywhere; forget old dead letters."""
        now_s = self.now_s()
        with self._lock:
            due = self._db.execute(
                f"SELECT 1 FROM command WHERE ({WAITING} AND expiry_s <= ?1) "
                "OR (settled_s > 0 AND settled_s < ?2) "
                "UNION ALL SELECT 1 FROM feedback WHERE at_s < ?2 LIMIT 1",
                (now_s, now_s - DEAD_KEPT_S),
            ).fetchone()
            if due is None:
                return []
            with self._transaction():
                dead = self._bury(None)
                self._db.execute(
                    "DELETE FROM command WHERE settled_s > 0 AND settled_s < ?",
                    (now_s - DEAD_KEPT_S,),
                )
                self._db.execute("DELETE FROM feedback WHERE at_s < ?", (now_s - DEAD_KEPT_S,))
        return dead

    def purge(self, device_id: str) -> list[Command]:
        with self._lock, self._transaction():
            rows = self._db.execute(
                "UPDATE command SET state = 'purged', settled_s = ? WHERE device_id = ? AND "
                f"{WAITING} RETURNING {COLUMNS}",
                (self.now_s(), device_id),
            ).fetchall()
            purged = [_command(row) for row in rows]
            self._feed_back(purged)
        return purged

    def feedback(self, device_id: str | None = None) -> list[dict[str, Any]]:
        """What became of the commands whose senders asked, oldest first, in IoT Hub's form."""
        with self._lock:
            rows = self._db.execute(
                "SELECT message_id, at_s, outcome, device_id, generation_id FROM feedback "
                "WHERE ?1 IS NULL OR device_id = ?1 ORDER BY number",
                (device_id,),
            ).fetchall()
        names = ("originalMessageId", "at_s", "statusCode", "deviceId", "deviceGenerationId")
        return [dict(zip(names, row, strict=True)) for row in rows]

    def waiting(self, device_id: str) -> list[Command]:
        return self._read(f"device_id = ? AND {WAITING}", (device_id,))

    def count(self, device_id: str) -> int:
        with self._lock:
            return self._db.execute(
                f"SELECT count(*) FROM command WHERE device_id = ? AND {WAITING}", (device_id,)
            ).fetchone()[0]

    def dead(self, device_id: str | None = None) -> list[Command]:
        return self._read("settled_s > 0 AND (?1 IS NULL OR device_id = ?1)", (device_id,))

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _bury(self, device_id: str | None) -> list[Command]:
        """Inside a transaction: expired and too often tried ones become dead letters."""
        now_s = self.now_s()
        rows = self._db.execute(
            f"UPDATE command SET state = CASE WHEN expiry_s <= ?1 THEN 'expired' "
            f"ELSE 'undeliverable' END, settled_s = ?1 WHERE (?2 IS NULL OR device_id = ?2) "
            f"AND ({WAITING} AND expiry_s <= ?1 OR state = 'queued' AND deliveries >= ?3) "
            f"RETURNING {COLUMNS}",
            (now_s, device_id, self.deliveries_max),
        ).fetchall()
        dead = [_command(row) for row in rows]
        self._feed_back(dead)
        return dead

    def _feed_back(self, settled: Sequence[Command], state: str | None = None) -> None:
        """Inside a transaction: keep what became of these, where their senders want to know."""
        for command in settled:
            became = state or command.state
            if command.ack in WANTED.get(became, WANTED_OF_DEAD):
                self._db.execute(
                    "INSERT INTO feedback (device_id, generation_id, message_id, outcome, at_s) "
                    "SELECT device_id, generation_id, ?2, ?3, ?4 FROM device WHERE device_id = ?1",
                    (command.device_id, command.message_id, OUTCOMES[became], self.now_s()),
                )

    def _read(self, where: str, values: Sequence[Any]) -> list[Command]:
        with self._lock:
            rows = self._db.execute(
                f"SELECT {COLUMNS} FROM command WHERE {where} ORDER BY number", values
            ).fetchall()
        return [_command(row) for row in rows]

    def _write(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._lock, self._transaction():
            return self._db.execute(statement, values).fetchall()

    def _transaction(self) -> "Transaction":
        return Transaction(self._db)


class Transaction:
    """BEGIN IMMEDIATE to COMMIT, or ROLLBACK where an exception passes."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._db.execute("ROLLBACK")
            return
        try:
            self._db.execute("COMMIT")
        except sqlite3.Error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise


def _check(command: Command, now_s: float) -> None:
    texts = [*command.properties, *command.properties.values(), *command.system.values()]
    if not all(isinstance(text, str) for text in texts):
        raise faults.ArgumentInvalid("A command's properties are text.")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise faults.ArgumentInvalid("A property has half a character in it.") from None
    size = len(command.body) + sum(len(text.encode()) for text in texts)
    if size > limits.COMMAND_MAX_BYTES:
        raise faults.TooLarge(
            f"The command has {size} bytes with its properties; {limits.COMMAND_MAX_BYTES} are the "
            "limit."
        )
    # MQTT gives a topic 65,535 bytes, and the properties travel in it, percent-encoded.
    if len(command.topic) > 65535:
        raise faults.TooLarge("The command's properties do not fit into a topic.")
    if command.ack not in ACKS:
        raise faults.ArgumentInvalid(f"A command's ack is one of {', '.join(ACKS)}.")
    if not 0 < len(command.message_id) <= 128 or not command.message_id.isascii():
        raise faults.ArgumentInvalid("A message id has 1 to 128 ASCII characters.")
    if command.expiry_s <= now_s:
        raise faults.ArgumentInvalid("The command has expired already.")
    if command.expiry_s > now_s + limits.COMMAND_LIFE_MAX_S + 60:
        raise faults.ArgumentInvalid("A command waits two days at most.")
