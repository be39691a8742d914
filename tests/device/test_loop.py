"""The loop on the whole device: times of day, asyncio, and the watchdog that ends a hang."""

from __future__ import annotations

import time

import pytest
from fromhub import Operator
from legs import OURS
from servers import in_time
from world import line_number

TIMES = b"""
import time
from outpost import Device, clock
d = Device()
print("BEFORE", d.online)
now = clock.now()

@d.at(1000000000)
def long_ago():
    print("ONCE", d._way.clock.source, clock.now() > 1600000000)

@d.at(4000000000)
def far_away():
    print("NEVER")

@d.every(seconds=0.05)
def arm():
    global now
    if d.online and now is not None:
        now = None
        t = time.gmtime(clock.now() + 2 - (946684800 if time.gmtime(0)[0] == 2000 else 0))
        d.at("%02d:%02d:%02d" % (t[3], t[4], t[5]))(lambda: print("DAILY"))

d.after(0.2, lambda: print("AFTER"))
d.run()
"""


def test_times_wait_for_the_clock_and_come_once(world):
    hub = world.hub()
    board = world.board(world.image(hub.port, files={"/main.py": TIMES}))
    board.wait_for(r"DAILY", 60)
    board.wait_for(r"ONCE \S+ True", 30)
    time.sleep(2.5)
    assert [board.text.count(word) for word in ("DAILY", "ONCE", "NEVER", "AFTER")] == [1, 1, 0, 1]
    assert board.text.index("clock    time=") < board.text.index("ONCE")


ASYNC = b"""
import asyncio
from outpost import Device, aio
d = Device()

@d.method("add")
def add(payload):
    return payload["a"] + payload["b"]

async def other():
    n = 0
    while True:
        await asyncio.sleep_ms(100)
        n += 1
        if d.online and n % 10 == 0:
            d.send({"n": n})

async def main():
    task = asyncio.create_task(aio.run(d))
    await other()

asyncio.run(main())
"""


def test_device_runs_as_one_task_of_an_asyncio_program(world):
    hub = world.hub()
    board = world.board(world.image(hub.port, files={"/main.py": ASYNC}))
    operator = Operator(hub, world.device.device_id)
    assert operator.invoke("add", {"a": 2, "b": 3}) == (200, 5)
    board.wait_for(r"acked id=3", 60)
    begun = time.monotonic()
    assert operator.invoke("add", {"a": 4, "b": 3}) == (200, 7)
    assert time.monotonic() - begun < in_time(2)
    assert "error" not in board.text


HANG = b"""
import machine
from outpost import Device
d = Device()

@d.every(seconds=0.5)
def beat():
    d.send(b"beat")
    if d.acked >= 1 and machine.reset_cause() == machine.PWRON_RESET:
        print("HANGS")
        while True:
            pass

d.run()
"""


# 60 s are the shortest that the configuration takes: a board that is told less here shows the same.
@pytest.mark.parametrize("leg", OURS, indirect=True)
def test_handler_that_never_returns_is_ended_by_the_watchdog_and_the_device_comes_back(world):
    hub = world.hub()
    main = HANG.replace(b"d.run()", b"from outpost import watchdog\nwatchdog.arm(4)\nd.run()")
    board = world.board(world.image(hub.port, files={"/main.py": main}))
    at = line_number(board, r"HANGS")
    at = line_number(board, r"boot +Outpost boots reset_cause=3", at, 30)
    line_number(board, r"send +acked", at)


@pytest.mark.parametrize("leg", OURS, indirect=True)
def test_watchdog_leaves_a_device_alone_that_works_and_one_that_cannot_connect(world):
    hub = world.hub()
    main = HANG.replace(b"d.acked >= 1", b"False").replace(
        b"d.run()", b"from outpost import watchdog\nwatchdog.arm(10)\nd.run()"
    )
    board = world.board(world.image(hub.port, files={"/main.py": main}))
    board.wait_for(r"acked id=5", 60)
    hub.stop()
    time.sleep(22)
    assert board.reboots == 0 and board.running
