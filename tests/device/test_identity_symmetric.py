"""Symmetric keys on every build: which key is used, what a refusal does, and what is not lost."""

from __future__ import annotations

import base64
import json
import re
import time

import pytest
from hubs import eventually
from identities import edit, entries, symmetric
from outpost_tools.registry import new_key
from world import World, line_number

CONNECTED = r"hub +connected .*credential=%s$"
NUMBERED = b"""
from outpost import Device
d = Device()
n = 0
@d.every(seconds=0.2)
def count():
    global n
    n += 1
    d.send(b"%d" % n)
d.run()
"""


def raw(key: str) -> bytes:
    return base64.b64decode(key)


def refusals(hub) -> list:
    return [e for e in hub.events if e["event"] == "refused"]


def with_record(world: World, flash, *, secondary: bool = True, **more) -> None:
    """The device's keys as a record in place of the old form."""
    device = world.device
    record = symmetric(raw(device.primary_key), raw(device.secondary_key) if secondary else b"")
    edit(flash, sas1=None, sas2=None, ida=record, idcur=0, **more)


def test_keys_in_a_record_prove_the_device(world):
    hub = world.hub()
    flash = world.image(hub.port)
    with_record(world, flash)
    board = world.board(flash)
    board.wait_for(CONNECTED % "primary", 60)
    board.wait_for(r"acked id=1", 60)


@pytest.mark.parametrize("place", ["old form", "record"])
def test_secondary_is_used_when_the_primary_is_refused_and_then_goes_first(world, place):
    hub = world.hub()
    flash = world.image(hub.port)
    if place == "record":
        with_record(world, flash)
    world.registry.rotate(world.device.device_id, "primary")
    board = world.board(flash)
    at = line_number(board, CONNECTED % "secondary")
    assert len(refusals(hub)) == 1
    board.wait_for(r"identity +primary: .*; trying secondary", 30)
    for _ in range(3):
        board.wait_for(r"acked id=", 60, at)
        hub.disconnect(world.device.device_id, "test")
        at = line_number(board, CONNECTED % "secondary", at + 1)
    assert len(refusals(hub)) == 1


def test_disabled_device_slows_down_keeps_its_outbox_and_recovers_when_enabled(world):
    hub = world.hub()
    flash = world.image(hub.port, config={"backoff_s": [1, 8]}, files={"/main.py": NUMBERED})
    board = world.board(flash)
    board.wait_for(r"acked id=\d", 60)
    world.registry.set_status(world.device.device_id, "disabled")
    # After the first refusal the clock is asked again: that might have been why.
    at = line_number(board, r"error +hub: the server does not authorise this device") + 1
    at = line_number(board, r"error +hub: the server does not authorise this device", at)
    wait = float(re.search(r"next attempt in ([\d.]+) s", board.lines[at].text)[1])
    assert 4 <= wait <= 8
    start = len(refusals(hub))
    time.sleep(9)
    # At most three keys an attempt, one attempt in four seconds or more: no storm.
    assert len(refusals(hub)) - start <= 9
    assert eventually(lambda: len(refusals(hub)) > start, 60)
    world.registry.set_status(world.device.device_id, "enabled")
    at = line_number(board, r"hub +connected", at, 30)
    line_number(board, r"acked id=", at)
    seen = eventually(lambda: _whole({int(t.body) for t in hub.telemetry}, 40), 60)
    assert seen, sorted(int(t.body) for t in hub.telemetry)
    assert "Traceback" not in board.text


def _whole(numbers: set[int], least: int) -> bool:
    return len(numbers) >= least and numbers == set(range(1, max(numbers) + 1))


def test_token_is_renewed_by_a_new_connection_and_no_message_is_lost(world):
    hub = world.hub()
    main = b"from outpost import iothub\niothub.TOKEN_TTL_S = 363\n" + NUMBERED
    board = world.board(world.image(hub.port, files={"/main.py": main}))
    at = 0
    for _ in range(3):
        at = line_number(board, r"token ends soon", at) + 1
    at = line_number(board, CONNECTED % "primary", at)
    line_number(board, r"acked id=", at)
    assert "error" not in board.text
    assert eventually(lambda: _whole({int(t.body) for t in hub.telemetry}, 30))
    ends = [e for e in hub.events if e["event"] == "closed"]
    assert len(ends) >= 3 and all(e["reason"] == "the device disconnected" for e in ends), ends


def test_server_that_is_busy_is_backed_off_from_and_no_other_key_is_tried(world):
    from outpost_tools.hub import auth

    hub = world.hub()
    admit = auth.admit
    try:
        auth.admit = _busy
        flash = world.image(hub.port)
        with_record(world, flash)
        board = world.board(flash)
        at = line_number(board, r"error +hub: the server is not available now")
        at = line_number(board, r"error +hub: the server is not available now", at + 1)
        assert "trying secondary" not in board.text
    finally:
        auth.admit = admit
    line_number(board, CONNECTED % "primary", at)


def _busy(*_args, **_more):
    from outpost_tools.hub import auth

    raise auth.Refusal(auth.UNAVAILABLE, "throttled by the test")


# A candidate


def test_candidate_that_the_hub_takes_is_committed_and_the_old_key_is_gone(world):
    hub = world.hub()
    flash = world.image(hub.port)
    new = new_key()
    edit(flash, ida=symmetric(raw(new)), idtry=0)
    world.registry.update(world.device.device_id, secondary_key=new)
    board = world.board(flash)
    at = line_number(board, CONNECTED % "new primary")
    line_number(board, r"identity +the new key works", at)
    board.wait_for(r"acked id=1", 60)
    hub.disconnect(world.device.device_id, "test")
    line_number(board, CONNECTED % "primary", at)
    board.stop()
    assert entries(flash, "idcur", "idtry", "sas1", "sas2") == {
        "idcur": 0,
        "idtry": None,
        "sas1": None,
        "sas2": None,
    }
    assert not refusals(hub)


def test_candidate_that_the_hub_refuses_leaves_the_device_as_it_was(world):
    hub = world.hub()
    flash = world.image(hub.port)
    edit(flash, idb=symmetric(bytes(32)), idtry=1)
    board = world.board(flash)
    at = line_number(board, CONNECTED % "primary")
    hub.disconnect(world.device.device_id, "test")
    line_number(board, CONNECTED % "primary", at + 1)
    board.stop()
    assert len(refusals(hub)) == 1
    assert entries(flash, "idcur", "idtry")["idcur"] is None
    assert entries(flash, "sas1")["sas1"] == world.device.primary_key.encode()


def test_candidate_works_alone_when_the_old_key_is_forbidden(world):
    """A trial refused at first goes last, and is still tried once nothing else opens."""
    hub = world.hub()
    flash = world.image(hub.port)
    new = new_key()
    edit(flash, idb=symmetric(raw(new)), idtry=1)
    board = world.board(flash)
    at = line_number(board, CONNECTED % "primary")
    world.registry.update(world.device.device_id, primary_key=new, secondary_key=new_key())
    at = line_number(board, CONNECTED % "new primary", at)
    line_number(board, r"identity +the new key works", at)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ida", b"OPK1"),
        ("ida", b""),
        ("ida", symmetric(bytes(32))[:-1]),
        ("idcur", 7),
        ("idcur", b"0"),
        ("idtry", -1),
        ("idb", b"\xff" * 3600),
        ("idonb", b"\xff" * 3600),
    ],
)
def test_damaged_entry_of_the_store_leaves_the_older_form(world, name, value):
    hub = world.hub()
    flash = world.image(hub.port)
    edit(flash, **{"idcur": 0, "idtry": 1, name: value})
    board = world.board(flash)
    board.wait_for(CONNECTED % "primary", 60)
    board.wait_for(r"acked id=1", 60)
    assert json.dumps(hub.telemetry[0].device_id) == '"press-7"'
