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

from .errors import MqttError, Refused
from .mqtt_out import Writer
from .packets import Packets

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


class Session(Writer):
    """One MQTT connection over one Stream.

    acknowledged(pid) is called for each PUBACK of a packet in flight, received(topic, body, pid)
    for each PUBLISH: its caller sends puback(pid) where pid is not None. A PUBLISH longer than
    `limit` bytes goes by unread, acknowledged: too_long(topic, size) hears of it, with up to 254
    bytes of its topic. Any other packet of that length ends the connection.
    """

    def __init__(self, client_id, user, password, keepalive_s, limit=4096):
        super().__init__(client_id, user, password, keepalive_s)
        self._limit = limit
        self._packets = None
        self.acknowledged = None
        self.received = None
        self.too_long = None
        self._awaits = None  # the packet id of the SUBSCRIBE that subscribe() waits for
        self._asked = None  # of the one that ask() has sent: (packet id, filters, answered)

    def busy(self):
        """Whether an acknowledgement or the rest of a packet is still to come."""
        return bool(self.inflight) or self.asking() or self._packets.midway()

    @property
    def limit(self):
        return self._limit

    @limit.setter
    def limit(self, limit):
        self._limit = limit
        if self._packets:
            self._packets.limit = limit

    def connect(self, stream, clean_session=True, deadline_ms=20000):
        """CONNECT over `stream`, wait for CONNACK. Returns "session present" (bool)."""
        self.sock = stream
        packets = self._packets = Packets(stream, self._limit)
        # An empty password is none at all, and so is an empty name: RabbitMQ goes by the
        # certificate only where neither is there (MQTT 3.1.1, 3.1.2.8 and 3.1.2.9).
        texts = [self.client_id.encode()]
        if self.user:
            texts.append(self.user.encode())
            if self.pswd:
                texts.append(self.pswd.encode())
        self._remaining_length(0x10, 10 + sum([2 + len(text) for text in texts]))
        variable = bytearray(b"\x00\x04MQTT\x04\x00\x00\x00")
        variable[7] = (0, 0x80, 0xC0)[len(texts) - 1] | (1 if clean_session else 0) << 1
        variable[8] = self.keepalive >> 8
        variable[9] = self.keepalive & 0xFF
        stream.write(variable)
        for text in texts:
            self._send_str(text)
        self._flush()
        start = time.ticks_ms()
        while True:
            op = packets.receive()
            if op is not None:
                break
            left = deadline_ms - time.ticks_diff(time.ticks_ms(), start)
            if left <= 0:
                raise MqttError(
                    "the server answered no CONNACK within %d s" % (deadline_ms // 1000)
                )
            stream.wait(min(left, 500))
        if op != _CONNACK or packets.size != 2 or packets.body[0] > 1:
            raise MqttError("the server's first packet was not a CONNACK (0x%02x)" % op)
        session_present, code = packets.body[0] == 1, packets.body[1]
        packets.done()
        if code:
            why = _REFUSALS.get(code, "the server refused the connection with code %d" % code)
            raise Refused(code, why, code in (1, 2, 4, 5))
        return session_present

    def ask(self, filters, answered):
        """SUBSCRIBE to all (topic filter, qos) in one packet, without waiting.

        answered(granted) is called with the SUBACK's codes, one for each: 0x80 is a refusal.
        """
        pid = self.write_subscribe(filters)
        self._asked = (pid, len(filters), answered)
        self.inflight[pid] = time.ticks_ms()

    def asking(self):
        """Whether a SUBSCRIBE of ask() is not answered yet."""
        return self._asked is not None

    def _granted(self, body, need):
        pid, count, answered = self._asked
        if need != 2 + count or (body[0] << 8 | body[1]) != pid:
            raise MqttError("the server sent a SUBACK for nothing")
        self._asked = None
        self.inflight.pop(pid, None)
        answered(bytes(body[2:]))

    def subscribe(self, topic, qos=0, deadline_ms=20000):
        """SUBSCRIBE and wait for SUBACK; packets in between are served as usual."""
        pid = self._awaits = self.write_subscribe([(topic, qos)])
        start = time.ticks_ms()
        while True:
            op = self.check_msg()
            if op is not None and op & 0xF0 == _SUBACK:
                self._awaits = None
                packets = self._packets
                body, need = packets.body, packets.size
                packets.done()
                if need != 3 or (body[0] << 8 | body[1]) != pid:
                    raise MqttError("the server sent a SUBACK for nothing")
                if body[2] & 0x80:
                    raise MqttError("the server refused the subscription to %s" % topic)
                return body[2]
            left = deadline_ms - time.ticks_diff(time.ticks_ms(), start)
            if left <= 0:
                raise MqttError("the server answered no SUBACK within %d s" % (deadline_ms // 1000))
            if op is None:
                self.sock.wait(min(left, 500))

    # Receiving

    def check_msg(self):
        """Serve one incoming packet if it is there. Returns its first byte or None.

        A SUBACK that subscribe() waits for is left in place for it. Never waits.
        """
        packets = self._packets
        op = packets.receive()
        if op is None:
            return None
        kind = op & 0xF0
        if kind == _SUBACK and self._awaits is not None:
            return op
        body, need = packets.body, packets.size
        if packets.cut:
            pid = packets.pid
            packets.done()
            self._overlong(body, need, pid)
            return op
        packets.done()
        if kind == _PUBACK:
            if need != 2:
                raise MqttError("the server sent a PUBACK of %d bytes" % need)
            pid = body[0] << 8 | body[1]
            # One for nothing (late, or of an earlier connection) changes nothing.
            if self.inflight.pop(pid, None) is not None and self.acknowledged:
                self.acknowledged(pid)
        elif kind == _PUBLISH:
            self._incoming(op, body, need)
        elif kind == _SUBACK and self._asked:
            self._granted(body, need)
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
        pid = (body[end] << 8 | body[end + 1]) if qos else None
        if self.received:
            self.received(bytes(body[2:end]), memoryview(body)[start:], pid)
        elif self.cb:
            self.cb(bytes(body[2:end]), bytes(body[start:]))
            if qos:
                self.puback(pid)
        # Else nobody listens. A subscription that an earlier software made is kept by the
        # server, and so may be its messages: closing would keep this device away for ever.
        # Without our PUBACK the message stays queued there.

    def _overlong(self, front, size, pid):
        """A PUBLISH longer than `limit` went by. Acknowledged: it would come again for ever."""
        topic = bytes(front[2 : min(2 + (front[0] << 8 | front[1]), len(front))])
        if self.too_long:
            self.too_long(topic, size)
        if pid:
            self.puback(pid)

    def service(self, ack_timeout_ms, reading=True):
        """Keep-alive and acknowledgement deadlines; MqttError where the peer is gone.

        reading  False while the caller reads nothing: what it would read cannot be late then
        Returns milliseconds until it must be called again.
        """
        now = time.ticks_ms()
        half = self.keepalive * 500
        if not reading:
            for pid in self.inflight:
                self.inflight[pid] = now
            self._ping = None if self._ping is None else now
        for sent in self.inflight.values():
            if time.ticks_diff(now, sent) > ack_timeout_ms:
                raise MqttError(
                    "the server acknowledged nothing for %d s" % (ack_timeout_ms // 1000)
                )
        # A ping at half the keep-alive and another half for its answer: a half-open
        # connection is found within one keep-alive. In the middle of a packet it is the
        # packet's own deadline that counts: the answer stands behind it.
        if self._ping is not None and reading:
            left = half - time.ticks_diff(now, self._ping)
            if left > 0 or self._packets.midway():
                return max(left, 100)
            raise MqttError("the server did not answer a ping within %d s" % (half // 1000))
        left = half - time.ticks_diff(now, self._sent)
        if left <= 0:
            self.ping()
            return half
        return left
