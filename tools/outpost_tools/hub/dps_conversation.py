"""One device's connection to the provisioning service, after its CONNECT was accepted.

It owns the topics and the form of what is asked and answered; what becomes of a request is `Dps`'s.
A request that is wrong is answered; a packet that DPS does not take ends the connection.
"""

import asyncio
import json
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from amqtt.mqtt.packet import DISCONNECT, PINGREQ, PUBLISH, SUBSCRIBE, UNSUBSCRIBE

from outpost_tools.enrolment import utc
from outpost_tools.hub import packets
from outpost_tools.hub.line import Close

if TYPE_CHECKING:
    from outpost_tools.hub.dps import Dps
    from outpost_tools.hub.dps_who import Who
    from outpost_tools.hub.line import Line

RESPONSES = "$dps/registrations/res/#"
REGISTER = "$dps/registrations/PUT/iotdps-register/"
STATUS = "$dps/registrations/GET/iotdps-get-operationstatus/"

REQUEST_MAX_BYTES = 65536
REQUEST_ID_MAX = 128


class Failed(Exception):
    """A request that is answered with an error; the connection stays."""

    def __init__(self, status: int, code: int, message: str, retry_after_s: int | None = None):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.retry_after_s = retry_after_s


class Conversation:
    """One device's connection to DPS, after its CONNECT was accepted."""

    def __init__(self, dps: "Dps", line: "Line", who: "Who") -> None:
        self._dps, self._line, self._who = dps, line, who
        self._subscribed = False
        self._handlers: dict[int, Callable[[packets.Packet], Any]] = {
            PUBLISH: self._publish,
            SUBSCRIBE: self._subscribe,
            UNSUBSCRIBE: self._unsubscribe,
            PINGREQ: self._ping,
        }

    async def run(self) -> str:
        ending = None
        if self._who.expires_s is not None:
            left_s = max(self._who.expires_s - self._dps.core.now_s(), 0)
            ending = asyncio.get_running_loop().call_later(
                min(left_s, 86400 * 365), self._line.close, "its token has expired"
            )
        try:
            while True:
                packet = await self._line.read()
                if packet is None:
                    return "the device closed the connection without DISCONNECT"
                if packet.type == DISCONNECT:
                    if packet.body:
                        raise packets.Malformed("DISCONNECT has a body")
                    return "the device disconnected"
                handler = self._handlers.get(packet.type)
                if handler is None:
                    raise Close(f"{packet.name} is not served by DPS")
                await handler(packet)
                await self._line.drain()
        finally:
            if ending is not None:
                ending.cancel()

    async def _ping(self, packet: packets.Packet) -> None:
        if packet.body:
            raise packets.Malformed("PINGREQ has a body")
        self._line.write(packets.pingresp())

    async def _subscribe(self, packet: packets.Packet) -> None:
        asked = await packets.decode_subscribe(packet)
        codes = []
        for topic, qos in asked.filters:
            granted = topic == RESPONSES
            self._subscribed |= granted
            codes.append(min(qos, 1) if granted else 0x80)
        self._line.write(packets.suback(asked.packet_id, codes))

    async def _unsubscribe(self, packet: packets.Packet) -> None:
        asked = await packets.decode_unsubscribe(packet)
        if RESPONSES in asked.filters:
            self._subscribed = False
        self._line.write(packets.unsuback(asked.packet_id))

    async def _publish(self, packet: packets.Packet) -> None:
        message = await packets.decode_publish(packet)
        if message.qos == 2:
            raise Close("it published at QoS 2, which DPS does not take")
        topic, _, query = message.topic.partition("?")
        options = dict(part.partition("=")[::2] for part in query.split("&"))
        request_id = options.get("$rid", "")
        if topic not in (REGISTER, STATUS) or not 0 < len(request_id) <= REQUEST_ID_MAX:
            raise Close("it published to a topic that DPS does not have")
        if len(message.body) > REQUEST_MAX_BYTES:
            raise Close(f"a request of {len(message.body)} bytes is over DPS's limit")
        if message.qos == 1 and message.packet_id:
            self._line.write(packets.puback(message.packet_id))
        retry_after_s: int | None = None
        try:
            if topic == REGISTER:
                operation = self._dps.register(self._who, message.body)
            else:
                operation = self._dps.status(self._who, unquote(options.get("operationId", "")))
            status, answer = 200, operation.to_json()
            if operation.status == "assigning":
                status, retry_after_s = 202, self._dps.retry_after_s
        except Failed as why:
            status, retry_after_s = why.status, why.retry_after_s
            answer = {
                "errorCode": why.code,
                "trackingId": str(uuid.uuid4()),
                "message": why.message,
                "timestampUtc": utc(self._dps.core.now_s()),
            }
        self._answer(request_id, status, answer, retry_after_s)

    def _answer(
        self, request_id: str, status: int, answer: dict[str, Any], retry_after_s: int | None
    ) -> None:
        if not self._subscribed:
            return
        topic = f"{RESPONSES[:-1]}{status}/?$rid={request_id}"
        if retry_after_s is not None:
            topic += f"&retry-after={retry_after_s}"
        self._line.write(packets.publish(topic, json.dumps(answer).encode()))
