"""New software over the air: kept where it works; where not, the one before it comes back."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import bundles
import packages
import pytest
from outpost_tools import agreed
from updates import BOOTS, KEPT, UpdateWorld, quick


@pytest.fixture
def device(world):
    update = UpdateWorld(world)
    update.power_on()
    update.heard("image")
    return update


def boots(update: UpdateWorld) -> list[str]:
    return re.findall(BOOTS, update.board.text)


def test_new_software_is_unpacked_tried_and_kept(device):
    package = packages.application(packages.main("first"), (("parts/a.py", b"x = 1"),))
    answer = device.push(packages.signed(package, 7))
    # A stock board judges it after a restart, where there is no memory for it beside a connection.
    assert answer.status == 202
    assert answer.result["state"] == ("later" if device.world.leg == "stock32" else "trial")
    device.board.wait_for(KEPT % 7, 60)
    device.heard("first")
    # And from then on, whatever happens to the power.
    device.heard("first", start=device.power_cycle())
    assert boots(device) == ["a"]
    # The next one goes into the other slot.
    device.push(packages.signed(packages.application(packages.main("second")), 8))
    device.board.wait_for(KEPT % 8, 60)
    assert boots(device)[-1] == "b on trial"
    device.heard("second")


# Nothing of it may be believed for the hub's word.

GOOD = packages.application(packages.main("good"))


def by_s(body: bytes) -> bytes:
    """Whatever it is, in an envelope that is signed as it should be."""
    return bundles.bundle.sign(packages.around(body, 9), [bundles.key("s")]).encode()


def attacks() -> dict[str, tuple[bytes, str]]:
    good, body = packages.signed(GOOD, 9), GOOD.encode()
    envelope = bundles.bundle.sign(packages.around(body, 9), [bundles.key("s")])
    twice = replace(envelope, signatures=envelope.signatures * 2)
    other = packages.application(packages.main("other")).encode()
    main = (b"main.py", b"x")
    return {
        "unsigned": (packages.around(body, 9).encode(), "signed, not"),
        "signed by nobody we know": (packages.signed(GOOD, 9, "x"), "nobody named"),
        "signed by the key of trust bundles": (packages.signed(GOOD, 9, "a"), "nobody named"),
        "one key twice": (twice.encode(), "signed twice"),
        "another fleet": (packages.signed(GOOD, 9, fleet="elsewhere"), "another fleet"),
        "a trust bundle": (bundles.data(9, "s", software=bundles.keys("s")), "another role"),
        "expired": (packages.signed(GOOD, 9, issued=1, expires=1_700_000_000), "has expired"),
        "cut off": (good[:-1], "cut off"),
        "longer": (good + b"x", "something behind"),
        "another body": (good[: -len(body)] + other, ""),
        "a changed byte": (good[:-9] + bytes((good[-9] ^ 1,)) + good[-8:], "not the one that"),
        "a changed head": (good.replace(b"harbour", b"harbouR"), "another fleet"),
        "signed, but no package": (by_s(b"words"), "cut off"),
        "a path that leads out": (
            by_s(packages.raw([(b"../boot.py", b"x"), main])),
            "path that it may not have",
        ),
        "a path twice": (by_s(packages.raw([main, main])), "twice"),
        "a file of 4 GiB": (by_s(packages.raw([main], sizes={0: 0xFFFFFFFF})), "longer than"),
        "another hash": (by_s(packages.raw([main], digests={0: bytes(32)})), "not what was signed"),
        "another mpy version": (
            by_s(packages.raw([main], head=b"OPAP\x01\x05\x00")),
            "outpost app build",
        ),
        "garbage": (b"\xff" * 3000, ""),
    }


def test_what_is_not_signed_whole_and_for_this_fleet_is_refused_and_changes_nothing(device):
    stock = device.world.leg == "stock32"
    for name, (data, words) in list(attacks().items())[:: 7 if stock else 1]:
        if stock:
            start = len(device.board.lines)
            assert device.push(data).result == {"state": "later"}
            why = device.board.wait_for("update +refused: (.*)", 60, start)[1]
            device.board.wait_for("acked", 60, len(device.board.lines))
        else:
            why = device.refused(data)
            assert device.board.boots == 1
        assert words in why, (name, why)
    assert set(boots(device)) == {"image"}
    device.push(packages.signed(GOOD, 9))
    device.board.wait_for(KEPT % 9, 60)
    device.heard("good")


@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
def test_versions_only_rise_and_the_same_one_is_not_installed_twice(device):
    device.push(packages.signed(GOOD, 9))
    device.board.wait_for(KEPT % 9, 60)
    older = packages.signed(packages.application(packages.main("older")), 8)
    device.board.wait_for("acked", 60, len(device.board.lines))
    assert "older than 9" in device.refused(older)
    assert device.push(packages.signed(GOOD, 9)).result == {"state": "kept", "version": 9}
    assert device.board.boots == 2


@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
def test_as_many_must_sign_as_the_trust_bundle_says(world):
    update = UpdateWorld(world, "stu", 2)
    update.power_on()
    update.heard("image")
    assert "1 of its keys signed, not 2" in update.refused(packages.signed(GOOD, 3, "t"))
    assert update.push(packages.signed(GOOD, 3, "us")).taken
    update.board.wait_for(KEPT % 3, 60)


@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
def test_a_flash_without_room_is_said_before_and_nothing_is_lost(world):
    # 1,792 KiB of file system; what is left after this is too little for a package.
    update = UpdateWorld(world, files={"/data.bin": bytes(1_700_000)})
    update.power_on()
    update.heard("image")
    large = packages.application(packages.main("large"), (("data.bin", bytes(40_000)),))
    assert "are free: nothing was changed" in update.refused(packages.signed(large, 2))
    assert update.board.boots == 1
    assert update.push(packages.signed(GOOD, 3)).taken
    update.board.wait_for(KEPT % 3, 60)


# New software that does not work

SLOWLY = ("never calls run", "hangs in a handler")  # where the library has its own patience
ALWAYS = ("raises at import", "fills the memory", "deletes its files", "hangs in a handler")
BAD = {
    "raises at import": b"1/0",
    "loops for ever": b"while True:\n    pass",
    "comes to its end": b"print('done')",
    "never calls run": b"from outpost import Device\nd = Device()\nimport time\ntime.sleep(9999)",
    "fills the memory": b"import outpost\nx = []\nwhile True:\n    x.append(bytearray(99))",
    "ends the program": b"raise SystemExit",
    "resets": b"import machine\nmachine.reset()",
    "deletes its files": (
        b"import os\nos.remove('_main.mpy')\nos.remove('main.py')\nimport machine\nmachine.reset()"
    ),
    "hangs in a handler": (
        b"from outpost import Device\nd = Device()\n@d.every(seconds=1)\ndef f():\n"
        b"    while True:\n        pass\nd.run()"
    ),
}


@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in ALWAYS else pytest.mark.exhaustive) for n in BAD],
)
def test_software_that_does_not_work_is_gone_after_its_starts(world, name):
    update = UpdateWorld(world, files={"/boot.py": quick()}, config={"watchdog_s": 60})
    board = update.power_on(speed=50 if name in SLOWLY else 1)
    update.heard("image")
    bad = packages.application(BAD[name])
    assert update.push(packages.signed(bad, 2)).status == 202
    board.wait_for("the one before it runs again", 120)
    seen = len(update.hub.telemetry)
    update.heard("image", start=seen)
    tried = boots(update).count("a on trial")
    assert tried == (1 if "deletes" in name else 3)
    # The same version, mended, is taken.
    assert update.push(packages.signed(GOOD, 2)).status == 202
    board.wait_for(KEPT % 2, 60)


@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
@pytest.mark.parametrize(
    "name",
    ["it cannot connect", pytest.param("its health check says no", marks=pytest.mark.exhaustive)],
)
def test_software_that_goes_on_and_does_not_do_what_it_is_for_is_gone_after_its_time(world, name):
    update = UpdateWorld(world, files={"/main.py": SLOW})
    board = update.power_on(speed=100)
    board.wait_for("acked id=1", 60)
    bad = packages.application(NOT_HEALTHY if "health" in name else NOT_CONNECTED)
    assert update.push(packages.signed(bad, 2)).status == 202
    board.wait_for("update .*slot a: it(s health check did not pass| made no connection)", 120)
    line = board.wait_for("boot +Outpost boots .*", 30, len(board.lines) - 1).string
    assert line.endswith("software=image")
    board.wait_for("hub +connected", 60, len(board.lines) - 1)


SLOW = b"""
from outpost import Device
device = Device()
@device.every(seconds=600)
def beat():
    device.send("old")
device.run()
"""
NOT_HEALTHY = b"""
from outpost import Device
device = Device()
@device.healthy
def no():
    return False
@device.every(seconds=600)
def beat():
    device.send("new")
device.run()
"""
NOT_CONNECTED = b"""
from outpost import Device, OutpostError
from outpost import walk
def no(self):
    raise OutpostError("this software cannot")
walk.Walk.connect = no
Device().run()
"""


@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
def test_software_is_kept_only_when_its_health_check_says_true(world):
    update = UpdateWorld(world)
    board = update.power_on()
    update.heard("image")
    source = packages.main("careful").replace(
        b"device.run()",
        b"n = 0\n@device.healthy\ndef well():\n    global n\n    n += 1\n"
        b"    1 // (n - 1)\n    return n > 3\ndevice.run()",
    )
    update.push(packages.signed(packages.application(source), 2))
    board.wait_for(KEPT % 2, 60)
    assert "the health check raised ZeroDivisionError" in board.text
    assert "the health check says no" in board.text


@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
def test_software_that_has_nothing_to_send_is_kept_all_the_same(world):
    update = UpdateWorld(world)
    board = update.power_on()
    update.heard("image")
    silent = b"from outpost import Device\nDevice().run()"
    update.push(packages.signed(packages.application(silent), 2))
    board.wait_for(KEPT % 2, 60)


@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
def test_a_board_without_any_application_connects_and_takes_one(world):
    update = UpdateWorld(world, files={"/main.py": None})
    board = update.power_on()
    board.wait_for("there is no main.py", 30)
    board.wait_for("hub +connected", 60)
    update.push(packages.signed(GOOD, 2))
    board.wait_for(KEPT % 2, 60)


@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
def test_kept_software_that_loses_its_files_gives_way_to_the_images_own(world):
    update = UpdateWorld(world)
    update.power_on()
    update.heard("image")
    source = packages.main("brief").replace(
        b"device.run()",
        b"@device.method('eat')\ndef eat(payload):\n    import os\n    os.remove('main.py')\n"
        b"device.run()",
    )
    update.push(packages.signed(packages.application(source), 2))
    update.board.wait_for(KEPT % 2, 60)
    update.operator.invoke("eat")
    update.heard("image", start=update.power_cycle())
    # It says so, and the same version is no news that it has already.
    told = until_told(update, lambda told: told["slot"] == "image")
    assert told["version"] == 0
    assert update.push(packages.signed(GOOD, 2), version=2).status == 202
    update.board.wait_for(KEPT % 2, 60)
    assert boots(update)[-1] == "b on trial"


@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
def test_the_device_tells_which_software_it_has_and_how_the_last_trial_ended(world):
    update = UpdateWorld(world, files={"/boot.py": quick()})
    update.power_on()
    software = until_told(update, lambda told: told.get("slot") == "image")
    assert software == {"version": 0, "slot": "image"}
    update.push(packages.signed(packages.application(BAD["raises at import"]), 5))
    software = until_told(update, lambda told: told.get("change"))
    change = {"kind": "software", "version": 5, "outcome": agreed.APP_OUTCOMES[2], "trial": 1}
    assert software == {"version": 0, "slot": "image", "change": change}
    update.push(packages.signed(GOOD, 6))
    software = until_told(update, lambda told: told["version"] == 6)
    change = {"kind": "software", "version": 6, "outcome": agreed.APP_OUTCOMES[1], "trial": 2}
    assert software == {"version": 6, "slot": "a", "change": change}
    # No news is not told again.
    assert update.board.text.count("software is reported") == 3
    time.sleep(6)
    update.power_on()
    update.board.wait_for("acked", 60)
    time.sleep(4)
    assert "software is reported" not in update.board.text


def until_told(update: UpdateWorld, wanted) -> dict:
    """What is reported of the software, once it is as wanted."""
    ends = time.monotonic() + 60
    while True:
        told = update.operator.reported().get("outpost", {}).get("software", {})
        if told and wanted(told):
            return told
        assert time.monotonic() < ends, (told, update.board.text)
        time.sleep(0.1)
