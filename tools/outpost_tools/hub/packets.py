"""MQTT 3.1.1 packets in and out. The codec is amqtt's; what it lets through is checked here.

A packet's length is judged before its body is read, and what was decoded must encode to the bytes
that came: bad UTF-8, trailing bytes and impossible flags do not survive that. It never shows a
password: `Connect` hides it from its repr.
"""

import asyncio
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from amqtt.adapters import BufferReader
from amqtt.errors import AMQTTError, CodecError, MQTTError, NoDataError
from amqtt.mqtt.connack import ConnackPacket
from amqtt.mqtt.connect import ConnectPacket
from amqtt.mqtt.packet import (
    CONNECT,
    DISCONNECT,
    PINGREQ,
    PUBACK,
    PUBLISH,
    SUBSCRIBE,
    UNSUBSCRIBE,
    MQTTFixedHeader,
)
from amqtt.mqtt.pingresp import PingRespPacket
from amqtt.mqtt.puback import PubackPacket
from amqtt.mqtt.publish import PublishPacket
from amqtt.mqtt.suback import SubackPacket
from amqtt.mqtt.subscribe import SubscribePacket
from amqtt.mqtt.unsuback import UnsubackPacket
from amqtt.mqtt.unsubscribe import UnsubscribePacket

from outpost_tools import agreed

# The largest message, and room for its topic.
PACKET_MAX_BYTES = agreed.MESSAGE_MAX_BYTES + 65536 + 4
CONNECT_MAX_BYTES = 16384
# Anything but a PUBLISH: room for all filters of IoT Hub, and for no more than a moment's decoding.
CONTROL_MAX_BYTES = 16384

NAMES = {
    CONNECT: "CONNECT",
    PUBLISH: "PUBLISH",
    PUBACK: "PUBACK",
    SUBSCRIBE: "SUBSCRIBE",
    UNSUBSCRIBE: "UNSUBSCRIBE",
    PINGREQ: "PINGREQ",
    DISCONNECT: "DISCONNECT",
}
# The flags that a packet type must have; PUBLISH's are its own.
FIXED_FLAGS = {CONNECT: 0, PUBACK: 0, SUBSCRIBE: 2, UNSUBSCRIBE: 2, PINGREQ: 0, DISCONNECT: 0}

# What amqtt raises on bytes that are no such packet.
DECODE_ERRORS = (
    AMQTTError,
    CodecError,
    MQTTError,
    NoDataError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    struct.error,
)


class Malformed(Exception):
    """What came is not MQTT 3.1.1. The text is safe to log."""


@dataclass(frozen=True)
class Packet:
    type: int
    flags: int
    body: bytes

    @property
    def name(self) -> str:
        return NAMES.get(self.type, f"packet type {self.type}")


@dataclass(frozen=True)
class Will:
    topic: str
    body: bytes
    qos: int
    retain: bool


@dataclass(frozen=True)
class Connect:
    protocol: tuple[str, int]
    client_id: str
    clean_session: bool
    keep_alive_s: int
    username: str | None
    password: bytes | None = field(repr=False)
    will: Will | None = None


@dataclass(frozen=True)
class Publish:
    topic: str
    body: bytes
    qos: int
    dup: bool
    retain: bool
    packet_id: int | None


@dataclass(frozen=True)
class Subscribe:
    packet_id: int
    filters: list[tuple[str, int]]  # topic filter, QoS asked for


@dataclass(frozen=True)
class Unsubscribe:
    packet_id: int
    filters: list[str]


async def read_packet(reader: asyncio.StreamReader, limit: int = PACKET_MAX_BYTES) -> Packet | None:
    """The next packet, None at the end of the stream; its body is not looked into."""
    try:
        first = (await reader.readexactly(1))[0]
    except asyncio.IncompleteReadError:
        return None
    try:
        length, shift = 0, 0
        while True:
            byte = (await reader.readexactly(1))[0]
            length |= (byte & 0x7F) << shift
            if not byte & 0x80:
                break
            shift += 7
            if shift > 21:
                raise Malformed("its length takes more than four bytes")
        packet = Packet(first >> 4, first & 0x0F, b"")
        if packet.type not in NAMES:
            raise Malformed(f"a device does not send {packet.name}")
        if FIXED_FLAGS.get(packet.type, packet.flags) != packet.flags:
            raise Malformed(f"{packet.name} has impossible flags")
        limit = limit if packet.type == PUBLISH else min(limit, CONTROL_MAX_BYTES)
        if length > limit:
            raise Malformed(f"{packet.name} of {length} bytes is over the limit of {limit}")
        return Packet(packet.type, packet.flags, await reader.readexactly(length))
    except asyncio.IncompleteReadError:
        raise Malformed("it ended in the middle of a packet") from None


async def _decode(kind: type[Any], packet: Packet) -> Any:
    header = MQTTFixedHeader(packet.type, packet.flags, len(packet.body))
    try:
        decoded = await kind.from_stream(BufferReader(packet.body), header)
        variable = decoded.variable_header
        again = variable.to_bytes() + decoded.payload.to_bytes(header, variable)
    except DECODE_ERRORS:
        raise Malformed(f"{packet.name} does not decode") from None
    if bytes(again) != packet.body:
        raise Malformed(f"{packet.name} does not decode")
    return decoded


async def decode_connect(packet: Packet) -> Connect:
    variable_end = 10  # where CONNECT's client id starts, for the protocol name "MQTT"
    if (
        packet.body[:6] == b"\x00\x04MQTT"
        and packet.body[variable_end : variable_end + 2] == b"\0\0"
    ):
        # amqtt makes up a client id where there is none, which would fail the comparison below.
        raise Malformed("CONNECT has no client id")
    decoded = await _decode(ConnectPacket, packet)
    header, payload = decoded.variable_header, decoded.payload
    if header.reserved_flag:
        raise Malformed("CONNECT has impossible flags")
    if header.password_flag and not header.username_flag:
        raise Malformed("CONNECT has a password without a user name")
    if header.will_qos > 2 or not header.will_flag and (header.will_qos or header.will_retain_flag):
        raise Malformed("CONNECT has an impossible will")
    password = payload.password
    will = None
    if header.will_flag:
        body = payload.will_message
        will = Will(
            topic=payload.will_topic or "",
            body=body.encode() if isinstance(body, str) else bytes(body or b""),
            qos=header.will_qos,
            retain=header.will_retain_flag,
        )
    return Connect(
        protocol=(header.proto_name, header.proto_level),
        client_id=payload.client_id,
        clean_session=header.clean_session_flag,
        keep_alive_s=header.keep_alive,
        username=payload.username,
        password=password.encode() if isinstance(password, str) else password,
        will=will,
    )


async def decode_publish(packet: Packet) -> Publish:
    qos = packet.flags >> 1 & 3
    if qos == 3:
        raise Malformed("PUBLISH has impossible flags")
    if qos == 0 and packet.flags & 8:
        raise Malformed("PUBLISH at QoS 0 says that it is a duplicate")
    decoded: PublishPacket = await _decode(PublishPacket, packet)
    assert decoded.variable_header is not None and decoded.payload is not None
    topic, packet_id = decoded.variable_header.topic_name, decoded.variable_header.packet_id
    if not topic or "\0" in topic:
        raise Malformed("PUBLISH has no topic")
    if qos and not packet_id:
        raise Malformed("PUBLISH has packet id 0")
    body = bytes(decoded.payload.data or b"")
    return Publish(topic, body, qos, bool(packet.flags & 8), bool(packet.flags & 1), packet_id)


async def decode_subscribe(packet: Packet) -> Subscribe:
    decoded = await _decode(SubscribePacket, packet)
    filters = [(topic, qos) for topic, qos in decoded.payload.topics]
    if not decoded.variable_header.packet_id:
        raise Malformed("SUBSCRIBE has packet id 0")
    if not filters:
        raise Malformed("SUBSCRIBE asks for nothing")
    if any(qos > 2 for _, qos in filters):
        raise Malformed("SUBSCRIBE asks for an impossible QoS")
    return Subscribe(decoded.variable_header.packet_id, filters)


async def decode_unsubscribe(packet: Packet) -> Unsubscribe:
    decoded = await _decode(UnsubscribePacket, packet)
    if not decoded.variable_header.packet_id:
        raise Malformed("UNSUBSCRIBE has packet id 0")
    if not decoded.payload.topics:
        raise Malformed("UNSUBSCRIBE asks for nothing")
    return Unsubscribe(decoded.variable_header.packet_id, list(decoded.payload.topics))


def decode_puback(packet: Packet) -> int:
    if len(packet.body) != 2 or packet.body == b"\0\0":
        raise Malformed("PUBACK does not decode")
    return int.from_bytes(packet.body, "big")


def connack(code: int, session_present: bool = False) -> bytes:
    return ConnackPacket.build(int(session_present), code).to_bytes()


def puback(packet_id: int) -> bytes:
    return PubackPacket.build(packet_id).to_bytes()


def suback(packet_id: int, codes: Sequence[int]) -> bytes:
    return SubackPacket.build(packet_id, list(codes)).to_bytes()


def unsuback(packet_id: int) -> bytes:
    return UnsubackPacket.build(packet_id).to_bytes()


def publish(
    topic: str, body: bytes, qos: int = 0, packet_id: int | None = None, dup: bool = False
) -> bytes:
    return PublishPacket.build(topic, body, packet_id, dup, qos, False).to_bytes()


def pingresp() -> bytes:
    return PingRespPacket.build().to_bytes()
