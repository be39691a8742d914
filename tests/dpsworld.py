"""A device's world with the provisioning service in it: an enrolment, and an image that asks.

It owns the hub that it starts, with the service on the same listener, as `outpost hub run` has it.
"""

from __future__ import annotations

import base64
from pathlib import Path

from identities import edit
from outpost_tools.enrolment import derive_key
from outpost_tools.hub import Hub
from outpost_tools.hub.dps import Dps
from outpost_tools.registry import Registry
from world import DEVICE_ID, World


class DpsWorld:
    """`world` with a service; `image()` gives a flash image whose device knows no hub."""

    def __init__(self, world: World, **options) -> None:
        self.world = world
        world.registry.remove(DEVICE_ID)
        self.dps = Dps(world.data, **{"retry_after_s": 1, **options})
        self.enrolments = self.dps.enrolments
        self.hub = self.start()

    def start(self, port: int = 0) -> Hub:
        hub = Hub(self.world.data, port=port, faces=[self.dps], services=[self.dps])
        hub.start()
        self.world._closing.append(hub)
        # The first of the hub's names is what the service assigns.
        return hub

    def enrol(self, **more):
        attestation = more.pop("attestation", {"type": "symmetricKey"})
        return self.enrolments.put(
            {"registrationId": DEVICE_ID, "attestation": attestation, **more}
        )

    def group_key(self) -> str:
        made = self.enrolments.put(
            {"enrollmentGroupId": "presses", "attestation": {"type": "symmetricKey"}}
        )
        return derive_key(made.keys[0], DEVICE_ID)

    def image(self, *keys: str, csr: bool = False, port: int = 0, **more) -> Path:
        """keys: primary and secondary, in the older form; none: the born key alone."""
        dps = {"id_scope": self.dps.id_scope, "host": "127.0.0.1"} | ({"csr": True} if csr else {})
        config = {"dps": dps, **more.pop("config", {})}
        flash = self.world.image(port or self.hub.port, config=config, drop=("hub",), **more)
        named = dict(zip(("sas1", "sas2"), (k.encode() for k in keys), strict=False))
        edit(flash, **{"sas1": None, "sas2": None, **named})
        return flash

    def hub_device(self, device_id: str = DEVICE_ID):
        with Registry(self.world.data) as registry:
            return registry.find(device_id)

    def events(self, kind: str) -> list:
        return [e for e in self.hub.events if e["event"] == kind]


def key_bytes(key: str) -> bytes:
    return base64.b64decode(key)
