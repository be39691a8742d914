"""Brokers that are no IoT Hub: telemetry, methods and messages with client certificates over TLS.

Each broker is a real one that the test starts. The other side of the conversation is paho-mqtt
with a certificate of its own.
"""

from __future__ import annotations

import contextlib
import json
import re
import ssl
from collections.abc import Iterator
from pathlib import Path

import brokers
import paho.mqtt.client as mqtt
import pytest
from hubs import eventually
from identities import edit, sec1, x509
from world import DEVICE_ID, World, line_number

from certs import Holder, holder

LEGS_HERE = ("outpost32", "stock32")
USERS = [DEVICE_ID, "operator"]
MAIN = b"""
from outpost import Device
device = Device()
made = 0

@device.every(seconds=PERIOD)
def measure():
    global made
    for _ in range(BURST):
        if made < COUNT:
            device.send({"n": made + 1})
            made += 1
            print("accepted", made)

@device.method("double")
def double(payload):
    return payload * 2

@device.message
def message(body, properties):
    print("message", bytes(body).decode())

device.run()
"""


@pytest.fixture(scope="module")
def fleet() -> Holder:
    return holder("fleet of the test", authority=True)


class Operator:
    """Another client of the broker: sees what devices say, and speaks to them."""

    def __init__(self, port: int, roots: Path, chain: str, key: str) -> None:
        self.seen: list[tuple[str, bytes]] = []
        self._client = mqtt.Client("operator", clean_session=False)
        self._client.tls_set(str(roots), chain, key, tls_version=ssl.PROTOCOL_TLS_CLIENT)
        self._client.on_connect = lambda client, *_: client.subscribe(
            [(f"outpost/{DEVICE_ID}/telemetry/#", 1), (f"outpost/{DEVICE_ID}/replies/#", 1)]
        )
        self.subscribed = False
        self._client.on_subscribe = lambda *_: setattr(self, "subscribed", True)
        self._client.on_message = lambda _c, _u, m: self.seen.append((m.topic, m.payload))
        self._client.reconnect_delay_set(1, 2)
        self._client.connect("localhost", port)
        self._client.loop_start()

    def publish(self, topic: str, body: bytes) -> None:
        self._client.publish(topic, body, qos=1).wait_for_publish(20)

    def numbers(self) -> list[int]:
        bodies = [json.loads(body) for topic, body in list(self.seen) if "/telemetry/" in topic]
        return [m["n"] for one in bodies for m in (one if isinstance(one, list) else [one])]

    def stop(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@contextlib.contextmanager
def operator(world: World, fleet: Holder, port: int) -> Iterator[Operator]:
    chain, key = holder("operator", fleet).write(world.folder, "operator")
    client = Operator(port, world.ca.root_file("ecdsa"), chain, key)
    try:
        assert eventually(lambda: client.subscribed, 60), "the operator could not subscribe"
        yield client
    finally:
        client.stop()


def certificates(world: World, fleet: Holder) -> brokers.Certificates:
    leaf = world.ca.leaf("ecdsa", ["127.0.0.1", "localhost"])
    clients = world.folder / "clients.pem"
    clients.write_text(fleet.pem)
    for path in (leaf.chain, leaf.key):
        path.chmod(0o644)  # a server that drops its rights reads it too
    return brokers.Certificates(leaf.chain, leaf.key, clients)


def image(
    world: World, fleet: Holder, port: int, count: int, period_s: float, burst: int = 1, **config
) -> Path:
    """A device of the generic profile that proves itself with a certificate."""
    own = holder(DEVICE_ID, fleet)
    main = MAIN.replace(b"COUNT", b"%d" % count).replace(b"PERIOD", str(period_s).encode())
    main = main.replace(b"BURST", b"%d" % burst)
    flash = world.image(
        port,
        config={"profile": "generic", "keepalive_s": 30, **config},
        files={"/main.py": main},
    )
    edit(flash, sas1=None, sas2=None, ida=x509(own.der, private=sec1(own.key)), idcur=0)
    return flash


BROKERS = {
    "mosquitto": lambda folder, c: brokers.mosquitto(folder, c),
    "rabbitmq": lambda folder, c: brokers.rabbitmq(folder, c, USERS),
    "nats": lambda folder, c: one_nats(folder, c),
}


@contextlib.contextmanager
def one_nats(folder: Path, c: brokers.Certificates) -> Iterator[int]:
    with brokers.nats_cluster(folder, c, USERS, count=1) as nodes:
        yield nodes[0].mqtt_port


@pytest.mark.parametrize("name", BROKERS)
def test_a_device_speaks_and_is_spoken_to_through(world: World, fleet: Holder, name: str) -> None:
    with (
        BROKERS[name](world.folder / name, certificates(world, fleet)) as port,
        operator(world, fleet, port) as client,
    ):
        flash = image(world, fleet, port, count=20, period_s=0.02, burst=4, batch_bytes=512)
        board = world.board(flash)
        board.wait_for(r"hub +connected .*credential=certificate", 60)
        assert eventually(lambda: set(client.numbers()) == set(range(1, 21)), 60), board.text
        client.publish(f"outpost/{DEVICE_ID}/methods/double/r1", b"21")
        wanted = (f"outpost/{DEVICE_ID}/replies/r1/200", b"42")
        assert eventually(lambda: wanted in client.seen, 60), (client.seen, board.text)
        # Of several in one message the numbers stand in the topic, with no dot between them.
        topics = [topic for topic, body in client.seen if body.startswith(b"[")]
        assert topics and all("ids=" in topic and "." not in topic for topic in topics), client.seen
        client.publish(f"outpost/{DEVICE_ID}/messages/", b"good morning")
        board.wait_for("message good morning", 60)
        # What comes while it is away is kept for it.
        board.stop()
        client.publish(f"outpost/{DEVICE_ID}/messages/", b"while you were out")
        world.board(flash).wait_for("message while you were out", 60)


def test_a_certificate_of_another_authority_is_refused_and_said(
    world: World, fleet: Holder
) -> None:
    with brokers.mosquitto(world.folder / "broker", certificates(world, fleet)) as port:
        stranger = holder("another fleet", authority=True)
        board = world.board(image(world, stranger, port, count=1, period_s=1))
        # mosquitto's alert may be lost in the reset that follows it: then it is "the handshake".
        said = r"(did not take this device's certificate|the TLS handshake with localhost failed)"
        at = line_number(board, rf"error +tls: .*{said}.*next attempt in")
        line_number(board, r"error +tls: .*next attempt in", at + 1)
        assert not re.search(r"hub +connected", board.text)
    log = (world.folder / "broker" / "mosquitto.log").read_text()
    assert "certificate verify failed" in log, log[-800:]


@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
def test_a_node_of_a_cluster_dies_under_load_and_nothing_accepted_is_lost(
    world: World, fleet: Holder
) -> None:
    folder = world.folder / "cluster"
    c = certificates(world, fleet)
    with (
        brokers.nats_cluster(folder, c, USERS) as nodes,
        # The device comes in through the balancer, at the first node; the operator at the last.
        brokers.balancer(folder, [node.mqtt_port for node in nodes]) as port,
        operator(world, fleet, nodes[-1].mqtt_port) as client,
    ):
        board = world.board(image(world, fleet, port, count=300, period_s=0.05))
        board.wait_for(r"accepted 60$", 90)
        assert eventually(lambda: client.numbers(), 60), board.text
        nodes[0].kill()
        board.wait_for(r"accepted 300$", 90)

        def missing() -> set[int]:
            return set(range(1, 301)) - set(client.numbers())

        # A cluster takes some seconds to agree on new leaders; the device tries until then.
        assert eventually(lambda: not missing(), 120), (sorted(missing())[:20], board.text[-3000:])
        assert re.search(r"error +(mqtt|tls)", board.text), "the node's death was not noticed"
