"""The service side over HTTPS, asked by `requests`: who may, and what is answered."""

import json
import threading
import time

import pytest
from hubs import roots_file
from hypothesis import given, settings
from hypothesis import strategies as st
from outpost_tools import sas
from outpost_tools.hub import Hub
from outpost_tools.hub.rest import RestServer
from outpost_tools.hub.throttle import Limits
from outpost_tools.registry import Registry, new_key
from restworld import World, code, end
from servers import in_time


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("rest") / "data")
    yield world
    world.close()


# Who may

READ_ONES = [("GET", "/devices/x"), ("GET", "/devices"), ("GET", "/statistics/devices")]
WRITE_ONES = [("PUT", "/devices/x"), ("DELETE", "/devices/x"), ("POST", "/devices")]
SERVICE_ONES = [
    ("GET", "/twins/x"),
    ("PATCH", "/twins/x"),
    ("PUT", "/twins/x"),
    ("POST", "/twins/x/methods"),
    ("POST", "/devices/query"),
    ("POST", "/devices/x/messages/devicebound"),
    ("GET", "/outpost/events"),
    ("GET", "/outpost/status"),
    ("DELETE", "/devices/x/commands"),
]


@pytest.mark.parametrize(
    ("policy", "allowed"),
    [
        ("registryRead", READ_ONES),
        ("registryReadWrite", READ_ONES + WRITE_ONES),
        ("service", SERVICE_ONES),
        ("device", []),
        ("iothubowner", READ_ONES + WRITE_ONES + SERVICE_ONES),
    ],
)
def test_each_right_opens_its_routes_and_no_other(world, policy, allowed):
    for method, path in READ_ONES + WRITE_ONES + SERVICE_ONES:
        answer = world.ask(method, path, [] if path == "/devices" else {}, policy=policy)
        refused = answer.status_code == 401
        assert refused is ((method, path) not in allowed), (method, path, answer.text)
    world.ask("DELETE", "/devices/x")


@pytest.mark.parametrize(
    "case",
    ["none", "expired", "wrong key", "no policy", "other hub", "other part", "basic", "device's"],
)
def test_a_token_that_does_not_open_is_401_and_nothing_secret_is_said(world, case):
    device = world.device()
    token = world.token()
    match case:
        case "none":
            token = "x"
        case "expired":
            token = world.token(life_s=-1)
        case "wrong key":
            token = world.token(key=new_key())
        case "no policy":
            token = world.token(policy="nobody")
        case "other hub":
            token = world.token(resource="other.example")
        case "other part":
            token = world.token(resource="127.0.0.1/twins")
        case "basic":
            token = "Basic aGVsbG86d29ybGQ="
        case "device's":
            key = device["authentication"]["symmetricKey"]["primaryKey"]
            resource = f"127.0.0.1/devices/{device['deviceId']}"
            token = sas.make(key, resource, int(time.time()) + 600)
    answer = world.ask("GET", f"/devices/{device['deviceId']}", token=token)
    assert answer.status_code == 401 and code(answer) == "IotHubUnauthorizedAccess"
    log = json.dumps(world.hub.events, default=str)
    assert "sig=" not in answer.text + log and (len(token) < 9 or token not in log)


def test_a_token_for_a_part_of_the_hub_opens_that_part(world):
    device_id = world.device()["deviceId"]
    port = world.rest.port
    for resource in (f"127.0.0.1/devices/{device_id}", f"LocalHost:{port}/devices", "localhost"):
        token = world.token(resource=resource)
        assert world.ask("GET", f"/devices/{device_id}", token=token).status_code == 200
    token = world.token(resource=f"127.0.0.1/devices/{device_id}")
    assert world.ask("GET", f"/devices/{device_id}9", token=token).status_code == 401


def test_the_secondary_key_of_a_policy_opens_too_until_it_is_replaced(world):
    with Registry(world.data) as registry:
        policy = registry.add_policy("spare", ["RegistryRead"])
        token = world.token("spare", key=policy.secondary_key)
        assert world.ask("GET", "/devices", token=token).status_code == 200
        registry.rotate_policy("spare", "secondary")
        assert world.ask("GET", "/devices", token=token).status_code == 401


# Devices


def test_a_device_is_made_read_changed_and_removed(world):
    made = world.device(statusReason="new")
    device_id = made["deviceId"]
    assert made["status"] == "enabled" and made["connectionState"] == "Disconnected"
    assert made["authentication"]["type"] == "sas" and made["statusReason"] == "new"
    answer = world.ask("GET", f"/devices/{device_id}")
    assert answer.json() == made and answer.headers["ETag"] == f'"{made["etag"]}"'

    changed = world.ask(
        "PUT",
        f"/devices/{device_id}",
        {**made, "status": "disabled", "statusReason": "stolen"},
        headers={"If-Match": f'"{made["etag"]}"'},
    ).json()
    assert (changed["status"], changed["statusReason"]) == ("disabled", "stolen")
    assert changed["authentication"] == made["authentication"]
    assert changed["etag"] != made["etag"] and changed["generationId"] == made["generationId"]
    stale = world.ask(
        "PUT", f"/devices/{device_id}", made, headers={"If-Match": f'"{made["etag"]}"'}
    )
    assert (stale.status_code, code(stale)) == (412, "PreconditionFailed")
    stale = world.ask("DELETE", f"/devices/{device_id}", headers={"If-Match": made["etag"]})
    assert stale.status_code == 412
    gone = world.ask("DELETE", f"/devices/{device_id}", headers={"If-Match": "*"})
    assert gone.status_code == 204 and not gone.content
    for method in ("GET", "DELETE"):
        answer = world.ask(method, f"/devices/{device_id}")
        assert (answer.status_code, code(answer)) == (404, "DeviceNotFound")
    answer = world.ask("PUT", f"/devices/{device_id}", {}, headers={"If-Match": "*"})
    assert answer.status_code == 404


def test_a_device_that_is_there_is_not_made_again(world):
    made = world.device()
    answer = world.ask("PUT", f"/devices/{made['deviceId']}", {"deviceId": made["deviceId"]})
    assert (answer.status_code, code(answer)) == (409, "DeviceAlreadyExists")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/devices/a%20b", {}),
        ("/devices/" + "a" * 129, {}),
        ("/devices/a", []),
        ("/devices/a", {"deviceId": "b"}),
        ("/devices/a", {"status": "broken"}),
        ("/devices/a", {"authentication": {"type": "none"}}),
        ("/devices/a", {"authentication": {"symmetricKey": {"primaryKey": "short"}}}),
        ("/devices/a", {"authentication": {"type": "selfSigned"}}),
        ("/devices/a", {"authentication": {"x509Thumbprint": {"primaryThumbprint": "zz"}}}),
        ("/devices/a", {"capabilities": {"iotEdge": True}}),
        ("/devices/a", {"statusReason": "x" * 129}),
    ],
)
def test_a_wrong_device_is_400_and_is_not_made(world, path, body):
    answer = world.ask("PUT", path, body)
    assert (answer.status_code, code(answer)) == (400, "ArgumentInvalid")
    assert world.ask("GET", "/devices/a").status_code == 404


def test_a_body_that_is_no_json_or_a_bomb_is_400_and_too_much_is_413(world):
    for raw in (b"{", b"\xff", b"[" * 100000, b'{"deviceId": NaN}'):
        answer = world.ask("PUT", "/devices/a", data=raw)
        assert answer.status_code == 400, raw[:20]
    answer = world.ask("PUT", "/devices/a", data=b" " * (5 << 20))
    assert answer.status_code == 413
    assert world.ask("GET", "/devices").status_code == 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
MEMBERS = ("deviceId", "status", "statusReason", "authentication", "capabilities", "tags")
MEMBERS += ("properties", "id", "importMode", "methodName", "payload", "query")
ROUTES = [
    ("PUT", "/devices/json"),
    ("POST", "/devices"),
    ("PATCH", "/twins/json"),
    ("PUT", "/twins/json"),
    ("POST", "/twins/json/methods"),
    ("POST", "/devices/query"),
]


@given(st.sampled_from(ROUTES), JSON | st.dictionaries(st.sampled_from(MEMBERS), JSON))
@settings(max_examples=150, deadline=None)
def test_any_json_at_any_route_is_answered_and_is_no_fault_of_ours(world, route, body):
    method, path = route
    if path == "/devices":
        body = [body]
    answer = world.ask(method, path, data=json.dumps(body), headers={"If-Match": "*"})
    assert answer.status_code in (200, 400, 404, 413), answer.text
    assert "fault" not in answer.text or answer.status_code < 500


def test_no_api_version_is_400_and_an_unknown_route_says_so(world):
    assert code(world.ask("GET", "/devices", params={})) == "ArgumentInvalid"
    assert world.ask("GET", "/configurations/x").status_code == 404
    assert world.ask("POST", "/statistics/devices").status_code == 405


def test_thumbprints_and_authorities(world):
    prints = {"primaryThumbprint": "ab" * 20, "secondaryThumbprint": "CD:" * 31 + "CD"}
    made = world.device(authentication={"type": "selfSigned", "x509Thumbprint": prints})
    assert made["authentication"]["x509Thumbprint"] == {
        "primaryThumbprint": "AB" * 20,
        "secondaryThumbprint": "CD" * 32,
    }
    assert made["authentication"]["symmetricKey"]["primaryKey"] is None
    made = world.device(authentication={"type": "certificateAuthority"})
    assert made["authentication"]["type"] == "certificateAuthority"


def test_disabling_a_device_closes_its_connection_within_a_second(world):
    made = world.device()
    client = world.connect(made)
    started = time.monotonic()
    body = {**made, "status": "disabled"}
    world.ask("PUT", f"/devices/{made['deviceId']}", body, headers={"If-Match": "*"})
    assert client.lost.wait(30) and time.monotonic() - started < in_time(1)
    end(client)


def test_any_device_id_that_iot_hub_takes_can_be_named_in_a_path(world):
    from urllib.parse import quote

    for device_id in ("a-b.c%d_e*f?g!h(i)j,k:l=m@n$o'p", "%41", "a%2Fb", "x" * 128):
        path = f"/devices/{quote(device_id, safe='')}"
        made = world.ask("PUT", path, {"deviceId": device_id})
        assert made.status_code == 200 and made.json()["deviceId"] == device_id
        assert world.ask("GET", path.replace("/devices", "/twins")).status_code == 200
        assert world.ask("DELETE", path).status_code == 204


def test_bulk_makes_changes_and_removes_and_names_what_failed(world):
    old, gone = world.device(), world.device()
    entries = [
        {"id": "bulk-1", "tags": {"hall": 3}, "properties": {"desired": {"x": 1}}},
        {"id": old["deviceId"], "importMode": "update", "status": "disabled"},
        {
            "id": gone["deviceId"],
            "importMode": "deleteIfMatchETag",
            "eTag": gone["etag"],
        },
        {"id": "bulk-2", "importMode": "createOrUpdate"},
    ]
    answer = world.ask("POST", "/devices", entries)
    assert answer.status_code == 200 and answer.json()["isSuccessful"]
    twin = world.ask("GET", "/twins/bulk-1").json()
    assert twin["tags"] == {"hall": 3} and twin["properties"]["desired"]["x"] == 1
    assert world.ask("GET", f"/devices/{old['deviceId']}").json()["status"] == "disabled"
    assert world.ask("GET", f"/devices/{gone['deviceId']}").status_code == 404
    answer = world.ask(
        "POST",
        "/devices",
        [
            {"id": "bulk-1"},
            {"id": "bulk-3"},
            {"id": "bulk-3"},
            {"id": "nobody", "importMode": "delete"},
            {"id": "bulk-2", "importMode": "updateIfMatchETag", "eTag": "other"},
            {"id": "bulk-2x", "importMode": "perhaps"},
            {"id": 7},
        ],
    )
    assert answer.status_code == 400 and not answer.json()["isSuccessful"]
    assert [(e["deviceId"], e["errorCode"]) for e in answer.json()["errors"]] == [
        ("bulk-1", "DeviceAlreadyExists"),
        ("bulk-3", "ArgumentInvalid"),
        ("nobody", "DeviceNotFound"),
        ("bulk-2", "PreconditionFailed"),
        ("bulk-2x", "ArgumentInvalid"),
        ("7", "ArgumentInvalid"),
    ]
    assert world.ask("POST", "/devices", [{"id": f"b{n}"} for n in range(101)]).status_code == 400


# Twins, methods, queries, statistics


def test_a_twin_is_read_patched_and_replaced(world):
    path = f"/twins/{world.device()['deviceId']}"
    first = world.ask("GET", path)
    assert first.headers["ETag"] == f'"{first.json()["etag"]}"'
    body = {"tags": {"hall": 3, "row": 7}, "properties": {"desired": {"a": {"b": 1, "c": 2}}}}
    second = world.ask("PATCH", path, body, headers={"If-Match": first.headers["ETag"]}).json()
    desired = second["properties"]["desired"]
    assert desired["$version"] == first.json()["properties"]["desired"]["$version"] + 1
    third = world.ask(
        "PATCH", path, {"tags": {"row": None}, "properties": {"desired": {"a": {"b": None}}}}
    ).json()
    assert third["tags"] == {"hall": 3} and third["properties"]["desired"]["a"] == {"c": 2}
    stale = world.ask("PATCH", path, body, headers={"If-Match": first.headers["ETag"]})
    assert stale.status_code == 412
    fourth = world.ask("PUT", path, {"tags": {"x": 1}}, headers={"If-Match": "*"}).json()
    assert fourth["tags"] == {"x": 1} and "a" not in fourth["properties"]["desired"]
    # What was read can be written back as it is.
    assert world.ask("PUT", path, fourth).status_code == 200
    big = {"properties": {"desired": {f"k{n}": "x" * 4000 for n in range(9)}}}
    answer = world.ask("PATCH", path, big)
    assert answer.status_code == 413
    for wrong in ([], {"tags": 3}, {"properties": []}, {"properties": {"desired": 7}}):
        assert world.ask("PATCH", path, wrong).status_code == 400
    assert world.ask("GET", "/twins/nobody").status_code == 404


def test_a_method_reaches_the_device_and_its_answer_comes_back(world):
    device = world.device()
    path = f"/twins/{device['deviceId']}/methods"
    offline = world.ask("POST", path, {"methodName": "reboot"})
    assert offline.status_code == 404 and "404103" in offline.json()["Message"]
    client = world.connect(device)

    def answered(_client, _user, message):
        name, query = message.topic.split("/")[3:5]
        if name == "echo":
            topic = f"$iothub/methods/res/207/{query}"
            client.publish(topic, message.payload)

    client.on_message = answered
    ready = threading.Event()
    client.on_subscribe = lambda *a: ready.set()
    client.subscribe("$iothub/methods/POST/#")
    assert ready.wait(10)
    answer = world.ask("POST", path, {"methodName": "echo", "payload": {"a": [1, None]}})
    assert answer.json() == {"status": 207, "payload": {"a": [1, None]}}
    late = world.ask("POST", path, {"methodName": "sleep", "responseTimeoutInSeconds": 5})
    assert late.status_code == 504 and "504101" in late.json()["Message"]
    for wrong in (
        {},
        {"methodName": 7},
        {"methodName": "a/b"},
        {"methodName": "x", "responseTimeoutInSeconds": 1000},
        {"methodName": "x", "connectTimeoutInSeconds": "soon"},
    ):
        assert world.ask("POST", path, wrong).status_code == 400
    end(client)


def test_a_query_comes_in_pages(world):
    made = [world.device()["deviceId"] for _ in range(5)]
    for device_id in made:
        world.ask("PATCH", f"/twins/{device_id}", {"tags": {"page": True}})
    body = {"query": "SELECT * FROM devices WHERE tags.page = true"}
    found, token = [], None
    while True:
        headers = {"x-ms-max-item-count": "2"}
        if token:
            headers["x-ms-continuation"] = token
        answer = world.ask("POST", "/devices/query", body, headers=headers)
        assert answer.headers["x-ms-item-type"] == "Twin"
        found += [twin["deviceId"] for twin in answer.json()]
        token = answer.headers.get("x-ms-continuation")
        if not token:
            break
    assert found == sorted(made)
    counted = world.ask(
        "POST", "/devices/query", {"query": "SELECT COUNT() AS n FROM devices WHERE tags.page"}
    )
    assert counted.json() == [{"n": 5}] and counted.headers["x-ms-item-type"] == "Raw"
    for headers in ({"x-ms-continuation": "nonsense"}, {"x-ms-max-item-count": "many"}):
        assert world.ask("POST", "/devices/query", body, headers=headers).status_code == 400
    assert world.ask("POST", "/devices/query", {"query": "DROP"}).status_code == 400


def test_statistics_count(world):
    before = world.ask("GET", "/statistics/devices").json()
    device = world.device()
    world.device(status="disabled")
    after = world.ask("GET", "/statistics/devices").json()
    assert after["totalDeviceCount"] == before["totalDeviceCount"] + 2
    assert after["disabledDeviceCount"] == before["disabledDeviceCount"] + 1
    client = world.connect(device)
    assert world.ask("GET", "/statistics/service").json() == {"connectedDeviceCount": 1}
    end(client)


# Our own routes


def test_a_command_is_queued_with_its_properties_and_can_be_purged(world):
    device_id = world.device()["deviceId"]
    path = f"/devices/{device_id}/messages/devicebound"
    sent = world.ask(
        "POST",
        path,
        data=b"\x00\xffbytes",
        headers={
            "iothub-messageid": "m-1",
            "iothub-correlationid": "c-1",
            "iothub-ack": "full",
            "iothub-expiry": str(int(time.time()) + 60),
            "iothub-app-with%20space": "a%26b",
            "Content-Type": "application/json",
        },
    )
    assert sent.status_code == 201 and sent.json()["messageId"] == "m-1"
    (held,) = world.ask("GET", path).json()["waiting"]
    assert held["messageId"] == "m-1" and held["properties"]["with space"] == "a&b"
    assert world.ask("GET", f"/devices/{device_id}").json()["cloudToDeviceMessageCount"] == 1
    purged = world.ask("DELETE", f"/devices/{device_id}/commands").json()
    assert purged["totalMessagesPurged"] == 1
    assert world.ask("GET", path).json()["waiting"] == []
    assert world.ask("POST", path, data=b"x" * 65537).status_code == 413
    assert world.ask("POST", path, data=b"", headers={"iothub-ack": "maybe"}).status_code == 400
    assert world.ask("POST", path, data=b"", headers={"iothub-expiry": "soon"}).status_code == 400
    other = "/devices/nobody/messages/devicebound"
    assert world.ask("POST", other, data=b"x").status_code == 404


def test_events_are_kept_and_followed_without_a_gap(world):
    device = world.device()
    device_id = device["deviceId"]
    client = world.connect(device)
    topic = f"devices/{device_id}/messages/events/"
    started = time.time() - 60
    for n in range(3):
        client.publish(topic, f"{n}", qos=1).wait_for_publish(10)
    client.publish(topic, b"\xff", qos=1).wait_for_publish(10)
    params = {"device": device_id, "since": str(started), "kinds": "telemetry"}
    kept = [
        json.loads(line)
        for line in world.ask("GET", "/outpost/events", params=params).text.splitlines()
    ]
    assert [e.get("body") for e in kept] == ["0", "1", "2", "\\xff"]
    assert kept[3]["base64"] == "/w=="
    follow = world.ask("GET", "/outpost/events", params={**params, "follow": "1"}, stream=True)
    lines = follow.iter_lines(chunk_size=1)
    assert json.loads(next(lines))["body"] == "0"
    client.publish(topic, "live", qos=1).wait_for_publish(10)
    seen = [json.loads(next(lines)) for _ in range(4)]
    assert [e.get("body") for e in seen] == ["1", "2", "\\xff", "live"]
    follow.close()
    status = world.ask("GET", "/outpost/status").json()
    assert device_id in status["connected"] and status["restPort"] == world.rest.port
    end(client)


# The listener


def test_throttling_is_429_with_a_time_to_wait(tmp_path):
    world = World(tmp_path / "data", limits=Limits(registry=1))
    try:
        answers = [world.ask("GET", "/devices") for _ in range(3)]
        assert [a.status_code for a in answers][0] == 200
        refused = next(a for a in answers if a.status_code == 429)
        assert code(refused) == "ThrottlingException" and int(refused.headers["Retry-After"]) >= 1
    finally:
        world.close()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_tls_1_2_alone_and_no_garbage_stops_it(world):
    import socket
    import ssl

    context = ssl.create_default_context(cafile=str(world.roots))
    with socket.create_connection(("127.0.0.1", world.rest.port), 10) as plain:
        with context.wrap_socket(plain, server_hostname="localhost") as tls:
            assert tls.version() == "TLSv1.2"
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with socket.create_connection(("127.0.0.1", world.rest.port), 10) as plain:
        with pytest.raises(ssl.SSLError):
            context.wrap_socket(plain, server_hostname="localhost")
    with socket.create_connection(("127.0.0.1", world.rest.port), 10) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert world.ask("GET", "/devices").status_code == 200


def test_a_port_that_is_taken_is_one_sentence(world, tmp_path):
    from outpost_tools.errors import OutpostError

    roots_file(tmp_path / "data")
    second = Hub(tmp_path / "data", services=[RestServer(port=world.rest.port)])
    with pytest.raises(OutpostError, match="--rest-port"):
        second.start()
