"""Microsoft's device SDK for Python (azure-iot-device), as it comes from PyPI, on the local hub.

Only its configuration is ours: the host in the connection string and the trusted root.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.iot.device import X509, IoTHubDeviceClient, Message, MethodResponse
from azure.iot.device import exceptions as sdk
from azure.iot.device.aio import IoTHubDeviceClient as AsyncClient
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hubs import device_connection_string, eventually, loopback, roots_file
from outpost_tools.hub import Hub, faults
from outpost_tools.registry import Registry, new_key, thumbprints
from servers import in_time

DEVICE = "pump-7"


class World:
    def __init__(self, data: Path) -> None:
        self.data = data
        self.roots = roots_file(data).read_text()
        self.host = loopback()
        with Registry(data) as registry:
            registry.add(DEVICE)
        self.hub = Hub(data, host=self.host, port=8883)
        self.hub.start()
        self._clients: list[IoTHubDeviceClient] = []

    def client(self, connection_string: str | None = None, **options) -> IoTHubDeviceClient:
        text = connection_string or device_connection_string(self.data, self.host, DEVICE)
        options = {"connection_retry": False, **options}
        client = IoTHubDeviceClient.create_from_connection_string(
            text, server_verification_cert=self.roots, **options
        )
        self._clients.append(client)
        return client

    def log(self) -> str:
        return "\n".join(map(str, self.hub.events))

    def close(self) -> None:
        for client in self._clients:
            client.shutdown()
        self.hub.stop()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "data")
    yield world
    world.close()


# Connections with keys


@pytest.mark.parametrize("secondary", [False, True], ids=["primary key", "secondary key"])
def test_it_connects_with_either_key(world: World, secondary: bool) -> None:
    text = device_connection_string(world.data, world.host, DEVICE, secondary)
    client = world.client(text)
    client.connect()
    assert client.connected and world.hub.connected == [DEVICE]
    client.disconnect()
    assert eventually(lambda: not world.hub.connected)


def test_a_wrong_key_is_refused_as_a_matter_of_credentials(world: World) -> None:
    text = f"HostName={world.host};DeviceId={DEVICE};SharedAccessKey={new_key()}"
    with pytest.raises(sdk.CredentialError):
        world.client(text).connect()
    assert world.hub.connected == []


def test_a_disabled_device_is_refused(world: World) -> None:
    with Registry(world.data) as registry:
        registry.set_status(DEVICE, "disabled")
    with pytest.raises(sdk.CredentialError):
        world.client().connect()


def test_a_root_that_is_not_ours_is_not_trusted(world: World, tmp_path: Path) -> None:
    other = (Path(__file__).parents[2] / "certs").glob("*.pem")
    client = IoTHubDeviceClient.create_from_connection_string(
        device_connection_string(world.data, world.host, DEVICE),
        server_verification_cert=next(other).read_text(),
        connection_retry=False,
    )
    with pytest.raises(sdk.ClientError, match="TLS"):
        client.connect()
    client.shutdown()


def test_a_token_that_is_renewed_makes_a_new_connection_and_loses_nothing(world: World) -> None:
    # The SDK renews 120 s before the end of the token, so this one is renewed after 2 s.
    client = world.client(sastoken_ttl=122)
    client.connect()
    client.send_message("before")
    connected = "connected"
    assert eventually(
        lambda: [e["event"] for e in world.hub.events].count(connected) >= 2, timeout_s=30
    ), world.log()
    assert eventually(lambda: client.connected)
    client.send_message("after")
    assert eventually(lambda: [t.text for t in world.hub.telemetry] == ["before", "after"])


# Telemetry


def test_telemetry_arrives_with_its_system_and_application_properties(world: World) -> None:
    message = Message('{"t": 21.5, "name": "höhe"}', message_id="m-1", content_encoding="utf-8")
    message.content_type = "application/json"
    message.correlation_id = "c 1"
    message.custom_properties["alarm level"] = "high & rising/…"
    message.custom_properties["empty"] = ""
    client = world.client()
    client.connect()
    client.send_message(message)
    assert world.hub.wait_until(lambda: len(world.hub.telemetry) == 1)
    got = world.hub.telemetry[0]
    assert got.text == '{"t": 21.5, "name": "höhe"}' and got.qos == 1
    assert got.properties["alarm level"] == "high & rising/…"
    assert got.properties["$.mid"] == "m-1" and got.properties["$.cid"] == "c 1"
    assert got.properties["$.ct"] == "application/json" and got.properties["$.ce"] == "utf-8"


def test_a_hundred_messages_arrive_once_each_in_order(world: World) -> None:
    client = world.client()
    client.connect()
    for n in range(100):
        client.send_message(str(n))
    assert world.hub.wait_until(lambda: len(world.hub.telemetry) == 100)
    assert [t.text for t in world.hub.telemetry] == [str(n) for n in range(100)]


def test_the_largest_message_arrives_and_one_byte_more_is_not_sent(world: World) -> None:
    client = world.client()
    client.connect()
    client.send_message(Message(bytes(262144 - 100)))
    assert world.hub.wait_until(lambda: len(world.hub.telemetry) == 1)
    with pytest.raises(ValueError):
        client.send_message(Message(bytes(262145)))


def test_telemetry_is_kept_with_the_time_it_was_made_and_the_time_it_arrived(world: World) -> None:
    client = world.client()
    client.connect()
    client.send_message("kept")
    events = world.hub.core.wait(world.hub.core.telemetry_since(None, DEVICE))
    assert [e["body"] for e in events] == ["kept"]
    assert abs(events[0]["received_s"] - time.time()) < 30


# Commands


def commands_of(client: IoTHubDeviceClient) -> queue.Queue[Message]:
    got: queue.Queue[Message] = queue.Queue()
    client.on_message_received = got.put
    return got


def send(world: World, body: bytes, **facts) -> None:
    world.hub.core.wait(world.hub.core.send_command(DEVICE, body, **facts))


def test_a_command_arrives_with_its_properties_and_is_gone_once_acknowledged(world: World) -> None:
    client = world.client()
    client.connect()
    got = commands_of(client)
    send(
        world,
        b'{"open": true}',
        properties={"zone": "3 & \u00f6", "empty": ""},
        message_id="m-1",
        correlation_id="c-1",
        content_type="application/json",
        content_encoding="utf-8",
        ack="full",
    )
    message = got.get(timeout=30)
    assert message.data == b'{"open": true}' and message.message_id == "m-1"
    assert message.correlation_id == "c-1" and message.content_type == "application/json"
    assert message.content_encoding == "utf-8" and message.ack == "full"
    assert message.custom_properties == {"zone": "3 & \u00f6", "empty": ""}
    assert eventually(lambda: world.hub.core.wait(world.hub.core.commands_waiting(DEVICE)) == [])


def test_commands_wait_while_the_device_is_away_and_come_in_order(world: World) -> None:
    first = world.client()
    first.connect()
    commands_of(first)  # subscribed once: the session is kept
    assert eventually(lambda: first.connected)
    time.sleep(0.5)
    first.disconnect()
    assert eventually(lambda: not world.hub.connected)
    for n in range(5):
        send(world, str(n).encode())
    second = world.client()
    got = commands_of(second)
    second.connect()
    assert [got.get(timeout=30).data for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]


def test_a_command_that_expired_does_not_arrive_and_is_a_dead_letter(world: World) -> None:
    send(world, b"late", expiry_s=time.time() + 1, message_id="late")
    time.sleep(1.5)
    send(world, b"in time")
    client = world.client()
    got = commands_of(client)
    client.connect()
    assert got.get(timeout=30).data == b"in time"
    dead = world.hub.core.wait(world.hub.core.commands_dead(DEVICE))
    assert [d.message_id for d in dead] == ["late"]


# Twins


def test_a_twin_is_read_reported_to_and_its_desired_changes_arrive(world: World) -> None:
    core = world.hub.core
    core.wait(core.twin_patch(DEVICE, desired={"interval": 5, "led": {"r": 1}}))
    client = world.client()
    client.connect()
    twin = client.get_twin()
    assert twin["desired"]["interval"] == 5 and twin["desired"]["led"] == {"r": 1}
    assert twin["desired"]["$version"] == 2 and twin["reported"]["$version"] == 1

    patches: queue.Queue[dict] = queue.Queue()
    client.on_twin_desired_properties_patch_received = patches.put
    time.sleep(0.5)
    core.wait(core.twin_patch(DEVICE, desired={"interval": None, "led": {"g": 2}}))
    assert patches.get(timeout=30) == {"interval": None, "led": {"g": 2}, "$version": 3}

    client.patch_twin_reported_properties({"interval": 7, "gone": 1})
    client.patch_twin_reported_properties({"gone": None})
    assert core.wait(core.twin_get(DEVICE)).reported == {"interval": 7}
    twin = client.get_twin()
    assert twin["reported"] == {"interval": 7, "$version": 3}
    assert twin["desired"] == {"led": {"r": 1, "g": 2}, "$version": 3}


def test_a_report_that_is_too_large_is_refused_and_the_connection_stays(world: World) -> None:
    client = world.client()
    client.connect()
    big = {f"p{n}": "x" * 4000 for n in range(9)}
    with pytest.raises(sdk.ClientError) as caught:
        client.patch_twin_reported_properties(big)
    assert "413" in str(caught.value.__cause__)
    client.send_message("still there")
    assert world.hub.wait_until(lambda: len(world.hub.telemetry) == 1)


# Methods


def answering(client: IoTHubDeviceClient, status: int, payload: object) -> list:
    asked: list = []

    def answer(request) -> None:
        asked.append((request.name, request.payload))
        response = MethodResponse.create_from_method_request(request, status, payload)
        client.send_method_response(response)

    client.on_method_request_received = answer
    time.sleep(0.5)
    return asked


def test_a_method_is_answered_with_its_status_and_payload(world: World) -> None:
    client = world.client()
    client.connect()
    asked = answering(client, 207, {"sum": 3, "name": "h\u00f6he"})
    core = world.hub.core
    result = core.wait(core.invoke_method(DEVICE, "add", {"a": 1, "b": [2]}))
    assert result == (207, {"sum": 3, "name": "h\u00f6he"})
    assert asked == [("add", {"a": 1, "b": [2]})]


def test_a_method_on_a_device_that_is_away_is_404103_and_waits_if_asked_to(world: World) -> None:
    core = world.hub.core
    with pytest.raises(faults.DeviceNotOnline) as caught:
        core.wait(core.invoke_method(DEVICE, "add"))
    assert (caught.value.status, caught.value.code) == (404, 404103)
    results: queue.Queue[tuple] = queue.Queue()
    waiting = threading.Thread(
        target=lambda: results.put(
            core.wait(core.invoke_method(DEVICE, "add", None, connect_timeout_s=30))
        )
    )
    waiting.start()
    client = world.client()
    client.connect()
    answering(client, 200, None)
    assert results.get(timeout=30)[0] == 200
    waiting.join()


def test_a_method_that_is_not_answered_is_504101(world: World) -> None:
    client = world.client()
    client.connect()
    client.on_method_request_received = lambda request: None
    time.sleep(0.5)
    core = world.hub.core
    with pytest.raises(faults.GatewayTimeout) as caught:
        core.wait(core.invoke_method(DEVICE, "slow", response_timeout_s=5))
    assert (caught.value.status, caught.value.code) == (504, 504101)


# Revocation


@pytest.mark.parametrize("how", ["disable", "remove"])
def test_a_device_that_is_disabled_or_removed_is_out_within_a_second(
    world: World, how: str
) -> None:
    client = world.client()
    client.connect()
    lost = threading.Event()
    client.on_connection_state_change = lambda: client.connected or lost.set()
    started = time.monotonic()
    with Registry(world.data) as registry:  # as another process would
        if how == "disable":
            registry.set_status(DEVICE, "disabled")
        else:
            registry.remove(DEVICE)
    assert lost.wait(30) and time.monotonic() - started < in_time(1.5)
    with pytest.raises(sdk.CredentialError):
        client.connect()


def test_the_second_client_of_a_device_takes_the_firsts_place(world: World) -> None:
    first, second = world.client(), world.client()
    first.connect()
    second.connect()
    assert eventually(lambda: not first.connected) and second.connected
    second.send_message("from the second")
    assert world.hub.wait_until(lambda: len(world.hub.telemetry) == 1)


# Certificates


def certificate(
    folder: Path,
    name: str,
    signer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None = None,
    authority: bool = False,
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A certificate for `name`, in {name}.pem and {name}.key; its own signer unless given one."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer[0].subject if signer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .sign(signer[1] if signer else key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    if signer is not None and not authority:
        pem += signer[0].public_bytes(serialization.Encoding.PEM)
    (folder / f"{name}.pem").write_bytes(pem)
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return made, key


def x509_client(world: World, folder: Path, device_id: str, name: str) -> IoTHubDeviceClient:
    client = IoTHubDeviceClient.create_from_x509_certificate(
        X509(cert_file=str(folder / f"{name}.pem"), key_file=str(folder / f"{name}.key")),
        hostname=world.host,
        device_id=device_id,
        server_verification_cert=world.roots,
        connection_retry=False,
    )
    world._clients.append(client)
    return client


@pytest.mark.parametrize("which", ["primary", "secondary"])
def test_a_certificate_of_its_own_lets_the_device_in_by_thumbprint(
    world: World, tmp_path: Path, which: str
) -> None:
    made, _ = certificate(tmp_path, "valve-1")
    sha256, _ = thumbprints(made.public_bytes(serialization.Encoding.DER))
    prints = {"primary_thumbprint": "AB" * 32, f"{which}_thumbprint": sha256}
    with Registry(world.data) as registry:
        registry.add("valve-1", auth="selfSigned", **prints)
    client = x509_client(world, tmp_path, "valve-1", "valve-1")
    client.connect()
    client.send_message("by certificate")
    assert world.hub.wait_until(lambda: len(world.hub.telemetry) == 1)
    assert world.hub.telemetry[0].device_id == "valve-1"


def test_another_certificate_than_the_registered_one_is_refused(
    world: World, tmp_path: Path
) -> None:
    certificate(tmp_path, "valve-1")
    with Registry(world.data) as registry:
        registry.add("valve-1", auth="selfSigned", primary_thumbprint="AB" * 32)
    with pytest.raises(sdk.CredentialError):
        x509_client(world, tmp_path, "valve-1", "valve-1").connect()


def test_a_certificate_that_a_known_authority_signed_lets_in_the_device_it_names(
    world: World, tmp_path: Path
) -> None:
    root = certificate(tmp_path, "factory", authority=True)
    line = certificate(tmp_path, "line-2", signer=root, authority=True)
    certificate(tmp_path, "valve-1", signer=line)
    with Registry(world.data) as registry:
        registry.add_authority("factory", (tmp_path / "factory.pem").read_text())
        registry.add("valve-1", auth="certificateAuthority")
        registry.add("valve-2", auth="certificateAuthority")
    client = x509_client(world, tmp_path, "valve-1", "valve-1")
    client.connect()
    client.send_message("by authority")
    assert world.hub.wait_until(lambda: len(world.hub.telemetry) == 1)
    with pytest.raises(sdk.CredentialError):
        x509_client(world, tmp_path, "valve-2", "valve-1").connect()


def test_a_certificate_of_an_unknown_authority_is_refused(world: World, tmp_path: Path) -> None:
    root = certificate(tmp_path, "elsewhere", authority=True)
    certificate(tmp_path, "valve-1", signer=root)
    with Registry(world.data) as registry:
        registry.add("valve-1", auth="certificateAuthority")
    with pytest.raises(sdk.CredentialError):
        x509_client(world, tmp_path, "valve-1", "valve-1").connect()


# The asyncio client


def test_the_asyncio_client_does_all_of_it_at_once(world: World) -> None:
    core = world.hub.core

    async def run() -> list[bytes]:
        client = AsyncClient.create_from_connection_string(
            device_connection_string(world.data, world.host, DEVICE),
            server_verification_cert=world.roots,
        )
        commands: list[bytes] = []

        async def on_message(message: Message) -> None:
            commands.append(message.data)

        async def on_method(request) -> None:
            await client.send_method_response(
                MethodResponse.create_from_method_request(request, 200, request.payload)
            )

        await client.connect()
        client.on_message_received = on_message
        client.on_method_request_received = on_method
        await asyncio.sleep(0.5)
        send_them = [client.send_message(str(n)) for n in range(20)]
        invoked = asyncio.to_thread(core.wait, core.invoke_method(DEVICE, "echo", {"n": 1}))
        queued = asyncio.to_thread(send, world, b"command")
        results = await asyncio.gather(*send_them, invoked, queued, client.get_twin())
        assert results[20] == (200, {"n": 1}) and "desired" in results[22]
        for _ in range(200):
            if commands:
                break
            await asyncio.sleep(0.05)
        await client.shutdown()
        return commands

    assert asyncio.run(run()) == [b"command"]
    assert world.hub.wait_until(lambda: len(world.hub.telemetry) == 20)
