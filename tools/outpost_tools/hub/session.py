"""One device's connection, from CONNECT to its end.

It owns the order of things in one MQTT session: who it is first, then what IoT Hub's topics stand
for. Telemetry is acknowledged once it is stored; a command is done once the device acknowledges it.
Whatever else comes ends the connection with one reason, which holds no secret.
"""

import asyncio
import collections
import datetime as dt
import itertools
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from amqtt.mqtt.packet import DISCONNECT, PINGREQ, PUBACK, PUBLISH, SUBSCRIBE, UNSUBSCRIBE

from outpost_tools import agreed
from outpost_tools.hub import auth, faults, limits, packets
from outpost_tools.hub.couriers import Courier
from outpost_tools.hub.line import Close, Line
from outpost_tools.hub.store import Telemetry
from outpost_tools.hub.twins import Json, compact, parse_json

if TYPE_CHECKING:
    from outpost_tools.hub.core import HubCore

__all__ = ["Close", "Line", "Session", "Telemetry", "parse_properties"]

# Messages of one device that may wait for the disk: so many, and so many bytes (or one message).
UNSTORED_MAX = 1000
UNSTORED_MAX_BYTES = 1 << 20
SUBACK_FAILURE = 0x80
REQUEST_ID_MAX = 512
# Throttled telemetry waits, as the service shapes it; more than this and the connection ends.
SHAPED_MAX_S = 10.0
YEAR_9999_S = 253370764800

COMMANDS = "devices/{}/messages/devicebound/#"
METHODS = "$iothub/methods/POST/#"
TWIN_ANSWERS = "$iothub/twin/res/#"
DESIRED = "$iothub/twin/PATCH/properties/desired/#"

METHOD_ANSWER = "$iothub/methods/res/"
TWIN_GET = "$iothub/twin/GET/"
TWIN_REPORT = "$iothub/twin/PATCH/properties/reported/"
STATUS = re.compile("-?[0-9]{1,9}")


class Session:
    def __init__(self, core: "HubCore", line: Line, admitted: auth.Admitted) -> None:
        self.core, self.line, self.admitted = core, line, admitted
        self.device_id = admitted.device_id
        self.subscriptions: dict[str, int] = {}
        self.standing: object = None  # what its rights hung on when they were looked at last
        self._clean = True
        self._events_topic = agreed.EVENTS_TOPIC % self.device_id
        self._commands = COMMANDS.format(self.device_id)
        self._filters = (self._commands, METHODS, TWIN_ANSWERS, DESIRED)
        self._unstored: collections.deque[asyncio.Future[int]] = collections.deque()
        self._unstored_bytes = 0
        self._packet_ids = itertools.cycle(range(1, 65536))
        self._courier = Courier(self)
        self._will: packets.Will | None = None

    # From outside.

    @property
    def takes_methods(self) -> bool:
        return METHODS in self.subscriptions

    @property
    def command_qos(self) -> int | None:
        return self.subscriptions.get(self._commands)

    def close(self, reason: str) -> None:
        self.line.close(reason)

    def wake(self) -> None:
        """There may be commands for it."""
        self._courier.wake()

    def give_way(self) -> None:
        """A newer connection takes its place: its commands are the newer one's first."""
        self._courier.stop()
        self.close("a newer connection of the same device took its place")

    def send_method(self, name: str, rid: str, body: bytes) -> None:
        self.line.write(packets.publish(f"$iothub/methods/POST/{name}/?$rid={rid}", body))

    def send_desired(self, patch: Json, version: int) -> None:
        if DESIRED in self.subscriptions:
            topic = f"{DESIRED[:-1]}?$version={version}"
            self.line.write(packets.publish(topic, compact({**patch, "$version": version})))

    def new_packet_id(self) -> int:
        return next(i for i in self._packet_ids if not self._courier.has(i))

    # The connection.

    async def serve(self, connect: packets.Connect) -> str:
        """From the CONNACK on; gives the reason why it ended, or raises it."""
        self.line.keep_alive(connect.keep_alive_s)
        self._will = connect.will
        self._clean = connect.clean_session
        try:
            kept = await self.core.on_disk(
                self.core.subscriptions.begin, self.device_id, connect.clean_session
            )
        except faults.Unavailable:
            self.line.write(packets.connack(auth.UNAVAILABLE))
            raise
        self.subscriptions = {f: q for f, q in (kept or {}).items() if f in self._filters}
        timer = None
        if self.admitted.expires_s is not None:
            left_s = max(self.admitted.expires_s - self.core.now_s(), 0)
            timer = asyncio.get_running_loop().call_later(
                min(left_s, 86400 * 365), self.close, "its token has expired"
            )
        try:
            self.core.join(self)
            self.line.write(packets.connack(auth.ACCEPTED, kept is not None))
            self._subscribed()
            return await self._serve()
        finally:
            if timer is not None:
                timer.cancel()
            self.core.leave(self)
            self._deliver_will()
            self._courier.stop()

    async def _serve(self) -> str:
        handlers = {
            PUBLISH: self._publish,
            PUBACK: self._acknowledged,
            SUBSCRIBE: self._subscribe,
            UNSUBSCRIBE: self._unsubscribe,
            PINGREQ: self._ping,
        }
        while True:
            packet = await self.line.read()
            if packet is None:
                return "the device closed the connection without DISCONNECT"
            self.core.presence.heard(self)
            if packet.type == DISCONNECT:
                if packet.body:
                    raise packets.Malformed("DISCONNECT has a body")
                self._will = None
                return "the device disconnected"
            handler = handlers.get(packet.type)
            if handler is None:
                raise Close(f"{packet.name} came a second time")
            await handler(packet)
            await self.line.drain()

    async def _ping(self, packet: packets.Packet) -> None:
        if packet.body:
            raise packets.Malformed("PINGREQ has a body")
        self.line.write(packets.pingresp())

    # Subscriptions.

    async def _subscribe(self, packet: packets.Packet) -> None:
        asked = await packets.decode_subscribe(packet)
        before = dict(self.subscriptions)
        codes = []
        for topic, qos in asked.filters:
            if topic in self._filters:
                self.subscriptions[topic] = min(qos, 1)
                codes.append(min(qos, 1))
            else:
                codes.append(SUBACK_FAILURE)
        await self._keep(before)
        self.line.write(packets.suback(asked.packet_id, codes))
        self._subscribed()

    async def _unsubscribe(self, packet: packets.Packet) -> None:
        asked = await packets.decode_unsubscribe(packet)
        before = dict(self.subscriptions)
        for topic in asked.filters:
            self.subscriptions.pop(topic, None)
        await self._keep(before)
        self.line.write(packets.unsuback(asked.packet_id))

    async def _keep(self, before: dict[str, int]) -> None:
        kept = dict(self.subscriptions)
        if not self._clean and kept != before:
            await self.core.on_disk(self.core.subscriptions.keep, self.device_id, kept)

    def _subscribed(self) -> None:
        if self.takes_methods:
            self.core.methods.arrived(self.device_id)
        if self.command_qos is not None:
            self._courier.wake()

    async def _acknowledged(self, packet: packets.Packet) -> None:
        if not self._courier.acknowledged(packets.decode_puback(packet)):
            raise Close("it acknowledged what was not sent to it")

    # What it publishes.

    async def _publish(self, packet: packets.Packet) -> None:
        message = await packets.decode_publish(packet)
        if message.qos == 2:
            raise Close("it published at QoS 2, which IoT Hub does not take")
        if message.topic.startswith(self._events_topic):
            await self._telemetry(message)
            return
        path, _, query = message.topic.partition("?")
        options = dict(pair.partition("=")[::2] for pair in query.split("&"))
        rid = options.get("$rid", "")
        if len(rid) > REQUEST_ID_MAX:
            raise Close(f"its request id is over the limit of {REQUEST_ID_MAX} characters")
        if path == TWIN_GET:
            await self._twin_get(rid, message)
        elif path == TWIN_REPORT:
            await self._twin_report(rid, message)
        elif path.startswith(METHOD_ANSWER):
            self._method_answered(path[len(METHOD_ANSWER) :].rstrip("/"), rid, message.body)
        else:
            raise Close("it published to a topic that is not its own telemetry topic")
        if message.qos == 1 and message.packet_id:
            while self._unstored:  # PUBACKs go out in the order of the PUBLISHes
                await asyncio.wait({self._unstored[-1]})
            self.line.write(packets.puback(message.packet_id))

    async def _telemetry(self, message: packets.Publish) -> None:
        properties = parse_properties(message.topic[len(self._events_topic) :])
        size = len(message.body) + _counted_bytes(properties)
        if size > limits.TELEMETRY_MAX_BYTES:
            raise Close(
                f"a message of {size} bytes with its properties is over the limit of "
                f"{limits.TELEMETRY_MAX_BYTES}"
            )
        wait_s = self.core.throttle.wait_s("telemetry", overdraw=True)
        if wait_s > SHAPED_MAX_S:
            raise Close("throttled: the hub gets more telemetry than it takes")
        if wait_s:
            await asyncio.sleep(wait_s)
        if message.retain:
            properties["mqtt-retain"] = "true"
        telemetry = Telemetry(
            device_id=self.device_id,
            body=message.body,
            properties=properties,
            qos=message.qos,
            dup=message.dup,
            packet_id=message.packet_id,
            received_s=self.core.now_s(),
            made_s=_made_s(properties),
        )
        while self._unstored and (
            len(self._unstored) >= UNSTORED_MAX
            or self._unstored_bytes + len(message.body) > UNSTORED_MAX_BYTES
        ):
            await asyncio.wait({self._unstored[0]})
        stored = self.core.telemetry.add(telemetry)
        self._unstored.append(stored)
        self._unstored_bytes += len(message.body)
        stored.add_done_callback(lambda done: self._stored(telemetry, done))

    def _stored(self, telemetry: Telemetry, done: "asyncio.Future[int]") -> None:
        """On disk (futures come back in the order they were given): acknowledge, show."""
        self._unstored.remove(done)
        self._unstored_bytes -= len(telemetry.body)
        if done.cancelled():
            return
        if done.exception() is not None:
            self.close("its message could not be stored: is the disk full?")
            return
        # Told first: who sees the acknowledgement finds the message among those told of.
        self.core.took(telemetry, done.result())
        if telemetry.qos == 1 and telemetry.packet_id:
            self.line.write(packets.puback(telemetry.packet_id))

    def _deliver_will(self) -> None:
        """What a device has asked to be said for it when its connection breaks."""
        will = self._will
        if will is None or not will.topic.startswith(self._events_topic):
            return
        properties = parse_properties(will.topic[len(self._events_topic) :])
        properties["iothub-MessageType"] = "Will"
        if will.retain:
            properties["mqtt-retain"] = "true"
        now_s = self.core.now_s()
        telemetry = Telemetry(
            self.device_id, will.body, properties, min(will.qos, 1), False, None, now_s, now_s
        )
        core = self.core

        def stored(done: "asyncio.Future[int]") -> None:
            if not done.cancelled() and done.exception() is None:
                core.took(telemetry, done.result())

        core.telemetry.add(telemetry).add_done_callback(stored)

    # Twin and methods.

    async def _twin_get(self, rid: str, message: packets.Publish) -> None:
        try:
            self.core.throttle.check("twin_reads")
            twin = await self.core.twin_get(self.device_id)
        except faults.ServiceError as why:
            self._answer_twin(why.status, rid, _fault(why))
            return
        self._answer_twin(200, rid, twin.for_device)

    async def _twin_report(self, rid: str, message: packets.Publish) -> None:
        try:
            self.core.throttle.check("twin_updates")
            version = await self.core.twin_patch_reported(self.device_id, parse_json(message.body))
        except faults.ServiceError as why:
            self._answer_twin(why.status, rid, _fault(why))
            return
        self._answer_twin(204, rid, None, f"&$version={version}")

    def _answer_twin(self, status: int, rid: str, body: Any, more: str = "") -> None:
        if TWIN_ANSWERS in self.subscriptions:
            topic = f"{TWIN_ANSWERS[:-1]}{status}/?$rid={rid}{more}"
            self.line.write(packets.publish(topic, b"" if body is None else compact(body)))

    def _method_answered(self, status: str, rid: str, body: bytes) -> None:
        if not STATUS.fullmatch(status):
            raise Close("it answered a method without a status")
        if len(body) > limits.METHOD_MAX_BYTES:
            raise Close(f"its method's answer is over the limit of {limits.METHOD_MAX_BYTES} bytes")
        try:
            payload = parse_json(body) if body else None
        except faults.ArgumentInvalid:
            raise Close("it answered a method with what is no JSON") from None
        # An answer that comes too late is nobody's any more.
        self.core.methods.answered(self, rid, int(status), payload)


def _fault(why: faults.ServiceError) -> Json:
    return {"errorCode": why.code, "message": why.message}


def parse_properties(text: str) -> dict[str, str]:
    """`a=1&%24.ct=application%2Fjson` as in the end of a topic; a name alone has an empty value."""
    if text.endswith("/"):
        text = text[:-1]
    pairs = (part.partition("=") for part in text.split("&") if part)
    return {unquote(name): unquote(value) for name, _, value in pairs}


def _counted_bytes(properties: dict[str, str]) -> int:
    """What properties add to a message's size: values, and names but for the system's."""
    return sum(
        len(value.encode()) + (0 if name.startswith("$.") else len(name.encode()))
        for name, value in properties.items()
    )


def _made_s(properties: dict[str, str]) -> float:
    """When the device says that it made the message; 0.0 where it says nothing that can be read."""
    text = properties.get("$.ctime") or properties.get("iothub-creation-time-utc") or ""
    try:
        made = dt.datetime.fromisoformat(text)
        made_s = (made if made.tzinfo else made.replace(tzinfo=dt.UTC)).timestamp()
    except (ValueError, OverflowError):
        return 0.0
    # The years that every reader can show: with its offset a time may be in year 0 or 10000.
    return made_s if 0 < made_s < YEAR_9999_S else 0.0
