"""How far a fleet has come: which trust bundle and which root each device last used, by its word.

It owns the counting and the names of roots; it asks nobody and keeps nothing. What is true of a
device is what it reported when it was last connected.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from outpost_tools import trustparts
from outpost_tools.bundle import Bundle
from outpost_tools.envelope import Envelope
from outpost_tools.trustcargo import IN_USE, MARK_DIGITS, Told

SOON_DAYS = 365


@dataclass(frozen=True)
class Row:
    device: str
    connected: bool
    version: int | None
    root: str  # that carried its last connection, by name where it is known
    expires_days: int | None
    change: str
    behind: bool
    seen: str
    unknown: bool = False  # it reports a version that nobody here has made

    @property
    def expiring(self) -> bool:
        return self.expires_days is not None and self.expires_days < SOON_DAYS


def root_names(history: Iterable[Envelope], more: Iterable[bytes] = ()) -> dict[str, str]:
    """Names of the roots of every bundle, and of others, by what devices call them."""
    ders = [root for one in history for root in Bundle.of(one).roots]
    return {trustparts.fingerprint(der)[:MARK_DIGITS]: _name(der) for der in (*ders, *more)}


def _name(der: bytes) -> str:
    name = trustparts.common_name(der)
    return name if name.isprintable() else trustparts.fingerprint(der)[:MARK_DIGITS]


def rows(
    twins: Iterable[Mapping[str, Any]], names: Mapping[str, str], newest: int | None
) -> list[Row]:
    """One for each device, by id. `newest` is the version that all are to have, and the highest
    that there is."""
    found = []
    for twin in twins:
        told = Told.of(twin)
        mark = (told.anchor or "")[:MARK_DIGITS]
        change = ""
        if told.change and told.change != IN_USE:
            change = f"version {told.change_version}: {told.change}"
        found.append(
            Row(
                str(twin.get("deviceId", "")),
                twin.get("connectionState") == "Connected",
                told.version,
                names.get(mark, mark),
                told.expires_days,
                change,
                newest is not None and (told.version or 0) < newest,
                _when(twin.get("lastActivityTime")),
                newest is not None and (told.version or 0) > newest,
            )
        )
    return sorted(found, key=lambda row: row.device)


def _when(text: Any) -> str:
    """A time of the hub's; the year 1 is its word for never."""
    return text if isinstance(text, str) and not text.startswith("0001") else ""


def summary(found: list[Row], newest: int | None) -> dict[str, Any]:
    versions: dict[str, int] = {}
    roots: dict[str, int] = {}
    for row in found:
        version = "not told" if row.version is None else str(row.version)
        versions[version] = versions.get(version, 0) + 1
        roots[row.root or "not told"] = roots.get(row.root or "not told", 0) + 1
    return {
        "newest": newest,
        "devices": len(found),
        "connected": sum(row.connected for row in found),
        "behind": sum(row.behind for row in found),
        "expiring": sum(row.expiring for row in found),
        "versions": versions,
        "roots": roots,
    }


def as_json(found: list[Row], newest: int | None) -> dict[str, Any]:
    return summary(found, newest) | {"rows": [asdict(row) for row in found]}
