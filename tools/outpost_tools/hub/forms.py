"""Devices, twins and events in the JSON that IoT Hub's service API speaks, both ways.

It owns the names of members and what may stand in them; it changes nothing. Keys stand in a
device's form, as they do on the real service: who may read them is decided in `rest`.
"""

import json
from collections.abc import Mapping
from typing import Any

from outpost_tools.errors import OutpostError
from outpost_tools.hub import faults
from outpost_tools.hub.core import Connection
from outpost_tools.hub.twins import Twin, iso
from outpost_tools.registry import AUTHS, Device, check_device_id, check_key, check_thumbprint

Json = dict[str, Any]

NEVER = "0001-01-01T00:00:00Z"
# What an entry of a bulk import may ask for.
IMPORT_MODES = (
    "create",
    "update",
    "updateIfMatchETag",
    "delete",
    "deleteIfMatchETag",
    "createOrUpdate",
    "createOrUpdateIfMatchETag",
    "updateTwin",
    "updateTwinIfMatchETag",
)


def moment(at_s: float) -> str:
    return iso(at_s) if at_s else NEVER


def device_json(device: Device, connection: Connection, waiting: int) -> Json:
    """A device's identity; `waiting` is how many commands wait for it."""
    return {
        "deviceId": device.device_id,
        "generationId": device.generation_id,
        "etag": device.etag,
        "connectionState": connection.state,
        "status": device.status,
        "statusReason": device.status_reason or None,
        "connectionStateUpdatedTime": moment(connection.changed_s),
        "statusUpdatedTime": moment(device.status_updated_s),
        "lastActivityTime": moment(max(device.last_activity_s, connection.last_activity_s)),
        "cloudToDeviceMessageCount": waiting,
        "authentication": {
            "symmetricKey": {
                "primaryKey": device.primary_key or None,
                "secondaryKey": device.secondary_key or None,
            },
            "x509Thumbprint": _thumbprints(device),
            "type": device.auth,
        },
        "capabilities": {"iotEdge": False},
    }


def twin_json(device: Device, connection: Connection, waiting: int, twin: Twin) -> Json:
    return {
        "deviceId": device.device_id,
        "etag": twin.etag,
        "deviceEtag": device.etag,
        "status": device.status,
        "statusReason": device.status_reason or None,
        "statusUpdateTime": moment(device.status_updated_s),
        "connectionState": connection.state,
        "lastActivityTime": moment(max(device.last_activity_s, connection.last_activity_s)),
        "cloudToDeviceMessageCount": waiting,
        "authenticationType": device.auth,
        "x509Thumbprint": _thumbprints(device),
        "modelId": connection.model_id,
        "version": twin.version,
        "tags": twin.tags,
        "properties": twin.properties,
        "capabilities": {"iotEdge": False},
    }


def _thumbprints(device: Device) -> Json:
    return {
        "primaryThumbprint": device.primary_thumbprint or None,
        "secondaryThumbprint": device.secondary_thumbprint or None,
    }


def read_object(value: Any, what: str) -> Json:
    if not isinstance(value, dict):
        raise faults.ArgumentInvalid(f"{what} is a JSON object.")
    return value


def read_device_id(value: Any) -> str:
    if not isinstance(value, str):
        raise faults.ArgumentInvalid("A device id is a text.")
    try:
        return check_device_id(value)
    except OutpostError as why:
        raise faults.ArgumentInvalid(str(why)) from None


def read_identity(asked: Json) -> Json:
    """What a device's form asks for, as the registry's `add` and `update` take it.

    A member that is missing or null is left out, except that keys and thumbprints go together:
    who sends an authentication sends all of it.
    """
    found: Json = {}
    if asked.get("status") is not None:
        if asked["status"] not in ("enabled", "disabled"):
            raise faults.ArgumentInvalid("A device's status is enabled or disabled.")
        found["status"] = asked["status"]
    reason = asked.get("statusReason")
    if reason is not None and not isinstance(reason, str):
        raise faults.ArgumentInvalid("A device's statusReason is a text.")
    if reason is not None or "status" in found:
        found["status_reason"] = reason or ""  # the reason goes with the status it was given for
    if read_object(asked.get("capabilities") or {}, "A device's capabilities").get("iotEdge"):
        raise faults.ArgumentInvalid("This hub has no edge devices.")
    if asked.get("authentication") is not None:
        found |= _read_authentication(read_object(asked["authentication"], "An authentication"))
    return found


def _read_authentication(asked: Json) -> Json:
    keys = read_object(asked.get("symmetricKey") or {}, "A symmetricKey")
    prints = read_object(asked.get("x509Thumbprint") or {}, "An x509Thumbprint")
    kind = asked.get("type")
    if kind is None:
        kind = "selfSigned" if any(prints.values()) else "sas"
    if kind not in AUTHS:
        raise faults.ArgumentInvalid(f"A device's authentication is one of {', '.join(AUTHS)}.")
    found: Json = {"auth": kind}
    try:
        if kind == "sas":
            for member, name in (("primaryKey", "primary_key"), ("secondaryKey", "secondary_key")):
                if keys.get(member):
                    found[name] = check_key(str(keys[member]), member)
        elif kind == "selfSigned":
            found["primary_thumbprint"] = found["secondary_thumbprint"] = ""
            for member in ("primary", "secondary"):
                if prints.get(f"{member}Thumbprint"):
                    text = str(prints[f"{member}Thumbprint"])
                    found[f"{member}_thumbprint"] = check_thumbprint(text)
            if not (found["primary_thumbprint"] or found["secondary_thumbprint"]):
                raise faults.ArgumentInvalid("A selfSigned device needs a thumbprint.")
    except OutpostError as why:
        raise faults.ArgumentInvalid(str(why)) from None
    return found


def read_twin(asked: Any) -> tuple[Json | None, Json | None]:
    """Tags and desired properties of a twin's form; None for what it does not name."""
    whole = read_object(asked, "A twin")
    tags = whole.get("tags")
    properties = whole.get("properties")
    properties = {} if properties is None else read_object(properties, "A twin's properties")
    desired = properties.get("desired")
    for name, part in (("tags", tags), ("desired properties", desired)):
        if part is not None and not isinstance(part, dict):
            raise faults.ArgumentInvalid(f"A twin's {name} are a JSON object.")
    return tags, desired


def event_line(event: Mapping[str, Any]) -> bytes:
    return json.dumps(event, default=str).encode() + b"\n"


def error_json(why: faults.ServiceError, tracking: str, now_s: float) -> Json:
    """An error as IoT Hub words it: methods' errors are JSON inside of the message."""
    stamp = iso(now_s)
    if why.code in (404103, 504101):
        inner = {
            "errorCode": why.code,
            "trackingId": tracking,
            "message": why.message,
            "timestampUtc": stamp,
        }
        return {"Message": json.dumps(inner), "ExceptionMessage": ""}
    return {
        "Message": f"ErrorCode:{why.name};{why.message}",
        "ExceptionMessage": f"Tracking ID:{tracking}-TimeStamp:{stamp}",
    }
