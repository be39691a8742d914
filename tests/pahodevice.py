"""A hub with one device in its registry, and two clients for it: paho's, and bare MQTT packets.

The bare one does what a well-behaved client never would: it keeps its PUBACK to itself, or goes
away without a word.
"""

from __future__ import annotations

import queue
import socket
import ssl
import struct
import threading
import time

import paho.mqtt.client as paho
from hubs import roots_file
from outpost_tools import sas
from outpost_tools.hub import Hub
from outpost_tools.registry import Registry


class World:
    def __init__(self, data, **hub):
        self.data = data
        self.roots = roots_file(data)
        with Registry(data) as registry:
            self.device = registry.add("pump-7")
        self._hub_options = hub
        self.hub = Hub(data, **hub)
        self.hub.start()

    @property
    def core(self):
        return self.hub.core

    def restart(self):
        self.hub.stop()
        self.hub = Hub(self.data, **self._hub_options)
        self.hub.start()

    def call(self, work):
        return self.core.wait(work, 30)

    def start(self, work):
        """Begin a coroutine of the core; gives its future."""
        import asyncio

        return asyncio.run_coroutine_threadsafe(work, self.core._loop)

    def event(self, kind, timeout_s=30):
        """The last event of a kind, once there is one."""
        assert self.hub.wait_until(lambda: self.count(kind), timeout_s), f"no {kind}"
        return [e for e in self.hub.events if e["event"] == kind][-1]

    def count(self, kind):
        return len([e for e in self.hub.events if e["event"] == kind])

    def token(self, key=None, resource="localhost/devices/pump-7", life_s=3600, policy=None):
        key = key or self.device.primary_key
        return sas.make(key, resource, int(time.time() + life_s), policy)

    def client(
        self,
        username="localhost/pump-7/?api-version=2021-04-12",
        password=None,
        clean=True,
        wait=True,
        certificate=None,
    ):
        client = Device(client_id="pump-7", clean_session=clean, protocol=paho.MQTTv311)
        chain, key = certificate or (None, None)
        client.tls_set(
            ca_certs=str(self.roots),
            certfile=chain,
            keyfile=key,
            tls_version=ssl.PROTOCOL_TLS_CLIENT,
        )
        client.username_pw_set(username, self.token() if password is None else password or None)
        client.begin(self.hub.port)
        if wait:
            assert connack(client) == 0
        return client

    def raw_session(self, **given):
        return RawSession(self, **given)


class Device(paho.Client):
    """paho's client with what came kept in a queue."""

    def begin(self, port):
        self.codes, self.session_present = [], False
        self.came, self.granted = queue.Queue(), queue.Queue()
        self.lost = threading.Event()
        self.on_message = lambda c, u, m: self.came.put((m.topic, m.payload, m.qos))
        self.on_subscribe = lambda c, u, mid, codes: self.granted.put(list(codes))
        self.on_disconnect = lambda *a: self.lost.set()
        self.on_connect = self._connected
        self.reconnect_delay_set(60, 60)
        self.connect("localhost", port, 60)
        self.loop_start()

    def _connected(self, client, userdata, flags, code):
        self.session_present = bool(flags["session present"])
        self.codes.append(code)

    def subscribe_to(self, topic, qos=1):
        self.subscribe(topic, qos)
        assert self.granted.get(timeout=30) == [qos]

    def next(self, timeout_s=30):
        """Topic, body and QoS of the next message."""
        return self.came.get(timeout=timeout_s)


def connack(client, timeout_s=30):
    deadline = time.monotonic() + timeout_s
    while not client.codes and time.monotonic() < deadline:
        time.sleep(0.01)
    assert client.codes, "no CONNACK"
    return client.codes[0]


def end(client):
    client.disconnect()
    client.loop_stop()


def packet(first, body):
    length, rest = b"", len(body)
    while True:
        rest, low = divmod(rest, 128)
        length += bytes([low | (128 if rest else 0)])
        if not rest:
            return bytes([first]) + length + body


def text(value):
    return struct.pack("!H", len(value)) + value


def publish(topic, body=b"", packet_id=None):
    middle = b"" if packet_id is None else struct.pack("!H", packet_id)
    return packet(0x30 if packet_id is None else 0x32, text(topic) + middle + body)


class Came:
    """A PUBLISH from the hub."""

    def __init__(self, first, body):
        size = int.from_bytes(body[:2], "big")
        self.topic = body[2 : 2 + size].decode()
        self.qos, self.dup = first >> 1 & 3, bool(first & 8)
        rest = body[2 + size :]
        self.packet_id = rest[:2] if self.qos else b""
        self.body = rest[2:] if self.qos else rest


class RawSession:
    """Connected on entry; gone without DISCONNECT on exit."""

    def __init__(self, world, will=None, keep_alive_s=60):
        context = ssl.create_default_context(cafile=str(world.roots))
        plain = socket.create_connection(("127.0.0.1", world.hub.port), 10)
        self.tls = context.wrap_socket(plain, server_hostname="localhost")
        self.file = self.tls.makefile("rb")
        flags = 0xC2 | (0x04 if will else 0)
        body = text(b"MQTT") + bytes([4, flags]) + struct.pack("!H", keep_alive_s)
        body += text(b"pump-7") + (text(will[0]) + text(will[1]) if will else b"")
        body += text(b"localhost/pump-7/?api-version=2021-04-12") + text(world.token().encode())
        self.send(packet(0x10, body))
        assert self.read() == (0x20, b"\0\0")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.tls.close()

    def send(self, data):
        self.tls.sendall(data)

    def read(self):
        """First byte and body of the next packet."""
        first, length, shift = self.file.read(1)[0], 0, 0
        while True:
            byte = self.file.read(1)[0]
            length |= (byte & 127) << shift
            shift += 7
            if not byte & 128:
                return first, self.file.read(length)

    def subscribe(self, topic, qos=1):
        self.send(packet(0x82, b"\0\1" + text(topic.encode()) + bytes([qos])))
        assert self.read() == (0x90, bytes([0, 1, qos]))

    def next_publish(self):
        first, body = self.read()
        assert first >> 4 == 3
        return Came(first, body)

    def acknowledge(self, came):
        self.send(packet(0x40, came.packet_id))

    def ping(self):
        self.send(b"\xc0\0")
        assert self.read() == (0xD0, b"")
