"""A hub with its service side, asked by `requests` as an operator and by paho as a device.

It owns one hub in a temporary folder, and a session of `requests`.
"""

from __future__ import annotations

import threading
import time

import paho.mqtt.client as paho
import requests
from hubs import eventually, roots_file
from outpost_tools import sas
from outpost_tools.hub import Hub
from outpost_tools.hub.rest import RestServer
from outpost_tools.registry import Registry, new_key

API = {"api-version": "2021-04-12"}


class World:
    def __init__(self, data, rest=None, **options):
        self.data = data
        self.roots = roots_file(data)
        self.rest = RestServer(port=0, **(rest or {}))
        self.hub = Hub(data, services=[self.rest], **options)
        self.hub.start()
        self.session = requests.Session()
        self.number = 0

    @property
    def core(self):
        return self.hub.core

    def token(self, policy="iothubowner", resource="127.0.0.1", key=None, life_s=600):
        with Registry(self.data) as registry:
            held = registry.policy(policy)
        key = key or (held.primary_key if held else new_key())
        return sas.make(key, resource, int(time.time()) + life_s, policy)

    def ask(self, method, path, body=None, policy="iothubowner", token=None, **options):
        headers = {"Authorization": token or self.token(policy), **options.pop("headers", {})}
        options.setdefault("params", API)
        return self.session.request(
            method,
            f"https://127.0.0.1:{self.rest.port}{path}",
            json=body if "data" not in options else None,
            headers=headers,
            timeout=20,
            verify=str(self.roots),
            **options,
        )

    def device(self, **more):
        """A new device of its own for each test."""
        self.number += 1
        device_id = f"pump-{self.number}"
        answer = self.ask("PUT", f"/devices/{device_id}", {"deviceId": device_id, **more})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def connect(self, device):
        """paho, as that device."""
        device_id = device["deviceId"]
        client = paho.Client(client_id=device_id, protocol=paho.MQTTv311)
        client.tls_set(ca_certs=str(self.roots))
        key = device["authentication"]["symmetricKey"]["primaryKey"]
        client.username_pw_set(
            f"localhost/{device_id}/?api-version=2021-04-12",
            sas.make(key, f"localhost/devices/{device_id}", int(time.time()) + 600),
        )
        client.lost = threading.Event()
        client.on_disconnect = lambda *a: client.lost.set()
        client.connect("localhost", self.hub.port, 60)
        client.loop_start()
        assert eventually(lambda: device_id in self.core.connected)
        return client

    def close(self):
        self.session.close()
        self.hub.stop()


def end(client):
    client.disconnect()
    client.loop_stop()


def code(answer):
    """The name of the error, which stands in a header as on the real service."""
    assert answer.status_code >= 400
    return answer.headers["iothub-errorcode"]
