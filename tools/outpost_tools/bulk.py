"""Devices in IoT Hub's bulk form: one JSON object a line, as its import and export jobs have it.

It owns the form and what `importMode` means; where the devices are is the caller's (books). A line
holds keys: what is wrong with one is said by its number and never quoted.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from outpost_tools.errors import OutpostError
from outpost_tools.registry import Device, check_device_id, check_key, check_thumbprint

LINE_MAX_CHARS = 262144
DEFAULT_MODE = "createOrUpdate"
MODES = (
    "create",
    "createOrUpdate",
    "createOrUpdateIfMatchETag",
    "update",
    "updateIfMatchETag",
    "updateTwin",
    "updateTwinIfMatchETag",
    "delete",
    "deleteIfMatchETag",
)
AUTHS = ("sas", "selfSigned", "certificateAuthority")

Entry = dict[str, Any]


def _object(holder: Mapping[str, Any], name: str) -> Entry:
    held = holder.get(name)
    if held is None:
        return {}
    if not isinstance(held, dict):
        raise OutpostError(f"{name} is not an object")
    return held


def _text(holder: Mapping[str, Any], name: str) -> str:
    held = holder.get(name)
    if held is None:
        return ""
    if not isinstance(held, str):
        raise OutpostError(f"{name} is not text")
    return held


def check(entry: Any, mode: str = DEFAULT_MODE) -> Entry:
    """One entry with everything in it checked and its importMode filled in."""
    if not isinstance(entry, dict):
        raise OutpostError("it is not a JSON object")
    if entry.get("moduleId"):
        raise OutpostError("it is a module, and modules are not supported")
    check_device_id(_text(entry, "id"))
    # The service takes any case here, and its documents show both.
    asked = _text(entry, "importMode") or mode
    known = {name.lower(): name for name in MODES}
    if asked.lower() not in known:
        raise OutpostError(f"importMode is not one of {', '.join(MODES)}")
    status = _text(entry, "status").lower()
    if status not in ("", "enabled", "disabled"):
        raise OutpostError("status is neither enabled nor disabled")
    auth = _object(entry, "authentication")
    kind = _text(auth, "type") or ("selfSigned" if any(_thumbprints(auth)) else "sas")
    if kind not in AUTHS:
        raise OutpostError(f"the authentication's type is not one of {', '.join(AUTHS)}")
    keys = _object(auth, "symmetricKey")
    for name in ("primaryKey", "secondaryKey"):
        if _text(keys, name):
            check_key(keys[name], name)
    for thumbprint in filter(None, _thumbprints(auth)):
        check_thumbprint(thumbprint)
    _object(entry, "tags")
    _object(_object(entry, "properties"), "desired")
    checked = {**entry, "importMode": known[asked.lower()]}
    # What a line leaves out stays as it is: an update of tags lets no disabled device in again.
    if status:
        checked["status"] = status
    if auth:
        checked["authentication"] = {**auth, "type": kind}
    return checked


def _thumbprints(auth: Mapping[str, Any]) -> tuple[str, str]:
    held = _object(auth, "x509Thumbprint")
    return _text(held, "primaryThumbprint"), _text(held, "secondaryThumbprint")


def read(lines: Iterable[str], mode: str = DEFAULT_MODE) -> list[Entry]:
    """All entries of a file, or the first line that is wrong. Empty lines are passed over."""
    entries: list[Entry] = []
    for number, line in enumerate(lines, 1):
        text = line.strip().removeprefix("\ufeff")
        if not text:
            continue
        try:
            if len(text) > LINE_MAX_CHARS:
                raise OutpostError("it is too long")
            entries.append(check(json.loads(text), mode))
        except (ValueError, RecursionError):
            raise OutpostError(f"Line {number} is not JSON: nothing was imported.") from None
        except OutpostError as why:
            said = str(why).rstrip(".")
            raise OutpostError(f"Line {number}: {said}. Nothing was imported.") from None
    return entries


def fields_of(entry: Entry) -> dict[str, Any]:
    """What the entry says of the device, as Registry.add and .update take it."""
    fields: dict[str, Any] = {}
    if entry.get("status"):
        # The reason goes with the status it was given for.
        fields |= {"status": entry["status"], "status_reason": _text(entry, "statusReason")}
    auth = entry.get("authentication")
    if not auth:
        return fields
    fields["auth"] = auth["type"]
    if auth["type"] == "sas":
        keys = _object(auth, "symmetricKey")
        given = {"primary_key": _text(keys, "primaryKey")}
        given["secondary_key"] = _text(keys, "secondaryKey")
        fields |= {name: key for name, key in given.items() if key}
    elif auth["type"] == "selfSigned":
        fields["primary_thumbprint"], fields["secondary_thumbprint"] = _thumbprints(auth)
    return fields


def twin_of(entry: Entry) -> tuple[Entry | None, Entry | None]:
    """Its tags and desired properties, without metadata; None for what it does not name."""
    desired = _object(entry, "properties").get("desired")
    if desired is not None:
        desired = {name: value for name, value in desired.items() if not name.startswith("$")}
    return entry.get("tags"), desired


def authentication(device: Device) -> Entry:
    """A device's keys or thumbprints, as IoT Hub shows them."""
    return {
        "symmetricKey": {
            "primaryKey": device.primary_key or None,
            "secondaryKey": device.secondary_key or None,
        },
        "x509Thumbprint": {
            "primaryThumbprint": device.primary_thumbprint or None,
            "secondaryThumbprint": device.secondary_thumbprint or None,
        },
        "type": device.auth,
    }


def entry_of(device: Device, twin: Mapping[str, Any]) -> Entry:
    """A device of our registry as a line of an export; `twin` as the service API shows it."""
    return {
        "id": device.device_id,
        "eTag": device.etag,
        "status": device.status,
        "statusReason": device.status_reason or None,
        "authentication": authentication(device),
        "twinETag": twin["etag"],
        "tags": twin["tags"],
        "properties": twin["properties"],
    }


def lines(entries: Iterable[Entry]) -> Iterator[str]:
    for entry in entries:
        kept = {name: value for name, value in entry.items() if value is not None}
        yield json.dumps(kept, ensure_ascii=False) + "\n"
