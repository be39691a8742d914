"""Who may connect: certificates by thumbprint and by authority, tokens of policies."""

import socket
import ssl
import time

import pytest
from outpost_tools.errors import OutpostError
from outpost_tools.registry import Registry, thumbprints
from pahodevice import World, connack, end, packet, text

from certs import DAY, holder


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "data")
    yield world
    world.hub.stop()


def change(world, **changes):
    with Registry(world.data) as registry:
        return registry.update("pump-7", **changes)


def code(world, **given):
    client = world.client(wait=False, **given)
    found = connack(client)
    end(client)
    return found


def shown(world, one, tmp_path, name="device"):
    return {"password": "", "certificate": one.write(tmp_path, name)}


@pytest.mark.parametrize("which", [0, 1], ids=["SHA-256", "SHA-1"])
@pytest.mark.parametrize("place", ["primary_thumbprint", "secondary_thumbprint"])
def test_a_certificate_of_its_own_by_thumbprint(world, tmp_path, which, place):
    one = holder("anything")
    print_ = thumbprints(one.der)[which].lower()
    change(world, auth="selfSigned", **{place: print_})
    assert code(world, **shown(world, one, tmp_path)) == 0
    assert code(world, **shown(world, holder("anything"), tmp_path, "other")) == 5
    assert code(world, password="") == 5
    assert code(world) == 5  # its old token
    reasons = [e["reason"] for e in world.hub.events if e["event"] == "refused"]
    assert "thumbprint" in reasons[0] and "no certificate" in reasons[1]


def test_a_thumbprint_that_is_replaced_ends_the_connection(world, tmp_path):
    one, two = holder("pump-7"), holder("pump-7")
    change(world, auth="selfSigned", primary_thumbprint=thumbprints(one.der)[0])
    client = world.client(**shown(world, one, tmp_path))
    change(world, secondary_thumbprint=thumbprints(two.der)[0])
    assert not client.lost.wait(0.7)
    change(world, primary_thumbprint=thumbprints(two.der)[0])
    assert client.lost.wait(30)
    end(client)
    assert world.event("closed")["reason"] == "its certificate was replaced"


def test_a_certificate_signed_by_a_registered_authority(world, tmp_path):
    root = holder("fleet root", authority=True)
    intermediate = holder("line 3", root, authority=True)
    with Registry(world.data) as registry:
        registry.add_authority("fleet", root.pem)
    change(world, auth="certificateAuthority")
    assert code(world, **shown(world, holder("pump-7", intermediate), tmp_path)) == 0
    assert code(world, **shown(world, holder("pump-7", root), tmp_path)) == 0
    stranger = holder("fleet root", authority=True)
    no_authority = holder("pump-7", holder("pump-8", root))
    for wrong in (
        holder("pump-8", intermediate),
        holder("pump-7", stranger),
        holder("pump-7"),
        no_authority,
        holder("pump-7", root, starts=-2 * DAY, ends=-DAY),
    ):
        assert code(world, **shown(world, wrong, tmp_path)) == 5
    with Registry(world.data) as registry:
        registry.remove_authority("fleet")
    assert code(world, **shown(world, holder("pump-7", root), tmp_path)) == 5


def test_a_certificate_does_not_stand_in_for_a_token(world, tmp_path):
    assert code(world, **shown(world, holder("pump-7"), tmp_path)) == 5
    assert "connects with a token" in world.event("refused")["reason"]


def test_a_token_beside_a_certificate_is_what_counts(world, tmp_path):
    given = {**shown(world, holder("pump-7"), tmp_path), "password": world.token()}
    assert code(world, **given) == 0


@pytest.mark.parametrize(
    ("policy", "resource", "expected"),
    [
        ("device", "localhost/devices/pump-7", 0),
        ("device", "localhost/devices", 0),
        ("device", "localhost", 0),
        ("iothubowner", "LOCALHOST", 0),
        ("device", "localhost/devices/pump-70", 5),
        ("device", "localhost/devices/pump", 5),
        ("device", "other.example", 5),
        ("service", "localhost", 5),
        ("registryReadWrite", "localhost", 5),
        ("nobody", "localhost", 5),
    ],
)
def test_a_policys_token_opens_where_the_policy_has_device_connect(
    world, policy, resource, expected
):
    with Registry(world.data) as registry:
        found = registry.policy(policy) or registry.policy("device")
    for key in found.keys:
        token = world.token(key=key, resource=resource, policy=policy)
        assert code(world, password=token) == expected


def test_a_policys_token_ends_with_its_key(world):
    with Registry(world.data) as registry:
        policy = registry.policy("device")
        token = world.token(key=policy.primary_key, resource="localhost", policy="device")
        client = world.client(password=token)
        registry.rotate_policy("device", "primary")
        assert client.lost.wait(30)
        end(client)
        registry.remove_policy("device")
        with pytest.raises(OutpostError, match="no policy"):
            registry.remove_policy("device")


def test_a_devices_token_does_not_open_a_prefix(world):
    assert code(world, password=world.token(resource="localhost/devices")) == 5


def test_a_hub_that_ignores_the_record_size_takes_certificates_too(tmp_path):
    world = World(tmp_path / "data", ignore_record_size=True)
    try:
        one = holder("pump-7")
        change(world, auth="selfSigned", primary_thumbprint=thumbprints(one.der)[0])
        assert code(world, **shown(world, one, tmp_path)) == 0
        assert code(world, password="") == 5
    finally:
        world.hub.stop()


def test_a_resumed_session_shows_the_whole_chain_or_is_made_anew(world, tmp_path):
    root = holder("fleet root", authority=True)
    intermediate = holder("line 3", root, authority=True)
    with Registry(world.data) as registry:
        registry.add_authority("fleet", root.pem)
    change(world, auth="certificateAuthority")
    context = ssl.create_default_context(cafile=str(world.roots))
    context.load_cert_chain(*holder("pump-7", intermediate).write(tmp_path, "device"))
    session = None
    for _ in range(3):
        plain = socket.create_connection(("127.0.0.1", world.hub.port), 10)
        with context.wrap_socket(plain, server_hostname="localhost", session=session) as tls:
            body = text(b"MQTT") + b"\x04\x82\0\x3c" + text(b"pump-7")
            tls.sendall(packet(0x10, body + text(b"localhost/pump-7/?api-version=2021-04-12")))
            assert tls.recv(4) == b"\x20\2\0\0", world.event("refused")
            session = tls.session


def test_a_certificate_that_ends_during_the_connection_is_no_reason_to_end_it(tmp_path):
    """Its dates are looked at when it connects, by the hub's clock."""
    world = World(tmp_path / "data", now_s=lambda: time.time() - 5 * DAY.total_seconds())
    try:
        root = holder("fleet root", authority=True, starts=-9 * DAY)
        with Registry(world.data) as registry:
            registry.add_authority("fleet", root.pem)
        change(world, auth="certificateAuthority")
        one = holder("pump-7", root, starts=-8 * DAY, ends=-2 * DAY)
        client = world.client(**shown(world, one, tmp_path))
        change(world, status_reason="looked at again")
        assert not client.lost.wait(0.7)
        end(client)
    finally:
        world.hub.stop()
