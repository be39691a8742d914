"""What the host knows of each device's keys: the fleet's book, beside the registry.

It owns one SQLite file, `fleet.db`: the fleet's name, each device's born key (its public point and
its certificate), every certificate that was issued to it, where a rotation of its keys stands, and
the counters of signed commands. A change is on disk before the call returns (WAL, synchronous
FULL), so a kill at any point leaves the state before it or after it.
It never holds a secret: no private key, no symmetric key, no passphrase.
"""

import fcntl
import hashlib
import json
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from outpost_tools import agreed
from outpost_tools.errors import OutpostError
from outpost_tools.paths import private_dir
from outpost_tools.registry import check_device_id, thumbprints

FORMAT = 1
# A clock that is wrong by decades must not use up the numbers that there are.
COUNTER_OF_CLOCK_MAX = agreed.COUNTER_MAX - (1 << 24)
MADE_ON = ("device", "host", "")

SCHEMA = (
    "CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT",
    """CREATE TABLE device (
        device_id         TEXT PRIMARY KEY,
        made_on           TEXT NOT NULL DEFAULT '',
        born_point        BLOB,
        born_certificate  BLOB,
        seen_s            INTEGER NOT NULL
    ) STRICT""",
    """CREATE TABLE certificate (
        number       INTEGER PRIMARY KEY AUTOINCREMENT,
        device_id    TEXT NOT NULL,
        thumbprint   TEXT NOT NULL UNIQUE,
        serial       TEXT NOT NULL,
        issuer       TEXT NOT NULL,
        not_after_s  INTEGER NOT NULL,
        state        TEXT NOT NULL,
        chain        BLOB NOT NULL,
        issued_s     INTEGER NOT NULL
    ) STRICT""",
    "CREATE INDEX certificate_of ON certificate (device_id, number)",
    """CREATE TABLE rotation (
        device_id  TEXT PRIMARY KEY,
        kind       TEXT NOT NULL,
        phase      TEXT NOT NULL,
        detail     TEXT NOT NULL,
        changed_s  REAL NOT NULL
    ) STRICT""",
    "CREATE TABLE counter (role TEXT PRIMARY KEY, last INTEGER NOT NULL) STRICT",
)


@dataclass(frozen=True)
class Known:
    """What is known of one device."""

    device_id: str
    made_on: str  # "device": its key was born on it; "host": made here; "": nobody said
    born_point: bytes | None  # 65 bytes, SEC 1
    born_certificate: bytes | None = field(repr=False)  # DER
    seen_s: int

    @property
    def born_thumbprint(self) -> str | None:
        """SHA-256 of the born certificate, as the registry writes it."""
        return thumbprints(self.born_certificate)[0] if self.born_certificate else None


@dataclass(frozen=True)
class Issued:
    """One certificate that was issued to a device. `state` is issued, current, old or revoked."""

    device_id: str
    thumbprint: str  # SHA-256, upper-case hexadecimal
    serial: str  # hexadecimal
    issuer: str
    not_after_s: int
    state: str
    chain: bytes = field(repr=False)  # DER of each, leaf first
    issued_s: int


@dataclass(frozen=True)
class Rotation:
    """Where the rotation of a device's keys stands. The words are the rotation's own."""

    device_id: str
    kind: str
    phase: str
    detail: Mapping[str, Any]
    changed_s: float


class Fleet:
    """The fleet's book in the folder `data`; the file is made on first use."""

    def __init__(self, data: Path) -> None:
        self.path = private_dir(Path(data)) / "fleet.db"
        self._lock = threading.RLock()
        try:
            self.path.touch(mode=0o600, exist_ok=True)
            self._db = sqlite3.connect(
                self.path, timeout=10, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._prepare()
        except (sqlite3.Error, OSError) as why:
            raise OutpostError(
                f"The fleet's book {self.path} cannot be opened ({why}): restore it from a copy, "
                "or give another folder with --data."
            ) from None

    def _prepare(self) -> None:
        with self.writing() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == FORMAT:
                return
            if version:
                raise OutpostError(
                    f"The fleet's book {self.path} has format {version}, this program reads "
                    f"{FORMAT}: use the newer `outpost`."
                )
            for statement in SCHEMA:
                db.execute(statement)
            name = f"fleet-{secrets.token_hex(4)}"
            db.execute("INSERT INTO setting VALUES ('name', ?)", (name,))
            db.execute(f"PRAGMA user_version={FORMAT}")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, seen whole by others or not at all; inside another it is part of it."""
        with self._lock:
            if self._db.in_transaction:
                yield self._db
                return
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
                raise OutpostError(
                    f"The fleet's book {self.path} cannot be written ({why})."
                ) from None

    def _one(self, query: str, *values: Any) -> Any:
        with self._lock:
            return self._db.execute(query, values).fetchone()

    def _all(self, query: str, *values: Any) -> list[Any]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    # The fleet.

    @property
    def name(self) -> str:
        """What signed commands name the fleet by; it stands in every image of the fleet."""
        return self._one("SELECT value FROM setting WHERE name = 'name'")[0]

    def rename(self, name: str) -> None:
        """Give the fleet its name, before the first image is made: boards keep the one they got."""
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):
            raise OutpostError(f"{name!r} cannot name a fleet: 1 to 64 letters, digits and . _ -")
        with self.writing() as db:
            db.execute("UPDATE setting SET value = ? WHERE name = 'name'", (name,))

    def next_counter(self, role: str) -> int:
        """A number above all that were given out for the role, kept before it is given.

        It follows the clock where it can (seconds since 2000), so that a book restored from an
        older copy still gives numbers above those that the boards have seen.
        """
        with self.writing() as db:
            row = db.execute("SELECT last FROM counter WHERE role = ?", (role,)).fetchone()
            now = min(int(time.time()) - agreed.UNIX_2000, COUNTER_OF_CLOCK_MAX)
            number = max((row[0] if row else 0) + 1, now)
            if number > agreed.COUNTER_MAX:
                raise OutpostError(
                    f"For {role!r} no counter is left, so no command would be taken: the boards "
                    "need new images."
                )
            db.execute("INSERT OR REPLACE INTO counter VALUES (?, ?)", (role, number))
        return number

    # Devices.

    def remember(
        self,
        device_id: str,
        *,
        born: bytes | None = None,
        born_certificate: bytes | None = None,
        made_on: str | None = None,
        replace: bool = False,
    ) -> Known:
        """Keep what is given of a device; what is not given stays as it is.

        A born key never changes in a board's life, so another one is refused without `replace`.
        """
        check_device_id(device_id)
        if born_certificate is not None:
            point = point_of(born_certificate)
            if born is not None and born != point:
                raise OutpostError(f"The born certificate of {device_id!r} is for another key.")
            born = point
        if born is not None:
            check_point(born)
        if made_on is not None and made_on not in MADE_ON:
            raise OutpostError("A key is made on the device or on the host.")
        with self.writing() as db:
            known = self.find(device_id)
            if known and born and known.born_point not in (None, born) and not replace:
                raise OutpostError(
                    f"The board that says it is {device_id!r} has another born key than the one "
                    "that is known: it is another board, or its NVS was erased. Nothing was "
                    "changed."
                )
            new_key = born is not None and (known is None or known.born_point != born)
            kept = None if new_key or known is None else known.born_certificate
            row = (
                device_id,
                made_on if made_on is not None else known.made_on if known else "",
                born if born is not None else known.born_point if known else None,
                born_certificate if born_certificate is not None else kept,
                int(time.time()),
            )
            db.execute("INSERT OR REPLACE INTO device VALUES (?, ?, ?, ?, ?)", row)
        return Known(*row)

    def find(self, device_id: str) -> Known | None:
        row = self._one("SELECT * FROM device WHERE device_id = ?", device_id)
        return Known(*row) if row else None

    def born(self, device_id: str) -> bytes | None:
        """The public point of the device's born key: 65 bytes, or None where it is not known."""
        known = self.find(device_id)
        return known.born_point if known else None

    def devices(self) -> list[Known]:
        return [Known(*row) for row in self._all("SELECT * FROM device ORDER BY device_id")]

    def forget(self, device_id: str) -> None:
        """All that is known of a device, its certificates and its rotation included."""
        with self.writing() as db:
            for table in ("device", "certificate", "rotation"):
                db.execute(f"DELETE FROM {table} WHERE device_id = ?", (device_id,))

    # Certificates.

    def issued(self, device_id: str, chain: bytes, state: str = "issued") -> Issued:
        """Keep a certificate that was issued to the device. `chain`: DER of each, leaf first."""
        leaf = x509.load_der_x509_certificate(first_der(chain))
        row = (
            device_id,
            thumbprints(first_der(chain))[0],
            f"{leaf.serial_number:x}",
            leaf.issuer.rfc4514_string(),
            int(leaf.not_valid_after_utc.timestamp()),
            state,
            chain,
            int(time.time()),
        )
        with self.writing() as db:
            self.remember(device_id)
            db.execute(
                "INSERT INTO certificate (device_id, thumbprint, serial, issuer, not_after_s, "
                "state, chain, issued_s) VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (thumbprint) DO UPDATE SET state = excluded.state",
                row,
            )
            if state == "current":
                self.in_use(device_id, row[1])
        return Issued(*row)

    def in_use(self, device_id: str, thumbprint: str) -> None:
        """The device connects with this certificate now; the one before it is old."""
        with self.writing() as db:
            db.execute(
                "UPDATE certificate SET state = 'old' WHERE device_id = ? AND state = 'current'",
                (device_id,),
            )
            db.execute(
                "UPDATE certificate SET state = 'current' WHERE device_id = ? AND thumbprint = ?",
                (device_id, thumbprint),
            )

    def certificates(self, device_id: str | None = None) -> list[Issued]:
        """The certificates of a device, or of all, the newest last."""
        return [
            Issued(*row)
            for row in self._all(
                "SELECT device_id, thumbprint, serial, issuer, not_after_s, state, chain, issued_s "
                "FROM certificate WHERE ?1 IS NULL OR device_id = ?1 ORDER BY number",
                device_id,
            )
        ]

    # Rotation.

    def rotating(self, device_id: str, kind: str, phase: str, **detail: Any) -> Rotation:
        """Keep where a rotation stands. `detail` is plain data, and never a secret."""
        row = (device_id, kind, phase, json.dumps(detail), time.time())
        with self.writing() as db:
            db.execute("INSERT OR REPLACE INTO rotation VALUES (?, ?, ?, ?, ?)", row)
        return Rotation(device_id, kind, phase, detail, row[4])

    def rotation(self, device_id: str) -> Rotation | None:
        row = self._one("SELECT * FROM rotation WHERE device_id = ?", device_id)
        return Rotation(row[0], row[1], row[2], json.loads(row[3]), row[4]) if row else None

    def rotations(self) -> list[Rotation]:
        rows = self._all("SELECT * FROM rotation ORDER BY device_id")
        return [Rotation(r[0], r[1], r[2], json.loads(r[3]), r[4]) for r in rows]

    @contextmanager
    def alone(self, device_id: str) -> Iterator[None]:
        """No other process rotates the device's keys meanwhile: two would forbid each other's."""
        name = hashlib.sha256(device_id.encode()).hexdigest()[:16]
        with (private_dir(self.path.parent / "rotating") / name).open("w") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise OutpostError(
                    f"Another `outpost rotate` is at work on {device_id!r}: wait for its end."
                ) from None
            yield

    def rotated(self, device_id: str) -> None:
        """The rotation has come to its end, one way or the other."""
        with self.writing() as db:
            db.execute("DELETE FROM rotation WHERE device_id = ?", (device_id,))

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def first_der(chain: bytes) -> bytes:
    """The first of several DER objects one after another."""
    if len(chain) < 2 or chain[0] != 0x30:
        raise OutpostError("This is no certificate in DER form.")
    length, at = chain[1], 2
    if length & 0x80:
        at += length & 0x7F
        length = int.from_bytes(chain[2:at], "big")
    if len(chain) < at + length:
        raise OutpostError("The certificate is cut off: read it again.")
    return chain[: at + length]


def check_point(point: bytes) -> bytes:
    """A public key of P-256 as an uncompressed point, or a sentence."""
    try:
        if len(point) != 65:
            raise ValueError
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError:
        raise OutpostError("A born key is an uncompressed point of P-256: 65 bytes.") from None
    return point


def point_of(certificate_der: bytes) -> bytes:
    """The public point of a certificate's key, which must be of P-256."""
    from cryptography.hazmat.primitives import serialization

    try:
        public = x509.load_der_x509_certificate(certificate_der).public_key()
    except ValueError:
        raise OutpostError("This is no certificate in DER form.") from None
    if not (isinstance(public, ec.EllipticCurvePublicKey) and public.curve.name == "secp256r1"):
        raise OutpostError("The certificate's key is not of the curve P-256.")
    return public.public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
