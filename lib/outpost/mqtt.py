"""MQTT 3.1.1: umqtt.simple with its faults mended.

Kept of umqtt.simple: the client's fields, the string and ping writing. Mended,
because the original hangs or breaks there: every wait has a deadline; publishes
at QoS 1 are pipelined instead of waiting for each PUBACK; packet ids wrap from
65,535 to 1 and skip those in flight; an incoming length is checked before any
memory is taken for it; PINGRESP is required; a refusal is a typed error.

The connection below is a Stream; this module opens none and owns no flash.
"""

import time

from micropython import const
from umqtt.simple import MQTTClient

from . import agreed
from .errors import MqttError, Refused

_CONNACK = const(0x20)
_PUBLISH = const(0x30)
_PUBACK = const(0x40)
_SUBACK = const(0x90)
_PINGRESP = const(0xD0)

_REFUSALS = {
    1: "the server does not speak MQTT 3.1.1",
    2: "the server does not take this client id",
    3: "the server is not available now",
    4: "the server refused the user name or password: check the device's id and key",
    5: "the server does not authorise this device: check that it exists there, is enabled, "
    "and has the key that is in this board",
}


class Session(MQTTClient):
    """One MQTT connection over one Stream.

    acknowledged(pid) is called for each PUBACK of a packet in flight.
    Incoming packets longer than `limit` bytes end the connection.
    """

    def __init__(self, client_id, user, password, keepalive_s, limit=4096):
        super().__init__(client_id, "", 0, user, password, keepalive_s)
        self.limit = limit
        self.acknowledged = None
        self.copies = True  # False: a message's body is handed over where it lies, for long ones
        self.inflight = {}  # packet id -> ticks of its sending
        self._head = bytearray(5)
        self._body = None
        self._got = 0
        self._need = 0
        self._packet_start = None
        self._sent = 0  # ticks of our last packet: keep-alive counts from it
        self._ping = None
        self._partial = False  # a packet of ours is begun and not yet sent whole
        self._awaits = None  # the packet id of the SUBSCRIBE that waits for its SUBACK

    # Sending

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

    def connect(self, stream, clean_session=True, deadline_ms=20000):
        """CONNECT over `stream`, wait for CONNACK. Returns "session present" (bool)."""
        self.sock = stream
        client_id = self.client_id.encode()
        user = self.user.encode()
        password = self.pswd.encode()
        self._remaining_length(0x10, 10 + 6 + len(client_id) + len(user) + len(password))
        variable = bytearray(b"\x00\x04MQTT\x04\xc0\x00\x00")
        variable[7] |= (1 if clean_session else 0) << 1
        variable[8] = self.keepalive >> 8
        variable[9] = self.keepalive & 0xFF
        stream.write(variable)
        for s in (client_id, user, password):
            self._send_str(s)
        self._flush()
        start = time.ticks_ms()
        while True:
            op = self._receive()
            if op is not None:
                break
            left = deadline_ms - time.ticks_diff(time.ticks_ms(), start)
            if left <= 0:
                raise MqttError(
                    "the server answered no CONNACK within %d s" % (deadline_ms // 1000)
                )
            stream.wait(min(left, 500))
        if op != _CONNACK or self._need != 2 or self._body[0] > 1:
            raise MqttError("the server's first packet was not a CONNACK (0x%02x)" % op)
        code = self._body[1]
        session_present = self._body[0] == 1
        self._done()
        if code:
            why = _REFUSALS.get(code, "the server refused the connection with code %d" % code)
            raise Refused(code, why, code in (1, 2, 4, 5))
        return session_present

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

    def subscribe(self, topic, qos=0, deadline_ms=20000):
        """SUBSCRIBE and wait for SUBACK; packets in between are served as usual."""
        topic = topic.encode() if isinstance(topic, str) else topic
        pid = self.next_pid()
        self._remaining_length(0x82, 2 + 2 + len(topic) + 1)
        self.sock.write(bytes((pid >> 8, pid & 0xFF)))
        self._send_str(topic)
        self.sock.write(bytes((qos,)))
        self._flush()
        self._awaits = pid
        start = time.ticks_ms()
        while True:
            op = self.check_msg()
            if op == _SUBACK:
                self._awaits = None
                if self._need != 3 or (self._body[0] << 8 | self._body[1]) != pid:
                    raise MqttError("the server sent a SUBACK for nothing")
                granted = self._body[2]
                self._done()
                if granted & 0x80:
                    raise MqttError("the server refused the subscription to %s" % topic.decode())
                return granted
            left = deadline_ms - time.ticks_diff(time.ticks_ms(), start)
            if left <= 0:
                raise MqttError("the server answered no SUBACK within %d s" % (deadline_ms // 1000))
            if op is None:
                self.sock.wait(min(left, 500))

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

    # Receiving

    def _receive(self):
        """The first byte of a packet that is now whole in _body, or None: never waits."""
        head = self._head
        while self._body is None:
            # The fixed header comes a byte at a time: its length is in its bytes.
            view = memoryview(head)[self._got : self._got + 1]
            if not self.sock.read_some(view):
                self._check_packet_deadline()
                return None
            if self._got == 0:
                self._packet_start = time.ticks_ms()
            self._got += 1
            if self._got == 1 or head[self._got - 1] & 0x80:
                if self._got == 5:
                    raise MqttError("the server sent a length that MQTT does not allow")
                continue
            self._need = 0
            for i in range(self._got - 1, 0, -1):
                self._need = self._need << 7 | head[i] & 0x7F
            if self._need > self.limit:
                raise MqttError(
                    "the server sent a packet of %d bytes, more than the %d this device takes"
                    % (self._need, self.limit)
                )
            self._body = bytearray(self._need)
            self._got = 0
        while self._got < self._need:
            n = self.sock.read_some(memoryview(self._body)[self._got :])
            if not n:
                self._check_packet_deadline()
                return None
            self._got += n
        return head[0]

    def _done(self):
        self._body = None
        self._got = 0
        self._packet_start = None

    def _check_packet_deadline(self):
        if self._packet_start is not None:
            if time.ticks_diff(time.ticks_ms(), self._packet_start) > self.sock.timeout_ms:
                raise MqttError("the server sent half a packet and then nothing")

    def check_msg(self):
        """Serve one incoming packet if it is there. Returns its first byte or None.

        A SUBACK that subscribe() waits for is left in place for it. Never waits.
        """
        op = self._receive()
        if op is None:
            return None
        kind = op & 0xF0
        if kind == _SUBACK and self._awaits is not None:
            return op
        body = self._body
        need = self._need
        self._done()
        if kind == _PUBACK:
            if need != 2:
                raise MqttError("the server sent a PUBACK of %d bytes" % need)
            pid = body[0] << 8 | body[1]
            # One for nothing (late, or of an earlier connection) changes nothing.
            if self.inflight.pop(pid, None) is not None and self.acknowledged:
                self.acknowledged(pid)
        elif kind == _PUBLISH:
            self._incoming(op, body, need)
        elif op == _PINGRESP and not need:
            self._ping = None
        else:
            raise MqttError("the server sent a packet of type 0x%02x" % op)
        return op

    wait_msg = check_msg

    def _incoming(self, op, body, need):
        qos = op >> 1 & 3
        if qos > 1 or need < 2:
            raise MqttError("the server sent a PUBLISH that this device never asked for")
        end = 2 + (body[0] << 8 | body[1])
        start = end + 2 if qos else end
        if start > need or end == 2:
            raise MqttError("the server sent a PUBLISH whose topic does not fit its length")
        if self.cb is None:
            # A subscription that an earlier software made is kept by the server, and so
            # may be its messages: closing would keep this device away for ever. Without
            # our PUBACK the message stays queued there.
            return
        view = memoryview(body)  # a slice of the bytes themselves would be one copy more
        self.cb(bytes(view[2:end]), bytes(view[start:]) if self.copies else view[start:])
        if qos:
            self.sock.write(bytes((_PUBACK, 2, body[end], body[end + 1])))
            self._flush()

    def service(self, ack_timeout_ms):
        """Keep-alive and acknowledgement deadlines; MqttError where the peer is gone.

        Returns milliseconds until it must be called again.
        """
        now = time.ticks_ms()
        for sent in self.inflight.values():
            if time.ticks_diff(now, sent) > ack_timeout_ms:
                raise MqttError(
                    "the server acknowledged nothing for %d s" % (ack_timeout_ms // 1000)
                )
        # A ping at half the keep-alive and another half for its answer: a half-open
        # connection is found within one keep-alive.
        half = self.keepalive * 500
        if self._ping is not None:
            left = half - time.ticks_diff(now, self._ping)
            if left <= 0:
                raise MqttError("the server did not answer a ping within %d s" % (half // 1000))
            return left
        left = half - time.ticks_diff(now, self._sent)
        if left <= 0:
            self.ping()
            return half
        return left
