"""A world in which trust changes: a hub that moves from root A to root B, a fleet whose keys sign
bundles, one device.

It owns the two authorities and the hub; world and bundles are of the tests' other helpers.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import bundles
from fromhub import Operator
from hubs import eventually
from outpost_tools import agreed, delivery
from outpost_tools.board import Board
from outpost_tools.delivery import Delivered
from outpost_tools.errors import OutpostError
from outpost_tools.hub import Hub
from outpost_tools.pki import DevCA
from world import DEVICE_ID, World

MAIN = b"""
from outpost import Device

device = Device()
n = 0

@device.every(seconds=0.5)
def measure():
    global n
    device.send({"n": n + 1}, durable=n % 2 == 1)
    n += 1  # it was taken: from now on it must arrive

@device.method("nvs")
def nvs(name):
    import esp32
    try:
        return esp32.NVS("outpost").get_i32(name)
    except OSError:
        return None

device.run()
"""
QUIET = MAIN.replace(b"seconds=0.5", b"seconds=9000")
# What the console says.
ON_TRIAL = r"trust +bundle version=(\d+) is on trial;"
IN_USE = r"trust +bundle version=(\d+) works"
BACK = r"trust +back to the bundle in use: (.*)"


class TrustWorld:
    """a, b: DER of the roots. The hub's chain ends in A until move("b")."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._ca = {"a": world.data / "ca", "b": world.folder / "other" / "ca"}
        kept = world.folder / "first"
        shutil.copytree(self._ca["a"], kept / "ca")
        self._ca["a"] = kept / "ca"
        self.a = DevCA(kept, ("ecdsa",)).roots_der()[0]
        self.b = DevCA(world.folder / "other", ("ecdsa",)).roots_der()[0]
        self.present = bundles.make(1, [self.a], keys=bundles.keys("a"))
        self.hub: Hub = world.hub(chain="ecdsa")
        self._before: list[bytes] = []  # telemetry of hubs that are gone
        self.board: Board | None = None
        self.flash: Path | None = None

    def move(self, name: str, **options: Any) -> Hub:
        """The hub is from now on one whose chain ends in that root: same name, same port."""
        self.hub.stop()
        self._before += [t.body for t in self.hub.telemetry]
        place = self.world.data / "ca"
        shutil.rmtree(place)
        shutil.copytree(self._ca[name], place)
        self.hub = self.world.hub(chain="ecdsa", port=self.hub.port, **options)
        return self.hub

    def bundle(self, version: int = 2, roots: str = "ab", names: str = "a", **fields: Any) -> bytes:
        """A signed bundle with the roots A, B, or X, which no server has."""
        ders = {"a": self.a, "b": self.b, "x": bundles.root("X").der}
        return bundles.data(version, names, roots=[ders[one] for one in roots], **fields)

    # The device

    def start(self, main: bytes = MAIN, factory: bytes | None = None, **options: Any) -> Board:
        """A device whose image has a signed bundle of version 1, with the root A and the key a."""
        files = {"/main.py": main, **options.pop("files", {})}
        files[agreed.FACTORY_ROOTS_PATH] = factory or bundles.signed(self.present).encode()
        config = {"trust": {"trial_s": 8} | options.pop("trust", {})} | options.pop("config", {})
        self.flash = self.world.image(
            self.hub.port, files=files, config=config, trust=[self.a], **options
        )
        return self.restart()

    def restart(self, **options: Any) -> Board:
        if self.board:
            self.board.stop()
        assert self.flash
        self.board = self.world.board(self.flash, **options)
        return self.board

    @property
    def operator(self) -> Operator:
        return Operator(self.hub, DEVICE_ID)

    def connected(self, timeout_s: float = 60) -> bool:
        return self.hub.wait_until(lambda: DEVICE_ID in self.hub.connected, timeout_s)

    def push(self, data: bytes) -> Delivered:
        """Deliver it through direct methods, as an operator does."""
        assert self.connected()

        def invoke(method: str, payload: Any) -> tuple[int, Any]:
            try:
                return self.operator.invoke(method, payload, 60)
            except Exception as why:  # what the hub raises where the device is not there
                raise OutpostError(f"{type(why).__name__} in {method}") from why

        return delivery.push(invoke, "trust", data)

    def refuses(self, data: bytes) -> bool:
        """Push it: whether the device does not take it. A stock board that has no memory to judge
        it beside a connection says so after a restart."""
        lives = self.board.boots
        done = self.push(data)
        if done.result != {"state": "later"}:
            return done.status == 409
        assert self.world.leg == "stock32" and eventually(lambda: self.board.boots > lives, 60)
        return self.connected() and self.nvs("tr-try") is None

    def reported(self) -> dict[str, Any]:
        return self.operator.reported().get("outpost", {}).get("trust", {})

    def until_reported(self, timeout_s: float = 40, **wanted: Any) -> dict[str, Any]:
        """What the device reports of its trust, once it holds all of `wanted`."""
        eventually(lambda: wanted.items() <= self.reported().items(), timeout_s)
        found = self.reported()
        assert wanted.items() <= found.items(), found
        return found

    def nvs(self, name: str) -> int | None:
        assert self.connected()
        return self.operator.invoke("nvs", name)[1]

    def numbers(self) -> set[int]:
        """Of the application's messages that any hub has taken."""
        bodies = [*self._before, *(t.body for t in self.hub.telemetry)]
        return {json.loads(body)["n"] for body in bodies if b'"n"' in body}

    def missing(self, timeout_s: float = 60) -> set[int]:
        """Which of the application's messages never came, up to the last that did. Those in flash
        go before those in RAM: a later one may be here while an earlier one is on its way."""
        missing: set[int] = set()

        def nothing() -> bool:
            nonlocal missing
            numbers = self.numbers()
            missing = set(range(1, max(numbers) + 1)) - numbers
            return not missing

        eventually(nothing, timeout_s)
        return missing

    def alive(self) -> bool:
        """Whether telemetry goes on arriving."""
        count = len(self.hub.telemetry)
        return self.hub.wait_until(lambda: len(self.hub.telemetry) > count + 2, 60)


__all__ = ["BACK", "IN_USE", "MAIN", "ON_TRIAL", "QUIET", "TrustWorld"]
