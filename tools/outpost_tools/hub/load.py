"""Many devices at once against a hub: does it hold them, and does it lose anything?

Each device connects with its own key over TLS and publishes at QoS 1 at its own pace; a connection
that breaks is made again, and what was not acknowledged is sent again as a duplicate. It owns the
count of what was sent and what was acknowledged, and reads from the telemetry store which messages
are there. It uses devices named `load-…` and makes those that are missing.
"""

import asyncio
import contextlib
import json
import random
import socket
import ssl
import struct
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from outpost_tools import agreed, sas
from outpost_tools.errors import OutpostError
from outpost_tools.pki import DevCA
from outpost_tools.registry import Registry

PREFIX = "load-"
TOKEN_LIFE_S = 86400
KEEP_ALIVE_S = 120
CONNECT_PATIENCE_S = 60
# So many handshakes at a time: more only make each of them slower.
CONNECTING_MAX = 16
WINDOW = 100
AGAIN_MAX_S = 5.0


@dataclass
class Result:
    devices: int
    seconds: float = 0.0
    connected: int = 0  # devices that were connected at the end of the ramp
    ramp_seconds: float = 0.0
    sent: int = 0
    acknowledged: int = 0
    reconnects: int = 0
    per_second: float = 0.0
    ack_ms_median: float = 0.0
    ack_ms_99: float = 0.0
    stored: int | None = None  # of the acknowledged ones, where the store could be read
    lost: int | None = None
    why_not: dict[str, int] = field(default_factory=dict)  # reasons of connections that failed


Progress = Callable[[Result], None]


def run_load(
    data: Path,
    host: str = "127.0.0.1",
    port: int = 8883,
    devices: int = 500,
    per_second: float = 1.0,
    run_for_s: float = 30.0,
    body_bytes: int = 100,
    hub_name: str | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Drive a hub whose data folder is `data`; gives the figures of `Result` as a dictionary.

    per_second  messages of one device in a second
    hub_name    the hub's name in its certificate and its devices' user names  [host]
    """
    if devices < 1 or per_second <= 0 or body_bytes < 40:
        raise OutpostError("A load has one device or more, a pace, and bodies of 40 bytes or more.")
    load = Load(data, devices, per_second, host, port, body_bytes, hub_name or host)
    result = asyncio.run(load.run(run_for_s, on_progress))
    load.look_into_the_store()
    return asdict(result)


class Load:
    def __init__(
        self,
        data: Path,
        devices: int,
        per_second: float,
        host: str,
        port: int,
        body_bytes: int,
        hub_name: str,
    ) -> None:
        self.data, self.host, self.port, self.hub_name = Path(data), host, port, hub_name
        self.body_bytes, self.interval_s = body_bytes, 1.0 / per_second
        if not DevCA.exists(self.data):
            raise OutpostError(f"There is no development CA in {self.data}: run the hub first.")
        ca = DevCA(self.data)
        self.context = ssl.create_default_context()
        for kind in ca.kinds:
            self.context.load_verify_locations(str(ca.root_file(kind)))
        self.run_id = f"{random.getrandbits(64):016x}"
        self.keys = _make_devices(self.data, devices)
        self.result = Result(devices)
        self.latencies_s: list[float] = []
        self.acknowledged: dict[str, set[int]] = {name: set() for name in self.keys}
        self.connecting = asyncio.Semaphore(CONNECTING_MAX)
        self.now_connected = 0
        self.started = asyncio.Event()

    async def run(self, run_for_s: float, on_progress: Progress | None = None) -> Result:
        stop = asyncio.Event()
        began = time.monotonic()
        clients = [asyncio.create_task(_Client(self, n, stop).run()) for n in self.keys]
        while self.now_connected < len(clients) and time.monotonic() - began < CONNECT_PATIENCE_S:
            await asyncio.sleep(0.1)
        self.result.connected = self.now_connected
        self.result.ramp_seconds = round(time.monotonic() - began, 3)
        began = time.monotonic()
        self.started.set()
        while (left_s := began + run_for_s - time.monotonic()) > 0:
            await asyncio.sleep(min(1.0, left_s))
            self._count(time.monotonic() - began)
            if on_progress is not None:
                on_progress(self.result)
        took_s = time.monotonic() - began
        stop.set()
        _, late = await asyncio.wait(clients, timeout=20)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        self._count(took_s)
        return self.result

    def _count(self, took_s: float) -> None:
        result = self.result
        result.seconds = round(took_s, 3)
        result.acknowledged = sum(map(len, self.acknowledged.values()))
        result.per_second = round(result.acknowledged / took_s, 1) if took_s else 0.0
        if self.latencies_s:
            ordered = sorted(self.latencies_s)
            result.ack_ms_median = round(1000 * ordered[len(ordered) // 2], 1)
            result.ack_ms_99 = round(1000 * ordered[len(ordered) * 99 // 100], 1)

    def look_into_the_store(self) -> None:
        """Which of the acknowledged messages are on the hub's disk."""
        import sqlite3

        path = self.data / "telemetry.db"
        if not path.is_file():
            return
        with contextlib.closing(sqlite3.connect(path, timeout=10)) as db:
            rows = db.execute(
                "SELECT DISTINCT device_id, json_extract(CAST(body AS TEXT), '$.n') FROM telemetry "
                "WHERE device_id LIKE 'load-%' AND json_extract(CAST(body AS TEXT), '$.run') = ?",
                (self.run_id,),
            )
            there: dict[str, set[int]] = {}
            for device_id, number in rows:
                there.setdefault(device_id, set()).add(number)
        lost = sum(len(mine - there.get(name, set())) for name, mine in self.acknowledged.items())
        self.result.lost = lost
        self.result.stored = self.result.acknowledged - lost


class _Client:
    """One device: it keeps what is not acknowledged, and knows nothing else across connections."""

    def __init__(self, load: Load, name: str, stop: asyncio.Event) -> None:
        self.load, self.name, self.stop = load, name, stop
        self.topic = (agreed.EVENTS_TOPIC % name).encode()
        self.unacknowledged: dict[int, tuple[int, bytes, float]] = {}
        self.number = 0

    async def run(self) -> None:
        pause_s = 0.2
        while not self.stop.is_set():
            reader = writer = None
            try:
                async with self.load.connecting:
                    reader, writer = await self._connect()
                pause_s = 0.2
                self.load.now_connected += 1
                try:
                    await self._talk(reader, writer)
                finally:
                    self.load.now_connected -= 1
            except (OSError, TimeoutError, asyncio.IncompleteReadError, ssl.SSLError) as why:
                reason = str(why) if isinstance(why, _Refused) else type(why).__name__
                self.load.result.why_not[reason] = self.load.result.why_not.get(reason, 0) + 1
            finally:
                if writer is not None:
                    writer.transport.abort()
            if not self.stop.is_set():
                self.load.result.reconnects += 1
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(random.uniform(0, pause_s)):
                        await self.stop.wait()
                pause_s = min(2 * pause_s, AGAIN_MAX_S)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        load = self.load
        async with asyncio.timeout(30):
            reader, writer = await asyncio.open_connection(
                load.host, load.port, ssl=load.context, server_hostname=load.hub_name
            )
            try:
                connection = writer.get_extra_info("socket")
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                writer.write(_connect_packet(load.hub_name, self.name, load.keys[self.name]))
                answer = await reader.readexactly(4)
            except BaseException:
                writer.transport.abort()
                raise
        if answer[:2] != b"\x20\x02" or answer[3]:
            writer.transport.abort()
            raise _Refused(f"CONNACK {answer[3]}")
        return reader, writer

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        listening = asyncio.create_task(self._listen(reader))
        try:
            for packet_id, (_, body, _) in list(self.unacknowledged.items()):
                writer.write(_publish_packet(self.topic, packet_id, body, again=True))
            await self.load.started.wait()
            # Devices do not all send in the same instant.
            await self._pause(random.uniform(0, self.load.interval_s), listening)
            due = time.monotonic()
            while not self.stop.is_set() and not listening.done():
                if len(self.unacknowledged) < WINDOW:
                    self._send(writer)
                await writer.drain()
                due = max(due + self.load.interval_s, time.monotonic() - self.load.interval_s)
                await self._pause(due - time.monotonic(), listening)
            end = time.monotonic() + 10
            while self.unacknowledged and not listening.done() and time.monotonic() < end:
                await asyncio.sleep(0.02)
            if self.stop.is_set() and not listening.done():
                writer.write(b"\xe0\x00")
                await writer.drain()
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def _pause(self, pause_s: float, listening: "asyncio.Task[None]") -> None:
        if pause_s > 0:
            await asyncio.wait({listening}, timeout=pause_s)

    def _send(self, writer: asyncio.StreamWriter) -> None:
        self.number += 1
        packet_id = (self.number - 1) % 65535 + 1
        body = json.dumps({"run": self.load.run_id, "n": self.number}).encode()
        body += b" " * (self.load.body_bytes - len(body))
        self.unacknowledged[packet_id] = (self.number, body, time.monotonic())
        writer.write(_publish_packet(self.topic, packet_id, body))
        self.load.result.sent += 1

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        acknowledged, latencies_s = self.load.acknowledged[self.name], self.load.latencies_s
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, ssl.SSLError):
            while True:
                packet = await reader.readexactly(4)
                entry = self.unacknowledged.pop(int.from_bytes(packet[2:], "big"), None)
                if packet[0] == 0x40 and entry is not None:
                    acknowledged.add(entry[0])
                    latencies_s.append(time.monotonic() - entry[2])


class _Refused(OSError):
    """The hub said no."""


def _make_devices(data: Path, count: int) -> dict[str, str]:
    with Registry(data) as registry:
        known = {d.device_id: d.primary_key for d in registry.devices()}
        names = [f"{PREFIX}{number:04}" for number in range(count)]
        return {name: known.get(name) or registry.add(name).primary_key for name in names}


def _text(value: bytes) -> bytes:
    return struct.pack("!H", len(value)) + value


def _packet(first: int, body: bytes) -> bytes:
    length, rest = b"", len(body)
    while True:
        rest, low = divmod(rest, 128)
        length += bytes([low | (128 if rest else 0)])
        if not rest:
            return bytes([first]) + length + body


def _connect_packet(hub: str, name: str, key: str) -> bytes:
    token = sas.make(key, f"{hub}/devices/{name}", int(time.time()) + TOKEN_LIFE_S)
    user = f"{hub}/{name}/?api-version={agreed.API_VERSION}"
    head = _text(b"MQTT") + b"\x04\xc2" + struct.pack("!H", KEEP_ALIVE_S)
    return _packet(0x10, head + _text(name.encode()) + _text(user.encode()) + _text(token.encode()))


def _publish_packet(topic: bytes, packet_id: int, body: bytes, again: bool = False) -> bytes:
    head = _text(topic) + struct.pack("!H", packet_id)
    return _packet(0x3A if again else 0x32, head + body)
