"""GC heap that the whole device needs: the smallest -X heapsize with which it still sends.

Each size is tried with a fresh flash and a fresh power-on: boot, connect, three messages
acknowledged. Once without and once with all that trust and updates over the air keep in memory.
Beside it what is in use once it has connected and reported.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import bundles
from bench.table import Table
from outpost_tools import agreed
from outpost_tools.board import BoardTimeout
from world import World

FROM_KIB, TO_KIB = 16, 160
BUDGETS = {"frozen": 64, "flash": 112}
MAIN = b"""
from outpost import Device
d = Device()
@d.every(seconds=0.1)
def send():
    d.send({'temperature': 21.5})
"""
RUN = b"d.run()\n"
HELD = b"""
@d.every(seconds=5)
def held():
    if d.acked >= 3:
        import gc
        gc.collect()
        print('HELD', gc.mem_alloc())
"""


class Device:
    """One kind of device: changeable is whether keys may sign bundles and software for it."""

    def __init__(self, folder: Path, leg: str, library: str, changeable: bool) -> None:
        self.world = World(folder, leg)
        self.hub = self.world.hub()
        self.library = library
        self.files: dict[str, bytes | None] = {}
        if changeable:
            present = bundles.make(1, self.world.ca.roots_der(), keys=bundles.keys("a"))
            self.files[agreed.FACTORY_ROOTS_PATH] = bundles.signed(present).encode()

    def flash(self, main: bytes) -> Path:
        files = {"/main.py": main, **self.files}
        return self.world.image(self.hub.port, library=self.library, files=files)

    def works(self, heap_kib: int) -> bool:
        board = self.world.board(self.flash(MAIN + RUN), heapsize=f"{heap_kib}K")
        try:
            board.wait_for(r"acked id=3|out of memory|MemoryError", 20)
            return "out of memory" not in board.text and "MemoryError" not in board.text
        except BoardTimeout:
            return False
        finally:
            board.stop()

    def smallest(self) -> int:
        low, high = FROM_KIB, TO_KIB  # low: assumed not to work; high: does
        while high - low > 1:
            middle = (low + high) // 2
            if self.works(middle):
                high = middle
            else:
                low = middle
        return high

    def held(self) -> int:
        """Bytes in use after connecting and reporting, with more heap than it needs."""
        board = self.world.board(self.flash(MAIN + HELD + RUN), heapsize=f"{TO_KIB}K")
        try:
            board.wait_for(r"^HELD", 30)  # before the reports
            found = board.wait_for(r"^HELD (\d+)", 30, start=len(board.lines))
            match = re.search(r"HELD (\d+)", found.string)
            assert match
            return int(match[1])
        finally:
            board.stop()


def row(leg: str, library: str, changeable: bool) -> tuple[int, int]:
    with tempfile.TemporaryDirectory() as folder:
        device = Device(Path(folder), leg, library, changeable)
        try:
            return device.smallest(), device.held()
        finally:
            device.world.close()


def measure() -> list[Table]:
    table = Table(
        "GC heap for the whole device",
        ["build, library", "KiB needed", "budget KiB", "bytes in use once connected"],
        notes=[
            "The smallest heap, to the KiB, with which a device boots, connects and has three "
            "messages acknowledged. A stock ESP32 has about 160 KiB. Changeable: keys may sign "
            "trust bundles and software for it, so that it takes deliveries; another device has "
            "none of that in memory."
        ],
    )
    for leg, library in (("outpost32", "frozen"), ("outpost32", "flash"), ("stock32", "flash")):
        where = "frozen" if library == "frozen" else "from littlefs"
        for changeable in (False, True):
            name = f"{leg}, {where}{', changeable' if changeable else ''}"
            needed, held = row(leg, library, changeable)
            table.add(name, needed, BUDGETS[library], held)
    return [table]
