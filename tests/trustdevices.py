"""Devices as an operator's commands see them: they take a delivery and report what became of it.

For tests of the host's side alone; tests/device has the real ones. It owns their connections. What
a device does with a bundle goes by its manner:

    good      it uses the bundle, and says so
    bad       it tries the bundle, goes back, and says so
    silent    it takes the bundle, and nothing more is heard of it
    refuses   it does not take the bundle
    old       it has never heard of deliveries
"""

from __future__ import annotations

import base64
import hashlib
import json

from operatorworld import World
from outpost_tools import agreed, bundle


class Fleet:
    def __init__(self, world: World) -> None:
        self.world = world
        self.devices: dict[str, Device] = {}

    def connect(self, device_id: str, manner: str = "good", version: int | None = 1) -> Device:
        device = self.devices[device_id] = Device(self.world, device_id, manner)
        if version is not None:
            device.report(version)
        return device

    def took(self) -> list[str]:
        return sorted(one for one, device in self.devices.items() if device.taken)


class Device:
    def __init__(self, world: World, device_id: str, manner: str) -> None:
        self.device_id, self.manner = device_id, manner
        self.taken: list[bytes] = []
        self._staged = b""
        self._size = 0
        self.client = world.device(device_id, {})
        self.client.on_message = self._on_message

    def report(self, version: int, change: dict | None = None, anchor: str = "") -> None:
        trust = {"version": version, "roots": [], "anchor": anchor or None, "change": change}
        self.say({"outpost": {"trust": trust | {"expires_days": 100}}})

    def say(self, reported: dict) -> None:
        topic = "$iothub/twin/PATCH/properties/reported/?$rid=1"
        self.client.publish(topic, json.dumps(reported), qos=0)

    def _on_message(self, _client, _userdata, message) -> None:
        if not message.topic.startswith("$iothub/methods/POST/"):
            return
        name, rid = message.topic.split("/", 4)[3:]
        status, answer = 404, {"error": "no such method"}
        if name == agreed.DELIVERY_METHOD and self.manner != "old":
            status, answer = self._deliver(json.loads(message.payload))
        self.client.publish(f"$iothub/methods/res/{status}/{rid}", json.dumps(answer), qos=0)

    def _deliver(self, call: dict) -> tuple[int, dict]:
        if call["op"] == "status":
            return 200, {"have": len(self._staged)}
        if call["op"] == "begin":
            if self.manner == "refuses":
                return 403, {"error": "this device takes nothing"}
            self._size = call["size"]
        elif call["op"] == "write":
            assert call["at"] == len(self._staged)
            self._staged += base64.b64decode(call["data"])
        else:
            assert hashlib.sha256(self._staged).hexdigest() == call["sha256"]
            assert len(self._staged) == self._size
            return self._commit()
        return 200, {"have": len(self._staged)}

    def _commit(self) -> tuple[int, dict]:
        data, self._staged = self._staged, b""
        self.taken.append(data)
        version = bundle.read(data)[0].version
        if self.manner == "good":
            self.report(version, {"version": version, "outcome": "in use"})
        elif self.manner == "bad":
            self.report(1, {"version": version, "outcome": "the hub is not trusted with it"})
        return 202, {"state": "trial", "version": version}
