"""New keys over the air, with a real hub, a real board, and the hub's service side in between."""

from __future__ import annotations

import base64
import json

import pytest
from legs import OURS
from outpost_tools.errors import OutpostError
from outpost_tools.nvsimage import Identity
from rotations import DEVICE_ID, RotationWorld

LEGS_HERE = OURS


@pytest.fixture
def rotation(world):
    with RotationWorld(world) as made:
        yield made


def shown(rotation) -> str:
    """All that was printed, on the board and on the host."""
    return "\n".join([rotation.board.text, *rotation.said])


def test_symmetric_keys_are_rotated_and_no_message_is_lost(rotation):
    flash = rotation.image(limit=40)
    rotation.remember(flash)
    before = rotation.device()
    board = rotation.start(flash)
    assert rotation.ready() == "primary"
    done = rotation.rotator().rotate(DEVICE_ID)
    after = rotation.device()
    assert done.kind == "symmetric" and not done.emergency
    assert not set(before.keys) & set(after.keys) and len(set(after.keys)) == 2
    assert rotation.fleet.rotation(DEVICE_ID) is None
    assert rotation.hub.wait_until(
        lambda: {json.loads(t.body)["n"] for t in rotation.hub.telemetry} >= set(range(1, 41)), 60
    )
    for key in (*before.keys, *after.keys):
        assert key not in shown(rotation) and base64.b64decode(key).hex() not in shown(rotation)
    # The device proves itself with the new key after a power cycle.
    board.stop()
    rotation.start(flash)
    assert rotation.ready() == "primary"


@pytest.mark.parametrize("by", ["thumbprint", "ca"])
def test_a_certificate_is_rotated(rotation, by):
    flash = rotation.image(device=Identity(DEVICE_ID))
    rotation.provision(flash, by)
    first = rotation.fleet.certificates(DEVICE_ID)[-1]
    rotation.start(flash)
    assert rotation.ready() == "certificate"
    done = rotation.rotator().rotate(DEVICE_ID)
    certificates = rotation.fleet.certificates(DEVICE_ID)
    assert done.kind == "x509" and done.key != first.thumbprint
    assert [c.state for c in certificates] == ["old", "current"]
    device = rotation.device()
    if by == "thumbprint":
        born = rotation.fleet.find(DEVICE_ID).born_thumbprint
        assert device.thumbprints == (done.key, born)
    else:
        assert device.auth == "certificateAuthority"
    rotation.start(flash)
    assert rotation.ready() == "certificate"


def test_a_chain_of_two_certificates_fits_into_a_command_and_into_memory(rotation):
    rotation.ca(intermediate=True)
    flash = rotation.image(device=Identity(DEVICE_ID))
    rotation.provision(flash)
    rotation.start(flash)
    rotation.ready()
    done = rotation.rotator().rotate(DEVICE_ID)
    assert rotation.device().thumbprints[0] == done.key


def test_an_emergency_forbids_the_old_symmetric_key_before_anything_else(rotation):
    flash = rotation.image()
    rotation.remember(flash)
    before = rotation.device()
    rotation.start(flash)
    rotation.ready()
    done = rotation.rotator().rotate(DEVICE_ID, emergency=True)
    after = rotation.device()
    assert done.emergency and done.kind == "symmetric"
    assert after.auth == "sas" and not set(before.keys) & set(after.keys)
    assert "forbidden" in rotation.said[0]
    rotation.board.wait_for("credential=born", 30)
    rotation.start(flash)
    assert rotation.ready() == "primary"


def test_an_emergency_forbids_the_old_certificate(rotation):
    flash = rotation.image(device=Identity(DEVICE_ID))
    rotation.provision(flash, "ca")
    rotation.start(flash)
    rotation.ready()
    done = rotation.rotator().rotate(DEVICE_ID, emergency=True)
    device = rotation.device()
    assert device.auth == "selfSigned" and device.thumbprints[0] == done.key
    rotation.board.wait_for("credential=born", 30)
    rotation.start(flash)
    assert rotation.ready() == "certificate"


def test_a_device_whose_born_key_nobody_remembers_is_not_rotated(rotation):
    flash = rotation.image()
    rotation.start(flash)
    rotation.ready()
    before = rotation.device()
    for emergency in (False, True):
        with pytest.raises(OutpostError, match="No born key is known"):
            rotation.rotator().rotate(DEVICE_ID, emergency=emergency)
    assert rotation.device() == before
