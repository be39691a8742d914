"""First connection through the provisioning service, and what happens when its answer gets old."""

from __future__ import annotations

import re
import time

import pytest
from dpsworld import DpsWorld
from hubs import eventually
from identities import entries
from outpost_tools.registry import Registry
from world import DEVICE_ID, line_number

CONNECTED = r"hub +connected "


@pytest.fixture
def service(world):
    return DpsWorld(world)


def connected_in_turn(hub) -> list[str]:
    """Who was let in, in order: a registration or a session of the hub."""
    return [e["event"] for e in hub.events if e["event"] in ("provisioned", "connected")]


@pytest.mark.parametrize("kind", ["individual", "group", "secondary alone works"])
def test_first_connection_is_through_the_service_and_the_next_is_not(service, world, kind):
    if kind == "group":
        keys = (service.group_key(),)
    else:
        keys = service.enrol().keys
        keys = ("A" * 43 + "=", keys[1]) if kind.startswith("secondary") else keys
    flash = service.image(*keys)
    board = world.board(flash)
    at = line_number(board, CONNECTED)
    board.wait_for(r"acked id=1", 60)
    assert connected_in_turn(service.hub) == ["provisioned", "connected"]
    line = next(x.text for x in board.lines if "dps " in x.text and "assigned" in x.text)
    assert line.endswith(f"assigned hub=127.0.0.1 device={DEVICE_ID}")
    service.hub.disconnect(DEVICE_ID, "test")
    line_number(board, CONNECTED, at + 1)
    board.stop()
    # After a power cut too: the hub is in flash.
    board = world.board(flash)
    line_number(board, CONNECTED)
    board.wait_for(r"acked id=1", 60)
    assert len(service.events("provisioned")) == 1
    board.stop()
    kept = entries(flash, "hub")["hub"]
    assert kept == f"127.0.0.1\n{DEVICE_ID}\n{service.dps.id_scope}\n{DEVICE_ID}".encode()


def test_device_id_that_the_service_assigns_is_the_devices_name_from_then_on(service, world):
    made = service.enrol(deviceId="hall-3/x".replace("/", "."))
    board = world.board(service.image(*made.keys))
    board.wait_for(r"hub +connected device=hall-3\.x ", 60)
    board.wait_for(r"acked id=1", 60)
    assert service.hub.connected == ["hall-3.x"]


def test_the_service_and_the_hub_are_never_connected_at_once(service, world):
    made = service.enrol()
    board = world.board(service.image(*made.keys))
    board.wait_for(r"acked id=1", 60)
    order = [e["event"] for e in service.hub.events if e["event"] in ("closed", "connected")]
    assert order == ["closed", "connected"]


def test_device_that_the_hub_does_not_know_is_provisioned_again(service, world):
    made = service.enrol()
    board = world.board(service.image(*made.keys))
    at = line_number(board, CONNECTED)
    with Registry(world.data) as registry:
        registry.remove(DEVICE_ID)
    at = line_number(board, r"error +hub: the server does not authorise", at)
    at = line_number(board, r"dps +assigned hub=", at, 90)
    line_number(board, CONNECTED, at)
    assert len(service.events("provisioned")) == 2


def test_the_service_is_asked_ever_more_seldom_while_the_hub_refuses(service, world):
    made = service.enrol()
    board = world.board(service.image(*made.keys))
    at = line_number(board, CONNECTED)
    with Registry(world.data) as registry:
        registry.set_status(DEVICE_ID, "disabled")
    for _ in range(12):
        at = line_number(board, r"error +(hub|dps): ", at, 60) + 1
    asked = [i for i, x in enumerate(board.lines) if "dps " in x.text and "asking" in x.text]
    assert 2 <= len(asked) <= 4, board.text
    with Registry(world.data) as registry:
        registry.set_status(DEVICE_ID, "enabled")
    line_number(board, CONNECTED, at)


def test_disabled_enrolment_is_said_and_the_device_recovers(service, world):
    made = service.enrol(provisioningStatus="disabled")
    board = world.board(service.image(*made.keys))
    at = line_number(board, r"error +dps: this device's enrolment is disabled")
    service.enrolments.put({**made.document, "provisioningStatus": "enabled"}, "*")
    line_number(board, CONNECTED, at)


def test_unknown_to_the_service_is_a_refusal_in_one_sentence(service, world):
    board = world.board(service.image("A" * 43 + "="))
    board.wait_for(r"error +hub: the server does not authorise this device", 60)
    assert "Traceback" not in board.text and not service.events("provisioned")


def test_throttled_registration_is_not_repeated_before_its_time(world):
    service = DpsWorld(world, per_minute=1)
    other = service.enrolments.put(
        {"registrationId": "other", "attestation": {"type": "symmetricKey"}}
    )
    from dpsclient import Client
    from hubs import roots_file

    service.roots = roots_file(world.data)
    with Client(service, "other", other.keys[0]) as client:
        client.register()
    board = world.board(service.image(*service.enrol().keys))
    at = line_number(board, r"error +dps: the provisioning service is busy \(status 429\)")
    at = line_number(board, r"error +dps: .*not asked again for \d+ s", at)
    seconds = int(re.search(r"for (\d+) s", board.lines[at].text)[1])
    assert 30 <= seconds <= 61
    time.sleep(3)
    asked = [x.text for x in board.lines if re.search(r"dps +asking", x.text)]
    assert len(asked) == 1


def test_certificate_is_issued_for_a_key_made_on_the_device(service, world):
    made = service.enrol(credentialPolicyName="default")
    flash = service.image(*made.keys, csr=True)
    board = world.board(flash)
    if world.leg.startswith("stock"):
        board.wait_for(r"error +identity: a stock MicroPython makes no keys: take dps\.csr out", 60)
        return
    at = line_number(board, r"hub +connected .*credential=new certificate$")
    line_number(board, r"identity +the new key works", at)
    board.wait_for(r"acked id=1", 60)
    assert service.hub_device().auth == "certificateAuthority"
    service.hub.disconnect(DEVICE_ID, "test")
    line_number(board, r"hub +connected .*credential=certificate$", at)
    # The hub forgets the device: it comes back by what it was enrolled with.
    with Registry(world.data) as registry:
        registry.remove(DEVICE_ID)
    at = line_number(board, r"dps +assigned hub=", at, 90)
    line_number(board, r"hub +connected .*credential=new certificate$", at)
    assert eventually(lambda: len(service.events("provisioned")) == 2)


def test_born_certificate_opens_the_service_without_any_shared_secret(service, world):
    if world.leg.startswith("stock"):
        board = world.board(service.image())
        board.wait_for(r"error +identity: device press-7 has no key in NVS", 60)
        return
    flash = service.image()
    board = world.board(flash)
    at = line_number(board, r"error +hub: the server does not authorise this device")
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    born = x509.load_der_x509_certificate(_stopped_entry(board, flash))
    pem = born.public_bytes(Encoding.PEM).decode()
    service.enrol(
        attestation={
            "type": "x509",
            "x509": {"clientCertificates": {"primary": {"certificate": pem}}},
        }
    )
    board = world.board(flash)
    at = line_number(board, r"hub +connected .*credential=born$")
    line_number(board, r"acked id=", at)


def _stopped_entry(board, flash) -> bytes:
    board.stop()
    born = entries(flash, "born")["born"]
    assert isinstance(born, bytes)
    return born
