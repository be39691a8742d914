"""The generic profile on mosquitto: what docs/topics.md says, by an operator with plain paho."""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import itertools
import json
import queue
import random
import ssl
import subprocess
from urllib.parse import quote

import bundles
import paho.mqtt.client as paho
import pytest
from deliveries import KIND, sha
from deliveries import MAIN as MAIN_OF_FILES
from hubs import roots_file
from outpost_tools.bundleserver import BundleServer, development_context, of_mapping
from outpost_tools.delivery import push
from outpost_tools.registry import Registry
from servers import mosquitto, need

LEGS_HERE = ("outpost32", "stock-release")
NAME = "press/7+x"  # what may stand in no topic as it is

MAIN = b"""
from outpost import Device
d = Device()

@d.method("add")
def add(payload):
    return payload["a"] + payload["b"]

@d.message
def message(body, properties):
    print("GOT", bytes(body), sorted(properties.items()))

@d.desired("interval")
def interval(value):
    print("INTERVAL", value)

d.report({"firmware": "7"})
d.send({"n": 1})
d.run()
"""


class Operator:
    def __init__(self, world, port, device_id):
        self.base = f"outpost/{quote(device_id, safe='')}/"
        self.came: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.seen: list[tuple[str, bytes]] = []
        self.paho = paho.Client("operator", protocol=paho.MQTTv311)
        self.paho.username_pw_set("operator", "secret")
        context = ssl.create_default_context(cafile=roots_file(world.data))
        self.paho.tls_set_context(context)
        self.paho.on_message = lambda _c, _u, m: self.came.put((m.topic, m.payload))
        self.paho.connect("localhost", port)
        self.paho.subscribe("outpost/#", 1)
        self.paho.loop_start()

    def publish(self, topic, body, **options):
        self.paho.publish(self.base + topic, body, qos=1, **options).wait_for_publish(10)

    def await_(self, topic):
        """The first message whose topic begins so and that was not asked for yet."""
        while True:
            for at, (found, body) in enumerate(self.seen):
                if found.startswith(self.base + topic):
                    del self.seen[at]
                    return found, json.loads(body)
            self.seen.append(self.came.get(timeout=40))


@pytest.fixture
def setting(world):
    device = Registry(world.data).add(NAME.replace("/", "!"))  # IoT Hub's ids have no slash
    key = base64.b64decode(device.primary_key)
    password = base64.b64encode(hmac.digest(key, device.device_id.encode(), hashlib.sha256))
    passwords = world.folder / "passwords"
    passwords.touch()
    for user, word in ((device.device_id, password.decode()), ("operator", "secret")):
        command = [need("mosquitto_passwd", "mosquitto"), "-b", passwords, user, word]
        subprocess.run(command, check=True)
    leaf = world.ca.leaf("ecdsa", ["localhost"])
    with mosquitto(
        world.folder / "broker", leaf.chain, leaf.key, f"password_file {passwords}\n"
    ) as port:
        operator = Operator(world, port, device.device_id)
        operator.image = functools.partial(
            world.image, port, device=device, config={"profile": "generic"}
        )
        flash = operator.image(files={"/main.py": MAIN})
        yield operator, world.board(flash)
        operator.paho.loop_stop()


def invoking(operator):
    """A way to call the device's methods, for push(): what an operator of a broker writes."""
    count = itertools.count(1)

    def invoke(method, payload):
        rid = f"d{next(count)}"
        operator.publish(f"methods/{method}/{rid}", json.dumps(payload))
        topic, body = operator.await_(f"replies/{rid}/")
        return int(topic.rpartition("/")[2]), body

    return invoke


def test_file_is_pushed_and_fetched_on_any_broker_too(setting, world):
    operator, board = setting
    operator.await_("telemetry/")  # from now on the broker keeps what comes for it
    board.stop()
    data, other = random.Random(1).randbytes(5000), random.Random(2).randbytes(3000)
    context = development_context(world.data, ["localhost"])
    with BundleServer(of_mapping({"/f.bin": other}), context) as server:
        files = {
            "/main.py": MAIN_OF_FILES,
            "/trust/factory.bin": bundles.data(roots=world.ca.roots_der(), hosts=("localhost",)),
        }
        board = world.board(operator.image(files=files))
        board.wait_for("hub +connected", 60)
        seen = []
        done = push(invoking(operator), KIND, data, lambda have, size: seen.append(have))
        assert done.result == {"state": "read", "bytes": 5000}
        assert seen == [0, 2048, 4096, 5000]
        board.wait_for(f"PARCEL 5000 {sha(data)}")
        order = {
            "url": f"https://localhost:{server.port}/f.bin",
            "size": 3000,
            "sha256": sha(other),
        }
        wish = {"outpost": {KIND: {"version": 3, **order}}}
        operator.publish("state/desired", json.dumps(wish), retain=True)
        board.wait_for(f"PARCEL 3000 {sha(other)}", 60)
        told = None
        while not told:
            told = operator.await_("state/reported")[1].get("outpost", {}).get("delivery")
        assert told[KIND]["status"] == 200 and told[KIND]["version"] == 3


def test_device_on_any_broker_sends_answers_takes_and_reports(setting):
    operator, board = setting
    topic, body = operator.await_("telemetry/")
    assert body == {"n": 1} and "telemetry/id=1" in topic
    reported = operator.await_("state/reported")[1]
    assert reported.pop("outbox")["dropped"] == 0 and reported == {"firmware": "7"}
    operator.publish("methods/add/r1", b'{"a": 2, "b": 40}')
    assert operator.await_("replies/r1/") == (operator.base + "replies/r1/200", 42)
    operator.publish("methods/missing/r2", b"")
    assert operator.await_("replies/r2/")[0].endswith("/404")
    operator.publish("messages/id=m1&zone=3", b"open")
    board.wait_for(r"GOT b'open' \[\('id', 'm1'\), \('zone', '3'\)\]", 30)
    operator.publish("messages/id=m1&zone=3", b"open")
    board.wait_for(r"message +known already", 30)
    operator.publish("state/desired", b'{"interval": 5, "$version": 2}', retain=True)
    board.wait_for(r"INTERVAL 5", 30)
    wanted = {"interval": {"value": 5, "ac": 200, "av": 2}}
    assert operator.await_("state/reported")[1] == wanted
    operator.publish("state/desired", b'{"interval": 4, "$version": 1}', retain=True)
    operator.publish("methods/add/r3", b'{"a": 1, "b": 1}')
    operator.await_("replies/r3/200")
    assert "INTERVAL 4" not in board.text and "error" not in board.text


def test_message_that_came_while_the_device_was_away_is_kept_by_the_broker(setting, world):
    operator, board = setting
    board.wait_for(r"acked id=1", 60)
    operator.await_("state/reported")
    board.stop()
    operator.publish("messages", b"held")
    board = world.board(world.folder / "flash.bin")
    board.wait_for(r"GOT b'held' \[\]", 60)
