"""New software over the air: kept where it works; where not, the one before it comes back."""

from __future__ import annotations

import re

import packages
import pytest
from updates import BOOTS, KEPT, UpdateWorld


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
    assert answer.status == 202 and answer.result["state"] == "trial"
    device.board.wait_for(KEPT % 7, 60)
    device.heard("first")
    # And from then on, whatever happens to the power.
    seen = len(device.hub.telemetry)
    device.power_on()
    device.heard("first", start=seen)
    assert boots(device) == ["a"]
    # The next one goes into the other slot.
    device.push(packages.signed(packages.application(packages.main("second")), 8))
    device.board.wait_for(KEPT % 8, 60)
    assert boots(device)[-1] == "b on trial"
    device.heard("second")
