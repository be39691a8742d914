"""A small world for one device: a local hub, an SNTP server, an image, a board."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

from devca import put_ca
from legs import LEGS
from outpost_tools.board import Board
from outpost_tools.hub import Hub
from outpost_tools.image import Settings, build_image
from outpost_tools.nvsimage import Identity
from outpost_tools.registry import Device, Registry
from outpost_tools.sntp import SntpServer

DEVICE_ID = "press-7"


class World:
    """Everything that a device under test needs, each part real and on loopback."""

    def __init__(self, folder: Path, leg: str) -> None:
        self.folder = folder
        self.leg = leg
        self.data = folder / "data"
        self.ca = put_ca(self.data)
        self.registry = Registry(self.data)
        self.device: Device = self.registry.add(DEVICE_ID)
        self._closing: list = []

    def hub(self, **options) -> Hub:
        hub = Hub(self.data, **options)
        hub.start()
        self._closing.append(hub)
        return hub

    def held(self, server):
        """Start a server, and stop it when this world ends."""
        server.start()
        self._closing.append(server)
        return server

    def sntp(self, **options) -> SntpServer:
        server = SntpServer(**options)
        server.start()
        self._closing.append(server)
        return server

    def image(
        self,
        port: int,
        sntp: SntpServer | str | None = None,
        *,
        device: Device | Identity | None = None,
        provisioned: bool = True,
        config: dict | None = None,
        build_time_s: int | None = None,
        trust: list[bytes] | None = None,
        files: dict[str, bytes | None] | None = None,
        library: str | None = None,
        name: str = "flash.bin",
        drop: tuple[str, ...] = (),
        nvs_keys: bytes | None = None,
        production: bool = False,
        layout: str = "single",
        **settings,
    ) -> Path:
        """A flash image whose device tries again every second or two.

        drop: fields that its configuration is not to have
        """
        address = sntp if isinstance(sntp, str) else (sntp or self.sntp()).address
        base = Settings(port=port, sntp=[address], **settings)
        raw = json.loads(base.to_json()) | {"backoff_s": [1, 2]} | (config or {})
        raw = {field: value for field, value in raw.items() if field not in drop}
        content: dict[str, bytes | None] = {
            "/config.json": json.dumps(raw).encode(),
            **(files or {}),
        }
        # The stock build has no library frozen into it: there it comes from littlefs.
        library = library or ("flash" if self.leg.startswith("stock") else "frozen")
        flash = self.folder / name
        flash.write_bytes(
            build_image(
                (device or self.device) if provisioned else None,
                self.ca.roots_der() if trust is None else trust,
                settings=base,
                build_time_s=int(time.time()) - 3600 if build_time_s is None else build_time_s,
                library=library,
                files=content,
                nvs_keys=nvs_keys,
                layout=layout,
                production=production,
            )
        )
        return flash

    def board(self, flash: Path, heapsize: str | None = None, **options) -> Board:
        board = Board(flash, leg=self.leg, heapsize=heapsize or LEGS[self.leg], **options)
        self._closing.append(board)
        return board.start()

    def close(self) -> None:
        for part in reversed(self._closing):
            part.stop()


def line_number(board: Board, pattern: str, start: int = 0, timeout_s: float = 60) -> int:
    """Index of the first whole line from `start` on that the pattern is found in."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for i in range(start, len(board.lines)):
            if re.search(pattern, board.lines[i].text):
                return i
        if not board.running:
            break
        time.sleep(0.02)
    board.wait_for(pattern, 0.1, start)  # fails, and shows the last lines
    raise AssertionError(pattern)
