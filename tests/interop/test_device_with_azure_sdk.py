"""Our device with Microsoft's service SDK at the other end, unchanged: its methods and its twin."""

from __future__ import annotations

import pytest
from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.models import CloudToDeviceMethod, Twin, TwinProperties
from hubs import eventually, loopback, roots_file
from outpost_tools.hub.rest import RestServer

LEGS_HERE = ("outpost32", "stock-release")

MAIN = b"""
from outpost import Device
d = Device()

@d.method("add")
def add(payload):
    return payload["a"] + payload["b"]

@d.method("fail")
def fail(payload):
    raise ValueError("hunter2")

@d.desired("interval")
def interval(value):
    print("INTERVAL", value)

d.report({"firmware": "7"})
d.run()
"""


@pytest.fixture
def sdk(world):
    host = loopback(8443)
    rest = RestServer(host=host, port=8443)
    world.rest = rest
    hub = world.hub(services=[rest], names=[host])
    key = world.registry.policy("iothubowner").primary_key
    manager = IoTHubRegistryManager.from_connection_string(
        f"HostName={host}:{rest.port};SharedAccessKeyName=iothubowner;SharedAccessKey={key}"
    )
    manager.protocol.config.connection.verify = str(roots_file(world.data))
    world.board(world.image(hub.port, files={"/main.py": MAIN})).wait_for(r"hub +connected", 60)
    return manager


def test_service_sdk_invokes_our_methods(world, sdk):
    def invoke(name, payload=None):
        call = CloudToDeviceMethod(
            method_name=name,
            payload=payload,
            response_timeout_in_seconds=30,
            connect_timeout_in_seconds=30,
        )
        done = sdk.invoke_device_method(world.device.device_id, call)
        return done.status, done.payload

    assert invoke("add", {"a": 2, "b": 40}) == (200, 42)
    assert invoke("fail", {}) == (500, {"error": "fail raised ValueError"})
    assert invoke("missing", {}) == (404, {"error": "this device has no method of that name"})


def test_service_sdk_patches_our_twin_and_reads_what_became_of_it(world, sdk):
    def reported():
        return sdk.get_twin(world.device.device_id).properties.reported

    assert eventually(lambda: reported().get("firmware") == "7")
    patch = Twin(properties=TwinProperties(desired={"interval": 30}))
    version = sdk.update_twin(world.device.device_id, patch, "*").properties.desired["$version"]
    wanted = {"value": 30, "ac": 200, "av": version}
    assert eventually(lambda: reported().get("interval") == wanted), reported()
