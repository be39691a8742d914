"""Where two parts of the identity meet: the provisioning service with rotation, with renewal and
with a name of its own giving, and a trial that ends as nobody foresaw."""

from __future__ import annotations

import contextlib
import threading
import time

import paho.mqtt.client as paho
import pytest
from cryptography import x509 as certs
from dpsworld import DpsWorld
from hubs import eventually, roots_file
from identities import edit, entries, symmetric
from outpost_tools import proof, sas
from outpost_tools.hub.issuing import DeviceCA
from outpost_tools.registry import Registry
from rotations import AssignedRotation, RotationWorld
from world import DEVICE_ID, line_number

LEGS_HERE = ("outpost64",)
CONNECTED = r"hub +connected "
DAY_S = 86400


@pytest.fixture
def service(world):
    return DpsWorld(world)


def times(board, words: str) -> int:
    return sum(words in line.text for line in board.lines)


def test_messages_of_the_first_connection_go_under_the_name_that_the_service_gave(service, world):
    made = service.enrol(deviceId="hall-3")
    board = world.board(service.image(*made.keys))
    board.wait_for(r"acked id=1", 60)
    assert times(board, "connected device=hall-3") == 1, board.text
    assert not times(board, "error"), board.text


# Renewal of a certificate that the service issued


@pytest.fixture
def issued(service, world):
    """(flash, the leaf's DER): a device with an issued certificate of 30 days in use."""
    service.enrolments.put_credential_policy("month", 30)
    made = service.enrol(credentialPolicyName="month")
    flash = service.image(*made.keys, csr=True, sntp=world.sntp())
    board = world.board(flash)
    line_number(board, r"identity +the new key works")
    board.wait_for(r"acked id=1", 60)
    board.stop()
    return flash


def set_forward(world, service, flash, days: float):
    """The same board on a day to come, by its SNTP server."""
    sntp = next(part for part in world._closing if hasattr(part, "offset_s"))
    sntp.offset_s = days * DAY_S
    return world.board(flash)


def leaf_in(flash) -> certs.Certificate:
    held = entries(flash, "ida", "idb", "idcur")
    record = held[("ida", "idb")[held["idcur"]]]
    size = int.from_bytes(record[10:12], "little")
    return proof.read_chain(record[12 : 12 + size])[0]


def test_an_issued_certificate_is_renewed_ahead_of_its_end_and_not_before(service, world, issued):
    before = leaf_in(issued)
    board = set_forward(world, service, issued, 18)
    line_number(board, CONNECTED + r".*credential=certificate$")
    board.wait_for(r"acked id=\d", 60)
    board.stop()
    assert len(service.events("provisioned")) == 1
    board = set_forward(world, service, issued, 22)
    # As if it were signed on that day.
    at = line_number(board, r"dps +assigned hub=")
    at = line_number(board, CONNECTED + r".*credential=new certificate$", at)
    line_number(board, r"identity +the new key works", at)
    board.wait_for(r"acked id=\d", 60)
    board.stop()
    after = leaf_in(issued)
    assert after.serial_number != before.serial_number
    assert after.public_key() != before.public_key(), "a new certificate is for a new key"


def test_a_certificate_that_ended_while_the_device_was_off_is_renewed_before_the_hub_is_called(
    service, world, issued
):
    board = set_forward(world, service, issued, 45)
    at = line_number(board, r"dps +asking")
    assert not times(board, "does not authorise"), board.text
    line_number(board, CONNECTED, at)


def test_a_renewal_that_the_hub_refuses_leaves_a_device_that_works_and_does_not_ask_in_a_loop(
    service, world, issued, monkeypatch
):
    before = leaf_in(issued)
    stranger = DeviceCA(world.folder / "stranger")
    issue = DeviceCA.issue
    monkeypatch.setattr(
        DeviceCA, "issue", lambda self, request, days: issue(stranger, request, days)
    )
    board = set_forward(world, service, issued, 22)
    at = line_number(board, CONNECTED + r".*credential=certificate$")
    board.wait_for(r"acked id=\d", 30, at)
    asked = times(board, "dps      asking") or times(board, "asking 127.0.0.1 for the hub")
    connected = times(board, "hub connected") or times(board, "connected device=")
    time.sleep(4)
    assert asked == 1 and times(board, "asking 127.0.0.1 for the hub") == 1, board.text
    assert times(board, "connected device=") == connected, board.text
    board.stop()
    assert leaf_in(issued).serial_number == before.serial_number
    # The service mends its ways: the next start brings a certificate that works.
    monkeypatch.setattr(DeviceCA, "issue", issue)
    board = world.board(issued)
    line_number(board, r"identity +the new key works")


# Rotation of a device that the service has assigned


def test_a_device_whose_key_was_rotated_is_still_known_to_the_provisioning_service(world):
    with AssignedRotation(world) as rotation:
        flash = rotation.image()
        rotation.remember(flash)
        board = rotation.start(flash)
        rotation.ready()
        rotation.rotator().rotate(DEVICE_ID)
        at = line_number(board, r"the new key works")
        with Registry(world.data) as registry:
            registry.remove(DEVICE_ID)
        at = line_number(board, r"dps +assigned hub=", at, 60)
        # The service gave the hub the keys of the enrolment.
        line_number(board, CONNECTED + r".*credential=enrolled primary$", at)
        # And from there it is rotated again.
        rotation.rotator().rotate(DEVICE_ID)
        line_number(board, CONNECTED + r".*credential=new primary$", at)
        held = rotation.device().keys
        assert not set(held) & set(rotation.enrolled.keys)


# A trial that ends as nobody foresaw

FAILING = """
from outpost import Device, tls
connect = tls.connect

def failing(config, roots, first, ladder, credential=None):
    if credential is not None and credential.trial:
        FAULT
    return connect(config, roots, first, ladder, credential)

tls.connect = failing
device = Device()

@device.every(seconds=1)
def measure():
    device.send({"n": 1})

device.run()
"""


@pytest.mark.parametrize(
    "fault",
    ["raise MemoryError('allocating')", "raise RuntimeError('unforeseen')", "raise OSError(12)"],
)
def test_a_trial_that_runs_out_of_memory_does_not_keep_the_device_away(world, fault):
    hub = world.hub()
    flash = world.image(hub.port, files={"/main.py": FAILING.replace("FAULT", fault).encode()})
    edit(flash, idb=symmetric(bytes(32)), idtry=1)
    board = world.board(flash)
    line_number(board, CONNECTED + r".*credential=primary$", 0, 20)
    board.wait_for(r"acked id=1", 20)


def test_a_trial_that_resets_the_board_each_time_does_not_keep_it_away(world):
    """A crash below Python, a watchdog: the next life would try it again, and so for ever."""
    hub = world.hub()
    fault = "import machine; machine.reset()"
    flash = world.image(hub.port, files={"/main.py": FAILING.replace("FAULT", fault).encode()})
    edit(flash, idb=symmetric(bytes(32)), idtry=1)
    board = world.board(flash)
    line_number(board, CONNECTED + r".*credential=primary$", 0, 30)
    board.wait_for(r"acked id=1", 20)


# A rotation in hard times

FULL = b"""
from outpost import Device, errors

device = Device()
body = b"x" * 3900
try:
    while True:
        device.send(body)
except errors.OutboxFull:
    print("FULL", device.waiting())  # a start before this one may have filled it
device.run()
"""


def test_keys_are_rotated_while_the_outbox_is_full_and_nobody_vouches_for_the_clock(world):
    with RotationWorld(world) as rotation:
        known = rotation.signers.for_devices(rotation.fleet.name)
        files = {"/main.py": FULL, "/trust/signers.json": known}
        deaf = world.sntp(behaviour="silent")
        flash = world.image(
            rotation.hub.port, deaf, files=files, build_time_s=int(time.time()) - 60
        )
        rotation.remember(flash)
        board = rotation.start(flash)
        line_number(board, r"source=(floor|unvouched)")
        rotation.ready()
        rotation.rotator().rotate(DEVICE_ID)
        at = line_number(board, r"the new key works")
        full = int(board.wait_for(r"FULL (\d+)$", 60)[1])
        assert full > 20
        board.wait_for(rf"acked id={full}\b", 60)
        assert at and "OutboxFull" not in board.text


def test_a_thief_who_keeps_taking_over_the_connection_is_out_after_an_emergency(world):
    with RotationWorld(world) as rotation:
        flash = rotation.image()
        rotation.remember(flash)
        rotation.start(flash)
        rotation.ready()
        with Thief(world, rotation.hub) as thief:
            assert eventually(lambda: thief.taken >= 3)
            rotation.rotator(patience_s=90).rotate(DEVICE_ID, emergency=True)
            taken = thief.taken
            assert eventually(lambda: thief.refused >= 3)
            assert thief.taken == taken
        rotation.ready()
        assert rotation.operator.invoke(DEVICE_ID, "outpost.identity", None, 10, 30)[0] == 200


class Thief:
    """Has the device's old key, connects with it again and again, and answers what it is asked."""

    def __init__(self, world, hub) -> None:
        self.taken = self.refused = 0
        self._ended = threading.Event()
        key = world.device.primary_key
        self._user = f"127.0.0.1/{DEVICE_ID}/?api-version=2021-04-12"
        self._token = sas.make(key, f"127.0.0.1/devices/{DEVICE_ID}", int(time.time()) + 3600)
        self._hub, self._roots = hub, roots_file(world.data)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._ended.is_set():
            client = paho.Client(client_id=DEVICE_ID, clean_session=False)
            client.username_pw_set(self._user, self._token)
            client.tls_set(str(self._roots))
            client.on_connect = self._connected
            client.on_message = self._message
            with contextlib.suppress(OSError):
                client.connect("127.0.0.1", self._hub.port)
                ends = time.monotonic() + 0.6
                while time.monotonic() < ends and client.loop(0.1) == paho.MQTT_ERR_SUCCESS:
                    pass
                client.disconnect()
            self._ended.wait(0.2)

    def _connected(self, client, userdata, flags, code) -> None:
        if code:
            self.refused += 1
        else:
            self.taken += 1
            client.subscribe("$iothub/methods/POST/#")

    def _message(self, client, userdata, message) -> None:
        rid = message.topic.split("$rid=")[1]
        client.publish(f"$iothub/methods/res/200/?$rid={rid}", b'{"state": "in use", "key": "x"}')
