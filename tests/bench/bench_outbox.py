"""Flash erases for 1,000 messages of 100 bytes: the outbox beside a file on littlefs.

Each message is made durable on its own: the outbox programs a record and later a mark; the file is
opened, appended to and closed, and begun anew when the messages are sent.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from bench.table import Table
from world import World

MESSAGES = 1000

OUTBOX = f"""
from outpost.sender import open_outbox
box = open_outbox("outbox")
for i in range({MESSAGES}):
    box.append(bytes(100))
    box.release(box.read()[4])
print("finished")
"""

LITTLEFS = f"""
import os
for i in range({MESSAGES}):
    with open("/queue", "ab") as f:
        f.write(bytes(100))
    if i % 8 == 7:
        os.remove("/queue")
print("finished")
"""


def counts(main: str) -> tuple[int, int]:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), "outpost32")
        try:
            flash = world.image(1, "127.0.0.1:1", files={"/main.py": main.encode()})
            board = world.board(flash, restarts=False)
            board.wait_for("finished", 120)
            board.write(b"\\x04")
            board.stop()
            report = board.report["flash"]
            return report["erases"], report["programs"]
        finally:
            world.close()


def measure() -> list[Table]:
    table = Table(
        "Flash for 1,000 durable messages of 100 bytes", ["where", "sector erases", "page programs"]
    )
    table.add("outbox", *counts(OUTBOX))
    table.add("littlefs file, append and close", *counts(LITTLEFS))
    table.notes.append("Budget: at most 30 erases.")
    return [table]
