"""The host is killed between any two steps of a rotation: the same command again brings it to its
end, and at no moment was the device without a key that works."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from outpost_tools.errors import OutpostError
from outpost_tools.hub.running import Running, announced
from outpost_tools.nvsimage import Identity
from outpost_tools.rotationhub import OperatorHub
from rotations import DEVICE_ID, WORDS, RotationWorld

KINDS = ("symmetric", "x509", "emergency symmetric", "emergency x509")
pytestmark = pytest.mark.parametrize("leg", ["outpost64"], indirect=True)

# Every call by which the rotation changes something outside of itself.
HUB_STEPS = ("change", "ask")
BOOK_STEPS = ("rotating", "rotated", "issued", "in_use", "next_counter")


class Killed(BaseException):
    """What SIGKILL is to the code: nothing after it runs."""


class Counted:
    """Hands every call on, and is killed before or after the call of that number."""

    def __init__(self, inner: Any, names: tuple[str, ...], tick: Callable[[], None]) -> None:
        self._inner, self._names, self._tick = inner, names, tick

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in self._names:
            return found

        def call(*args: Any, **more: Any) -> Any:
            self._tick()
            answer = found(*args, **more)
            self._tick()
            return answer

        return call


class Desk:
    def __init__(self, world, kind: str) -> None:
        self.rotation = RotationWorld(world)
        self.kind = "x509" if "x509" in kind else "symmetric"
        self.emergency = "emergency" in kind
        if self.kind == "x509":
            flash = self.rotation.image(device=Identity(DEVICE_ID))
            self.rotation.provision(flash)
        else:
            flash = self.rotation.image()
            self.rotation.remember(flash)
        self.rotation.start(flash)
        self.rotation.ready()

    def run(self, killed_at: int | None) -> bool:
        """Whether it was killed: after that many ticks of this run."""
        left = killed_at

        def tick() -> None:
            nonlocal left
            if left is not None:
                if left == 0:
                    raise Killed
                left -= 1

        hub = OperatorHub(self.rotation.operator, pause=lambda s: time.sleep(0.05))
        rotator = self.rotation.rotator(hub=Counted(hub, HUB_STEPS, tick))
        rotator._fleet = Counted(self.rotation.fleet, BOOK_STEPS, tick)
        try:
            rotator.rotate(DEVICE_ID, emergency=self.emergency)
        except Killed:
            return True
        return False

    def asked(self) -> tuple[int, dict]:
        """What the device says of its keys. It may be about to connect anew with the one on trial:
        a question that meets that is asked again."""
        for _ in range(3):
            with contextlib.suppress(OutpostError):
                return self.rotation.operator.invoke(DEVICE_ID, "outpost.identity", None, 30, 60)
        return self.rotation.operator.invoke(DEVICE_ID, "outpost.identity", None, 30, 60)

    def check(self, before: set[str]) -> None:
        """The rotation came to its end: one new key, known to the hub, and none of the old."""
        rotation = self.rotation
        after = rotation.device()
        born = rotation.fleet.find(DEVICE_ID).born_thumbprint
        held = set(after.keys) | set(after.thumbprints)
        assert not (held - {born}) & (before - {born})
        assert rotation.fleet.rotation(DEVICE_ID) is None
        status, facts = self.asked()
        assert status == 200 and facts["trial"] is None
        if self.kind == "x509":
            assert facts["key"] == after.thumbprints[0]
        else:
            from outpost_tools.rotationhub import key_id

            assert facts["key"] == key_id(after.primary_key)
            assert facts["secondary"] == key_id(after.secondary_key)


def held_by(rotation: RotationWorld) -> set[str]:
    device = rotation.device()
    return set(device.keys) | set(device.thumbprints)


def kill_and_go_on(desk: Desk, at: int) -> bool:
    before = held_by(desk.rotation)
    killed = desk.run(at)
    if killed and not desk.emergency:
        # Whatever was begun, what the device has works: it answers.
        assert desk.asked()[0] == 200
    if killed:
        assert not desk.run(None)
    desk.check(before)
    return killed


@pytest.mark.parametrize("kind", KINDS)
def test_a_host_that_is_killed_goes_on_where_it_was(world, kind):
    desk = Desk(world, kind)
    choose = random.Random(kind)
    for at in sorted(choose.sample(range(16), 4)):
        kill_and_go_on(desk, at)


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_a_host_that_is_killed_at_any_step_goes_on_where_it_was(world, kind):
    desk = Desk(world, kind)
    at = 0
    while kill_and_go_on(desk, at):
        at += 1
    assert 10 < at < 80


def test_kill_9_of_the_command_and_the_same_command_again(world):
    desk = Desk(world, "symmetric")
    rotation = desk.rotation
    secret = rotation.data / "words"
    secret.write_text(WORDS)
    command = [str(Path(sys.executable).with_name("outpost")), "rotate", DEVICE_ID, "--json"]
    command += ["--data", str(rotation.data), "--signer-passphrase-file", str(secret)]
    hub, rest = rotation.hub, rotation.rest
    with announced(rotation.data, Running(rest.host, hub.port, rest.host, rest.port, hub.names)):
        before = held_by(rotation)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while rotation.fleet.rotation(DEVICE_ID) is None:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert WORDS.encode() not in b"".join(process.communicate())
        assert rotation.fleet.rotation(DEVICE_ID).phase == "at the hub"
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)[0]["kind"] == "symmetric"
    desk.check(before)
