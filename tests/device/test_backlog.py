"""A backlog longer than there are packet ids, and the ids' wrap with messages in flight."""

from __future__ import annotations

from dataclasses import replace

import pytest
import ring
from chip import SECTOR
from outpost_tools.partitions import TABLE_OFFSET, PartitionTable

COUNT = 70_000

WRAPS = b"""
from outpost import Device
d = Device()
n = 0
@d.every(seconds=0.01)
def beat():
    global n
    if d.online and n < 120:
        if n == 0:
            d._session.pid = 65480
        for _ in range(4):
            d.send(b"%d" % n)
            n += 1
d.run()
"""


@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
def test_packet_ids_wrap_with_messages_in_flight(world):
    hub = world.hub()
    board = world.board(world.image(hub.port, files={"/main.py": WRAPS}))
    board.wait_for(r"acked id=120$", 60)
    assert [int(t.body) for t in hub.telemetry] == list(range(120))
    assert " error " not in board.text


class Image:
    """A flash image as the ring's chip: programs AND, erases set."""

    def __init__(self, content: bytearray) -> None:
        self.content = content

    def read(self, at: int, size: int) -> bytes:
        return bytes(self.content[at : at + size])

    def program(self, at: int, data: bytes) -> None:
        for i, byte in enumerate(data):
            self.content[at + i] &= byte

    def erase(self, at: int) -> None:
        self.content[at : at + SECTOR] = b"\xff" * SECTOR


def with_larger_outbox(flash) -> PartitionTable:
    """Give a 4 MiB image 4 MiB more, half of them for the outbox; returns its table."""
    content = flash.read_bytes()
    table = PartitionTable(
        [p for p in PartitionTable.for_size(4) if p.name != "outbox"]
        + [replace(PartitionTable.for_size(4)["outbox"], offset=4 << 20, size=2 << 20)]
    )
    raw = table.to_binary()
    content = content[:TABLE_OFFSET] + raw + content[TABLE_OFFSET + len(raw) :]
    flash.write_bytes(content + b"\xff" * (4 << 20))
    return table


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
def test_seventy_thousand_messages_that_waited_all_arrive_in_order(world):
    # Told as they come: the hub itself keeps the last ones only.
    arrived: list[int] = []

    def note(event: dict) -> None:
        if event["event"] == "telemetry":
            arrived.append(int(event["system"]["$.mid"]))

    hub = world.hub(on_event=note)
    main = b"from outpost import Device\nDevice().run()\n"
    flash = world.image(hub.port, files={"/main.py": main})
    place = with_larger_outbox(flash)["outbox"]
    chip = Image(bytearray(flash.read_bytes()))
    box = ring.load().Outbox(ring.Partition(chip, place.offset, place.size // SECTOR))
    for n in range(COUNT):
        box.append(b"%d" % n, 800_000_000)
    flash.write_bytes(chip.content)
    board = world.board(flash)
    board.wait_for(rf"acked id={COUNT}$", 1500)
    assert arrived == list(range(1, COUNT + 1))
    assert board.reboots == 0 and " error " not in board.text
