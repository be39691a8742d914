"""A world in which keys are rotated: a hub and its service side, a fleet's book, a signer, a board.

It owns the world's parts and the small program that the board runs.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from identities import edit
from outpost_tools import bornkey, provision
from outpost_tools.board import Board
from outpost_tools.ca import FleetCA, create
from outpost_tools.connection import Connection, roots_of
from outpost_tools.fleet import Fleet
from outpost_tools.hub.dps import Dps
from outpost_tools.hub.rest import RestServer
from outpost_tools.operator import Operator
from outpost_tools.provision import signed_by
from outpost_tools.repl import open_prompt
from outpost_tools.rotation import Rotator
from outpost_tools.rotationhub import OperatorHub
from outpost_tools.signing import Signers
from world import DEVICE_ID, World

WORDS = "a passphrase for tests"

MAIN = b"""
from outpost import Device

device = Device()
n = 0

@device.every(seconds=0.25)
def measure():
    global n
    if n < LIMIT:
        n += 1
        device.send({"n": n})

device.run()
"""
# What the board says when the hub has taken it.
READY = r"hub +connected device=\S+ credential=(.*)"


class RotationWorld:
    """`with RotationWorld(world) as w: w.power_on(); w.rotator().rotate(DEVICE_ID)`"""

    def __init__(self, world: World) -> None:
        self.world = world
        self.data = world.data
        self.fleet = Fleet(self.data)
        self.signers = Signers(self.data)
        self.signer = self.signers.add("rotation", ["keys"], lambda: WORDS)
        self.rest = RestServer(port=0)
        self.hub = world.hub(services=[self.rest])
        self._held = contextlib.ExitStack()
        self.operator = self._held.enter_context(Operator(self._connection()))
        self.pen = self._held.enter_context(self.signers.unlocked(self.signer, lambda: WORDS))
        self.said: list[str] = []
        self.board: Board | None = None
        self._ca: FleetCA | None = None

    def _connection(self) -> Connection:
        held = self.world.registry.policy("iothubowner")
        assert held is not None
        address = f"{self.rest.host}:{self.rest.port}"
        return Connection(address, held.name, held.primary_key, roots_of(self.data))

    def __enter__(self) -> RotationWorld:
        return self

    def __exit__(self, *_: object) -> None:
        if self.board:
            self.board.stop()
        self._held.close()
        self.fleet.close()

    # The board

    def image(self, limit: int = 0, **options: Any) -> Path:
        known = self.signers.for_devices(self.fleet.name)
        files = {"/main.py": MAIN.replace(b"LIMIT", b"%d" % limit), "/trust/signers.json": known}
        return self.world.image(self.hub.port, files=files, **options)

    def remember(self, flash: Path) -> None:
        """What `outpost born` does: the board's born key gets into the book."""
        with open_prompt(None, flash, self.world.leg) as prompt:
            bornkey.remember(prompt, DEVICE_ID, self.fleet)

    def ca(self, intermediate: bool = False) -> FleetCA:
        if self._ca is None:
            self._ca = create(
                self.data / "fleet-ca", "test fleet", lambda: WORDS, intermediate=intermediate
            )
        return self._ca

    def provision(self, flash: Path, by: str = "thumbprint", days: int = 365) -> None:
        """What `outpost provision` does: the board gets a certificate."""
        from outpost_tools.books import FolderBook

        with (
            self.ca().unlocked(lambda: WORDS) as signer,
            open_prompt(None, flash, self.world.leg) as prompt,
            FolderBook(self.data) as book,
        ):
            issue = signed_by(signer, DEVICE_ID, days)
            provision.provision(prompt, DEVICE_ID, self.fleet, book, issue, by)  # type: ignore[arg-type]
            if by == "ca":
                provision.trust_ca(self.data, self.ca())

    def start(self, flash: Path, **options: Any) -> Board:
        if self.board:
            self.board.stop()
        self.board = self.world.board(flash, **options)
        return self.board

    def ready(self, timeout_s: float = 60) -> str:
        """The credential of the newest connection, once there is one."""
        assert self.board
        return self.board.wait_for(READY, timeout_s)[1]

    # The host

    def rotator(self, patience_s: float = 60, hub: Any = None) -> Rotator:
        def issue(device_id: str) -> Any:
            def sign(der: bytes) -> Any:
                with self.ca().unlocked(lambda: WORDS) as signer:
                    return signed_by(signer, device_id, 365)(der)

            return sign

        hub = hub or OperatorHub(self.operator, pause=lambda s: time.sleep(0.05))
        say: Callable[[str], None] = self.said.append
        return Rotator(self.fleet, hub, self.pen, issue, say=say, patience_s=patience_s, poll_s=0.1)

    def device(self) -> Any:
        return self.world.registry.get(DEVICE_ID)


class AssignedRotation(RotationWorld):
    """A RotationWorld whose device comes through the provisioning service."""

    def __init__(self, world: World) -> None:
        hub = world.hub
        world.registry.remove(DEVICE_ID)
        self.dps = Dps(world.data, retry_after_s=1)
        self.enrolled = self.dps.enrolments.put(
            {"registrationId": DEVICE_ID, "attestation": {"type": "symmetricKey"}}
        )

        def with_service(services: list[Any]) -> Any:
            return hub(faces=[self.dps], services=[self.dps, *services])

        world.hub = with_service  # type: ignore[method-assign]
        super().__init__(world)

    def image(self, limit: int = 0, **options: Any) -> Path:
        dps = {"id_scope": self.dps.id_scope, "host": "127.0.0.1"}
        flash = super().image(limit, config={"dps": dps}, drop=("hub",), **options)
        primary, secondary = (key.encode() for key in self.enrolled.keys)
        edit(flash, sas1=primary, sas2=secondary)
        return flash


__all__ = ["DEVICE_ID", "AssignedRotation", "RotationWorld", "edit"]
