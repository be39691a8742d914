"""paho as a device that registers with the provisioning service: what Microsoft's client cannot do
(a certificate request, wrong requests) and what it hides (status, retry-after).

It owns one connection. `world` is whatever has `hub`, `dps` and `roots`.
"""

from __future__ import annotations

import json
import queue
import ssl
import threading
import time

import paho.mqtt.client as paho
from outpost_tools import sas

RESPONSES = "$dps/registrations/res/#"
REGISTER = "$dps/registrations/PUT/iotdps-register/?$rid={}"
STATUS = "$dps/registrations/GET/iotdps-get-operationstatus/?$rid={}&operationId={}"
API = "2019-03-31"


class Client:
    """`answers` are (status, options, JSON); `code` is the CONNACK's."""

    def __init__(
        self, world, name, key=None, cert=None, scope=None, token=None, api=API, client_id=None
    ):
        self.name = name
        self.mqtt = paho.Client(client_id=client_id or name, protocol=paho.MQTTv311)
        context = ssl.create_default_context(cafile=str(world.roots))
        if cert:
            context.load_cert_chain(*cert)
        self.mqtt.tls_set_context(context)
        scope = scope or world.dps.id_scope
        if token is None and key:
            token = sas.make(
                key, f"{scope}/registrations/{name}", int(time.time()) + 600, "registration"
            )
        user = f"{scope}/registrations/{name}/api-version={api}&ClientVersion=test%2F1"
        self.mqtt.username_pw_set(user, token)
        self.answers = queue.Queue()
        self.codes = queue.Queue()
        self.lost, self.ready = threading.Event(), threading.Event()
        self.mqtt.on_connect = lambda c, u, f, code: self.codes.put(code)
        self.mqtt.on_disconnect = lambda *a: self.lost.set()
        self.mqtt.on_subscribe = lambda *a: self.ready.set()
        self.mqtt.on_message = self._answered
        self.mqtt.reconnect_delay_set(60, 60)
        self.mqtt.connect(world.hub.host, world.hub.port, 60)
        self.mqtt.loop_start()
        self.code = self.codes.get(timeout=30)
        if self.code == 0:
            self.mqtt.subscribe(RESPONSES, 1)
            assert self.ready.wait(10)

    def _answered(self, client, user, message):
        path, _, query = message.topic.partition("?$")
        options = dict(part.split("=") for part in query.split("&"))
        self.answers.put((int(path.split("/")[3]), options, json.loads(message.payload)))

    def ask(self, topic, body=b" "):
        self.mqtt.publish(topic, body, qos=1)
        return self.answers.get(timeout=30)

    def register(self, body=None):
        if body is None:
            body = {"registrationId": self.name}
        status, options, answer = self.ask(REGISTER.format(1), json.dumps(body))
        while status == 202:
            assert answer["status"] == "assigning" and int(options["retry-after"]) >= 1
            time.sleep(0.1)
            status, options, answer = self.ask(STATUS.format(2, answer["operationId"]))
        return answer

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.mqtt.disconnect()
        self.mqtt.loop_stop()
