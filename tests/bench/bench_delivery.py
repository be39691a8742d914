"""GC heap that a file of 8 KiB needs on its way to the device: pushed in pieces, and fetched.

One run of each at the frozen build's budget of heap. The board is asked for what is free each time
that a piece is written, after a collection; the smallest answer is the peak.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import bundles
from bench.table import Table
from deliveries import KIND, MAIN, Sender, sha
from fromhub import Operator
from outpost_tools.bundleserver import BundleServer, development_context, of_mapping
from world import World

FILE = random.Random(8).randbytes(8192)
BUDGET_KIB = 64
# What is free where each piece is written; said to the bench alone.
PROBE = b"""
import gc
from outpost import staging as probed
kept = {"put": probed.Staging.put}
def put(self, at, piece):
    gc.collect()
    print("USED", gc.mem_alloc())
    kept["put"](self, at, piece)
probed.Staging.put = put
# Else it would be loaded anew for each delivery, without the probe.
from outpost import delivery as files
let_go = files.let_go
files.let_go = lambda *parts: let_go(*[part for part in parts if part != "staging"])
d.every(seconds=1)(lambda: (gc.collect(), print("IDLE", gc.mem_alloc())))
d.run()
"""


def used(text: str, word: str) -> int:
    found = [int(line.split()[1]) for line in text.splitlines() if line.startswith(word)]
    return max(found) if found else 0


def one(pushed: bool) -> tuple[int, int]:
    """(bytes in use while nothing is delivered, the most while a piece is written)."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), "outpost32")
        try:
            hub = world.hub()
            operator = Operator(hub, world.device.device_id)
            context = development_context(world.data, ["localhost"])
            bundle = bundles.data(roots=world.ca.roots_der(), hosts=("localhost",))
            main = MAIN.replace(b"d.run()\n", PROBE)
            files = {"/main.py": main, "/trust/factory.bin": bundle}
            with BundleServer(of_mapping({"/f.bin": FILE}), context) as server:
                flash = world.image(hub.port, files=files)
                board = world.board(flash, heapsize=f"{BUDGET_KIB}K")
                board.wait_for("hub +connected", 60)
                board.wait_for("IDLE", 10, len(board.lines))
                idle = used(board.text, "IDLE")
                if pushed:
                    Sender(operator).push(FILE)
                else:
                    url = f"https://localhost:{server.port}/f.bin"
                    order = {"version": 5, "url": url, "size": len(FILE), "sha256": sha(FILE)}
                    operator.desire({"outpost": {KIND: order}})
                board.wait_for(f"PARCEL {len(FILE)}", 60)
                return idle, used(board.text, "USED")
        finally:
            world.close()


def measure() -> list[Table]:
    table = Table(
        "GC heap while a file of 8 KiB comes (outpost32, frozen)",
        ["way", "bytes in use before", "at the most while a piece is written", "more", "heap KiB"],
        notes=[
            "After a collection. With the method that lists modules, without a twin of the "
            "application. A fetch has no connection to the hub meanwhile, and one to the server."
        ],
    )
    for name, pushed in (("pushed in pieces", True), ("fetched by ranges", False)):
        idle, most = one(pushed)
        table.add(name, idle, most, most - idle, BUDGET_KIB)
    return [table]
