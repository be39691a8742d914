"""Time on the whole device: forged, absent, leaping, backward and disagreeing SNTP; a year away."""

from __future__ import annotations

import re
import time

import pytest
from legs import VIRTUAL
from world import line_number

YEAR_S = 365 * 86400
DAY_S = 86400

MAIN = b"""
from outpost import Device
d = Device()
@d.every(seconds=0.3)
def beat():
    d.send({"n": 1})
d.run()
"""


def image(world, hub, *servers, **more):
    """An image that asks these SNTP servers, each real."""
    config = {"sntp": [server.address for server in servers]}
    return world.image(hub.port, servers[0], config=config, files={"/main.py": MAIN}, **more)


def dated(hub) -> list[str]:
    return [t.properties["$.ctime"] for t in hub.telemetry if "$.ctime" in t.properties]


def about_now(stamp: str) -> bool:
    made = time.mktime(time.strptime(stamp + " UTC", "%Y-%m-%dT%H:%M:%SZ %Z")) - time.timezone
    return abs(made - time.time()) < 120


def test_device_that_was_off_for_a_year_connects(world):
    hub = world.hub()
    flash = image(world, hub, world.sntp(), world.sntp(), build_time_s=int(time.time()) - YEAR_S)
    board = world.board(flash)
    board.wait_for(r"acked id=2", 60)
    assert re.search(r"clock +time=.*source=127.0.0.1,127.0.0.1", board.text)
    assert all(about_now(stamp) for stamp in dated(hub)) and dated(hub)


def test_one_forger_among_three_is_outvoted_and_the_floor_stays(world):
    hub = world.hub()
    for offset in (20 * YEAR_S, -DAY_S // 48, 3600):
        forger = world.sntp(offset_s=offset)
        flash = image(world, hub, forger, world.sntp(), world.sntp(), name=f"{offset}.bin")
        hub.telemetry.clear()
        board = world.board(flash)
        board.wait_for(r"acked id=2", 60)
        assert all(about_now(stamp) for stamp in dated(hub)) and dated(hub)
        board.stop()


# The release's board keeps the host's own clock, whatever is set: it is never wrong.
@pytest.mark.parametrize("leg", VIRTUAL, indirect=True)
def test_servers_that_disagree_do_not_keep_the_device_away_and_date_nothing(world):
    hub = world.hub()
    # By the first the hub's certificate has expired long since.
    flash = image(world, hub, world.sntp(offset_s=20 * YEAR_S), world.sntp())
    board = world.board(flash)
    board.wait_for(r"clock +of 2 time servers no two agree", 60)
    board.wait_for(r"has expired|clock is wrong|not trusted", 60)
    board.wait_for(r"acked id=3", 60)
    assert not dated(hub)
    assert all("uptime" in t.properties and "boot" in t.properties for t in hub.telemetry)


def test_single_answer_of_three_is_not_vouched_for(world):
    hub = world.hub()
    flash = image(
        world, hub, world.sntp(behaviour="silent"), world.sntp(), world.sntp(behaviour="kiss")
    )
    board = world.board(flash)
    board.wait_for(r"clock +time=.*source=unvouched", 60)
    board.wait_for(r"acked id=2", 60)
    assert not dated(hub)


# The release's board keeps the host's own clock, whatever is set: it is never wrong.
@pytest.mark.parametrize("leg", VIRTUAL, indirect=True)
def test_time_servers_that_are_all_gone_leave_the_floor_and_it_is_said(world):
    hub = world.hub()
    silent = world.sntp(behaviour="wrong-origin")
    recent = int(time.time()) - 600
    flash = image(world, hub, silent, world.sntp(behaviour="zero"), build_time_s=recent)
    board = world.board(flash)
    board.wait_for(r"clock +time=.*source=floor", 60)
    # By the time at which the image was built the token and the certificate are good.
    board.wait_for(r"acked id=1", 60)
    assert not dated(hub)


# The release's board keeps the host's own clock, whatever is set: it is never wrong.
@pytest.mark.parametrize("leg", VIRTUAL, indirect=True)
def test_token_that_is_refused_because_of_the_time_is_said_and_soon_tried_again(world):
    """SNTP is away, the image an hour old: by that time the token has just ended."""
    hub = world.hub()
    gone = world.sntp(behaviour="silent")
    config = {"sntp": [gone.address], "backoff_s": [1, 3600]}
    flash = world.image(hub.port, gone, config=config, files={"/main.py": MAIN})
    board = world.board(flash)
    words = (
        r"error +hub: the token was refused, and nobody vouches for the clock "
        r"\(source=floor\): the time is likely"
    )
    at = 0
    for n in range(3):
        at = line_number(board, words, at, 90) + 1
        wait, kind = re.search(r"in ([\d.]+) s kind=(\w+)", board.lines[at - 1].text).groups()
        # Not the half hour of a refusal: 1, 2, 4 seconds at the most.
        assert float(wait) <= 2**n and kind == "clock"
    gone.behaviour = "ok"
    board.wait_for(r"hub +connected", 90)
    board.wait_for(r"acked id=2", 60)


def test_token_that_is_refused_at_a_good_time_is_no_fault_of_the_clock(world):
    hub = world.hub()
    world.registry.set_status(world.device.device_id, "disabled")
    flash = world.image(hub.port, config={"backoff_s": [1, 40]}, files={"/main.py": MAIN})
    board = world.board(flash)
    at = line_number(board, r"error +hub: the server does not authorise.* kind=refused")
    wait = float(re.search(r"in ([\d.]+) s", board.lines[at].text)[1])
    assert wait >= 20 and "vouches" not in board.text


def test_leap_after_a_reconnection_is_not_followed(world):
    hub = world.hub()
    first, second = world.sntp(), world.sntp()
    board = world.board(image(world, hub, first, second))
    board.wait_for(r"acked id=2", 60)
    first.offset_s = second.offset_s = 30 * YEAR_S
    asked = first.requests
    hub.disconnect(world.device.device_id, "test")
    board.wait_for(r"error +mqtt: .*", 30)
    at = len(board.lines)
    board.wait_for(r"acked id=", 60, start=at)
    assert first.requests == asked, "a clock that is vouched for is not asked for again"
    assert all(about_now(stamp) for stamp in dated(hub))
