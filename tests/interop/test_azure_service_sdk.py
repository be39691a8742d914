"""Microsoft's service SDK (azure-iot-hub, as it is on PyPI) against the local hub.

Host, port, key and trust are configuration; nothing inside the SDK is changed. The device at the
other end, where one is needed, is Microsoft's device SDK.
"""

from __future__ import annotations

import threading
import time

import pytest
from azure.iot.device import IoTHubDeviceClient, MethodResponse
from azure.iot.hub import IoTHubHttpRuntimeManager, IoTHubRegistryManager
from azure.iot.hub.models import (
    CloudToDeviceMethod,
    ExportImportDevice,
    QuerySpecification,
    Twin,
    TwinProperties,
)
from azure.iot.hub.protocol.models import AuthenticationMechanism, SymmetricKey
from hubs import MQTT_PORT, device_connection_string, eventually, loopback, roots_file
from msrest.exceptions import HttpOperationError
from outpost_tools.hub import Hub
from outpost_tools.hub.rest import RestServer
from outpost_tools.registry import Registry, new_key
from servers import in_time


class World:
    def __init__(self, data):
        self.data = data
        self.roots = roots_file(data)
        self.host = loopback(MQTT_PORT)
        self.rest = RestServer(host=self.host, port=0)
        self.hub = Hub(data, self.host, MQTT_PORT, services=[self.rest])
        self.hub.start()
        self.sdk = self.manager()
        self.number = 0

    def connection_string(self, policy="iothubowner", key=None):
        with Registry(self.data) as registry:
            key = key or registry.policy(policy).primary_key
        return (
            f"HostName={self.host}:{self.rest.port};SharedAccessKeyName={policy};"
            f"SharedAccessKey={key}"
        )

    def manager(self, policy="iothubowner", key=None):
        sdk = IoTHubRegistryManager.from_connection_string(self.connection_string(policy, key))
        sdk.protocol.config.connection.verify = str(self.roots)
        return sdk

    def name(self):
        self.number += 1
        return f"press-{self.number}"

    def device(self, device_id):
        """Microsoft's device client, connected."""
        client = IoTHubDeviceClient.create_from_connection_string(
            device_connection_string(self.data, self.host, device_id),
            server_verification_cert=self.roots.read_text(),
            connection_retry=False,
        )
        client.connect()
        return client


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("service") / "data")
    yield world
    world.hub.stop()


def status(caught):
    return caught.value.response.status_code


def test_create_read_disable_and_delete_a_device(world):
    sdk, name, keys = world.sdk, world.name(), (new_key(), new_key())
    made = sdk.create_device_with_sas(name, *keys, "enabled", status_reason="new")
    assert (made.device_id, made.status, made.status_reason) == (name, "enabled", "new")
    assert made.authentication.symmetric_key.primary_key == keys[0]
    assert made.connection_state == "Disconnected" and made.cloud_to_device_message_count == 0
    read = sdk.get_device(name)
    assert read.as_dict() == made.as_dict()
    off = sdk.update_device_with_sas(name, read.etag, *keys, "disabled", status_reason="stolen")
    assert (off.status, off.status_reason) == ("disabled", "stolen") and off.etag != read.etag
    with pytest.raises(HttpOperationError) as caught:
        sdk.update_device_with_sas(name, read.etag, *keys, "enabled")
    assert status(caught) == 412
    with pytest.raises(HttpOperationError) as caught:
        sdk.create_device_with_sas(name, *keys, "enabled")
    assert status(caught) == 409
    sdk.delete_device(name)
    with pytest.raises(HttpOperationError) as caught:
        sdk.get_device(name)
    assert status(caught) == 404


def test_keys_are_made_where_none_are_given(world):
    name = world.name()
    made = world.sdk.create_device_with_sas(name, None, None, "enabled")
    keys = made.authentication.symmetric_key
    with Registry(world.data) as registry:
        assert registry.get(name).keys == (keys.primary_key, keys.secondary_key)


def test_certificates(world):
    sdk, name = world.sdk, world.name()
    made = sdk.create_device_with_x509(name, "AB" * 20, "CD" * 20, "enabled")
    assert made.authentication.type == "selfSigned"
    assert made.authentication.x509_thumbprint.secondary_thumbprint == "CD" * 20
    made = sdk.update_device_with_x509(name, made.etag, "EF" * 32, None, "enabled")
    assert made.authentication.x509_thumbprint.primary_thumbprint == "EF" * 32
    made = sdk.update_device_with_certificate_authority(name, made.etag, "disabled")
    assert (made.authentication.type, made.status) == ("certificateAuthority", "disabled")
    other = sdk.create_device_with_certificate_authority(world.name(), "enabled")
    assert other.authentication.type == "certificateAuthority"


def test_devices_are_listed_and_changed_in_bulk(world):
    sdk, names = world.sdk, [world.name() for _ in range(3)]
    entries = [
        ExportImportDevice(
            id=name,
            import_mode="create",
            status="enabled",
            authentication=AuthenticationMechanism(
                type="sas",
                symmetric_key=SymmetricKey(primary_key=new_key(), secondary_key=new_key()),
            ),
            tags={"hall": number},
        )
        for number, name in enumerate(names)
    ]
    result = sdk.bulk_create_or_update_devices(entries)
    assert result.is_successful and not result.errors
    assert set(names) <= {device.device_id for device in sdk.get_devices()}
    assert len(sdk.get_devices(2)) == 2
    assert sdk.get_twin(names[2]).tags == {"hall": 2}
    result = sdk.bulk_create_or_update_devices(
        [
            ExportImportDevice(id=names[0], import_mode="delete"),
            ExportImportDevice(id="nobody", import_mode="delete"),
        ]
    )
    assert not result.is_successful
    assert [(e.device_id, e.error_code) for e in result.errors] == [("nobody", "DeviceNotFound")]
    assert sdk.get_modules(names[1]) == []


def test_a_twin_is_read_patched_and_replaced(world):
    sdk, name = world.sdk, world.name()
    sdk.create_device_with_sas(name, None, None, "enabled")
    twin = sdk.get_twin(name)
    assert twin.device_id == name and twin.authentication_type == "sas"
    patch = Twin(tags={"hall": 3}, properties=TwinProperties(desired={"a": {"b": 1, "c": 2}}))
    patched = sdk.update_twin(name, patch, twin.etag)
    assert patched.tags == {"hall": 3} and patched.version > twin.version
    assert patched.properties.desired["$version"] == twin.properties.desired["$version"] + 1
    patch = Twin(properties=TwinProperties(desired={"a": {"b": None}}))
    patched = sdk.update_twin(name, patch)
    assert patched.properties.desired["a"] == {"c": 2} and patched.tags == {"hall": 3}
    with pytest.raises(HttpOperationError) as caught:
        sdk.update_twin(name, patch, twin.etag)
    assert status(caught) == 412
    replaced = sdk.replace_twin(name, Twin(tags={"row": 1}), patched.etag)
    assert replaced.tags == {"row": 1} and "a" not in replaced.properties.desired


def test_a_patch_reaches_the_device_and_its_report_comes_back(world):
    sdk, name = world.sdk, world.name()
    sdk.create_device_with_sas(name, None, None, "enabled")
    device = world.device(name)
    try:
        came = []
        device.on_twin_desired_properties_patch_received = came.append
        device.get_twin()
        sdk.update_twin(name, Twin(properties=TwinProperties(desired={"interval": 5})))
        assert eventually(lambda: came) and came[0]["interval"] == 5
        device.patch_twin_reported_properties({"interval": 5})
        twin = sdk.get_twin(name)
        assert twin.properties.reported["interval"] == 5
        assert twin.connection_state == "Connected"
    finally:
        device.shutdown()


def test_a_method_is_invoked_and_answered(world):
    sdk, name = world.sdk, world.name()
    sdk.create_device_with_sas(name, None, None, "enabled")
    call = CloudToDeviceMethod(
        method_name="reboot", payload={"in": 3}, connect_timeout_in_seconds=0
    )
    with pytest.raises(HttpOperationError) as caught:
        sdk.invoke_device_method(name, call)
    assert status(caught) == 404 and "404103" in caught.value.response.text
    device = world.device(name)
    try:

        def answer(asked):
            response = MethodResponse.create_from_method_request(
                asked, 217, {"name": asked.name, "payload": asked.payload}
            )
            device.send_method_response(response)

        device.on_method_request_received = answer
        result = sdk.invoke_device_method(name, call)
        assert result.status == 217
        assert result.payload == {"name": "reboot", "payload": {"in": 3}}
        # The SDK sends "" where no payload is given.
        result = sdk.invoke_device_method(name, CloudToDeviceMethod(method_name="x"))
        assert result.payload == {"name": "x", "payload": ""}
    finally:
        device.shutdown()


def test_a_method_waits_for_a_device_that_is_on_its_way(world):
    sdk, name = world.sdk, world.name()
    sdk.create_device_with_sas(name, None, None, "enabled")
    started = threading.Event()
    results = []

    def invoke():
        started.set()
        call = CloudToDeviceMethod(method_name="late", connect_timeout_in_seconds=20)
        results.append(world.manager().invoke_device_method(name, call))

    caller = threading.Thread(target=invoke)
    caller.start()
    assert started.wait(30)
    time.sleep(0.2)
    device = world.device(name)
    try:
        device.on_method_request_received = lambda asked: device.send_method_response(
            MethodResponse.create_from_method_request(asked, 200)
        )
        caller.join(30)
        assert results and results[0].status == 200
    finally:
        device.shutdown()


def test_statistics_and_queries_in_pages(world):
    sdk, names = world.sdk, [world.name() for _ in range(5)]
    before = sdk.get_device_registry_statistics()
    for name in names:
        sdk.create_device_with_sas(name, None, None, "enabled")
        sdk.update_twin(name, Twin(tags={"query": True}))
    after = sdk.get_device_registry_statistics()
    assert after.total_device_count == before.total_device_count + 5
    assert after.enabled_device_count == before.enabled_device_count + 5
    device = world.device(names[0])
    try:
        assert sdk.get_service_statistics().connected_device_count == 1
        query = QuerySpecification(query="SELECT * FROM devices WHERE tags.query = true")
        found, token = [], None
        while True:
            page = sdk.query_iot_hub(query, token, 2)
            assert page.type == "Twin"
            found += [twin.device_id for twin in page.items]
            token = page.continuation_token
            if not token:
                break
        assert found == sorted(names)
        query.query = "SELECT deviceId FROM devices WHERE connectionState = 'Connected'"
        (only,) = sdk.query_iot_hub(query).items
        assert only.device_id == names[0]
        with pytest.raises(HttpOperationError) as caught:
            sdk.query_iot_hub(QuerySpecification(query="DELETE FROM devices"))
        assert status(caught) == 400
    finally:
        device.shutdown()


def test_a_disabled_device_loses_its_connection_within_a_second(world):
    sdk, name = world.sdk, world.name()
    made = sdk.create_device_with_sas(name, None, None, "enabled")
    keys = made.authentication.symmetric_key
    device = world.device(name)
    try:
        lost = threading.Event()
        device.on_connection_state_change = lambda: device.connected or lost.set()
        started = time.monotonic()
        sdk.update_device_with_sas(
            name, made.etag, keys.primary_key, keys.secondary_key, "disabled"
        )
        assert lost.wait(30) and time.monotonic() - started < in_time(1)
    finally:
        device.shutdown()


@pytest.mark.parametrize(
    ("policy", "reads", "writes", "serves"),
    [
        ("registryRead", True, False, False),
        ("registryReadWrite", True, True, False),
        ("service", False, False, True),
        ("device", False, False, False),
    ],
)
def test_a_policy_opens_what_it_has_the_right_to(world, policy, reads, writes, serves):
    name = world.name()
    world.sdk.create_device_with_sas(name, None, None, "enabled")
    sdk = world.manager(policy)
    calls = [
        (reads, lambda: sdk.get_device(name)),
        (reads, sdk.get_device_registry_statistics),
        (serves, lambda: sdk.get_twin(name)),
        (serves, lambda: sdk.query_iot_hub(QuerySpecification(query="SELECT * FROM devices"))),
        (writes, lambda: sdk.delete_device(name)),
    ]
    for allowed, call in calls:
        if allowed:
            call()
            continue
        with pytest.raises(HttpOperationError) as caught:
            call()
        assert status(caught) == 401


def test_a_wrong_key_is_401(world):
    with pytest.raises(HttpOperationError) as caught:
        world.manager(key=new_key()).get_devices()
    assert status(caught) == 401


def test_a_queue_of_commands_is_purged_by_the_sdks_own_call(world):
    name = world.name()
    world.sdk.create_device_with_sas(name, None, None, "enabled")
    core = world.hub.core
    for number in range(3):
        core.wait(core.send_command(name, b"%d" % number))
    assert world.sdk.get_device(name).cloud_to_device_message_count == 3
    runtime = IoTHubHttpRuntimeManager.from_connection_string(world.connection_string())
    runtime.protocol.config.connection.verify = str(world.roots)
    purged = runtime.protocol.cloud_to_device_messages.purge_cloud_to_device_message_queue(name)
    assert purged.total_messages_purged == 3
    assert core.wait(core.commands_waiting(name)) == []
