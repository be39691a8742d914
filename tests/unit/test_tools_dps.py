"""The provisioning service on the hub's listener, spoken to by paho and by a real web hook."""

import base64
import json
import queue
import socket
import ssl
import threading
import time

import paho.mqtt.client as paho
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from dpsclient import API, REGISTER, RESPONSES, STATUS
from dpshub import WebHook, World
from hubs import eventually
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from outpost_tools import sas
from outpost_tools.enrolment import derive_key
from outpost_tools.errors import OutpostError
from outpost_tools.hub.dps import CSR_SINCE, Dps
from outpost_tools.hub.twins import TwinStore
from outpost_tools.registry import Registry, new_key

from certs import holder, request


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("dps") / "data")
    yield world
    world.close()


@pytest.fixture
def hook():
    hook = WebHook()
    yield hook
    hook.close()


# Symmetric keys


@pytest.mark.parametrize("which", [0, 1])
def test_an_individual_enrolment_makes_the_device_with_its_keys_and_first_twin(world, which):
    twin = {"tags": {"hall": 3}, "properties": {"desired": {"interval": 10}}}
    made = world.enrol(deviceId=f"device-{which}", initialTwin=twin)
    answer = world.register(made.name, made.keys[which])
    state = answer["registrationState"]
    assert answer["status"] == state["status"] == "assigned"
    assert state["substatus"] == "initialAssignment" and state["registrationId"] == made.name
    assert (state["assignedHub"], state["deviceId"]) == ("127.0.0.1", f"device-{which}")
    device = world.hub_device(f"device-{which}")
    assert device.keys == made.keys and device.enabled
    held = world.hub.core.wait(world.hub.core.twin_get(f"device-{which}"))
    assert held.tags == {"hall": 3} and held.desired == {"interval": 10}
    assert world.enrolments.registration(made.name).assigned_hub == "127.0.0.1"


def test_a_groups_device_has_a_key_of_its_own(world):
    group = world.group("keys", initialTwin={"tags": {"of": "group"}})
    name = world.name()
    keys = tuple(derive_key(key, name) for key in group.keys)
    answer = world.register(name, keys[1])
    assert answer["status"] == "assigned"
    assert world.hub_device(name).keys == keys
    assert world.enrolments.registrations("keys")[0].device_id == name
    with world.client(world.name(), keys[0]) as other:  # another device's key
        assert other.code == 5


def test_an_enrolment_of_its_own_goes_before_a_group(world):
    group = world.group("before")
    made = world.enrol()
    with world.client(made.name, derive_key(group.keys[0], made.name)) as client:
        assert client.code == 5
    assert world.register(made.name, made.keys[0])["status"] == "assigned"


@pytest.mark.parametrize(
    ("case", "code"),
    [
        ("unknown", 5),
        ("wrong key", 5),
        ("expired", 5),
        ("other scope", 5),
        ("other's token", 5),
        ("hub's policy", 5),
        ("no password", 5),
        ("no token", 4),
        ("no api-version", 4),
        ("other client id", 2),
    ],
)
def test_who_is_not_enrolled_is_refused_and_no_secret_is_logged(world, case, code):
    made = world.enrol()
    name, key, options = made.name, made.keys[0], {}
    match case:
        case "unknown":
            name = "nobody"
        case "wrong key":
            key = new_key()
        case "expired":
            options["token"] = world.token(name, key, life_s=-1)
        case "other scope":
            options["scope"] = "0ne00000000"
        case "other's token":
            options["token"] = world.token("other", key)
        case "hub's policy":
            options["token"] = world.token(name, key, policy="device")
        case "no password":
            key = None
        case "no token":
            options["token"] = "hunter2-hunter2"
        case "no api-version":
            options["api"] = ""
        case "other client id":
            options["client_id"] = "other"
    with world.client(name, key, **options) as client:
        assert client.code == code
    log = world.log()
    assert "sig=" not in log and "hunter2" not in log and not any(k in log for k in made.keys)
    assert '"reason": "DPS: ' in log and world.hub_device(made.name) is None


def test_a_disabled_enrolment_assigns_nobody(world):
    made = world.enrol(provisioningStatus="disabled")
    answer = world.register(made.name, made.keys[0])
    assert answer["status"] == answer["registrationState"]["status"] == "disabled"
    assert world.hub_device(made.name) is None
    # Enabled again it does; disabled between CONNECT and the registration it does not.
    world.enrolments.set_status(made.name, "enabled")
    with world.client(made.name, made.keys[0]) as client:
        world.enrolments.set_status(made.name, "disabled")
        assert client.register()["status"] == "disabled"
        world.enrolments.set_status(made.name, "enabled")
        assert client.register()["status"] == "assigned"


# The conversation


def test_polling_says_how_long_to_wait_and_goes_on_in_another_connection(tmp_path):
    world = World(tmp_path / "data", retry_after_s=7, hold_s=1.0)
    try:
        made = world.enrol()
        with world.client(made.name, made.keys[0]) as client:
            status, options, answer = client.ask(REGISTER.format("abc%20"), b"{}")
            assert (status, options) == (202, {"rid": "abc%20", "retry-after": "7"})
        with world.client(made.name, made.keys[0]) as client:
            topic = STATUS.format(5, answer["operationId"])
            assert client.ask(topic)[2]["status"] == "assigning"
            assert eventually(lambda: client.ask(topic)[2]["status"] == "assigned")
            status, _, answer = client.ask(STATUS.format(6, "5.other"))
            assert status == 404 and answer["errorCode"] == 404203
        other = world.enrol()
        with world.client(other.name, other.keys[0]) as client:
            assert client.ask(topic)[0] == 404  # another device's operation
    finally:
        world.close()


def test_a_device_that_registers_without_end_is_told_to_wait(tmp_path):
    world = World(tmp_path / "data", hold_s=1.0)
    try:
        made = world.enrol()
        with world.client(made.name, made.keys[0]) as client:
            answers = [client.ask(REGISTER.format(n), b"{}") for n in range(10)]
            assert [status for status, _, _ in answers] == [202] * 8 + [429] * 2
            assert answers[-1][1]["retry-after"] == "1"
            last = STATUS.format(99, answers[7][2]["operationId"])
            assert eventually(lambda: client.ask(last)[2]["status"] == "assigned")
            assert client.register()["status"] == "assigned"
    finally:
        world.close()


def test_too_many_registrations_are_429_with_retry_after(tmp_path):
    world = World(tmp_path / "data", per_minute=1)
    try:
        made = world.enrol()
        assert world.register(made.name, made.keys[0])["status"] == "assigned"
        with world.client(made.name, made.keys[0]) as client:
            status, options, answer = client.ask(REGISTER.format(1), b"{}")
        assert (status, answer["errorCode"]) == (429, 429001)
        assert 0 < int(options["retry-after"]) <= 61
    finally:
        world.close()


@pytest.mark.parametrize(
    "body",
    [b"{", b"\xff", b"[]", b"[" * 50000, b'{"registrationId": "other"}', b'{"registrationId": 7}'],
)
def test_a_wrong_request_is_400_and_the_connection_stays(world, body):
    made = world.enrol()
    with world.client(made.name, made.keys[0]) as client:
        status, _, answer = client.ask(REGISTER.format(1), body)
        assert status == 400 and set(answer) == {
            "errorCode",
            "trackingId",
            "message",
            "timestampUtc",
        }
        assert client.register()["status"] == "assigned"


@pytest.mark.parametrize(
    ("topic", "qos", "body"),
    [
        ("devices/x/messages/events/", 1, b"{}"),
        ("$dps/registrations/PUT/other/?$rid=1", 1, b"{}"),
        ("$dps/registrations/PUT/iotdps-register/", 1, b"{}"),
        (REGISTER.format("x" * 200), 1, b"{}"),
        (REGISTER.format(1), 2, b"{}"),
        (REGISTER.format(1), 1, b" " * 70000),
    ],
)
def test_what_dps_does_not_take_ends_the_connection_with_one_line(world, topic, qos, body):
    made = world.enrol()
    before = len(world.hub.events)
    with world.client(made.name, made.keys[0]) as client:
        client.mqtt.publish(topic, body, qos=qos)
        assert client.lost.wait(10)
    closed = [e for e in world.hub.events[before:] if e["event"] == "closed"]
    assert len(closed) == 1 and "DPS" in closed[0]["reason"]


def test_other_topics_are_not_subscribed_and_answers_go_to_who_subscribed(world):
    made = world.enrol()
    with world.client(made.name, made.keys[0]) as client:
        granted = queue.Queue()
        client.mqtt.on_subscribe = lambda c, u, mid, codes: granted.put(codes)
        client.mqtt.subscribe([("#", 1), ("$iothub/twin/res/#", 0), (RESPONSES, 2)])
        assert granted.get(timeout=30) == (128, 128, 1)
        gone = threading.Event()
        client.mqtt.on_unsubscribe = lambda *a: gone.set()
        client.mqtt.unsubscribe(RESPONSES)
        assert gone.wait(10)
        client.mqtt.publish(REGISTER.format(1), b"{}", qos=1).wait_for_publish(10)
        with pytest.raises(queue.Empty):
            client.answers.get(timeout=0.5)


def test_the_connection_ends_with_its_token(world):
    made = world.enrol()
    token = world.token(made.name, made.keys[0], life_s=2)
    with world.client(made.name, token=token) as client:
        assert client.code == 0 and client.lost.wait(10)
    assert "its token has expired" in world.log()


def test_truncated_and_random_packets_end_the_connection_and_not_the_hub(world):
    context = ssl.create_default_context(cafile=str(world.roots))
    user = f"{world.dps.id_scope}/registrations/x/api-version={API}".encode()

    def text(value):
        return len(value).to_bytes(2, "big") + value

    body = text(b"MQTT") + b"\x04\xc2\x00\x3c" + text(b"x") + text(user) + text(b"p")
    packet = bytes([0x10, len(body)]) + body
    for raw in (packet, packet[:-1], packet[:20], packet[:3] + b"\xff" + packet[4:]):
        with socket.create_connection(("127.0.0.1", world.hub.port), 10) as plain:
            with context.wrap_socket(plain, server_hostname="localhost") as tls:
                tls.sendall(raw)
                tls.settimeout(0.3)
                try:
                    tls.recv(100)
                except OSError:
                    pass
    made = world.enrol()
    assert world.register(made.name, made.keys[0])["status"] == "assigned"


# Certificates


def as_individual(*holders):
    kept = dict(
        zip(("primary", "secondary"), ({"certificate": h.pem} for h in holders), strict=False)
    )
    return {"type": "x509", "x509": {"clientCertificates": kept}}


def as_group(holder):
    kept = {"primary": {"certificate": holder.pem}}
    return {"type": "x509", "x509": {"signingCertificates": kept}}


def test_a_certificate_of_its_own_is_shown_to_dps_and_then_to_the_hub(world, tmp_path):
    name = world.name()
    first, second = holder(name), holder(name)
    world.enrol(name, attestation=as_individual(first, second))
    answer = world.register(name, cert=second.write(tmp_path, "second"))
    assert answer["status"] == "assigned" and "x509" in answer["registrationState"]
    device = world.hub_device(name)
    assert device.auth == "selfSigned" and len(device.thumbprints) == 2
    with world.client(name, cert=holder(name).write(tmp_path, "third")) as client:
        assert client.code == 5  # the right name and another certificate
    with world.client(name) as client:
        assert client.code == 5


def test_a_groups_certificate_is_known_by_who_signed_it(world, tmp_path):
    root = holder("Makers root", authority=True)
    middle = holder("Hall 3", root, authority=True)
    world.group("makers", attestation=as_group(root))
    name = world.name()
    answer = world.register(name, cert=holder(name, middle).write(tmp_path, "leaf"))
    assert answer["status"] == "assigned"
    device = world.hub_device(name)
    assert device.auth == "selfSigned" and len(device.thumbprints) == 1
    # The next certificate of the same device takes the place of the first.
    world.register(name, cert=holder(name, root).write(tmp_path, "next"))
    assert world.hub_device(name).thumbprints != device.thumbprints
    stranger = holder("Strangers root", authority=True)
    with world.client(name, cert=holder(name, stranger).write(tmp_path, "other")) as client:
        assert client.code == 5


def test_a_certificate_request_is_answered_with_a_chain_that_the_hub_takes(world, tmp_path):
    world.enrolments.put_credential_policy("week", 7)
    made = world.enrol(credentialPolicyName="week")
    key = ec.generate_private_key(ec.SECP256R1())
    body = {"registrationId": made.name, "csr": request(made.name, key)}
    answer = world.register(made.name, made.keys[0], body, api=CSR_SINCE)
    chain = [
        x509.load_der_x509_certificate(base64.b64decode(text))
        for text in answer["registrationState"]["issuedCertificateChain"]
    ]
    assert len(chain) == 2 and chain[0].public_key() == key.public_key()
    chain[0].verify_directly_issued_by(chain[1])
    assert world.hub_device(made.name).auth == "certificateAuthority"
    # The hub takes it.
    device = holder(made.name)
    issued = type(device)(chain[0], key, (chain[1],))
    client = paho.Client(client_id=made.name, protocol=paho.MQTTv311)
    context = ssl.create_default_context(cafile=str(world.roots))
    context.load_cert_chain(*issued.write(tmp_path, "issued"))
    client.tls_set_context(context)
    client.username_pw_set(f"localhost/{made.name}/?api-version=2021-04-12")
    client.connect("localhost", world.hub.port)
    client.loop_start()
    assert eventually(lambda: made.name in world.hub.connected)
    client.disconnect()
    client.loop_stop()
    assert body["csr"][:40] not in world.log()


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("older api", "api-version"),
        ("no policy", "credential policy"),
        ("other name", "common name"),
        ("other device id", "device id"),
        ("no base64", "base64"),
    ],
)
def test_a_request_that_is_not_signed_says_why_and_makes_no_device(world, case, reason):
    more = {"credentialPolicyName": "default"}
    if case == "no policy":
        more = {}
    if case == "other device id":
        more["deviceId"] = "another"
    made = world.enrol(**more)
    csr = request("somebody" if case == "other name" else made.name)
    csr = 7 if case == "no base64" else csr
    api = API if case == "older api" else CSR_SINCE
    answer = world.register(made.name, made.keys[0], {"csr": csr}, api=api)
    if case == "older api":
        assert answer["errorCode"] == 400004 and reason in answer["message"]
    else:
        assert answer["status"] == "failed"
        assert reason in answer["registrationState"]["errorMessage"]
    assert world.hub_device(made.name) is None


# Several hubs


def link(world, host, folder):
    Registry(folder).close()
    world.enrolments.link_hub(host, folder)
    return folder


def device_of(folder, device_id):
    with Registry(folder) as registry:
        return registry.find(device_id)


def twin_of(folder, device_id):
    store = TwinStore(folder, time.time)
    try:
        return store.get(device_id)
    finally:
        store.close()


@pytest.mark.parametrize("migrates", [True, False])
def test_a_device_that_registers_again_moves_with_its_enrolment(world, tmp_path, migrates):
    folder = link(world, "second.example", tmp_path / "second")
    policy = {"updateHubAssignment": True, "migrateDeviceData": migrates}
    initial = {"tags": {"first": True}}
    made = world.enrol(iotHubs=["127.0.0.1"], reprovisionPolicy=policy, initialTwin=initial)
    first = world.register(made.name, made.keys[0])["registrationState"]
    again = world.register(made.name, made.keys[0])["registrationState"]
    assert again["substatus"] == "reprovisionedToInitialAssignment"
    assert again["createdDateTimeUtc"] == first["createdDateTimeUtc"]
    core = world.hub.core
    core.wait(core.twin_patch(made.name, {"hall": 7}, {"interval": 9}))
    core.wait(core.twin_patch_reported(made.name, {"fw": "1.2"}))
    moved = {**made.document, "iotHubs": ["second.example"]}
    world.enrolments.put(moved, if_match="*")
    state = world.register(made.name, made.keys[0])["registrationState"]
    assert state["assignedHub"] == "second.example"
    assert state["substatus"] == ("deviceDataMigrated" if migrates else "deviceDataReset")
    assert world.hub_device(made.name) is None
    assert device_of(folder, made.name).keys == made.keys
    twin = twin_of(folder, made.name)
    if migrates:
        assert (twin.tags, twin.desired) == ({"first": True, "hall": 7}, {"interval": 9})
        assert twin.reported == {"fw": "1.2"}
    else:
        assert (twin.tags, twin.desired, twin.reported) == ({"first": True}, {}, {})
    world.enrolments.unlink_hub("second.example")


def test_a_device_that_is_never_moved_stays(world, tmp_path):
    link(world, "third.example", tmp_path / "third")
    policy = {"updateHubAssignment": False, "migrateDeviceData": False}
    made = world.enrol(iotHubs=["127.0.0.1"], reprovisionPolicy=policy)
    world.register(made.name, made.keys[0])
    world.enrolments.put({**made.document, "iotHubs": ["third.example"]}, if_match="*")
    state = world.register(made.name, made.keys[0])["registrationState"]
    assert state["assignedHub"] == "127.0.0.1"
    world.enrolments.unlink_hub("third.example")


def test_moving_closes_the_connection_to_the_hub_before(world, tmp_path):
    link(world, "fourth.example", tmp_path / "fourth")
    made = world.enrol(iotHubs=["127.0.0.1"])
    world.register(made.name, made.keys[0])
    client = paho.Client(client_id=made.name, protocol=paho.MQTTv311)
    client.tls_set(ca_certs=str(world.roots))
    token = sas.make(made.keys[0], f"localhost/devices/{made.name}", int(time.time()) + 600)
    client.username_pw_set(f"localhost/{made.name}/?api-version=2021-04-12", token)
    lost = threading.Event()
    client.on_disconnect = lambda *a: lost.set()
    client.connect("localhost", world.hub.port)
    client.loop_start()
    assert eventually(lambda: made.name in world.hub.connected)
    world.enrolments.put({**made.document, "iotHubs": ["fourth.example"]}, if_match="*")
    world.register(made.name, made.keys[0])
    assert lost.wait(5)
    client.disconnect()
    client.loop_stop()
    world.enrolments.unlink_hub("fourth.example")


def test_custom_allocation_asks_the_web_hook_as_azure_asks_it(world, hook, tmp_path):
    folder = link(world, "fifth.example", tmp_path / "fifth")
    made = world.enrol(
        allocationPolicy="custom",
        customAllocationDefinition={"webhookUrl": hook.url, "apiVersion": "2021-10-01"},
    )
    hook.answer = {
        "iotHubHostName": "Fifth.Example",
        "initialTwin": {"properties": {"desired": {"by": "hook"}}},
        "payload": {"welcome": True},
    }
    body = {"registrationId": made.name, "payload": {"model": "x200"}}
    state = world.register(made.name, made.keys[0], body)["registrationState"]
    assert (state["assignedHub"], state["payload"]) == ("fifth.example", {"welcome": True})
    assert twin_of(folder, made.name).desired == {"by": "hook"}
    (asked,) = hook.asked
    assert asked["deviceRuntimeContext"]["registrationId"] == made.name
    assert asked["deviceRuntimeContext"]["payload"] == {"model": "x200"}
    assert asked["linkedHubs"] == ["127.0.0.1", "fifth.example"]
    assert asked["individualEnrollment"]["registrationId"] == made.name
    assert not any(key in json.dumps(asked) for key in made.keys)
    world.enrolments.unlink_hub("fifth.example")


@pytest.mark.parametrize(
    ("status", "answer", "code"),
    [
        (500, {}, 400207),
        (302, {}, 400207),
        (200, b"{", 400207),
        (200, b"[]", 400207),
        (200, b" " * 70000, 400207),
        (200, {}, 400208),
        (200, {"iotHubHostName": "unknown.example"}, 404212),
        (0, {}, 400207),
    ],
)
def test_a_web_hook_that_does_not_choose_fails_the_registration(world, hook, status, answer, code):
    hook.status, hook.answer = status, answer
    url = hook.url if status else "http://127.0.0.1:9/"
    made = world.enrol(allocationPolicy="custom", customAllocationDefinition={"webhookUrl": url})
    failed = world.register(made.name, made.keys[0])
    assert failed["status"] == "failed" and failed["registrationState"]["errorCode"] == code
    assert world.hub_device(made.name) is None


@pytest.mark.parametrize(
    "twin", [{"tags": {"a.b": 1}}, {"properties": {"desired": {"x": "y" * 5000}}}]
)
def test_a_first_twin_that_no_hub_takes_fails_the_registration_and_makes_no_device(world, twin):
    made = world.enrol(initialTwin=twin)
    failed = world.register(made.name, made.keys[0])
    assert failed["status"] == "failed" and failed["registrationState"]["errorCode"] == 400004
    assert world.hub_device(made.name) is None


def test_a_hub_that_is_not_linked_fails_the_registration(world):
    made = world.enrol(iotHubs=["nowhere.example"], allocationPolicy="static")
    failed = world.register(made.name, made.keys[0])
    assert failed["status"] == "failed" and failed["registrationState"]["errorCode"] == 404212


def test_many_at_once_are_each_assigned_once(world):
    group = world.group("many")
    names = [f"many-{n}" for n in range(12)]
    found = queue.Queue()

    def register(name):
        found.put(world.register(name, derive_key(group.keys[0], name))["status"])

    threads = [threading.Thread(target=register, args=(name,)) for name in names * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    # A second connection of the same device is as good as the first here.
    assert [found.get(timeout=1) for _ in threads] == ["assigned"] * 24
    assert len(world.enrolments.registrations("many")) == 12


def test_what_was_half_done_is_put_right_by_the_next_registration(world, tmp_path):
    """As after a `kill -9` between the entry on the new hub and the end of the old one."""
    folder = link(world, "sixth.example", tmp_path / "sixth")
    made = world.enrol(iotHubs=["127.0.0.1"])
    world.register(made.name, made.keys[0])
    core = world.hub.core
    core.wait(core.twin_patch(made.name, {"hall": 7}))
    with Registry(folder) as registry:
        registry.add(made.name)
    world.enrolments.put({**made.document, "iotHubs": ["sixth.example"]}, if_match="*")
    state = world.register(made.name, made.keys[0])["registrationState"]
    assert state["substatus"] == "deviceDataMigrated"
    assert device_of(folder, made.name).keys == made.keys
    assert twin_of(folder, made.name).tags == {"hall": 7}
    assert world.hub_device(made.name) is None
    world.enrolments.unlink_hub("sixth.example")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["registrationId", "payload", "csr", "tpm"]), JSON))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_json_is_answered_and_neither_hub_nor_connection_ends(world, body):
    made = world.enrolments.find("json") or world.enrol("json", credentialPolicyName="default")
    client = getattr(world, "json_client", None)
    if client is None:
        client = world.json_client = world.client(made.name, made.keys[0], api=CSR_SINCE)
    answer = client.register(body)
    assert answer.get("status") in ("assigned", "failed") or answer["errorCode"] // 1000 == 400
    assert not client.lost.is_set()


def test_an_id_scope_is_one_folders_own(world, tmp_path):
    other = Dps(tmp_path / "data")
    assert other.id_scope != world.dps.id_scope
    other.enrolments.close()
    with pytest.raises(OutpostError):
        world.enrolments.get("nobody")
