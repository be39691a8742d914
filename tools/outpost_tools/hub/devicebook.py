"""What the registry API does with devices, one or a hundred at a time.

It owns the meaning of If-Match and of `importMode`; the entries are the registry's, the twins the
hub's. Every change tells the hub, so that a connection that may no longer be ends at once.
"""

import asyncio
from typing import TYPE_CHECKING, Any

from outpost_tools.errors import OutpostError
from outpost_tools.hub import faults, forms
from outpost_tools.registry import Device, StaleEtag

if TYPE_CHECKING:
    from outpost_tools.hub.core import HubCore

BULK_MAX = 100
ECHO_MAX_CHARS = 200


async def put(
    core: "HubCore", device_id: str, identity: forms.Json, if_match: str | None
) -> Device:
    """Make a device (no If-Match), or change the one that is there."""
    registry = core.registry

    def write() -> Device:
        held = registry.find(device_id)
        if if_match is None:
            if held is not None:
                raise faults.DeviceAlreadyExists(f"There is a device {device_id!r} already.")
            return registry.add(device_id, **identity)
        if held is None:
            raise faults.DeviceNotFound(f"There is no device {device_id!r} in this hub.")
        return registry.update(device_id, if_match=if_match, **identity)

    device = await asyncio.to_thread(write)
    core.check_registry()
    return device


async def remove(core: "HubCore", device_id: str, if_match: str | None) -> None:
    core.device(device_id)
    await asyncio.to_thread(core.registry.remove, device_id, if_match)
    core.check_registry()


async def bulk(core: "HubCore", entries: Any) -> list[forms.Json]:
    """Each entry by its importMode; gives what was refused, in IoT Hub's form of an error."""
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise faults.ArgumentInvalid("A bulk request is a list of devices.")
    if len(entries) > BULK_MAX:
        raise faults.ArgumentInvalid(f"A bulk request has at most {BULK_MAX} devices.")
    seen: set[str] = set()
    errors = []
    for entry in entries:
        try:
            device_id = forms.read_device_id(entry.get("id"))
            if device_id in seen:
                raise faults.ArgumentInvalid("The device is named twice.")
            seen.add(device_id)
            await _take(core, device_id, entry)
        except (faults.ServiceError, OutpostError) as why:
            errors.append(_refusal(entry, why))
    return errors


def _refusal(entry: forms.Json, why: Exception) -> forms.Json:
    name = why.name if isinstance(why, faults.ServiceError) else "ArgumentInvalid"
    return {
        "deviceId": str(entry.get("id"))[:ECHO_MAX_CHARS],
        "errorCode": "PreconditionFailed" if isinstance(why, StaleEtag) else name,
        "errorStatus": str(why)[: 2 * ECHO_MAX_CHARS],
        "operation": str(entry.get("importMode") or "create")[:ECHO_MAX_CHARS],
    }


async def _take(core: "HubCore", device_id: str, entry: forms.Json) -> None:
    asked = str(entry.get("importMode") or "create")
    # The service takes any case here, and its documents show both.
    mode = {known.lower(): known for known in forms.IMPORT_MODES}.get(asked.lower())
    if mode is None:
        known = ", ".join(forms.IMPORT_MODES)
        raise faults.ArgumentInvalid(f"An importMode is one of {known}.")
    doing = mode.removesuffix("IfMatchETag")
    matches = "*" if mode == doing else _etag(entry, "twinETag" if "Twin" in mode else "eTag")
    if doing == "delete":
        await remove(core, device_id, matches)
        return
    tags, desired = forms.read_twin(entry)
    if desired is not None:  # as an export has them
        desired = {name: part for name, part in desired.items() if not name.startswith("$")}
    if doing != "updateTwin":
        there = core.registry.find(device_id) is not None
        creates = doing == "create" or (doing == "createOrUpdate" and not there)
        await put(core, device_id, forms.read_identity(entry), None if creates else matches)
        matches = "*"
    if tags is not None or desired is not None:
        await core.twin_patch(device_id, tags, desired, matches)


def _etag(entry: forms.Json, member: str) -> str:
    etag = str(entry.get(member) or "").strip('"')
    if not etag:
        raise faults.ArgumentInvalid(
            f"The importMode needs {'an' if member[0] == 'e' else 'a'} {member}."
        )
    return etag
