"""Rotations that meet: a normal one that stopped and an emergency, two operators at once, a kill in
the middle of cutting a device off, and a device that was disabled meanwhile."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from outpost_tools import agreed
from outpost_tools.errors import OutpostError
from outpost_tools.fleet import Fleet
from outpost_tools.nvsimage import Identity
from outpost_tools.rotationhub import OperatorHub, key_id
from rotations import DEVICE_ID, RotationWorld

LEGS_HERE = ("outpost64",)


class Killed(BaseException):
    """What SIGKILL is to the code: nothing after it runs."""


@pytest.fixture
def rotation(world):
    with RotationWorld(world) as made:
        yield made


@pytest.fixture
def symmetric(rotation):
    flash = rotation.image()
    rotation.remember(flash)
    rotation.start(flash)
    rotation.ready()
    return rotation


@pytest.fixture
def certified(rotation):
    flash = rotation.image(device=Identity(DEVICE_ID))
    rotation.provision(flash)
    rotation.start(flash)
    rotation.ready()
    return rotation


def facts(rotation) -> dict[str, Any]:
    status, said = rotation.operator.invoke(DEVICE_ID, agreed.IDENTITY_METHOD, None, 10, 30)
    assert status == 200
    return said


def in_use(rotation) -> str:
    """The name of the key that device and hub agree on."""
    device, said = rotation.device(), facts(rotation)
    known = [key_id(key) for key in device.keys] + list(device.thumbprints)
    assert said["key"] in known, "the device has a key that the hub does not take"
    return said["key"]


# A kill in the middle of an emergency's cut: the device is disabled at the hub for a moment


class KilledIn:
    """An Operator that is killed before its write of that number."""

    def __init__(self, inner: Any, at: int) -> None:
        self._inner, self._left = inner, at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def authenticate(self, *args: Any) -> Any:
        if not self._left:
            raise Killed
        self._left -= 1
        return self._inner.authenticate(*args)


@pytest.mark.parametrize("at", range(5))
@pytest.mark.parametrize("kind", ["symmetric", "x509"])
def test_an_emergency_killed_between_two_writes_at_the_hub_goes_on(rotation, kind, at):
    if kind == "x509":
        flash = rotation.image(device=Identity(DEVICE_ID))
        rotation.provision(flash)
    else:
        flash = rotation.image()
        rotation.remember(flash)
    rotation.start(flash)
    rotation.ready()
    before = in_use(rotation)
    hub = OperatorHub(KilledIn(rotation.operator, at), pause=lambda s: time.sleep(0.05))
    try:
        rotation.rotator(hub=hub).rotate(DEVICE_ID, emergency=True)
    except Killed:
        rotation.rotator(patience_s=30).rotate(DEVICE_ID, emergency=True)
    else:
        assert kind == "x509" and at == 4  # it has no fifth write
    assert in_use(rotation) != before
    assert rotation.device().status == "enabled"


# An emergency after a normal rotation that stopped


def test_an_emergency_after_a_rotation_that_lacked_its_last_step_forbids_that_key_too(certified):
    """The book still names the "new" certificate, which since then is the one that was stolen."""
    rotation = certified
    rotated = rotation.fleet.rotated
    rotation.fleet.rotated = lambda device_id: (_ for _ in ()).throw(Killed())
    with pytest.raises(Killed):
        rotation.rotator().rotate(DEVICE_ID)
    rotation.fleet.rotated = rotated
    stolen = in_use(rotation)
    rotation.rotator().rotate(DEVICE_ID, emergency=True)
    assert in_use(rotation) != stolen
    assert stolen not in rotation.device().thumbprints


def test_an_emergency_while_a_certificate_is_on_trial_forbids_it_too(certified):
    rotation = certified
    ask = OperatorHub(rotation.operator, pause=lambda s: time.sleep(0.05))

    class Stops(OperatorHub):
        """Killed when it looks whether the device uses the new certificate."""

        offered = False

        def ask(self, device_id, method, payload, patience_s):
            if self.offered:
                raise Killed
            answer = ask.ask(device_id, method, payload, patience_s)
            self.offered = isinstance(answer[1], dict) and answer[1].get("state") == "on trial"
            return answer

    with pytest.raises(Killed):
        rotation.rotator(hub=Stops(rotation.operator)).rotate(DEVICE_ID)
    stolen = rotation.fleet.rotation(DEVICE_ID).detail["new"]
    rotation.rotator().rotate(DEVICE_ID, emergency=True)
    assert stolen not in rotation.device().thumbprints
    assert in_use(rotation) != stolen


# A device that was disabled


@pytest.mark.parametrize("kind", ["symmetric", "x509"])
def test_a_rotation_does_not_enable_a_device_that_was_disabled_meanwhile(rotation, kind):
    if kind == "x509":
        flash = rotation.image(device=Identity(DEVICE_ID))
        rotation.provision(flash)
    else:
        flash = rotation.image()
        rotation.remember(flash)
    rotation.start(flash)
    rotation.ready()
    changes: list[bool] = []

    class Disabling(OperatorHub):
        def change(self, device_id, way, cut=False):
            if changes:  # before the old key is retired
                rotation.world.registry.set_status(DEVICE_ID, "disabled")
            changes.append(True)
            super().change(device_id, way, cut)

    hub = Disabling(rotation.operator, pause=lambda s: time.sleep(0.05))
    try:
        rotation.rotator(patience_s=5, hub=hub).rotate(DEVICE_ID)
    except OutpostError:
        pass  # the device is away by then
    assert len(changes) == 2
    assert rotation.device().status == "disabled"


# Two operators


def test_two_operators_at_once_leave_the_device_with_a_key_that_works(symmetric):
    rotation = symmetric
    before = in_use(rotation)
    other = Fleet(rotation.data)
    ended: list[Any] = []
    slow = OperatorHub(rotation.operator, pause=lambda s: time.sleep(0.05))

    class Slow(OperatorHub):
        """Reads how the device proves itself, and writes only after the other one is done."""

        def change(self, device_id, way, cut=False):
            if not ended:
                first.join(20)
            slow.change(device_id, way, cut)

    def rotate() -> None:
        try:
            ended.append(rotation.rotator().rotate(DEVICE_ID))
        except OutpostError as why:
            ended.append(why)

    class Waits(OperatorHub):
        """The first one begins when the second has asked the device."""

        def ask(self, device_id, method, payload, patience_s):
            answer = slow.ask(device_id, method, payload, patience_s)
            if not first.is_alive() and not ended:
                first.start()
            return answer

        change = Slow.change

    first = threading.Thread(target=rotate)
    second = rotation.rotator(hub=Waits(rotation.operator))
    second._fleet = other
    try:
        second.rotate(DEVICE_ID)
    except OutpostError as why:
        ended.append(why)
    first.join(60)
    other.close()
    assert len(ended) >= 1
    assert in_use(rotation) != before
    # And it can be rotated again.
    rotation.rotator().rotate(DEVICE_ID)
    in_use(rotation)


# The counter


def test_a_clock_set_far_ahead_does_not_use_up_the_commands_of_a_fleet(tmp_path, monkeypatch):
    with Fleet(tmp_path) as fleet:
        monkeypatch.setattr(time, "time", lambda: 2.0**32 + 5)  # in 2106
        last = fleet.next_counter("keys")
        assert last <= 0x7FFFFFFF
        monkeypatch.undo()
        assert last < fleet.next_counter("keys") <= 0x7FFFFFFF


def test_a_fleet_whose_counters_are_used_up_says_so(tmp_path):
    with Fleet(tmp_path) as fleet:
        with fleet.writing() as db:
            db.execute("INSERT INTO counter VALUES ('keys', ?)", (0x7FFFFFFF,))
        with pytest.raises(OutpostError, match="no counter is left"):
            fleet.next_counter("keys")
        assert fleet.next_counter("trust") > 0
