"""The power goes while what a rescue needs is written into the NVS: afterwards it holds the old or
the new, whole, or says that it holds none; and the mark beside it is never that of another, so that
the next connection mends what the cut left."""

from __future__ import annotations

import random
import re
import subprocess
from pathlib import Path

import pytest
from legs import BIN
from outpost_tools.board import EXIT_POWER_CUT
from world import World

LEGS_HERE = ("outpost32",)
LIMIT_S = 60
MOUNT = """
import vfs
from flashbdev import bdev
vfs.umount("/")
vfs.mount(bdev, "/")
"""
KEEP = """
import hashlib
from outpost import kit, trust
kit.keep(hashlib.sha256(next(trust.roots())).digest())
"""
# What lies there, and whether the mark is of it: "none", "old", "new", each with "mark" or not.
LOOK = """
import esp32, hashlib, rescuefs
kept = rescuefs.load()
name = "none"
if kept:
    name = "new" if b'"new"' in kept[0] else "old"
    blob = b"".join([len(p).to_bytes(2, "big") + p for p in kept])
    mark = int.from_bytes(hashlib.sha256(blob).digest()[:4], "big") >> 1
try:
    found = esp32.NVS("outpost").get_i32("rs-mark")
except OSError:
    found = -1
print("found", name, "mark" if kept and found == mark else "stale" if found >= 0 else "unmarked")
"""
CHANGE = """
import json
with open("/config.json") as f:
    raw = json.load(f)
raw["wifi"]["ssid"] = %r
with open("/config.json", "w") as f:
    json.dump(raw, f)
"""

# Instead of kit's own: the mark comes first.
BROKEN = """
def marks_first(nvs, blob, mark, marked):
    nvs.set_i32("rs-mark", mark)
    nvs.set_blob("rescue", blob)
kit._write = marks_first
"""


def run(flash: Path, script: str, cut: str = "") -> tuple[int, str]:
    path = flash.with_name("script.py")
    path.write_text(MOUNT + script)
    words = [str(BIN / "outpost32"), "-X", "heapsize=160K", "--flash", str(flash)]
    words += ["--cut", cut] if cut else []
    done = subprocess.run(
        [*words, str(path)], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    assert done.returncode in (0, EXIT_POWER_CUT), done.stderr
    return done.returncode, done.stdout


def look(flash: Path) -> tuple[str, str]:
    found = re.search(r"found (\w+) (\w+)", run(flash, LOOK)[1])
    assert found
    return found[1], found[2]


@pytest.fixture
def flashes(world: World, request: pytest.FixtureRequest) -> tuple[bytes, Path]:
    """A board that kept something before (or never did), and whose configuration is another now."""
    flash = world.image(1, "127.0.0.1:1", wifi_ssid="old")
    if request.param == "kept before":
        assert run(flash, KEEP)[0] == 0 and look(flash) == ("old", "mark")
    assert run(flash, CHANGE % "new")[0] == 0
    return flash.read_bytes(), flash


@pytest.mark.parametrize("flashes", ["first", "kept before"], indirect=True)
@pytest.mark.parametrize("mode", ["clean", "torn", "odd"])
def test_power_cut_while_it_is_kept_leaves_old_or_new_and_never_the_mark_of_another(
    mode: str, flashes: tuple[bytes, Path]
) -> None:
    before, flash = flashes
    old = look(flash)
    total = 0
    while True:  # how many flash operations it has
        flash.write_bytes(before)
        total += 8
        if run(flash, KEEP, f"{total}:clean")[0] != EXIT_POWER_CUT:
            break
    seen = set()
    for number in sorted(random.Random(mode).sample(range(1, total), min(7, total - 1))):
        flash.write_bytes(before)
        code, _ = run(flash, KEEP, f"{number}:{mode}")
        seen.add(code == EXIT_POWER_CUT)
        name, mark = look(flash)
        assert name in (old[0], "new"), (number, name)
        assert mark != "stale", (number, name, mark)
        if code != EXIT_POWER_CUT:
            assert (name, mark) == ("new", "mark")
        # The configuration goes back: what the cut left must not pass for what it was.
        run(flash, CHANGE % "old")
        run(flash, KEEP)
        assert look(flash) == ("old", "mark"), number
    assert True in seen


def test_a_writer_that_marks_before_it_has_written_is_caught(world: World) -> None:
    """The same look finds what it is there for."""
    flash = world.image(1, "127.0.0.1:1", wifi_ssid="old")
    run(flash, KEEP)
    run(flash, CHANGE % "new")
    before = flash.read_bytes()
    broken = KEEP.replace("kit.keep", BROKEN + "kit.keep")
    found = set()
    for number in range(1, 40):
        flash.write_bytes(before)
        if run(flash, broken, f"{number}:clean")[0] != EXIT_POWER_CUT:
            break
        found.add(look(flash)[1])
    assert "stale" in found
