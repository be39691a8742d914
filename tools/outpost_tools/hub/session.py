"""One device's connection, from CONNECT to its end.

It owns the order of things in one MQTT session: who it is first, then telemetry, each acknowledged
once it is stored. Whatever else comes ends the connection with one reason, which holds no secret.
"""

import asyncio
import collections
import contextlib
import ssl
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from amqtt.mqtt.packet import CONNECT, DISCONNECT, PINGREQ, PUBLISH

from outpost_tools import agreed
from outpost_tools.hub import auth, packets

if TYPE_CHECKING:
    from outpost_tools.hub.server import Hub

CONNECT_PATIENCE_S = 20
CLOSE_PATIENCE_S = 2
UNSTORED_MAX = 1000


@dataclass(frozen=True)
class Telemetry:
    """One message from a device."""

    device_id: str
    body: bytes
    properties: dict[str, str]
    qos: int
    dup: bool
    packet_id: int | None
    received_s: float = field(default_factory=time.time)

    @property
    def text(self) -> str:
        return self.body.decode(errors="backslashreplace")


class Close(Exception):
    """The connection ends here, for this reason."""


class Session:
    def __init__(
        self,
        hub: "Hub",
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        peer: str,
        tls: dict[str, str],
    ) -> None:
        self.hub = hub
        self.reader, self.writer = reader, writer
        self.peer = peer
        self.tls = tls  # "tls": version, "cipher"
        self.device_id = ""
        self._events_topic = ""
        self._silence_s: float | None = None
        self._unstored: collections.deque[asyncio.Future[None]] = collections.deque()
        self._closing: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def close(self, reason: str) -> None:
        """End the connection from outside, e.g. because a newer one took its place."""
        if not self._closing.done():
            self._closing.set_result(reason)

    async def run(self) -> None:
        """Serve until it ends; always says why, once."""
        work = asyncio.ensure_future(self._serve())
        try:
            await asyncio.wait({work, self._closing}, return_when=asyncio.FIRST_COMPLETED)
            if self._closing.done():
                reason = self._closing.result()
            else:
                reason = self._reason(work)
        except asyncio.CancelledError:
            reason = "the hub stops"
        finally:
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await work
        if self.device_id:
            self.hub.leave(self)
        if reason:
            self._tell("closed", reason=reason)
        await self._hang_up()

    @staticmethod
    def _reason(work: "asyncio.Future[str]") -> str:
        why = work.exception()
        if why is None:
            return work.result()
        if isinstance(why, Close):
            return str(why)
        if isinstance(why, packets.Malformed):
            return f"malformed: {why}"
        if isinstance(why, TimeoutError):
            return "silent for longer than its keep-alive allows"
        if isinstance(why, ConnectionError | ssl.SSLError | OSError):
            return "the connection broke"
        # A fault of ours must not take the hub along; its kind is enough to find it by.
        return f"a fault in the hub ({type(why).__name__})"

    async def _serve(self) -> str:
        if not await self._connect():
            return ""
        handlers = {PUBLISH: self._publish, PINGREQ: self._ping}
        while True:
            async with asyncio.timeout(self._silence_s):
                packet = await packets.read_packet(self.reader)
            if packet is None:
                return "the device closed the connection without DISCONNECT"
            if packet.type == DISCONNECT:
                if packet.body:
                    raise packets.Malformed("DISCONNECT has a body")
                return "the device disconnected"
            handler = handlers.get(packet.type)
            if handler is None:
                raise Close(f"{packet.name} is not served here")
            await handler(packet)
            async with asyncio.timeout(self._silence_s):
                await self.writer.drain()

    async def _connect(self) -> bool:
        """Take the CONNECT and answer it; False where it was refused."""
        try:
            async with asyncio.timeout(CONNECT_PATIENCE_S):
                packet = await packets.read_packet(self.reader, packets.CONNECT_MAX_BYTES)
        except TimeoutError:
            raise Close(f"no CONNECT within {CONNECT_PATIENCE_S} s") from None
        if packet is None:
            raise Close("it ended before CONNECT")
        if packet.type != CONNECT:
            raise Close(f"{packet.name} came before CONNECT")
        connect = await packets.decode_connect(packet)
        try:
            admitted = auth.admit(connect, self.hub.registry, self.hub.names, self.hub.now_s())
        except auth.Refusal as refusal:
            known = refusal.code not in (auth.BAD_PROTOCOL, auth.BAD_IDENTIFIER)
            self._tell(
                "refused",
                device=connect.client_id if known else "",
                code=refusal.code,
                reason=refusal.reason,
            )
            self.writer.write(packets.connack(refusal.code))
            async with asyncio.timeout(CLOSE_PATIENCE_S):
                await self.writer.drain()
            return False
        self.device_id = admitted.device_id
        self._events_topic = agreed.EVENTS_TOPIC % admitted.device_id
        keep_alive_s = connect.keep_alive_s or agreed.KEEPALIVE_MAX_S
        self._silence_s = 1.5 * min(keep_alive_s, agreed.KEEPALIVE_MAX_S)
        left_s = admitted.expires_s - self.hub.now_s()
        asyncio.get_running_loop().call_later(
            min(max(left_s, 0), 86400 * 365), self.close, "its token has expired"
        )
        self.hub.join(self)
        self._tell("connected", **self.tls)
        self.writer.write(packets.connack(auth.ACCEPTED))
        return True

    async def _ping(self, packet: packets.Packet) -> None:
        if packet.body:
            raise packets.Malformed("PINGREQ has a body")
        self.writer.write(packets.pingresp())

    async def _publish(self, packet: packets.Packet) -> None:
        message = await packets.decode_publish(packet)
        if message.qos == 2:
            raise Close("it published at QoS 2, which IoT Hub does not take")
        if not message.topic.startswith(self._events_topic):
            raise Close("it published to a topic that is not its own telemetry topic")
        if len(message.body) > agreed.MESSAGE_MAX_BYTES:
            raise Close(
                f"a message of {len(message.body)} bytes is over the limit of "
                f"{agreed.MESSAGE_MAX_BYTES}"
            )
        telemetry = Telemetry(
            device_id=self.device_id,
            body=message.body,
            properties=parse_properties(message.topic[len(self._events_topic) :]),
            qos=message.qos,
            dup=message.dup,
            packet_id=message.packet_id,
            received_s=self.hub.now_s(),
        )
        while len(self._unstored) >= UNSTORED_MAX:
            await asyncio.wait({self._unstored[0]})
        stored = self.hub.store.add(telemetry)
        self._unstored.append(stored)
        stored.add_done_callback(lambda done: self._stored(telemetry, done))

    def _stored(self, telemetry: Telemetry, done: "asyncio.Future[None]") -> None:
        """On disk (futures come back in the order they were given): acknowledge, show."""
        self._unstored.remove(done)
        if done.cancelled():
            return
        if done.exception() is not None:
            self.close("its message could not be stored: is the disk full?")
            return
        if telemetry.qos == 1 and telemetry.packet_id and not self.writer.is_closing():
            self.writer.write(packets.puback(telemetry.packet_id))
        self.hub.took(telemetry)

    def _tell(self, event: str, **facts: Any) -> None:
        self.hub.tell(event, **{"device": self.device_id, "peer": self.peer, **facts})

    async def _hang_up(self) -> None:
        with contextlib.suppress(Exception, asyncio.CancelledError):
            self.writer.close()
            async with asyncio.timeout(CLOSE_PATIENCE_S):
                await self.writer.wait_closed()
        if not self.writer.transport.is_closing():
            self.writer.transport.abort()


def parse_properties(text: str) -> dict[str, str]:
    """`a=1&%24.ct=application%2Fjson` as in the end of a topic; a name alone has an empty value."""
    if text.endswith("/"):
        text = text[:-1]
    pairs = (part.partition("=") for part in text.split("&") if part)
    return {unquote(name): unquote(value) for name, _, value in pairs}
