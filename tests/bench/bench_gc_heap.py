"""GC heap that the whole device needs: the smallest -X heapsize with which it still sends.

Each size is tried with a fresh power-on: boot, connect, three messages acknowledged.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from bench.table import Table
from world import World

FROM_KIB, TO_KIB = 16, 160
BUDGETS = {"frozen": 64, "flash": 112}


def works(world: World, flash: Path, heap_kib: int) -> bool:
    board = world.board(flash, heapsize=f"{heap_kib}K")
    try:
        board.wait_for(r"acked id=3", 20)
        return "out of memory" not in board.text and "MemoryError" not in board.text
    except Exception:
        return False
    finally:
        board.stop()


def smallest(leg: str, library: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), leg)
        try:
            hub = world.hub()
            main = (
                b"from outpost import Device\nd = Device()\n"
                b"@d.every(seconds=0.1)\ndef send():\n    d.send({'temperature': 21.5})\nd.run()\n"
            )
            flash = world.image(hub.port, library=library, files={"/main.py": main})
            low, high = FROM_KIB, TO_KIB  # low: assumed not to work; high: does
            while high - low > 1:
                middle = (low + high) // 2
                if works(world, flash, middle):
                    high = middle
                else:
                    low = middle
            return high
        finally:
            world.close()


def measure() -> list[Table]:
    table = Table(
        "GC heap for the whole device",
        ["build, library", "KiB needed", "budget KiB"],
        notes=[
            "The smallest heap, to the KiB, with which a device boots, connects and has three "
            "messages acknowledged. A stock ESP32 has about 160 KiB."
        ],
    )
    for leg, library in (("outpost32", "frozen"), ("outpost32", "flash"), ("stock32", "flash")):
        where = "frozen" if library == "frozen" else "from littlefs"
        table.add(f"{leg}, {where}", smallest(leg, library), BUDGETS[library])
    return [table]
