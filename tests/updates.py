"""A device that takes software, the hub that brings it, and what is on its flash afterwards.

It owns nothing on disk; world, hub and board are the test's.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import bundles
import packages
from deliveries import Sender
from fromhub import Operator
from legs import REPO
from outpost_tools.board import Board
from outpost_tools.delivery import Delivered, push
from outpost_tools.errors import OutpostError
from world import World

KEPT = r"update +software version=%d in slot . works: it is kept"
BOOTS = r"boot +Outpost boots .* software=(.*)"
OLD = packages.main("image")
QUICK = b"timeout=2000"  # instead of five minutes, for what only the watchdog ends


def quick() -> bytes:
    """boot.py with less patience."""
    source = (REPO / "boot.py").read_bytes()
    assert source.count(b"timeout=300000") == 2
    return source.replace(b"timeout=300000", QUICK)


class UpdateWorld:
    """`u = UpdateWorld(world); u.power_on(); u.push(packages.signed(...))`

    names, threshold   who may sign software, by the bundle of the image
    """

    def __init__(self, world: World, names: str = "s", threshold: int = 1, **image: Any) -> None:
        self.world = world
        self.hub = world.hub()
        self.bundle = bundles.make(
            1, roots=world.ca.roots_der(), software=bundles.keys(names, threshold)
        )
        files = {"/trust/factory.bin": bundles.signed(self.bundle).encode(), "/main.py": OLD}
        files |= image.pop("files", {})
        self.flash: Path = world.image(self.hub.port, files=files, **image)
        self.operator = Operator(self.hub, world.device.device_id)
        self.sender = Sender(self.operator)
        self.board: Board | None = None

    def power_on(self, **options: Any) -> Board:
        if self.board:
            self.board.stop()
        self.board = self.world.board(self.flash, **options)
        return self.board

    def power_cycle(self) -> int:
        """Off, on and connected again. What the hub has of it from that number on is of this
        start: until the board is off, the one before goes on sending."""
        board = self.power_on()
        board.wait_for("hub +connected", 60)
        return len(self.hub.telemetry)

    def push(
        self, data: bytes, patience_s: float = 60, kind: str = "software", **about: Any
    ) -> Delivered:
        return push(
            self.sender.invoke, kind, data, about=about, patience_s=patience_s, pause=self._pause
        )

    def refused(self, data: bytes, **more: Any) -> str:
        """Why the device does not take it; it goes on with what it has."""
        answer = self.push(data, **more)
        assert not answer.taken, answer
        return answer.why

    def heard(self, name: str, timeout_s: float = 60, start: int = 0) -> None:
        """Wait for a message of the software of that name."""
        ends = time.monotonic() + timeout_s
        wanted = b'"software": "%s"' % name.encode()
        while not any(wanted in bytes(t.body) for t in self.hub.telemetry[start:]):
            assert time.monotonic() < ends, self.board and self.board.text
            time.sleep(0.05)

    def _pause(self, seconds: float) -> None:
        if self.board and not self.board.running:
            raise OutpostError("the board is off")
        time.sleep(min(seconds, 0.2))
