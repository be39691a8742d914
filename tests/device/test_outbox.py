"""What send() has accepted arrives, whatever happens to the power, the board or the hub."""

import json
import random
import re

import pytest
from legs import VIRTUAL

MAIN = b"""
from outpost import Device, OutpostError
device = Device()
made = 0

@device.every(seconds=0.02)
def measure():
    global made
    if made < 30:
        made += 1
        number = device.send({"start": START, "n": made})
        print("accepted", START, made)

device.run()
"""


def accepted(board) -> set[tuple[int, int]]:
    found = (re.fullmatch(r"accepted (\d+) (\d+)", line.text) for line in board.lines)
    return {(int(m[1]), int(m[2])) for m in found if m}


def arrived(hub) -> list[tuple[int, int]]:
    return [(m["start"], m["n"]) for m in (json.loads(t.body) for t in hub.telemetry)]


def main_of(start: int) -> bytes:
    return MAIN.replace(b"START", str(start).encode())


def with_outbox_of(world, flash, new):
    """`new`, an image made for the next start, with the outbox and NVS as `flash` has them."""
    content = bytearray(new.read_bytes())
    old = flash.read_bytes()
    content[0x9000:0xF000] = old[0x9000:0xF000]
    content[0x200000:0x240000] = old[0x200000:0x240000]
    new.write_bytes(content)
    return new


def test_messages_accepted_before_a_power_off_arrive_after_it(world):
    # No hub is there: everything must wait in flash.
    board = world.board(world.image(1, files={"/main.py": main_of(1)}))
    board.wait_for("accepted 1 30", 60)
    board.stop()
    hub = world.hub()
    later = world.image(hub.port, files={"/main.py": main_of(2)}, name="later.bin")
    second = world.board(with_outbox_of(world, board.flash, later))
    second.wait_for("accepted 2 30", 60)
    assert hub.wait_until(lambda: (2, 30) in arrived(hub), 60)
    assert arrived(hub) == [(1, n) for n in range(1, 31)] + [(2, n) for n in range(1, 31)]


# The release's stand-ins cannot end a program in the middle of a flash operation.
@pytest.mark.parametrize("leg", VIRTUAL, indirect=True)
@pytest.mark.parametrize("mode", ["clean", "torn", "odd"])
def test_power_cut_while_sending_loses_nothing_accepted(world, mode):
    hub = world.hub()
    choose = random.Random(f"{mode} {world.leg}")
    for cut in choose.sample(range(1, 90), 4):
        hub.telemetry.clear()
        flash = world.image(hub.port, files={"/main.py": main_of(cut)}, name=f"{cut}.bin")
        board = world.board(flash, cut=f"{cut}:{mode}")
        board.wait_exit(60)
        assert board.exit_code == 73, board.text
        before = accepted(board)
        board.stop()
        again = world.board(flash)
        wanted = before | {(cut, n) for n in range(1, 31)}
        assert hub.wait_until(lambda wanted=wanted: wanted <= set(arrived(hub)), 60), (
            cut,
            wanted - set(arrived(hub)),
            again.text,
        )
        again.stop()


def test_late_message_says_when_it_was_made(world):
    board = world.board(world.image(1, files={"/main.py": main_of(1)}))
    board.wait_for("accepted 1 30", 60)
    board.stop()
    hub = world.hub()
    later = world.image(hub.port, files={"/main.py": main_of(2)}, name="later.bin")
    world.board(with_outbox_of(world, board.flash, later))
    assert hub.wait_until(lambda: (2, 30) in arrived(hub), 60)
    numbers = [int(t.properties["$.mid"]) for t in hub.telemetry]
    assert numbers == sorted(numbers) and len(set(numbers)) == len(numbers)
    for t in hub.telemetry:
        made = t.properties.get("$.ctime")
        assert made is None or re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", made)
    # Those of this start have a date; those of the start before, made when no clock was set,
    # say that they are of an earlier start.
    assert all("$.ctime" in t.properties for t in hub.telemetry[-5:])


def test_full_outbox_refuses_and_loses_nothing_it_took(world):
    main = b"""
from outpost import Device, OutpostError
device = Device()
n = 0
try:
    while True:
        device.send(b"%06d" % n + bytes(1970))
        n += 1
except OutpostError as e:
    print("refused after", n, e)
device.run()
"""
    hub = world.hub()
    board = world.board(world.image(hub.port, files={"/main.py": main}))
    board.wait_for(r"refused after \d+ the outbox is full", 60)
    line = next(x.text for x in board.lines if x.text.startswith("refused after"))
    count = int(line.split()[2])
    assert count == 64 * 2  # two in each of the 64 sectors
    assert hub.wait_until(lambda: len(hub.telemetry) >= count, 90)
    assert sorted({int(t.body[:6]) for t in hub.telemetry}) == list(range(count))
