"""The hub, driven by a client that is not ours (paho-mqtt, its TLS verified) and by raw bytes."""

import base64
import json
import socket
import sqlite3
import ssl
import struct
import subprocess
import threading
import time
from urllib.parse import quote

import paho.mqtt.client as paho
import pytest
from devca import put_ca
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from outpost_tools import sas
from outpost_tools.errors import OutpostError
from outpost_tools.hub import Hub
from outpost_tools.hub.server import in_words, openssl_suites
from outpost_tools.hub.session import parse_properties
from outpost_tools.registry import Registry, new_key
from pahodevice import connack, end, packet, text

EVENTS = "devices/{}/messages/events/"


class World:
    """A hub with one device in its registry."""

    def __init__(self, data):
        self.data = data
        self.ca = put_ca(data)
        with Registry(data) as registry:
            self.device = registry.add("pump-7")
        self.roots = data / "roots.pem"
        self.roots.write_bytes(b"".join(self.ca.root_file(k).read_bytes() for k in self.ca.kinds))
        self.clock_offset_s = 0.0
        self.hub = Hub(data, now_s=lambda: time.time() + self.clock_offset_s)
        self.hub.start()

    def token(self, key=None, device_id=None, life_s=3600, hub="localhost"):
        resource = f"{hub}/devices/{device_id or self.device.device_id}"
        return sas.make(key or self.device.primary_key, resource, int(time.time() + life_s))

    def client(self, client_id=None, username=None, password=None, keepalive=60, clean=True):
        device_id = client_id or self.device.device_id
        client = paho.Client(client_id=device_id, clean_session=clean, protocol=paho.MQTTv311)
        client.tls_set(ca_certs=str(self.roots), tls_version=ssl.PROTOCOL_TLS_CLIENT)
        client.username_pw_set(
            username or f"localhost/{device_id}/?api-version=2021-04-12",
            self.token(device_id=device_id) if password is None else password,
        )
        client.codes = []
        client.on_connect = lambda c, u, flags, code: c.codes.append(code)
        client.lost = threading.Event()
        client.on_disconnect = lambda *a: client.lost.set()
        client.reconnect_delay_set(60, 60)
        client.max_inflight_messages_set(200)
        client.connect("localhost", self.hub.port, keepalive)
        client.loop_start()
        return client

    def raw(self, context=None):
        context = context or ssl.create_default_context(cafile=str(self.roots))
        plain = socket.create_connection(("127.0.0.1", self.hub.port), 10)
        return context.wrap_socket(plain, server_hostname="localhost")

    def reasons(self):
        return [e.get("reason", "") for e in self.hub.events]

    def log(self):
        return "\n".join(json.dumps(e) + in_words(e) for e in self.hub.events)


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "data")
    yield world
    world.hub.stop()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("shared") / "data")
    yield world
    world.hub.stop()


def connect_packet(client_id=b"pump-7", user=b"u", password=b"p", flags=0xC2, level=4, tail=b""):
    body = text(b"MQTT") + bytes([level, flags]) + struct.pack("!H", 60)
    return packet(0x10, body + text(client_id) + text(user) + text(password) + tail)


def answer(tls):
    """All that comes until the hub hangs up."""
    got = b""
    try:
        while chunk := tls.recv(4096):
            got += chunk
    except OSError:
        pass
    return got


# Telemetry


@pytest.mark.parametrize("key", ["primary_key", "secondary_key"])
def test_telemetry_is_stored_shown_and_acknowledged(world, key):
    client = world.client(password=world.token(key=getattr(world.device, key)))
    assert connack(client) == 0
    topic = EVENTS.format("pump-7") + "%24.ct=application%2Fjson&site=n%26s&flag"
    client.publish(topic, b'{"t": 21.5}', qos=1).wait_for_publish(10)
    client.publish(EVENTS.format("pump-7"), b"\xff\x00", qos=0)
    assert world.hub.wait_until(lambda: len(world.hub.telemetry) == 2)
    first, second = world.hub.telemetry
    assert (first.device_id, first.body, first.qos) == ("pump-7", b'{"t": 21.5}', 1)
    assert first.properties == {"$.ct": "application/json", "site": "n&s", "flag": ""}
    assert (second.body, second.qos) == (b"\xff\x00", 0)
    end(client)
    with sqlite3.connect(world.data / "telemetry.db") as db:
        rows = db.execute("SELECT device_id, qos, body FROM telemetry ORDER BY number").fetchall()
    assert rows == [("pump-7", 1, b'{"t": 21.5}'), ("pump-7", 0, b"\xff\x00")]


def test_a_thousand_messages_in_flight_are_all_acknowledged_in_order(world):
    client = world.client()
    assert connack(client) == 0
    sent = [client.publish(EVENTS.format("pump-7"), str(n), qos=1) for n in range(1000)]
    for info in sent:
        info.wait_for_publish(30)
    assert [int(t.body) for t in world.hub.telemetry] == list(range(1000))
    end(client)


def test_the_largest_message_is_taken_and_one_byte_more_ends_the_connection(world):
    client = world.client()
    assert connack(client) == 0
    client.publish(EVENTS.format("pump-7"), bytes(262144), qos=1).wait_for_publish(10)
    assert len(world.hub.telemetry[0].body) == 262144
    client.publish(EVENTS.format("pump-7"), bytes(262145), qos=1)
    assert client.lost.wait(10)
    assert "over the limit" in world.log()
    end(client)


@pytest.mark.parametrize(
    ("topic", "qos", "reason"),
    [
        (EVENTS.format("pump-7"), 2, "QoS 2"),
        (EVENTS.format("pump-8"), 1, "not its own telemetry topic"),
        ("anything", 0, "not its own telemetry topic"),
        ("$iothub/twin/POST/?$rid=1", 0, "not its own telemetry topic"),
        ("$iothub/methods/res/200/?$rid=1", 0, "what is no JSON"),
    ],
)
def test_what_iot_hub_does_not_take_ends_the_connection_with_one_line(world, topic, qos, reason):
    client = world.client()
    assert connack(client) == 0
    client.publish(topic, b"x", qos=qos)
    assert client.lost.wait(10)
    end(client)
    assert [r for r in world.reasons() if reason in r] and not world.hub.telemetry
    assert len([e for e in world.hub.events if e["event"] == "closed"]) == 1


def test_a_topic_filter_that_iot_hub_does_not_know_is_refused_in_the_suback(world):
    client = world.client()
    assert connack(client) == 0
    granted = {}
    client.on_subscribe = lambda c, u, mid, codes: granted.update({mid: list(codes)})
    own = "devices/pump-7/messages/devicebound/#"
    asked = [own, "devices/pump-8/messages/devicebound/#", "#", "$iothub/methods/POST/#"]
    _, mid = client.subscribe([(topic, 2) for topic in asked])
    deadline = time.monotonic() + 10
    while mid not in granted and time.monotonic() < deadline:
        time.sleep(0.01)
    end(client)
    assert granted[mid] == [1, 128, 128, 1]


# Who may connect


@pytest.mark.parametrize(
    ("case", "code", "reason"),
    [
        ("unknown", 5, "unknown"),
        ("wrong key", 5, "another key"),
        ("expired", 5, "expired"),
        ("disabled", 5, "disabled"),
        ("other device's token", 5, "another resource"),
        ("other hub's token", 5, "another resource"),
        ("other hub's user name", 5, "another hub"),
        ("other device's user name", 5, "another device"),
        ("no password", 5, "no token"),
        ("plain password", 4, "not a SAS token"),
        ("bad user name", 4, "user name"),
        ("id with a space", 2, "not a device id"),
    ],
)
def test_refused_with_the_right_code_one_line_and_no_token_in_it(world, case, code, reason):
    device_id, username, password = "pump-7", None, world.token()
    if case == "unknown":
        device_id = "pump-99"
        password = world.token(device_id="pump-99")
    elif case == "wrong key":
        password = world.token(key=new_key())
    elif case == "expired":
        password = world.token(life_s=-1)
    elif case == "disabled":
        with Registry(world.data) as registry:
            registry.set_status("pump-7", "disabled")
    elif case == "other device's token":
        password = world.token(device_id="pump-8")
    elif case == "other hub's token":
        password = world.token(hub="other.example")
    elif case == "other hub's user name":
        username = "other.example/pump-7/?api-version=2021-04-12"
    elif case == "other device's user name":
        username = "localhost/pump-8/?api-version=2021-04-12"
    elif case == "no password":
        password = ""
    elif case == "plain password":
        password = "hunter2-hunter2"
    elif case == "bad user name":
        username = "pump-7"
    elif case == "id with a space":
        device_id, username = "pump 7", "localhost/pump 7/?api-version=2021-04-12"
    client = world.client(client_id=device_id, username=username, password=password)
    assert connack(client) == code
    end(client)
    refused = [e for e in world.hub.events if e["event"] == "refused"]
    assert len(refused) == 1 and refused[0]["code"] == code and reason in refused[0]["reason"]
    log = world.log()
    for secret in (password, world.device.primary_key, world.device.secondary_key, "sig="):
        assert not secret or secret not in log
    assert world.hub.connected == []


def test_a_removed_device_is_unknown(world):
    with Registry(world.data) as registry:
        registry.remove("pump-7")
    client = world.client()
    assert connack(client) == 5
    end(client)
    assert "the device is unknown" in world.log()


def test_the_hubs_name_is_compared_without_case(world):
    client = world.client(
        username="LocalHost/pump-7/?api-version=2021-04-12&DeviceClientType=x%2F1",
        password=world.token(hub="LOCALHOST"),
    )
    assert connack(client) == 0
    end(client)


def test_the_connection_ends_when_its_token_does(world):
    client = world.client(password=world.token(life_s=2))
    assert connack(client) == 0
    assert client.lost.wait(10)
    end(client)
    assert "its token has expired" in world.log()


def test_the_newer_connection_of_a_device_wins(world):
    first = world.client()
    assert connack(first) == 0
    second = world.client()
    assert connack(second) == 0
    assert first.lost.wait(10)
    second.publish(EVENTS.format("pump-7"), b"still here", qos=1).wait_for_publish(10)
    assert world.hub.connected == ["pump-7"]
    end(first)
    end(second)
    assert len([r for r in world.reasons() if "newer connection" in r]) == 1


def test_silence_beyond_the_keep_alive_ends_the_connection(world):
    with world.raw() as tls:
        user = b"localhost/pump-7/?api-version=2021-04-12"
        body = text(b"MQTT") + b"\x04\xc2\x00\x01"
        token = world.token().encode()
        tls.sendall(packet(0x10, body + text(b"pump-7") + text(user) + text(token)))
        assert tls.recv(4) == b"\x20\x02\x00\x00"
        started = time.monotonic()
        assert answer(tls) == b""
        assert 1.3 < time.monotonic() - started < 5
    assert world.hub.wait_until(lambda: "keep-alive" in world.log())


def test_pings_are_answered_and_keep_the_connection(world):
    client = world.client(keepalive=1)
    assert connack(client) == 0
    assert not client.lost.wait(4)
    end(client)


def test_a_hub_that_stops_closes_its_connections(world):
    client = world.client()
    assert connack(client) == 0
    world.hub.stop()
    assert client.lost.wait(10)
    end(client)


# TLS


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_tls_1_2_with_the_designs_suites_and_no_other(world):
    context = ssl.create_default_context(cafile=str(world.roots))
    with world.raw(context) as tls:
        assert tls.version() == "TLSv1.2"
        assert tls.cipher()[0] == "ECDHE-ECDSA-AES128-GCM-SHA256"
    for suite in openssl_suites().split(":"):
        one = ssl.create_default_context(cafile=str(world.roots))
        one.maximum_version = ssl.TLSVersion.TLSv1_2
        one.set_ciphers(suite)
        with world.raw(one) as tls:
            assert tls.cipher()[0] == suite
    for suite in ("AES128-GCM-SHA256", "ECDHE-RSA-AES128-SHA", "ECDHE-RSA-CHACHA20-POLY1305"):
        one = ssl.create_default_context(cafile=str(world.roots))
        one.maximum_version = ssl.TLSVersion.TLSv1_2
        one.set_ciphers(suite)
        with pytest.raises(ssl.SSLError):
            world.raw(one)
    old = ssl.create_default_context(cafile=str(world.roots))
    old.minimum_version = ssl.TLSVersion.TLSv1
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError):
        world.raw(old)
    new = ssl.create_default_context(cafile=str(world.roots))
    new.minimum_version = ssl.TLSVersion.TLSv1_3
    with pytest.raises(ssl.SSLError):
        world.raw(new)
    assert world.hub.wait_until(
        lambda: len([e for e in world.hub.events if e["event"] == "tls-failed"]) == 5
    )


@pytest.mark.parametrize(("chain", "other"), [("rsa", "ECDSA"), ("ecdsa", "RSA")])
def test_one_chain_alone_is_one_kind_of_suite_alone(tmp_path, chain, other):
    ca = put_ca(tmp_path)
    roots = tmp_path / "roots.pem"
    roots.write_bytes(b"".join(ca.root_file(k).read_bytes() for k in ca.kinds))
    with Hub(tmp_path, chain=chain) as hub:
        context = ssl.create_default_context(cafile=str(roots))
        context.set_ciphers(f"ECDHE-{other}-AES128-GCM-SHA256")
        with socket.create_connection(("127.0.0.1", hub.port)) as plain:
            with pytest.raises(ssl.SSLError):
                context.wrap_socket(plain, server_hostname="localhost")


@pytest.mark.parametrize("chain", ["rsa", "ecdsa"])
def test_a_hub_that_ignores_the_record_size_serves_and_says_nothing_of_it(tmp_path, chain):
    ca = put_ca(tmp_path)
    with Registry(tmp_path) as registry:
        key = registry.add("pump-7").primary_key
    token = sas.make(key, "localhost/devices/pump-7", int(time.time()) + 3600).encode()
    user = b"localhost/pump-7/?api-version=2021-04-12"
    connect = connect_packet(user=user, password=token)
    context = ssl.create_default_context(cafile=str(ca.root_file(chain)))
    with Hub(tmp_path, chain=chain, ignore_record_size=True) as hub:
        with socket.create_connection(("127.0.0.1", hub.port)) as plain:
            with context.wrap_socket(plain, server_hostname="localhost") as tls:
                assert tls.version() == "TLSv1.2"
                assert tls.cipher()[0] == f"ECDHE-{chain.upper()}-AES256-GCM-SHA384"
                tls.sendall(connect)
                assert tls.recv(4) == b"\x20\x02\x00\x00"
                topic = EVENTS.format("pump-7").encode()
                tls.sendall(packet(0x32, text(topic) + b"\0\1" + bytes(50000)))
                assert tls.recv(4) == b"\x40\x02\x00\x01"
        for size, granted in ((None, False), (512, False)):
            assert record_size_granted(hub.port, size) is granted
    with Hub(tmp_path, chain=chain) as hub:
        for size, granted in ((None, False), (512, True)):
            assert record_size_granted(hub.port, size) is granted


def record_size_granted(port, size):
    """Whether the server's ServerHello echoes max_fragment_length, as OpenSSL's client shows it."""
    words = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_2", "-tlsextdebug"]
    words += ["-maxfraglen", str(size)] if size else []
    shown = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert "Cipher is ECDHE" in shown.stdout
    return 'TLS server extension "max fragment length"' in shown.stdout


def test_a_device_that_does_not_trust_the_hub_is_one_line(world):
    with pytest.raises(ssl.SSLCertVerificationError):
        world.raw(ssl.create_default_context())
    assert world.hub.wait_until(lambda: "the device refused: unknown ca" in world.log())


def test_plain_text_on_the_tls_port_is_one_line(world):
    with socket.create_connection(("127.0.0.1", world.hub.port)) as plain:
        plain.sendall(connect_packet())
        answer(plain)
    assert world.hub.wait_until(lambda: "TLS handshake failed" in world.log())


# What is no MQTT


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="HTTP"),
        pytest.param(b"\x10\xff\xff\xff\xff\x01", id="length of five bytes"),
        pytest.param(b"\x10\xff\xff\xff\x7f", id="length of 256 MB"),
        pytest.param(packet(0x10, bytes(20000)), id="CONNECT of 20,000 bytes"),
        pytest.param(packet(0x11, b""), id="CONNECT with flags"),
        pytest.param(packet(0x10, b""), id="empty CONNECT"),
        pytest.param(connect_packet(tail=b"x"), id="bytes after the end"),
        pytest.param(connect_packet(client_id=b"\xff\xfe"), id="bad UTF-8"),
        pytest.param(connect_packet(client_id=b""), id="no client id"),
        pytest.param(connect_packet(flags=0xC3), id="reserved flag"),
        pytest.param(connect_packet(flags=0xDA), id="will QoS 3 without a will"),
        pytest.param(packet(0x10, text(b"MQTT") + b"\x04\xc2\x00"), id="cut in its header"),
        pytest.param(packet(0xC0, b""), id="PINGREQ first"),
        pytest.param(packet(0x30, text(b"t") + b"x"), id="PUBLISH first"),
        pytest.param(packet(0x20, b"\0\0"), id="a CONNACK from the device"),
        pytest.param(packet(0xF0, b""), id="packet type 15"),
    ],
)
def test_what_is_no_connect_ends_the_connection_with_one_line(shared, data):
    before = len(shared.hub.events)
    with shared.raw() as tls:
        tls.sendall(data)
        assert answer(tls) == b""
    assert shared.hub.wait_until(lambda: len(shared.hub.events) == before + 1)
    event = shared.hub.events[before]
    assert event["event"] == "closed" and "fault in the hub" not in event["reason"]


def test_another_protocol_level_is_answered_with_code_1(shared):
    with shared.raw() as tls:
        tls.sendall(connect_packet(level=5))
        assert answer(tls) == b"\x20\x02\x00\x01"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(packet(0x36, text(b"t") + b"\0\1x"), id="QoS 3"),
        pytest.param(packet(0x38, text(b"t") + b"x"), id="duplicate at QoS 0"),
        pytest.param(packet(0x32, text(b"t") + b"\0\0x"), id="packet id 0"),
        pytest.param(packet(0x30, text(b"")), id="no topic"),
        pytest.param(packet(0x30, text(b"a/#") + b"x"), id="wildcard in the topic"),
        pytest.param(packet(0x30, text(b"a\xff") + b"x"), id="topic that is not UTF-8"),
        pytest.param(packet(0x30, b"\xff\xff"), id="topic longer than the packet"),
        pytest.param(packet(0xC0, b"x"), id="PINGREQ with a body"),
        pytest.param(packet(0xE0, b"x"), id="DISCONNECT with a body"),
        pytest.param(connect_packet(), id="second CONNECT"),
        pytest.param(packet(0x80, b"\0\1" + text(b"a") + b"\0"), id="SUBSCRIBE with flags 0"),
        pytest.param(packet(0x40, b"\0\1"), id="PUBACK of nothing"),
        pytest.param(b"\x30", id="half a header"),
    ],
)
def test_what_is_no_mqtt_after_connect_ends_the_connection_with_one_line(shared, data):
    before = len(shared.hub.events)
    with shared.raw() as tls:
        user = b"localhost/pump-7/?api-version=2021-04-12"
        tls.sendall(connect_packet(user=user, password=shared.token().encode()))
        assert tls.recv(4) == b"\x20\x02\x00\x00"
        tls.sendall(data)
        if data == b"\x30":
            tls.unwrap()
        answer(tls)
    assert shared.hub.wait_until(lambda: len(shared.hub.events) == before + 2)
    assert [e["event"] for e in shared.hub.events[before:]] == ["connected", "closed"]
    assert "fault in the hub" not in shared.hub.events[-1]["reason"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(min_size=1, max_size=80), st.integers(0, 3))
def test_the_hub_outlives_whatever_bytes_come(shared, noise, start):
    prefix = [b"", b"\x10", connect_packet()[:20], b"\x10\x20\x00\x04MQTT\x04"][start]
    with shared.raw() as tls:
        try:
            tls.sendall(prefix + noise)
            tls.shutdown(socket.SHUT_WR)
            answer(tls)
        except OSError:
            pass
    with shared.raw() as tls:
        user = b"localhost/pump-7/?api-version=2021-04-12"
        tls.sendall(connect_packet(user=user, password=shared.token().encode()))
        assert tls.recv(4) == b"\x20\x02\x00\x00"
    assert "fault in the hub" not in shared.log()


def test_a_password_of_any_bytes_is_never_logged(world):
    for password in (b"\xff\xfe" * 20, base64.b64encode(bytes(40)), quote("ü" * 30).encode()):
        with world.raw() as tls:
            user = b"localhost/pump-7/?api-version=2021-04-12"
            tls.sendall(connect_packet(user=user, password=password))
            answer(tls)
        assert password.decode(errors="replace") not in world.log()
        assert repr(password) not in world.log()


# Starting


def test_a_port_in_use_is_one_sentence(world):
    with pytest.raises(OutpostError, match="in use by another program"):
        Hub(world.data, port=world.hub.port).start()


@pytest.mark.parametrize("host", ["203.0.113.1", "no-such-host.invalid"])
def test_an_address_that_is_not_ours_is_one_sentence(world, host):
    with pytest.raises(OutpostError, match="no address of this machine"):
        Hub(world.data, host=host).start()


def test_what_a_restarted_hub_acknowledged_before_is_still_there(world):
    client = world.client()
    assert connack(client) == 0
    client.publish(EVENTS.format("pump-7"), b"kept", qos=1).wait_for_publish(10)
    end(client)
    world.hub.stop()
    again = Hub(world.data)
    again.start()
    again.stop()
    with sqlite3.connect(world.data / "telemetry.db") as db:
        assert db.execute("SELECT body FROM telemetry").fetchall() == [(b"kept",)]


def test_control_characters_of_a_message_cannot_forge_a_line():
    event = {"event": "telemetry", "device": "a", "dup": False, "body": "x\nhub closed\x1b[2J"}
    assert in_words(event) == "a sent x\\nhub closed\\x1b[2J"


def test_properties_of_a_topic():
    assert parse_properties("") == {}
    assert parse_properties("/") == {}
    assert parse_properties("a=1&b=%2Fx%3D&c") == {"a": "1", "b": "/x=", "c": ""}
    assert parse_properties("a=1/") == {"a": "1"}
