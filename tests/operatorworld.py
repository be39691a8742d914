"""A running hub as the operator's commands find it, and paho as its device.

It owns the hub, what announces it in the data folder, and the devices' connections.
"""

from __future__ import annotations

import json
import os
import queue
import ssl
import sys
import threading
import time
from pathlib import Path

import paho.mqtt.client as paho
from hubs import roots_file
from outpost_tools import sas
from outpost_tools.cli import app
from outpost_tools.hub import Hub
from outpost_tools.hub.dps import Dps
from outpost_tools.hub.rest import RestServer
from outpost_tools.hub.running import Running, announced
from outpost_tools.registry import Registry
from typer.testing import CliRunner

DEVICE = "pump-7"
PROGRAM = os.path.join(os.path.dirname(sys.executable), "outpost")


class World:
    def __init__(self, data: Path) -> None:
        self.data = data
        self.roots = roots_file(data)
        self.rest = RestServer(host="127.0.0.1", port=0)
        dps = Dps(data)
        self.hub = Hub(data, faces=[dps], services=[dps, self.rest])
        self.hub.start()
        running = Running("127.0.0.1", self.hub.port, "127.0.0.1", self.rest.port, self.hub.names)
        self.announced = announced(data, running)
        self.announced.__enter__()
        self._clients: list[paho.Client] = []

    def device(self, device_id: str = DEVICE, answers: dict | None = None) -> paho.Client:
        """A connected device that takes commands, desired properties and methods."""
        with Registry(self.data) as registry:
            key = registry.get(device_id).primary_key
        client = paho.Client(client_id=device_id, clean_session=False, protocol=paho.MQTTv311)
        client.tls_set(str(self.roots), tls_version=ssl.PROTOCOL_TLS_CLIENT)
        expiry_s = int(time.time()) + 3600
        client.username_pw_set(
            f"localhost/{device_id}/?api-version=2021-04-12",
            sas.make(key, f"localhost/devices/{device_id}", expiry_s),
        )
        client.got = queue.Queue()
        client.lost = threading.Event()
        client.on_disconnect = lambda *_: client.lost.set()
        ready = threading.Semaphore(0)

        def on_message(_c, _u, message) -> None:
            client.got.put((message.topic, message.payload))
            if message.topic.startswith("$iothub/methods/POST/"):
                _, _, _, name, rid = message.topic.split("/", 4)
                status, answer = (answers or {})[name]
                client.publish(f"$iothub/methods/res/{status}/{rid}", json.dumps(answer), qos=0)

        client.on_message = on_message
        client.on_subscribe = lambda *_: ready.release()
        client.on_connect = lambda c, *_: [
            c.subscribe(f"devices/{device_id}/messages/devicebound/#", 1),
            c.subscribe("$iothub/methods/POST/#"),
            c.subscribe("$iothub/twin/PATCH/properties/desired/#"),
        ]
        client.reconnect_delay_set(60, 60)
        client.connect("localhost", self.hub.port)
        client.loop_start()
        self._clients.append(client)
        for _ in range(3):
            assert ready.acquire(timeout=30)
        return client

    def close(self) -> None:
        for client in self._clients:
            client.disconnect()
            client.loop_stop()
        self.announced.__exit__(None, None, None)
        self.hub.stop()


def outpost(*words: str, code: int = 0, stdin: str | None = None):
    result = CliRunner().invoke(app, list(words), input=stdin)
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    return result
