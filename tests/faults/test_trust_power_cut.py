"""The power goes at every flash operation of staging, trial and commit of a trust bundle: the
device comes back by itself, connected with the old bundle or the new one, and takes the next."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hubs import eventually
from outpost_tools.board import EXIT_POWER_CUT
from outpost_tools.delivery import Delivered
from outpost_tools.errors import OutpostError
from trustworld import MAIN, TrustWorld

MODES = ("clean", "torn", "odd")
KINDS = ("kept", "left", "revoked")
# Nothing but trust writes flash.
QUIET = MAIN.replace(b"durable=n % 2 == 1", b"durable=False")
OPERATIONS = 160
SAMPLE = 2

pytestmark = pytest.mark.parametrize("leg", ["outpost32"], indirect=True)


class Bench:
    """One board with a bundle in a slot already, put back to where it was for each run."""

    def __init__(self, world: Any, kind: str) -> None:
        self.kind = kind
        self.trust = TrustWorld(world)
        board = self.trust.start(QUIET, trust={"trial_s": 30})
        assert self.trust.push(self.trust.bundle(2, "a")).status == 202
        board.wait_for("works: it is in use", 60)
        self.trust.until_reported(version=2)
        assert eventually(lambda: self.trust.nvs("tr-rep") is not None, 20)
        board.stop()
        assert self.trust.flash is not None
        self.before = self.trust.flash.read_bytes()
        # A power cut takes the clock too: bundles are made now, and serve every run.
        self.next = self.trust.bundle(3, "x" if kind == "left" else "ab", floor=3)
        self.last = self.trust.bundle(4, "ab", floor=4)
        self.went = False

    def run(self, cut: str | None) -> bool:
        """Whether the power went."""
        trust, self.went = self.trust, False
        assert trust.flash is not None
        trust.flash.write_bytes(self.before)
        trust.restart(cut=cut)
        done = self.push(self.next)
        assert done.status in (200, 202), done
        wanted = 2 if self.kind == "left" else 3
        self.until(wanted)
        if self.kind == "revoked":
            done = self.push(self.last)
            self.until(4)
        went = self.went or not trust.board.running
        # And with nobody's help once more; and then the next one.
        trust.restart()
        assert trust.connected() and trust.alive()
        if self.kind != "revoked":
            assert self.push(self.last).status in (200, 202)
            self.until(4)
        assert trust.nvs("tr-try") is None and trust.nvs("tr-lives") is None
        assert (trust.nvs("tr-high"), trust.nvs("tr-floor")) == (4, 4)
        return went

    def mend(self) -> None:
        """The power comes back; nobody else helps."""
        board = self.trust.board
        if not board.running:
            assert board.exit_code == EXIT_POWER_CUT, board.text
            self.went = True
            self.trust.restart()

    def push(self, data: bytes) -> Delivered:
        for _ in range(20):
            self.mend()
            try:
                if not self.trust.hub.wait_until(lambda: self.trust.hub.connected, 10):
                    continue
                return self.trust.push(data)
            except (OutpostError, AssertionError):
                continue
        raise AssertionError(f"the device did not come back:\n{self.trust.board.text}")

    def until(self, version: int) -> None:
        """It reports that version at the end of a change."""

        def so() -> bool:
            self.mend()
            found = self.trust.reported()
            ended = (found.get("change") or {}).get("outcome") not in (None, "on trial")
            return found.get("version") == version and ended and self.quiet()

        assert eventually(so, 90), (self.trust.reported(), self.trust.board.text)

    def quiet(self) -> bool:
        try:
            return self.trust.operator.invoke("nvs", "tr-try")[1] is None
        except Exception:  # it is not there now
            return False


@pytest.mark.parametrize("kind", KINDS)
def test_power_cut_during_a_change_of_trust_leaves_a_device_that_connects(world, kind):
    # What happens without a cut is in test_trust.py, and ends the loop over every operation.
    bench = Bench(world, kind)
    choose = random.Random(f"{kind} {world.leg}")
    went = 0
    for cut in sorted(choose.sample(range(1, 40), SAMPLE)):
        went += bench.run(f"{cut}:{choose.choice(MODES)}")
    assert went


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_power_cut_at_every_operation_of_a_change_of_trust(world, kind, mode):
    bench = Bench(world, kind)
    for cut in itertools.count(1):
        if not bench.run(f"{cut}:{mode}"):
            break
    assert 20 < cut < OPERATIONS
