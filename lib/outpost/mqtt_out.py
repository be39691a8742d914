"""The writing half of MQTT 3.1.1: umqtt.simple's client, which hands its packets to a Stream.

Every packet goes out whole, in as few TLS records as it needs, under the Stream's deadline; ids
wrap from 65,535 to 1 and skip those in flight. Opens no connection and owns no flash.
"""

import time

from micropython import const
from umqtt.simple import MQTTClient

from . import agreed
from .errors import MqttError

_PUBLISH = const(0x30)
_PUBACK = const(0x40)


class Writer(MQTTClient):
    """inflight: packet id -> ticks of its sending, of all that wait for an answer."""

    def __init__(self, client_id, user, password, keepalive_s):
        super().__init__(client_id, "", 0, user, password, keepalive_s)
        self.inflight = {}
        self._sent = 0  # ticks of our last packet: keep-alive counts from it
        self._ping = None
        self._partial = False  # a packet of ours is begun and not yet sent whole

    def _remaining_length(self, first, size):
        """Write a fixed header: at most 5 bytes (MQTT 3.1.1, 2.2.3)."""
        self._partial = True
        head = bytearray(5)
        head[0] = first
        i = 1
        while size > 0x7F:
            head[i] = size & 0x7F | 0x80
            size >>= 7
            i += 1
        head[i] = size
        self.sock.write(head, i + 1)

    def _flush(self):
        self._partial = True
        self.sock.flush()
        self._partial = False
        self._sent = time.ticks_ms()

    def _send_str(self, s):
        # The original counts characters; MQTT counts the bytes of UTF-8.
        super()._send_str(s.encode() if isinstance(s, str) else s)

    def next_pid(self):
        """A packet id from 1 to 65,535 that is not in flight."""
        while True:
            self.pid = self.pid % 65535 + 1
            if self.pid not in self.inflight:
                return self.pid

    def publish(self, topic, msg, retain=False, qos=1, pid=None):
        """Write a PUBLISH and return its packet id (None at QoS 0) without waiting.

        `pid` given: the packet is sent again, flagged as a duplicate.
        """
        topic = topic.encode() if isinstance(topic, str) else topic
        size = 2 + len(topic) + len(msg) + (2 if qos else 0)
        if len(topic) > 65535 or size > agreed.MESSAGE_MAX_BYTES + 65537:
            raise ValueError("a message of %d bytes is longer than IoT Hub takes" % len(msg))
        self._remaining_length(_PUBLISH | (8 if pid else 0) | qos << 1 | retain, size)
        self._send_str(topic)
        if qos:
            if pid is None:
                pid = self.next_pid()
            self.sock.write(bytes((pid >> 8, pid & 0xFF)))
            self.inflight[pid] = time.ticks_ms()
        self.sock.write(msg)
        self._flush()
        return pid

    def write_subscribe(self, filters):
        """SUBSCRIBE to all (topic filter, qos) in one packet; returns its packet id."""
        pid = self.next_pid()
        filters = [(f.encode() if isinstance(f, str) else f, qos) for f, qos in filters]
        self._remaining_length(0x82, 2 + sum([3 + len(f) for f, _ in filters]))
        self.sock.write(bytes((pid >> 8, pid & 0xFF)))
        for topic, qos in filters:
            self._send_str(topic)
            self.sock.write(bytes((qos,)))
        self._flush()
        return pid

    def puback(self, pid):
        self.sock.write(bytes((_PUBACK, 2, pid >> 8, pid & 0xFF)))
        self._flush()

    def ping(self):
        super().ping()
        self._flush()
        self._ping = time.ticks_ms()

    def disconnect(self):
        """DISCONNECT and close; a peer that no longer reads is not waited for long."""
        # Not after half a packet: the peer would take these two bytes for its end.
        if self.sock is not None and not self._partial:
            try:
                self.sock.timeout_ms = 1000
                self.sock.write(b"\xe0\0")
                self.sock.flush()
            except (OSError, MqttError, MemoryError):
                pass
        self.drop()

    def drop(self):
        """Close without a word."""
        sock, self.sock = self.sock, None
        if sock is not None:
            sock.close()
