"""The power goes at every flash operation of an application update: the device always boots and
connects, with the old software or the new, and the update ends as if nothing had been."""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from pathlib import Path

import packages
import pytest
from identities import entries
from littlefs import LittleFS, UserContext
from outpost_tools import agreed
from outpost_tools.board import EXIT_POWER_CUT, EXIT_RESET
from outpost_tools.partitions import PartitionTable
from updates import BOOTS, KEPT, UpdateWorld

MODES = ("clean", "torn", "odd")
PHASES = ("install", "trial", "back")
SAMPLE = {"install": range(1, 30), "trial": range(1, 12), "back": range(1, 9)}
SAMPLES = 3
# More than any phase needs: the last cuts find the board alive.
OPERATIONS = 120

SAYS_ONE_THING = b"""
from outpost import Device
device = Device()
@device.every(seconds=3600)
def once():
    device.send({"software": "NAME"})
device.run()
"""

RESTARTS = b"import machine\nmachine.reset()"

pytestmark = pytest.mark.parametrize("leg", ["outpost32"], indirect=True)


def says(name: bytes) -> bytes:
    return SAYS_ONE_THING.replace(b"NAME", name)


class Bench:
    """A board on whose flash all of a package is staged, for "trial" unpacked too, and for "back"
    has had its three starts in vain."""

    def __init__(self, world, phase: str) -> None:
        self.update = UpdateWorld(world, files={"/main.py": says(b"old")})
        self.data = packages.signed(
            packages.application(
                RESTARTS if phase == "back" else says(b"new"),
                (("parts/a.py", b"x = 1"), ("b.txt", bytes(5000))),
            ),
            2,
        )
        self.phase = phase
        update = self.update
        update.power_on(restarts=False)
        update.heard("old")
        device = update.sender
        digest = hashlib.sha256(self.data).hexdigest()
        self.about = {"kind": "software", "sha256": digest}
        status, said = device.begin(self.data, **self.about)
        for at in range(0, len(self.data), 2048):
            status, said = device.write(self.data, at, **self.about)
            assert status == 200, said
        if phase != "install":
            assert device.call("commit", **self.about)[0] == 202
            assert update.board.wait_exit(30) == EXIT_RESET
        for _ in range(3 if phase == "back" else 0):
            assert update.power_on(restarts=False).wait_exit(30) == EXIT_RESET
        update.board.stop()
        self.before = update.flash.read_bytes()

    def run(self, cut: str | None) -> bool:
        """Whether the power went."""
        update = self.update
        update.flash.write_bytes(self.before)
        board = update.power_on(cut=cut)
        if self.phase == "back":
            return self._back()
        if self.phase == "install":
            self._commit()
        went = self._kept_or_cut(board)
        if went:
            # It comes back by itself, with the old software or the new.
            board = update.power_on()
            board.wait_for("hub +connected", 60)
            if "software=image" in board.text:
                # Nobody's fault but the power's: the same package is taken now.
                assert update.push(self.data).taken
            else:
                again = update.push(self.data)
                assert again.taken or "on trial" in again.why
            self._kept_or_cut(board)
            assert "did not hold" not in board.text
        board = update.power_on()
        board.wait_for("hub +connected", 60)
        assert re.findall(BOOTS, board.text) == ["a"]
        board.stop()
        assert files_below(update.flash, "/stage") == []
        assert len(files_below(update.flash, "/app/a")) == 4
        return went

    def _back(self) -> bool:
        """boot.py ends the trial: whenever the power goes, the old software runs, and says why."""
        update, went = self.update, False
        try:
            update.board.wait_for("acked id=", 60)
        except Exception:
            assert update.board.exit_code == EXIT_POWER_CUT, update.board.text
            went = True
            update.power_on().wait_for("acked id=", 60)
        assert re.findall(BOOTS, update.board.text) == ["image"]
        update.board.stop()
        names = ("app-cur", "app-try", "app-last", "app-out")
        assert list(entries(update.flash, *names).values()) == [None, None, 2, agreed._slots.ENDED]
        return went

    def _commit(self) -> None:
        board = self.update.board
        try:
            board.wait_for("hub +connected", 60)
            status, said = self.update.sender.call("commit", **self.about)
            assert status == 202, said
        except Exception:
            if board.wait_exit(20) != EXIT_POWER_CUT:
                raise

    def _kept_or_cut(self, board) -> bool:
        """Whether the power went before the new software was kept."""
        if re.search(BOOTS.replace("(.*)", "a$"), board.text, re.M):
            return False  # it was kept before
        try:
            board.wait_for(KEPT % 2, 60)
        except Exception:
            assert board.exit_code == EXIT_POWER_CUT, board.text
            return True
        # What it writes about it is written; the first connection goes on for a moment.
        board.wait_for("acked id=", 30)
        return False


def files_below(flash: Path, folder: str) -> list[str]:
    """What is on the flash's file system, by a littlefs that is not the board's."""
    place = PartitionTable.from_flash(flash)[agreed.VFS_LABEL]
    content = bytearray(flash.read_bytes()[place.offset : place.end])
    fs = LittleFS(
        UserContext(buffer=content),
        mount=False,
        block_size=4096,
        block_count=place.size // 4096,
        read_size=32,
        prog_size=32,
        cache_size=128,
        lookahead_size=32,
    )
    fs.mount()
    return [name for at, _, names in fs.walk("/") for name in names if at.startswith(folder)]


@pytest.mark.parametrize("phase", PHASES)
def test_power_cut_in_an_update_leaves_a_device_that_connects_and_takes_it(world, phase):
    bench = Bench(world, phase)
    assert not bench.run(None)
    choose = random.Random(f"{phase} update")
    went = 0
    for cut in sorted(choose.sample(SAMPLE[phase], SAMPLES)):
        went += bench.run(f"{cut}:{choose.choice(MODES)}")
    assert went


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("phase", PHASES)
def test_power_cut_at_every_operation_of_an_update(world, phase, mode):
    bench = Bench(world, phase)
    for cut in itertools.count(1):
        if not bench.run(f"{cut}:{mode}"):
            break
    print(f"{phase} {mode}: the power went at each of {cut - 1} operations")
    assert 8 < cut < OPERATIONS
