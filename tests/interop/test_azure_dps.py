"""Microsoft's provisioning client (azure-iot-device, as it is on PyPI) against the local hub.

The whole way: register with DPS, then connect to the assigned hub with the same SDK and send. The
SDK knows port 8883 alone, so each test's hubs have loopback addresses of their own.
"""

from __future__ import annotations

import base64
import subprocess
import sys

import pytest
from azure.iot.device import (
    X509,
    IoTHubDeviceClient,
    Message,
    ProvisioningDeviceClient,
)
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from dpsclient import Client
from hubs import MQTT_PORT, eventually, loopback, roots_file
from outpost_tools.enrolment import derive_key
from outpost_tools.hub import Hub
from outpost_tools.hub.dps import CSR_SINCE, Dps
from outpost_tools.registry import Registry, new_key

from certs import Holder, holder, request

# What `World.refused` runs: the SDK alone, with nothing of ours.
REGISTER = """
import os, sys
from azure.iot.device import ProvisioningDeviceClient
host, name, scope, key, roots = sys.argv[1:]
client = ProvisioningDeviceClient.create_from_symmetric_key(
    host, name, scope, key, server_verification_cert=open(roots).read()
)
try:
    client.register()
    print("registered", flush=True)
except Exception as why:
    print(type(why).__name__, flush=True)
os._exit(0)
"""


class World:
    def __init__(self, data):
        self.data = data
        self.roots = roots_file(data)
        self.host = loopback(MQTT_PORT)
        self.dps = Dps(data, retry_after_s=1)
        self.enrolments = self.dps.enrolments
        self.hub = Hub(data, self.host, MQTT_PORT, faces=[self.dps], services=[self.dps])
        self.hub.start()

    @property
    def trust(self):
        return {"server_verification_cert": self.roots.read_text()}

    def by_key(self, name, key, payload=None):
        client = ProvisioningDeviceClient.create_from_symmetric_key(
            self.host, name, self.dps.id_scope, key, **self.trust
        )
        client.provisioning_payload = payload
        return client.register()

    def refused(self, name, key):
        """The SDK's exception, by name, from a process of its own: a client that was refused would
        connect again and again, and the SDK has no public end for it."""
        words = [sys.executable, "-c", REGISTER, self.host, name, self.dps.id_scope, key]
        done = subprocess.run(
            [*words, str(self.roots)], capture_output=True, text=True, timeout=60, check=False
        )
        return done.stdout.strip()

    def by_certificate(self, name, files):
        client = ProvisioningDeviceClient.create_from_x509_certificate(
            self.host, name, self.dps.id_scope, X509(*files), **self.trust
        )
        return client.register()

    def sends(self, client, device_id, hub=None):
        """Whether a message of this device arrives at the hub."""
        hub = hub or self.hub
        before = len(hub.telemetry)
        client.connect()
        client.send_message(Message("it is me"))
        client.shutdown()
        return eventually(lambda: any(t.device_id == device_id for t in hub.telemetry[before:]))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("dps") / "data")
    yield world
    world.hub.stop()


def with_key(world, state, key):
    return IoTHubDeviceClient.create_from_symmetric_key(
        key, state.assigned_hub, state.device_id, connection_retry=False, **world.trust
    )


def with_certificate(world, state, files):
    return IoTHubDeviceClient.create_from_x509_certificate(
        X509(*files), state.assigned_hub, state.device_id, connection_retry=False, **world.trust
    )


def test_an_individual_key(world):
    made = world.enrolments.put(
        {
            "registrationId": "one",
            "deviceId": "press-1",
            "attestation": {"type": "symmetricKey"},
        }
    )
    result = world.by_key("one", made.keys[0], {"model": "x200"})
    state = result.registration_state
    assert (result.status, state.device_id) == ("assigned", "press-1")
    assert (state.assigned_hub, state.sub_status) == (world.host, "initialAssignment")
    assert state.created_date_time and state.etag
    assert world.sends(with_key(world, state, made.keys[1]), "press-1")
    again = world.by_key("one", made.keys[1]).registration_state
    assert again.sub_status == "reprovisionedToInitialAssignment"


def test_a_groups_key(world):
    group = world.enrolments.put(
        {"enrollmentGroupId": "keys", "attestation": {"type": "symmetricKey"}}
    )
    key = derive_key(group.keys[0], "press-2")
    state = world.by_key("press-2", key).registration_state
    assert world.sends(with_key(world, state, key), "press-2")


def test_a_certificate_of_its_own(world, tmp_path):
    device = holder("press-3")
    kept = {"clientCertificates": {"primary": {"certificate": device.pem}}}
    world.enrolments.put(
        {"registrationId": "press-3", "attestation": {"type": "x509", "x509": kept}}
    )
    files = device.write(tmp_path, "device")
    state = world.by_certificate("press-3", files).registration_state
    assert world.sends(with_certificate(world, state, files), "press-3")


def test_a_certificate_of_a_group(world, tmp_path):
    root = holder("Makers root", authority=True)
    middle = holder("Hall 3", root, authority=True)
    kept = {"signingCertificates": {"primary": {"certificate": root.pem}}}
    world.enrolments.put(
        {"enrollmentGroupId": "made", "attestation": {"type": "x509", "x509": kept}}
    )
    files = holder("press-4", middle).write(tmp_path, "device")
    state = world.by_certificate("press-4", files).registration_state
    assert world.sends(with_certificate(world, state, files), "press-4")


def test_a_wrong_key_and_an_unknown_device_are_refused(world):
    assert world.refused("one-that-is-not", new_key()) == "CredentialError"


def test_a_disabled_enrolment_is_an_error(world):
    made = world.enrolments.put(
        {
            "registrationId": "off",
            "attestation": {"type": "symmetricKey"},
            "provisioningStatus": "disabled",
        }
    )
    assert world.refused("off", made.keys[0]) == "ClientError"
    with Registry(world.data) as registry:
        assert registry.find("off") is None


def test_a_device_is_sent_to_a_second_hub_and_connects_there(world, tmp_path):
    """The second hub has a folder and an address of its own, and trusts the same authority."""
    folder = tmp_path / "second"
    roots_file(folder)
    address = loopback(MQTT_PORT)
    with Hub(folder, address, MQTT_PORT) as second:
        world.enrolments.link_hub(address, folder)
        made = world.enrolments.put(
            {
                "registrationId": "press-5",
                "attestation": {"type": "symmetricKey"},
                "iotHubs": [world.host],
            }
        )
        state = world.by_key("press-5", made.keys[0]).registration_state
        assert state.assigned_hub == world.host
        moved = {**made.document, "iotHubs": [address], "allocationPolicy": "static"}
        world.enrolments.put(moved, if_match="*")
        state = world.by_key("press-5", made.keys[0]).registration_state
        assert (state.assigned_hub, state.sub_status) == (address, "deviceDataMigrated")
        assert world.sends(with_key(world, state, made.keys[0]), "press-5", second)
    world.enrolments.unlink_hub(address)


def test_an_issued_certificate_connects_with_the_device_sdk(world, tmp_path):
    """The SDK of today cannot send a csr; what DPS issues, it connects with."""
    made = world.enrolments.put(
        {
            "registrationId": "press-6",
            "attestation": {"type": "symmetricKey"},
            "credentialPolicyName": "default",
        }
    )
    key = ec.generate_private_key(ec.SECP256R1())
    with Client(world, "press-6", made.keys[0], api=CSR_SINCE) as client:
        answer = client.register({"registrationId": "press-6", "csr": request("press-6", key)})
    state = answer["registrationState"]
    leaf, issuer = [
        x509.load_der_x509_certificate(base64.b64decode(text))
        for text in state["issuedCertificateChain"]
    ]
    files = Holder(leaf, key, (issuer,)).write(tmp_path, "issued")
    client = IoTHubDeviceClient.create_from_x509_certificate(
        X509(*files), state["assignedHub"], "press-6", connection_retry=False, **world.trust
    )
    assert world.sends(client, "press-6")
