"""The book of devices that the operator's commands work on: a hub's, or the data folder's.

`HubBook` asks a hub through Microsoft's service SDK. `FolderBook` opens the registry file itself,
for when no hub runs: devices can be made, listed and changed then, too. Both give and take the
same, and neither gives out a key but to `secrets` and `export`.
"""

import contextlib
import datetime as dt
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

from outpost_tools import bulk
from outpost_tools.connection import Connection, choose
from outpost_tools.errors import OutpostError
from outpost_tools.hub import faults
from outpost_tools.hub.twins import Twin, TwinStore
from outpost_tools.registry import Device, Registry, check_thumbprint, new_key

Row = dict[str, Any]
Rotation = Literal["both", "primary", "secondary", "swap"]


class Book(Protocol):
    place: str

    def add(self, device_id: str, auth: str, first: str, second: str, disabled: bool) -> Row:
        """A new device. Keys are made here; `first`, `second` are thumbprints for selfSigned."""

    def show(self, device_id: str) -> Row: ...

    def rows(self) -> list[Row]: ...

    def set_status(self, device_id: str, status: str) -> Row: ...

    def rotate(self, device_id: str, which: Rotation) -> Row: ...

    def remove(self, device_id: str) -> None: ...

    def secrets(self, device_id: str) -> tuple[str, str]:
        """The device's keys, for those who write them into a file or a token."""

    def take(self, entries: Iterable[bulk.Entry]) -> dict[str, str]:
        """Bulk entries, checked; gives what was refused, by device id."""

    def export(self) -> Iterator[bulk.Entry]: ...


@contextlib.contextmanager
def open_book(connection: str | None, data: Path) -> Iterator[Book]:
    """The hub that is named, else the one that runs on the data folder, else the folder."""
    chosen = choose(connection, data)
    if chosen is None:
        with FolderBook(data) as folder:
            yield folder
    else:
        with HubBook(chosen) as hub:
            yield hub


def _row(device_id: str, status: str, auth: str, **more: Any) -> Row:
    kept = {name: value for name, value in more.items() if value not in (None, "")}
    return {"device": device_id, "status": status, "auth": auth, **kept}


class FolderBook:
    def __init__(self, data: Path) -> None:
        self._registry = Registry(data)
        self._twins = TwinStore(data, time.time)
        self.place = str(self._registry.path)

    def __enter__(self) -> "FolderBook":
        return self

    def __exit__(self, *_: object) -> None:
        self._twins.close()
        self._registry.close()

    @staticmethod
    def _row(device: Device) -> Row:
        return _row(
            device.device_id,
            device.status,
            device.auth,
            statusReason=device.status_reason,
            etag=device.etag,
            generationId=device.generation_id,
            primaryThumbprint=device.primary_thumbprint,
            secondaryThumbprint=device.secondary_thumbprint,
            created_s=device.created_s,
        )

    def add(self, device_id: str, auth: str, first: str, second: str, disabled: bool) -> Row:
        status = "disabled" if disabled else "enabled"
        device = self._registry.add(
            device_id,
            status=status,
            auth=auth,
            primary_thumbprint=first,
            secondary_thumbprint=second,
        )
        return self._row(device)

    def show(self, device_id: str) -> Row:
        return self._row(self._registry.get(device_id))

    def rows(self) -> list[Row]:
        return [self._row(device) for device in self._registry.devices()]

    def set_status(self, device_id: str, status: str) -> Row:
        return self._row(self._registry.set_status(device_id, status))

    def rotate(self, device_id: str, which: Rotation) -> Row:
        return self._row(self._registry.rotate(device_id, which))

    def remove(self, device_id: str) -> None:
        self._registry.remove(device_id)

    def secrets(self, device_id: str) -> tuple[str, str]:
        device = self._registry.get(device_id)
        if not device.keys:
            raise OutpostError(f"The device {device_id!r} connects with a certificate: no keys.")
        return device.primary_key, device.secondary_key

    def take(self, entries: Iterable[bulk.Entry]) -> dict[str, str]:
        refused: dict[str, str] = {}
        for entry in entries:
            try:
                self._take(entry)
            except OutpostError as why:
                refused[entry["id"]] = str(why)
            except faults.ServiceError as why:
                refused[entry["id"]] = why.message
        return refused

    def _take(self, entry: bulk.Entry) -> None:
        device_id, mode = entry["id"], entry["importMode"]
        matching = mode.endswith("IfMatchETag")
        doing = mode.removesuffix("IfMatchETag")
        etag = str(entry.get("eTag") or "") if matching else None
        there = self._registry.find(device_id)
        if doing == "delete":
            self._registry.remove(device_id, if_match=etag)
            return
        if doing == "updateTwin":
            etag = str(entry.get("twinETag") or "") if matching else None
            self._twin(entry, etag)
            return
        if there is None and doing == "update":
            self._registry.get(device_id)  # says that there is none
        if there is None or doing == "create":
            self._registry.add(device_id, **bulk.fields_of(entry))
        else:
            self._registry.update(device_id, if_match=etag, **bulk.fields_of(entry))
        self._twin(entry, None)

    def _twin(self, entry: bulk.Entry, etag: str | None) -> None:
        tags, desired = bulk.twin_of(entry)
        if tags is not None or desired is not None:
            self._twins.change(entry["id"], tags, desired, if_match=etag)

    def export(self) -> Iterator[bulk.Entry]:
        twins = {twin.device_id: twin for twin in self._twins.all()}
        for device in self._registry.devices():
            if device.device_id in twins:
                yield bulk.entry_of(device, _twin_json(twins[device.device_id]))


def _twin_json(twin: Twin) -> dict[str, Any]:
    return {"etag": twin.etag, "tags": twin.tags, "properties": twin.properties}


class HubBook:
    def __init__(self, connection: Connection) -> None:
        from outpost_tools.operator import Operator

        self.operator = Operator(connection)
        self.place = f"hub {connection.host}"

    def __enter__(self) -> "HubBook":
        return self

    def __exit__(self, *_: object) -> None:
        self.operator.close()

    @staticmethod
    def _row(device: dict[str, Any]) -> Row:
        """From a device of the registry API, or from a twin of a query."""
        auth = device.get("authentication") or {}
        thumbprint = auth.get("x509Thumbprint") or device.get("x509Thumbprint") or {}
        seen = device.get("lastActivityTime")
        return _row(
            device["deviceId"],
            device.get("status") or "enabled",
            auth.get("type") or device.get("authenticationType") or "sas",
            statusReason=device.get("statusReason"),
            etag=device.get("deviceEtag") or device.get("etag"),
            generationId=device.get("generationId"),
            primaryThumbprint=thumbprint.get("primaryThumbprint"),
            secondaryThumbprint=thumbprint.get("secondaryThumbprint"),
            connectionState=device.get("connectionState"),
            lastActivityTime=None if not seen or seen.startswith("0001") else seen,
            commandsWaiting=device.get("cloudToDeviceMessageCount"),
        )

    def add(self, device_id: str, auth: str, first: str, second: str, disabled: bool) -> Row:
        if auth == "sas":
            first, second = new_key(), new_key()
        elif auth == "selfSigned":
            first, second = check_thumbprint(first), second and check_thumbprint(second)
        status = "disabled" if disabled else "enabled"
        return self._row(self.operator.add(device_id, auth, first, second, status))

    def show(self, device_id: str) -> Row:
        return self._row(self.operator.device(device_id))

    def rows(self) -> list[Row]:
        return sorted(map(self._row, self.operator.devices()), key=lambda row: row["device"])

    def set_status(self, device_id: str, status: str) -> Row:
        return self._row(self.operator.update(self.operator.device(device_id), status))

    def rotate(self, device_id: str, which: Rotation) -> Row:
        device = self.operator.device(device_id)
        primary, secondary = self._keys(device)
        keys = {
            "both": (new_key(), new_key()),
            "primary": (new_key(), secondary),
            "secondary": (primary, new_key()),
            "swap": (secondary, primary),
        }[which]
        return self._row(self.operator.update(device, keys=keys))

    def remove(self, device_id: str) -> None:
        self.operator.remove(device_id)

    def secrets(self, device_id: str) -> tuple[str, str]:
        return self._keys(self.operator.device(device_id))

    @staticmethod
    def _keys(device: dict[str, Any]) -> tuple[str, str]:
        held = (device.get("authentication") or {}).get("symmetricKey") or {}
        if not held.get("primaryKey"):
            raise OutpostError(
                f"The device {device['deviceId']!r} connects with a certificate: it has no keys."
            )
        return held["primaryKey"], held["secondaryKey"]

    def take(self, entries: Iterable[bulk.Entry]) -> dict[str, str]:
        return self.operator.bulk(entries)

    def export(self) -> Iterator[bulk.Entry]:
        for twin in self.operator.devices():
            device = self.operator.device(twin["deviceId"])
            yield {
                "id": device["deviceId"],
                "eTag": device.get("etag"),
                "status": device.get("status"),
                "statusReason": device.get("statusReason"),
                "authentication": device.get("authentication"),
                "twinETag": twin.get("etag"),
                "tags": twin.get("tags") or {},
                "properties": twin.get("properties") or {},
            }


def when(text: str) -> str:
    """An ISO time in this machine's own, for people."""
    try:
        return dt.datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return text
