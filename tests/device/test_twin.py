"""The twin and Plug and Play, on the whole device and the real hub."""

from __future__ import annotations

import pytest
from fromhub import Operator
from hubs import eventually
from legs import OURS
from world import line_number

MAIN = b"""
from outpost import Device
d = Device(model="dtmi:outpost:example:Board;1")

@d.desired("interval")
def interval(value):
    print("INTERVAL", value)
    if value == 13:
        raise ValueError("hunter2")

@d.desired("limits")
def limits(value):
    print("LIMITS", sorted(value.items()) if value else value)
    yield 300

@d.method("report")
def report(payload):
    d.report(payload)

d.report({"software": {"version": "1.0"}})
d.run()
"""


def start(world, main=MAIN, **options):
    hub = world.hub()
    operator = Operator(hub, world.device.device_id)
    return (
        hub,
        operator,
        lambda: world.board(world.image(hub.port, files={"/main.py": main}, **options)),
    )


def test_desired_reaches_its_handler_and_is_acknowledged_in_reported(world):
    hub, operator, boot = start(world)
    operator.desire({"interval": 5, "unknown": 1})
    board = boot()
    board.wait_for(r"INTERVAL 5", 60)
    good = {"value": 5, "ac": 200, "av": 2}
    assert operator.until_reported(interval=good)["interval"] == good
    assert operator.reported()["software"] == {"version": "1.0"}
    known = hub.core.connection(world.device.device_id)
    assert known.model_id == "dtmi:outpost:example:Board;1"
    operator.desire({"limits": {"low": 1, "high": 9}})
    board.wait_for(r"LIMITS \[\('high', 9\), \('low', 1\)\]", 30)
    operator.desire({"limits": {"low": None}})
    board.wait_for(r"LIMITS \[\('high', 9\)\]", 30)
    operator.desire({"interval": 13})
    bad = {"value": 13, "ac": 500, "av": 5, "ad": "ValueError"}
    assert operator.until_reported(interval=bad)["interval"] == bad
    operator.desire({"interval": None})
    board.wait_for(r"INTERVAL None", 30)
    assert eventually(lambda: "interval" not in operator.reported())
    assert "Traceback" in board.text and "error" not in board.text


def test_changes_made_while_the_device_was_away_are_fetched_when_it_is_back(world):
    hub, operator, boot = start(world)
    board = boot()
    line_number(board, r"twin +reported")
    hub.stop()
    board.wait_for(r"error .*next attempt", 30)
    hub = world.hub(port=hub.port)
    operator = Operator(hub, world.device.device_id)
    for n in range(5):
        operator.desire({"interval": n + 20})
    board.wait_for(r"INTERVAL 24", 60)
    line_number(board, r"twin +reported", line_number(board, r"INTERVAL 24"))
    seen = [line.text for line in board.lines if line.text.startswith("INTERVAL")]
    assert seen in (["INTERVAL 24"], ["INTERVAL 20", "INTERVAL 24"]) or len(set(seen)) == len(seen)
    assert (
        operator.until_reported(interval={"value": 24, "ac": 200, "av": 6})["interval"]["ac"] == 200
    )


@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
def test_twin_that_is_too_large_for_the_device_is_said_and_costs_nothing(world):
    hub, operator, boot = start(world)
    operator.desire({f"p{n}": "x" * 2000 for n in range(14)} | {"interval": 3})
    board = boot()
    board.wait_for(r"the twin is too large for this device", 60)
    # Reports do not wait for what cannot be had.
    assert operator.until_reported(software={"version": "1.0"})
    assert operator.invoke("report", {"a": 1})[0] == 200
    assert operator.until_reported(a=1)["a"] == 1
    # Nor do changes that come while it is connected.
    operator.desire({"interval": 4})
    board.wait_for(r"INTERVAL 4", 30)
    assert "error" not in board.text


@pytest.mark.parametrize("leg", OURS, indirect=True)
def test_only_what_changed_is_reported_again_after_a_restart(world):
    hub, operator, boot = start(world)
    board = boot()
    line_number(board, r"twin +reported")
    operator.until_reported(software={"version": "1.0"})
    board.stop()
    board = world.board(world.folder / "flash.bin")
    line_number(board, r"twin +desired")
    assert operator.invoke("report", {"software": {"version": "1.0"}, "b": 2})[0] == 200
    assert operator.until_reported(b=2)["b"] == 2
    sent = [line.text for line in board.lines if "reported bytes" in line.text]
    assert [text.split("bytes=")[1] for text in sent] == [str(len('{"b": 2}'))], sent
