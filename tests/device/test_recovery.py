"""The bundle of the recovery endpoint, on the whole board: a server whose certificates have
expired, or are not valid yet by a clock that nobody set, gives it all the same; any other server
does not. Nothing is said of the device, and its clock and its floor of time are as they were."""

from __future__ import annotations

import datetime as dt
import random

import pki
import pytest
from deliveries import sha
from legs import VIRTUAL
from rawhttps import RawHttps, authority, leaf

# stock-release judges certificates by the clock of the machine that it runs on.
LEGS_HERE = VIRTUAL
DAY = dt.timedelta(days=1)
FILE = random.Random(11).randbytes(5000)
FLEET = "harbour & co"
MAIN = b"""
import hashlib, os, time
from outpost import clock, log, recovery, rtcmem
from outpost.errors import OutpostError
from outpost.walk import Walk

way = Walk()
way.configure()

def judge(path):
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as f:
        while True:
            part = f.read(256)
            if not part:
                break
            digest.update(part)
            size += len(part)
    print("JUDGED", size, "".join(["%02x" % b for b in digest.digest()]))
    return 202, None

def attempt(pin):
    with open(pin, "rb") as f:
        pin = f.read()
    try:
        return recovery.run(("localhost", PORT, pin, FLEET), way, judge)
    except OutpostError as e:
        return str(e)

way.ready()
before, floor, start = clock.now(), way.clock.floor, time.ticks_ms()
vouched = rtcmem.get(rtcmem.CLOCK_VOUCHED)
for pin in ("/pin.der", "/other.der"):
    print("CAME", pin, attempt(pin))
passed = time.ticks_diff(time.ticks_ms(), start) // 1000
print("CLOCK", abs(clock.now() - before - passed) < 3, clock.Clock([]).floor == floor)
print("VOUCHED", vouched == rtcmem.get(rtcmem.CLOCK_VOUCHED), way.clock.vouched())
try:
    print("STAGE", os.listdir("/stage"))
except OSError:
    print("STAGE []")
"""


def run(world, chain, pin, answer=None, clock_offset_s=0.0, before=b""):
    """(the server, the lines of the board)."""
    answer = answer or (lambda talk: talk.piece(FILE))
    with RawHttps(world.folder / "tls", chain, answer) as server:
        main = before + MAIN
        main = main.replace(b"PORT", b"%d" % server.port).replace(b"FLEET", repr(FLEET).encode())
        flash = world.image(
            1,
            world.sntp(offset_s=clock_offset_s),
            files={"/main.py": main, "/pin.der": pin.der, "/other.der": authority(9).der},
            build_time_s=1_700_000_000,
        )
        board = world.board(flash, restarts=False)
        board.wait_for("STAGE|Traceback", 90)
        board.stop()
    lines = [line.text for line in board.lines]
    assert "CLOCK True True" in lines and "VOUCHED True True" in lines, board.text
    assert "STAGE []" in lines, board.text
    refused = next(line for line in lines if line.startswith("CAME /other.der"))
    assert "is not trusted" in refused and board.text.count("JUDGED") < 2, board.text
    return server, next(line for line in lines if line.startswith("CAME /pin.der")), board.text


def days(first, last):
    return {"starts": first * DAY, "ends": last * DAY}


DATES = {
    "in date": (days(-100, 900), days(-10, 300)),
    "all expired": (days(-900, -100), days(-500, -200)),
    "leaf expired": (days(-900, 900), days(-300, -200)),
    "all in the future": (days(100, 900), days(200, 500)),
}


@pytest.mark.parametrize("dates", DATES)
def test_bundle_comes_whatever_the_dates_and_the_clock_is_as_it_was(world, dates):
    root = authority(1, **DATES[dates][0])
    server, said, text = run(world, (leaf(root, **DATES[dates][1]), root), root)
    assert said.endswith("(202, None)"), text
    assert f"JUDGED 5000 {sha(FILE)}" in text
    first, last = server.questions[0].split("\r\n"), server.questions[-1].split("\r\n")
    assert first == [
        "GET /outpost/harbour%20%26%20co/trust.bin HTTP/1.1",
        f"Host: localhost:{server.port}",
        "Range: bytes=0-2047",
        "Accept-Encoding: identity",
        "",
        "",
    ]
    assert last[2] == "Range: bytes=4096-4999"


@pytest.mark.parametrize("leg", ["outpost32", "stock32"], indirect=True)
def test_self_signed_server_that_has_expired_is_known_by_its_pin(world):
    own = pki.make("localhost", pki.key("p256", 70), hosts=["localhost"], **days(-900, -100))
    _, said, text = run(world, (own,), own)
    assert said.endswith("(202, None)"), text


@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda talk: talk.piece(b"x" * 16385), "has 16385 bytes there"),
        (lambda talk: talk.say("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"), "404"),
        (lambda talk: talk.say("HTTP/1.1 302 Found\r\nLocation: /x\r\n\r\n"), "not followed"),
        (lambda talk: talk.connection.unwrap(), "closed the connection"),
    ],
)
def test_recovery_endpoint_that_misbehaves_leaves_nothing_behind(world, answer, words):
    root = authority(1)
    _, said, _ = run(world, (leaf(root),), root, answer)
    assert words in said


FULL = b"""
import os
os.mkdir("/stage")
for name in ("/stage/software.bin", "/filler"):
    with open(name, "wb") as f:
        while True:
            fs = os.statvfs("/")
            if fs[3] < (40 if "stage" in name else 1):
                break
            f.write(bytes(4096))
            f.flush()
try:
    for n in range(20):
        with open("/rest%d" % n, "wb") as f:
            f.write(bytes(4096))
except OSError as e:
    print("FULL", e)
"""


@pytest.mark.parametrize("leg", ["outpost32", "stock32"], indirect=True)
def test_what_was_on_its_way_makes_room_for_the_bundle_of_an_emergency(world):
    root = authority(1)
    _, said, text = run(world, (leaf(root),), root, before=FULL)
    assert "FULL" in text, text
    assert said.endswith("(202, None)"), text
