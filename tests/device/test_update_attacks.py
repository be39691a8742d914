"""New software that does harm, comes at a bad moment, or meets a device in need: the device goes on
with what worked, and takes the next one."""

from __future__ import annotations

import json
import re
import time

import bundles
import packages
import pytest
from boardcalls import Calls
from identities import edit, entries
from outpost_tools import agreed
from updates import BOOTS, KEPT, UpdateWorld, quick

LEGS_HERE = ("outpost32",)
GOOD = packages.application(packages.main("good"))


def boots(update: UpdateWorld) -> list[str]:
    return re.findall(BOOTS, update.board.text)


# The state that an earlier life left


def test_a_package_that_no_memory_can_judge_is_given_up_and_the_device_starts(world):
    scarce = b"from outpost import update\ndef no(*_):\n    raise MemoryError\nupdate.taken = no\n"
    update = UpdateWorld(
        world,
        files={
            "/stage/software.late": packages.signed(GOOD, 4),
            "/main.py": scarce + packages.main("image"),
        },
    )
    update.power_on()
    update.heard("image")
    assert "Traceback" not in update.board.text
    update.board.wait_for("update +refused: ", 30)
    # And never again.
    update.power_on()
    update.board.wait_for("hub +connected", 60)
    assert "update  refused" not in update.board.text


FILL = b"""
import esp32, network
try:
    network.WLAN(network.STA_IF).active(True)
except OSError:
    pass  # it needs room in the NVS, too
nvs = esp32.NVS("mine")
n = 0
try:
    while True:
        nvs.set_i32("k%d" % n, n)
        n += 1
except OSError:
    print("FULL")
"""


@pytest.mark.parametrize("trial", [1, 17])
def test_a_trial_that_ends_over_a_full_nvs_leaves_a_device_that_starts(world, trial):
    update = UpdateWorld(world)
    edit(update.flash, **{"app-try": trial, "app-lives": 3, "fw-ver": 3})
    Calls(update.flash, world.leg).run(FILL.decode())
    board = update.power_on()
    board.wait_for("did not hold", 30)
    board.wait_for("boot +Outpost device starts", 30)
    board.wait_for("error +link: the radio did not start|hub +connected", 60)
    assert "Traceback" not in board.text
    board.stop()
    assert entries(update.flash, "app-try") == {"app-try": None}


def test_software_that_the_nvs_has_no_room_for_is_refused_with_a_sentence(world):
    update = UpdateWorld(world, files={"/main.py": FILL + packages.main("image")})
    update.power_on().wait_for("FULL", 30)
    update.heard("image")
    assert "the NVS has no room" in update.refused(packages.signed(GOOD, 4))
    assert set(boots(update)) == {"image"}
    update.board.stop()
    assert entries(update.flash, "app-try") == {"app-try": None}


# What it does to the file system

FILLS = b"""
import machine
n = 0
try:
    while True:
        with open("%s%%d" %% n, "wb") as f:
            f.write(bytes(30000))
        n += 1
except OSError:
    machine.reset()
"""


def test_software_that_fills_the_file_system_from_its_slot_takes_no_room_from_the_next(world):
    update = UpdateWorld(world)
    update.power_on()
    update.heard("image")
    bad = packages.application(FILLS % b"log")
    assert update.push(packages.signed(bad, 2)).status == 202
    update.board.wait_for("the one before it runs again", 120)
    update.heard("image", start=len(update.hub.telemetry))
    assert update.push(packages.signed(GOOD, 3)).status == 202
    update.board.wait_for(KEPT % 3, 60)


def test_software_that_fills_the_rest_of_the_file_system_leaves_a_device_that_connects(world):
    update = UpdateWorld(world)
    update.power_on()
    update.heard("image")
    bad = packages.application(FILLS % b"/junk")
    assert update.push(packages.signed(bad, 2)).status == 202
    update.board.wait_for("the one before it runs again", 120)
    update.heard("image", start=len(update.hub.telemetry))
    assert "are free: nothing was changed" in update.refused(packages.signed(GOOD, 3), version=3)


@pytest.mark.parametrize("what", ["/boot.py", "/main.py"])
def test_software_that_removes_the_boards_own_files_leaves_a_device_that_connects(world, what):
    update = UpdateWorld(world, files={"/boot.py": quick()})
    update.power_on()
    update.heard("image")
    bad = b"import os, machine\nos.remove('%s')\nmachine.reset()" % what.encode()
    assert update.push(packages.signed(packages.application(bad), 2)).status == 202
    update.board.wait_for("hub +connected", 90, len(update.board.lines))


# What it brings


@pytest.mark.parametrize("folder", ["", "lib/"])
def test_modules_of_a_package_go_before_those_of_the_image_and_leave_with_it(world, folder):
    source = b"import ours\n" + packages.main("old").replace(b'"old"', b"ours.NAME")
    update = UpdateWorld(world, files={"/lib/ours.py": b"NAME = 'image'", "/main.py": source})
    update.power_on()
    update.heard("image")
    package = packages.application(source, ((folder + "ours.py", b"NAME = 'package'"),))
    assert update.push(packages.signed(package, 2)).status == 202
    update.board.wait_for(KEPT % 2, 60)
    update.heard("package")


def test_a_library_of_its_own_that_is_broken_is_gone_with_the_trial(world):
    update = UpdateWorld(world, files={"/boot.py": quick()})
    update.power_on()
    update.heard("image")
    package = packages.application(
        packages.main("new"), (("outpost/__init__.py", b"class Device:\n    pass"),)
    )
    assert update.push(packages.signed(package, 2)).status == 202
    update.board.wait_for("library=slot software=a on trial", 60)
    update.board.wait_for("the one before it runs again", 120)
    update.heard("image", start=len(update.hub.telemetry))


# Bad moments


def test_an_answer_that_was_lost_is_given_again_while_the_same_package_is_on_trial(world):
    update = UpdateWorld(world)
    update.power_on()
    update.heard("image")
    unhealthy = packages.main("slow").replace(
        b"device.run()", b"@device.healthy\ndef no():\n    return False\ndevice.run()"
    )
    data = packages.signed(packages.application(unhealthy), 2)
    assert update.push(data, version=2).status == 202
    update.heard("slow")
    again = update.push(data, version=2)
    assert (again.status, again.result) == (202, {"state": "trial", "version": 2})
    assert "on trial here" in update.refused(packages.signed(GOOD, 3), version=3)


def test_a_trial_goes_through_an_outage_of_the_hub(world):
    update = UpdateWorld(world)
    update.power_on()
    update.heard("image")
    assert update.push(packages.signed(GOOD, 2)).status == 202
    port = update.hub.port
    update.board.wait_for("software=a on trial", 60)
    update.hub.stop()
    update.board.wait_for("error ", 60, len(update.board.lines))
    time.sleep(3)
    assert "is kept" not in update.board.text
    update.hub = world.hub(port=port)
    update.board.wait_for(KEPT % 2, 60)
    assert boots(update) == ["image", "a on trial"]


def test_no_message_is_lost_when_software_comes_over_a_full_outbox(world):
    full = b"""
from outpost import Device, errors
device = Device()
n = 0
@device.every(seconds=0.01)
def fill():
    global n
    try:
        while True:
            device.send({"n": n, "pad": "x" * 3800})
            print("TOOK", n)
            n += 1
    except errors.OutboxFull:
        pass
device.run()
"""
    update = UpdateWorld(world, files={"/main.py": full})
    board = update.power_on()
    board.wait_for("TOOK 150", 120)
    assert update.push(packages.signed(GOOD, 2)).status == 202
    board.wait_for(KEPT % 2, 120)
    update.heard("good", 120)
    took = {int(line.text.split()[1]) for line in board.lines if line.text.startswith("TOOK")}

    def arrived() -> set[int]:
        bodies = [bytes(t.body) for t in update.hub.telemetry if b'"n"' in bytes(t.body)]
        return {json.loads(body)["n"] for body in bodies}

    ends = time.monotonic() + 120
    while took - arrived() and time.monotonic() < ends:
        time.sleep(0.2)
    assert not took - arrived()


@pytest.mark.parametrize("bundle", ["good", "bad"])
def test_software_and_trust_on_trial_at_the_same_time_both_come_to_their_end(world, bundle):
    update = UpdateWorld(world, config={"trust": {"trial_s": 6}})
    update.power_on()
    update.heard("image")
    roots = world.ca.roots_der() if bundle == "good" else [bundles.root("X").der]
    new = bundles.data(2, roots=roots, software=bundles.keys("s"))
    package = packages.signed(GOOD, 2)
    # Staged first, so that both commits come within one slice or two.
    import hashlib

    about = {"kind": "software", "sha256": hashlib.sha256(package).hexdigest()}
    sender = update.sender
    assert sender.begin(package, **about)[0] == 200
    for at in range(0, len(package), 2048):
        assert sender.write(package, at, **about)[0] == 200
    assert sender.call("commit", **about)[0] == 202
    assert update.push(new, kind="trust").status == 202
    update.board.wait_for(KEPT % 2, 120)
    words = "works: it is in use" if bundle == "good" else "back to the bundle in use"
    update.board.wait_for(f"trust +.*{words}", 120)
    update.heard("good", start=len(update.hub.telemetry))
    assert "did not hold" not in update.board.text


@pytest.mark.parametrize("clock", [0, 2**31 - 10])
def test_a_wrong_clock_keeps_no_software_out(world, clock):
    update = UpdateWorld(world)
    board = update.power_on(clock=clock)
    update.heard("image")
    assert update.push(packages.signed(GOOD, 2)).status == 202
    board.wait_for(KEPT % 2, 60)


def test_a_message_that_cannot_be_taken_does_not_end_a_trial(world):
    """The trial's own message, of software that has none, when there is no memory for it."""
    update = UpdateWorld(world)
    update.power_on()
    update.heard("image")
    source = b"""
from outpost import Device, errors
device = Device()
send, n = device.send, 0
def no(*a, **k):
    global n
    n += 1
    if n < 3:
        raise errors.OutboxFull("no memory")
    return send(*a, **k)
device.send = no
device.run()
"""
    assert update.push(packages.signed(packages.application(source), 2)).status == 202
    update.board.wait_for(KEPT % 2, 60)
    assert boots(update) == ["image", "a on trial"]


def test_a_device_that_sleeps_between_its_messages_stays_awake_for_its_trial(world):
    update = UpdateWorld(world)
    update.power_on()
    update.heard("image")
    source = b"""
from outpost import Device
device = Device()
n = 0
@device.healthy
def well():
    global n
    n += 1
    return n > 3
device.send({"software": "sleepy"})
device.run_and_sleep(every=3, linger=0)
"""
    assert update.push(packages.signed(packages.application(source), 2)).status == 202
    update.board.wait_for(KEPT % 2, 60)
    assert boots(update).count("a on trial") == 1


# What it may not be kept for

SHORT = b"""
from outpost import Device, slots
slots.APP_TRIAL_S = 8
device = Device()
@device.every(seconds=1)
def beat():
    device.send({"software": "new"})
%s
device.run()
"""
NOT_KEPT = {
    "the hub acknowledges nothing": (
        b"device._messages.acknowledged = lambda pid: False",
        "it made no connection in its time",
    ),
    "the health check says 1": (b"device.healthy(lambda: 1)", "its health check did not pass"),
    "the health check says no": (b"device.healthy(lambda: False)", "its health check did not"),
    "the health check raises": (b"device.healthy(lambda: 1 // 0)", "its health check did not"),
}


@pytest.mark.parametrize("name", NOT_KEPT)
def test_software_is_not_kept_for_less_than_all_that_is_asked_of_it(world, name):
    update = UpdateWorld(world)
    update.power_on()
    update.heard("image")
    source, words = NOT_KEPT[name]
    assert update.push(packages.signed(packages.application(SHORT % source), 2)).status == 202
    update.board.wait_for(f"update +software version=2 in slot a: {words}", 60)
    update.heard("image", start=len(update.hub.telemetry))
    assert "is kept" not in update.board.text
    assert boots(update) == ["image", "a on trial", "image"]


def test_a_health_check_that_hangs_is_ended_by_the_watchdog(world):
    update = UpdateWorld(world, files={"/boot.py": quick()})
    update.power_on()
    update.heard("image")
    source = (
        b"from outpost import Device, watchdog\narm = watchdog.arm\n"
        b"watchdog.arm = lambda seconds: arm(2)\ndevice = Device()\n"
        b"@device.healthy\ndef hangs():\n    while True:\n        pass\ndevice.run()"
    )
    assert update.push(packages.signed(packages.application(source), 2)).status == 202
    update.board.wait_for("the one before it runs again", 90)
    update.heard("image", start=len(update.hub.telemetry))
    assert boots(update).count("a on trial") == 3


def test_a_package_of_as_many_files_and_bytes_as_there_may_be_is_kept(world):
    files = tuple(
        (f"{'d' * 10}/{'e' * 10}/{'f' * 10}/{n:03}{'x' * 24}.txt", bytes([n]) * 2950)
        for n in range(126)
    )
    package = packages.application(packages.main("large"), files)
    data = packages.signed(package, 2)
    assert len(package.files) == 128 and 380_000 < len(data) <= agreed._slots.APP_MAX_BYTES
    update = UpdateWorld(world)
    update.power_on()
    update.heard("image")
    assert update.push(data).status == 202
    update.board.wait_for(KEPT % 2, 120)
    update.heard("large")
    more = packages.signed(package, 3) + bytes(agreed._slots.APP_MAX_BYTES)
    assert "more than the 393216 that this device takes" in update.refused(more)
