"""The duty cycle: what was measured arrives, the next connection is resumed, and whatever becomes
of the session, the device connects."""

from __future__ import annotations

import asyncio
import calendar
import contextlib
import json
import re
import time

import pytest
from fromhub import Operator
from legs import OURS
from test_gateway import Gateway
from world import line_number

MAIN = b"""
import machine
from outpost import Device
d = Device()
print("CAUSE", machine.reset_cause(), machine.RTC().memory()[:4])
HOOK
d.send({"woke": machine.reset_cause()})
d.send({"second": 2})
d.run_and_sleep(every=1, linger=0.3, longest=20)
"""


def main(hook: bytes = b"") -> bytes:
    return MAIN.replace(b"HOOK", hook)


def tls_lines(board) -> list[dict[str, str]]:
    return [
        dict(part.split("=", 1) for part in line.text.split() if "=" in part)
        for line in board.lines
        if re.search(r" tls +connected ", line.text)
    ]


def test_each_wake_sends_all_that_waits_and_sleeps_again(world):
    hub = world.hub()
    board = world.board(world.image(hub.port, files={"/main.py": main()}))
    board.wait_for(r"sleep +all sent: deep sleep for", 60)
    at = line_number(board, r"CAUSE 4", timeout_s=60)
    at = line_number(board, r"sleep +all sent: deep sleep for", at)
    line_number(board, r"CAUSE 4", at)
    bodies = [json.loads(t.body) for t in hub.telemetry]
    assert bodies[:4] == [{"woke": 1}, {"second": 2}, {"woke": 4}, {"second": 2}]
    assert len({t.properties["$.mid"] for t in hub.telemetry[:4]}) == 4
    # Asked once, at the start: over deep sleep the clock runs on.
    sources = re.findall(r"clock +time=\S+ source=(\S+)", board.text)
    assert sources[0] == "127.0.0.1" and set(sources[1:]) == {"rtc"}, sources


@pytest.mark.parametrize("leg", OURS, indirect=True)
def test_connection_after_deep_sleep_is_resumed_with_the_same_record_size(world):
    hub = world.hub()
    board = world.board(world.image(hub.port, files={"/main.py": main()}))
    at = 0
    for _ in range(3):
        at = line_number(board, r"sleep +all sent", at) + 1
    found = tls_lines(board)
    assert [f["resumed"] for f in found[:3]] == ["0", "1", "1"], found
    assert len({(f["mfl_granted"], f["root"], f["cipher"]) for f in found[:3]}) == 1
    assert int(found[1]["rx"]) < int(found[0]["rx"]) / 2


# What is done to the session before the second connection; each ends in a full handshake.
SPOIL = {
    "changed": b"""
m = bytearray(machine.RTC().memory())
if len(m) > 200:
    m[150] ^= 1
    machine.RTC().memory(m)
""",
    # Past every check that the device makes: the server is what refuses.
    "forged": b"""
import binascii, hashlib
from outpost import rtcmem
s = rtcmem.get(rtcmem.SESSION)
if s:
    s = bytearray(s)
    secret = len(s)
    for at in range(40 + 102 + 20, len(s) - 4):
        s[at] ^= 0x55 if 60 <= at - 142 < 90 else 0
    s[44:76] = hashlib.sha256(bytes(s[76:])).digest()
    assert rtcmem.put(rtcmem.SESSION, bytes(s))
""",
    "forgotten": b"""
from outpost import resumption
resumption.forget()
""",
    "too old": b"""
from outpost import rtcmem
s = rtcmem.get(rtcmem.SESSION)
if s:
    began = int.from_bytes(s[32:36], "little") - 8 * 86400
    assert rtcmem.put(rtcmem.SESSION, s[:32] + began.to_bytes(4, "little") + s[36:])
""",
    "certificate expired": b"""
from outpost import rtcmem
s = rtcmem.get(rtcmem.SESSION)
if s:
    assert rtcmem.put(rtcmem.SESSION, s[:36] + s[32:36] + s[40:])
""",
    "application's memory": b"machine.RTC().memory(b'mine')",
}


@pytest.mark.parametrize("leg", OURS[1:], indirect=True)
@pytest.mark.parametrize("how", list(SPOIL))
def test_session_that_is_no_good_ends_in_a_full_handshake(world, how):
    hub = world.hub()
    board = world.board(world.image(hub.port, files={"/main.py": main(SPOIL[how])}))
    at = line_number(board, r"sleep +all sent") + 1
    line_number(board, r"sleep +all sent", at)
    found = tls_lines(board)
    assert [f["resumed"] for f in found[:2]] == ["0", "0"], (how, found)
    assert " error " not in board.text and board.text.count("is dropped") <= board.reboots + 1


@pytest.mark.parametrize("leg", OURS[1:], indirect=True)
def test_hub_that_has_forgotten_the_session_gets_a_full_handshake(world):
    hub = world.hub()
    port = hub.port
    board = world.board(world.image(port, files={"/main.py": main()}))
    at = line_number(board, r"sleep +all sent") + 1
    hub.stop()
    world.hub(port=port)
    line_number(board, r"sleep +all sent", at, timeout_s=90)
    assert tls_lines(board)[0]["resumed"] == "0" and tls_lines(board)[-1]["resumed"] in "01"
    assert len(tls_lines(board)) >= 2


class Forgetful(Gateway):
    """Takes up a session and has forgotten whose it was: it `refuses` the device, `closes` the
    connection, or says nothing more."""

    how = "refuses"
    turned_away = 0

    async def _serve(self, reader, writer) -> None:
        if not writer.get_extra_info("ssl_object").session_reused:
            await super()._serve(reader, writer)
            return
        self.turned_away += 1
        with contextlib.suppress(OSError):
            await reader.read(1000)
            if self.how == "silent":
                await asyncio.sleep(60)
            writer.write(b"\x20\x02\x00\x05" if self.how == "refuses" else b"")
            writer.close()


@pytest.mark.parametrize("leg", OURS[1:], indirect=True)
@pytest.mark.parametrize("how", ["refuses", "closes", "silent"])
def test_server_that_resumes_and_then_does_not_serve_costs_one_attempt(world, how):
    hub = world.hub()
    between = Forgetful(world.folder, hub.port, world.ca.roots_der())
    between.how = how
    world._closing.append(between)
    script = main().replace(b"longest=20", b"longest=60")
    flash = world.image(between.port, trust=[between.chain.root.der], files={"/main.py": script})
    board = world.board(flash)
    at = 0
    for _ in range(3):
        at = line_number(board, r"sleep +all sent", at, timeout_s=90) + 1
    # Each second connection is offered to; the next is a full one, which brings the device through.
    assert between.turned_away >= 1
    assert {f["resumed"] for f in tls_lines(board)} == {"0"}
    assert len(board.text.split(" error ")) - 1 <= (0 if how == "refuses" else between.turned_away)
    assert {t.properties["$.mid"] for t in hub.telemetry} >= {"1", "2", "3", "4", "5", "6"}


LEAPS = b"""
import time
from outpost import clock
if machine.reset_cause() == 4:
    clock._set(clock.now() + LEAP)
"""


@pytest.mark.parametrize("leg", OURS[1:], indirect=True)
@pytest.mark.parametrize("leap_s", [-1800, 3 * 86400, 40 * 86400])
def test_clock_that_leaps_in_deep_sleep_is_put_right_before_anything_is_dated(world, leap_s):
    hub = world.hub()
    hook = LEAPS.replace(b"LEAP", b"%d" % leap_s)
    board = world.board(world.image(hub.port, files={"/main.py": main(hook)}))
    at = line_number(board, r"sleep +all sent") + 1
    line_number(board, r"sleep +all sent", at)
    sources = re.findall(r"clock +time=\S+ source=(\S+)", board.text)
    assert sources[:2] == ["127.0.0.1", "127.0.0.1"]
    made = [t.properties["$.ctime"] for t in hub.telemetry if "$.ctime" in t.properties]
    assert len(made) >= 4 and len(made) == len(hub.telemetry)
    for stamp in made:
        assert abs(calendar.timegm(time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ")) - time.time()) < 120


@pytest.mark.parametrize("leg", OURS[1:], indirect=True)
def test_device_stays_awake_until_the_hub_has_said_what_the_twin_is(world):
    hub = world.hub()
    twin = b"""
d.desired("interval")(lambda value: print("INTERVAL", value))
d.report({"woke": machine.reset_cause()})
"""
    script = main().replace(b'd.send({"woke"', twin + b'd.send({"woke"')
    script = script.replace(b"linger=0.3", b"linger=0")
    operator = Operator(hub, world.device.device_id)
    operator.desire({"interval": 5})
    board = world.board(world.image(hub.port, files={"/main.py": script}))
    at = line_number(board, r"sleep +all sent")
    assert [line.text for line in board.lines[:at]].count("INTERVAL 5") == 1
    assert operator.until_reported(woke=1)
    line_number(board, r"sleep +all sent", at + 1)
    assert operator.until_reported(woke=4)["outbox"]["refused"] == 0


FULL = b"""
from outpost import Device
d = Device()
@d.every(seconds=600)
def measure():
    try:
        while True:
            d.send(bytes(3000))
    finally:
        print("FULL", d.waiting())
d.run_and_sleep(every=1, linger=0, longest=LONGEST)
"""


@pytest.mark.parametrize("leg", OURS[1:], indirect=True)
def test_device_whose_outbox_is_full_sleeps_and_sends_it_all_when_the_hub_is_back(world):
    first = world.hub()
    port = first.port
    first.stop()
    script = FULL.replace(b"LONGEST", b"60 if machine.reset_cause() == 4 else 5")
    script = b"import machine\n" + script
    board = world.board(world.image(port, files={"/main.py": script}))
    full = board.wait_for(r"FULL (\d+)$", 60)
    at = line_number(board, r"sleep +not connected, \d+ messages wait", timeout_s=60)
    hub = world.hub(port=port)
    line_number(board, r"sleep +all sent", at, timeout_s=120)
    numbers = {int(t.properties["$.mid"]) for t in hub.telemetry}
    assert set(range(1, int(full[1]) + 1)) <= numbers
    # That some were refused is told without asking.
    assert any(int(t.properties.get("refused", 0)) for t in hub.telemetry)


@pytest.mark.parametrize("leg", OURS[1:], indirect=True)
def test_session_never_goes_to_flash(world):
    hub = world.hub()
    hook = b"""
from outpost import rtcmem
s = rtcmem.get(rtcmem.SESSION)
if s:
    print("SESSION", "".join("%02x" % b for b in s[142:]))
"""
    board = world.board(world.image(hub.port, files={"/main.py": main(hook)}))
    line = board.wait_for(r"SESSION ([0-9a-f]{400,})", 60)
    session = bytes.fromhex(line[1])
    flash = board.flash.read_bytes()
    # Sixteen bytes as different as those of a secret are: master secret and ticket.
    pieces = [session[at : at + 16] for at in range(len(session) - 16)]
    telling = [piece for piece in pieces if len(set(piece)) > 12]
    assert len(telling) > 100 and not any(piece in flash for piece in telling)


def test_device_that_cannot_connect_sleeps_and_sends_later(world):
    script = main().replace(b"longest=20", b"longest=5")
    first = world.hub()
    port = first.port
    first.stop()
    board = world.board(world.image(port, files={"/main.py": script}))
    board.wait_for(r"sleep +not connected, 2 messages wait: deep sleep", 60)
    at = line_number(board, r"sleep +not connected, 4 messages wait", timeout_s=60)
    hub = world.hub(port=port)
    line_number(board, r"sleep +all sent", at, timeout_s=60)
    assert [json.loads(t.body) for t in hub.telemetry][:4] == [
        {"woke": 1},
        {"second": 2},
        {"woke": 4},
        {"second": 2},
    ]


@pytest.mark.parametrize(
    "words", ["every=0", "every='x'", "every=1, linger=-1", "every=1, longest=1", "every=True"]
)
@pytest.mark.parametrize("leg", OURS[1:], indirect=True)
def test_cycle_that_cannot_be_is_refused_where_it_is_written(micropython, words):
    micropython(f"""
from outpost import Device
try:
    Device().run_and_sleep({words})
except ValueError as e:
    assert "must be a number of seconds" in str(e)
else:
    raise AssertionError
""")
