"""The power goes at every flash operation of the device's side of a rotation: it comes back by
itself, as itself, and the rotation ends as if nothing had been."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from outpost_tools.board import EXIT_POWER_CUT
from outpost_tools.errors import OutpostError
from outpost_tools.nvsimage import Identity
from outpost_tools.rotationhub import NOT_THERE, OperatorHub
from rotations import DEVICE_ID, AssignedRotation, RotationWorld

MODES = ("clean", "torn", "odd")
KINDS = ("symmetric", "x509", "emergency symmetric", "emergency x509", "symmetric, assigned")
# More than any of these rotations needs: the last cuts find the board alive.
OPERATIONS = 80
SAMPLE = 3

pytestmark = pytest.mark.parametrize("leg", ["outpost32"], indirect=True)


class Mender(OperatorHub):
    """The hub, and somebody who puts the power back on; nobody else helps the device."""

    def __init__(self, rotation: RotationWorld, flash: Path) -> None:
        super().__init__(rotation.operator)
        self.rotation, self.flash = rotation, flash
        self.went = False

    def ask(self, device_id: str, method: str, payload: Any, patience_s: float) -> tuple[int, Any]:
        for _ in range(60):
            board = self.rotation.board
            assert board is not None
            if not board.running:
                assert board.exit_code == EXIT_POWER_CUT, board.text
                self.went = True
                self.rotation.start(self.flash)
                # By itself, before the host says anything more.
                self.rotation.ready()
            try:
                return self._operator.invoke(device_id, method, payload, 10, 2)
            except OutpostError as why:
                if not str(why).endswith(NOT_THERE):
                    raise
        raise AssertionError(f"the device did not come back:\n{board.text}")


class Bench:
    """One provisioned board and its registry entry, put back to where they were for each run."""

    def __init__(self, world, kind: str) -> None:
        self.assigned = "assigned" in kind
        self.rotation = AssignedRotation(world) if self.assigned else RotationWorld(world)
        self.x509 = "x509" in kind
        self.emergency = "emergency" in kind
        if self.x509:
            self.flash = self.rotation.image(device=Identity(DEVICE_ID))
            self.rotation.provision(self.flash)
            # Its first connection commits the certificate.
            self.rotation.start(self.flash)
            self.rotation.ready()
            self.rotation.board.stop()
        else:
            self.flash = self.rotation.image()
            self.rotation.remember(self.flash)
        if self.assigned:
            # Its first connection brings it to the hub.
            self.rotation.start(self.flash)
            self.rotation.ready()
            self.rotation.board.stop()
        self.before = self.flash.read_bytes()
        self.entry = self.rotation.device()
        self.secrets: set[str] = set()

    def run(self, cut: str | None) -> bool:
        """Whether the power went."""
        rotation = self.rotation
        self.flash.write_bytes(self.before)
        kept = self.entry
        rotation.operator.authenticate(
            {"deviceId": DEVICE_ID, "etag": "*"},
            kept.auth,
            kept.primary_key or kept.primary_thumbprint,
            kept.secondary_key or kept.secondary_thumbprint,
            "enabled",
        )
        if self.x509:
            rotation.fleet.in_use(DEVICE_ID, kept.primary_thumbprint)
        board = rotation.start(self.flash, cut=cut)
        hub = Mender(rotation, self.flash)
        done = rotation.rotator(hub=hub).rotate(DEVICE_ID, emergency=self.emergency)
        after = rotation.device()
        if self.x509:
            assert after.thumbprints[0] == done.key
        else:
            assert not set(after.keys) & set(kept.keys)
        assert rotation.fleet.rotation(DEVICE_ID) is None
        went = hub.went or not board.running
        # And with nobody's help once more.
        rotation.start(self.flash)
        assert rotation.ready() in ("primary", "certificate")
        rotation.board.stop()
        return went


@pytest.mark.parametrize("kind", KINDS)
def test_power_cut_during_a_rotation_leaves_a_device_that_comes_back_as_itself(world, kind):
    bench = Bench(world, kind)
    assert not bench.run(None)
    choose = random.Random(f"{kind} {world.leg}")
    went = 0
    for cut in sorted(choose.sample(range(1, 24), SAMPLE)):
        went += bench.run(f"{cut}:{choose.choice(MODES)}")
    assert went


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_power_cut_at_every_operation_of_a_rotation(world, kind, mode):
    bench = Bench(world, kind)
    for cut in itertools.count(1):
        if not bench.run(f"{cut}:{mode}"):
            break
    assert 10 < cut < OPERATIONS
