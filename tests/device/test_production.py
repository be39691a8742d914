"""Production mode: a board without a prompt, from its image on or by one signed command; and what
a board that ended badly says of it once it is connected."""

from __future__ import annotations

import json
import time

import pytest
from outpost_tools import agreed, nvsread
from outpost_tools.hub.faults import DeviceNotOnline, GatewayTimeout
from outpost_tools.partitions import PartitionTable
from rotations import WORDS, RotationWorld
from world import DEVICE_ID, line_number

LEGS_HERE = ("outpost32", "outpost64", "stock32")
# Interrupt, the raw prompt, out of it, restart; a line that would be run.
KEYS = (b"\x03", b"\r\x01", b"\x02", b"\x04", b"print(6*7)\r\n")
TICKS = b"""
import time
n = 0
while n < 400:
    n += 1
    print("tick", n)
    time.sleep_ms(50)
"""


def quiet(board, seconds: float = 1.5) -> str:
    """All that the board said while the keys were pressed, over and over."""
    start = len(board.lines)
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        for key in KEYS:
            board.write(key)
        time.sleep(0.05)
    return "\n".join(line.text for line in board.lines[start:]) + board.pending


def test_no_key_opens_the_prompt_of_a_closed_board_from_its_first_moment_on(world):
    board = world.board(world.image(1, "127.0.0.1:1", files={"/main.py": TICKS}, production=True))
    # While boot.py runs, before it has read what it is.
    said = quiet(board)
    board.wait_for("tick 5")
    said += quiet(board)
    for word in (">>>", "raw REPL", "KeyboardInterrupt", "soft reboot"):
        assert word not in said
    before = int(board.wait_for(r"tick (\d+)")[1])
    assert board.wait_for(rf"tick {before + 30}\b") and board.boots == 1


def test_a_development_board_has_its_prompt(world):
    board = world.board(world.image(1, "127.0.0.1:1", files={"/main.py": TICKS}))
    board.wait_for("tick 2")
    board.write(b"\x03")
    board.wait_for("KeyboardInterrupt")
    board.wait_for(">>>")


@pytest.mark.parametrize(
    "main",
    [
        b"print('ends')\n",
        b"print('ends')\nraise ValueError('a-secret-word')\n",
        b"print('ends')\nraise SystemExit\n",
        b"print('ends')\nthis is no Python\n",
        b"print('ends')\nimport machine\nmachine.soft_reset()\n",
    ],
    ids=["returns", "raises", "exits", "no-python", "soft-reset"],
)
def test_where_main_ends_a_closed_board_restarts(main, world):
    board = world.board(world.image(1, "127.0.0.1:1", files={"/main.py": main}, production=True))
    line_number(board, "board restarts", line_number(board, "board restarts") + 1)
    assert board.boots >= 2 and ">>>" not in board.text and "a-secret-word" not in board.text


def test_a_closed_board_connects_as_any_other(world):
    hub = world.hub()
    board = world.board(world.image(hub.port, production=True))
    board.wait_for(r"hub +connected")
    board.write(b"\x03\x03")
    board.wait_for(r"acked id=2\b")
    assert board.boots == 1


def test_one_signed_command_closes_the_board_for_good(world):
    with RotationWorld(world) as w:
        w.signers.add("software", ["software"], lambda: WORDS)
        flash = w.image(limit=5)
        board = w.start(flash)
        w.ready()

        def told(role: str, signer: str):
            who = w.signers.find(signer)
            with w.signers.unlocked(who, lambda: WORDS) as pen:
                token = pen.command(w.fleet, DEVICE_ID, role, "production", {}, 3600)
            return w.operator.invoke(DEVICE_ID, agreed.COMMAND_METHOD, token, 20, 20)

        assert told("keys", "rotation")[0] == 404  # of another role: not this command
        status, said = told("software", "software")
        assert (status, said) == (200, {"production": True})
        boots = line_number(board, "Outpost boots", line_number(board, "Outpost boots") + 1)
        line_number(board, r"hub +connected", boots)
        said_then = quiet(board)
        assert ">>>" not in said_then and "KeyboardInterrupt" not in said_then
    table = PartitionTable.from_flash(flash)["nvs"]
    assert nvsread.read(flash.read_bytes()[table.offset : table.end]).production


# ---------------------------------------------------------------- last words

HANGS = b"""
from outpost import Device, log
import time

device = Device()

@device.method("hang")
def hang(payload):
    log.say("pump", "the valve does not move")
    while True:
        time.sleep_ms(100)

@device.method("fail")
def fail(payload):
    raise SystemExit

device.run()
"""


def stopped(hub, timeout_s: float = 60) -> dict:
    """What the device has reported of its last end."""
    ends = time.monotonic() + timeout_s
    while time.monotonic() < ends:
        twin = hub.core.wait(hub.core.twin_get(DEVICE_ID))
        found = twin.reported.get("outpost", {}).get("stopped")
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(twin.reported)


def test_what_a_hang_was_preceded_by_is_reported_after_the_watchdog(world):
    hub = world.hub()
    flash = world.image(hub.port, files={"/main.py": HANGS}, config={"watchdog_s": 60})
    board = world.board(flash, speed=20) if world.leg != "stock-release" else world.board(flash)
    board.wait_for(r"hub +connected")
    with pytest.raises((DeviceNotOnline, GatewayTimeout)):
        hub.core.wait(hub.core.invoke_method(DEVICE_ID, "hang", None, 5, 5))
    found = stopped(hub)
    assert found["why"] == "watchdog"
    assert any("the valve does not move" in line for line in found["lines"])
    assert len(json.dumps(found)) < 700
    assert board.boots >= 2


def test_an_exception_that_ends_the_program_is_reported_by_its_type_alone(world):
    hub = world.hub()
    once = b"""
import machine
from outpost import Device
device = Device()
if machine.reset_cause() == machine.PWRON_RESET:
    def fails():
        raise Exception("a-secret-word")
    device.pause = lambda ms: fails()
device.run()
"""
    flash = world.image(hub.port, files={"/main.py": once}, production=True)
    board = world.board(flash)
    found = stopped(hub)
    assert found["why"] == "exception" and "Exception" in found["lines"][-1]
    assert "a-secret-word" not in board.text and "a-secret-word" not in json.dumps(found)


def test_a_start_after_an_orderly_end_reports_nothing(world):
    hub = world.hub()
    main = HANGS.replace(b"raise SystemExit", b"import machine; machine.reset()")
    board = world.board(world.image(hub.port, files={"/main.py": main}))
    board.wait_for(r"hub +connected")
    with pytest.raises((DeviceNotOnline, GatewayTimeout)):
        hub.core.wait(hub.core.invoke_method(DEVICE_ID, "fail", None, 5, 5))
    line_number(board, r"hub +connected", line_number(board, "Outpost boots", 3))
    time.sleep(1)
    assert "outpost" not in hub.core.wait(hub.core.twin_get(DEVICE_ID)).reported or (
        "stopped" not in hub.core.wait(hub.core.twin_get(DEVICE_ID)).reported["outpost"]
    )


@pytest.mark.parametrize(("shown", "seen"), [("errors", True), ("off", False)])
def test_the_console_shows_what_was_asked_for(shown, seen, world):
    board = world.board(world.image(1, "127.0.0.1:1", config={"console": shown}))
    if seen:
        board.wait_for(r"error +tls")
    else:
        time.sleep(4)
        assert not [x for x in board.lines if " error " in x.text]
    assert not [x for x in board.lines if " clock " in x.text]
