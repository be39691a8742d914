"""A hub with its provisioning service, and a web hook of custom allocation.

It owns one hub in a temporary folder; `WebHook` owns one thread that answers HTTP.
"""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

from dpsclient import Client
from hubs import roots_file
from outpost_tools import sas
from outpost_tools.hub import Hub
from outpost_tools.hub.dps import Dps
from outpost_tools.registry import Registry


class World:
    def __init__(self, data, **options):
        self.data = data
        self.roots = roots_file(data)
        self.dps = Dps(data, **{"retry_after_s": 1, **options})
        self.enrolments = self.dps.enrolments
        self.hub = Hub(data, faces=[self.dps], services=[self.dps])
        self.hub.start()
        self.number = 0

    def name(self):
        self.number += 1
        return f"pump-{self.number}"

    def enrol(self, name=None, **more):
        name = name or self.name()
        attestation = more.pop("attestation", {"type": "symmetricKey"})
        return self.enrolments.put({"registrationId": name, "attestation": attestation, **more})

    def group(self, name, **more):
        attestation = more.pop("attestation", {"type": "symmetricKey"})
        return self.enrolments.put({"enrollmentGroupId": name, "attestation": attestation, **more})

    def token(self, name, key, life_s=600, scope=None, policy="registration"):
        resource = f"{scope or self.dps.id_scope}/registrations/{name}"
        return sas.make(key, resource, int(time.time() + life_s), policy)

    def client(self, name, key=None, **options):
        return Client(self, name, key, **options)

    def register(self, name, key=None, body=None, **options):
        """From CONNECT to the outcome: the last answer's JSON."""
        with self.client(name, key, **options) as client:
            return client.register(body)

    def hub_device(self, device_id):
        with Registry(self.data) as registry:
            return registry.find(device_id)

    def log(self):
        return json.dumps(self.hub.events, default=str)

    def close(self):
        if hasattr(self, "json_client"):
            self.json_client.__exit__()
        self.hub.stop()


class WebHook:
    """A custom allocation: answers what it is told to, and keeps what it was asked."""

    def __init__(self):
        self.asked, self.status, self.answer = [], 200, {}
        self.thinks = threading.Event()  # answers once this is set
        self.thinks.set()
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                length = int(self.headers["Content-Length"])
                hook.asked.append(json.loads(self.rfile.read(length)))
                body = hook.answer if isinstance(hook.answer, bytes) else json.dumps(hook.answer)
                hook.thinks.wait(4)
                self.send_response(hook.status)
                self.end_headers()
                self.wfile.write(body if isinstance(body, bytes) else body.encode())

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/choose"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
