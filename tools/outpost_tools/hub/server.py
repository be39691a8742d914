"""The TLS listener and what all sessions share.

It owns the listening socket, the thread with its event loop, and the table of which device is
connected: one connection each, the newer wins. TLS 1.2 with the design's suites and nothing else.
It listens where it is told, loopback unless told otherwise, and never logs what a device sent as
its password.
"""

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from OpenSSL import SSL

from outpost_tools.errors import OutpostError
from outpost_tools.hub import auth, faults, packets, tls
from outpost_tools.hub.chains import Chains
from outpost_tools.hub.core import Event, Face, HubCore, Service
from outpost_tools.hub.ignoring import IgnoringTls
from outpost_tools.hub.line import CLOSE_PATIENCE_S, Close, Line
from outpost_tools.hub.listening import listen, more_files
from outpost_tools.hub.session import Session
from outpost_tools.hub.store import KEEP_BYTES, Telemetry
from outpost_tools.hub.throttle import Limits
from outpost_tools.hub.tls import openssl_suites, server_context
from outpost_tools.hub.words import in_words
from outpost_tools.pki import DevCA, Kind, Leaf

__all__ = ["Chain", "Event", "Hub", "in_words", "openssl_suites", "server_context"]

Chain = Literal["rsa", "ecdsa", "both"]
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter, dict[str, str], list[bytes]]

HANDSHAKE_PATIENCE_S = 20
CONNECT_PATIENCE_S = 20
EVENTS_KEPT = 10000
# Of the latest telemetry as much is held in memory; all of it is on disk.
TELEMETRY_HELD_BYTES = 16 << 20
# Connections that have not said who they are; of more, the oldest goes.
STRANGERS_MAX = 512
CROWDED = "too many connections that have not said who they are"

CHAINS: dict[str, tuple[Kind, ...]] = {
    "rsa": ("rsa",),
    "ecdsa": ("ecdsa",),
    "both": ("rsa", "ecdsa"),
}


class Hub:
    """`with Hub(data) as hub: hub.port, hub.telemetry`.

    data       folder of the registry, the development CA and the telemetry
    names      further host names of the hub, for its certificate and its devices' user names
    on_event   called in the hub's thread with each event, a dictionary with "event" in it
    now_s      the hub's clock
    context    TLS of one's own, for tests of what a server may do wrong
    ignore_record_size  take no notice of the record size that devices ask for
    limits     rates above which the hub throttles; none unless given
    faces      other protocols on the same listener (DPS)
    services   what else lives as long as the hub does, in its loop (REST)
    keep_bytes  how much telemetry is kept, where that of seven days is more
    ca         the authority of its certificates, in place of the development CA of `data`
    """

    def __init__(
        self,
        data: Path,
        host: str = "127.0.0.1",
        port: int = 0,
        chain: Chain = "both",
        names: Sequence[str] = (),
        on_event: Callable[[Event], None] | None = None,
        now_s: Callable[[], float] = time.time,
        context: ssl.SSLContext | None = None,
        ignore_record_size: bool = False,
        limits: Limits | None = None,
        faces: Sequence[Face] = (),
        services: Sequence[Service] = (),
        keep_bytes: int = KEEP_BYTES,
        ca: DevCA | None = None,
    ) -> None:
        if chain not in CHAINS:
            raise OutpostError(f"There is no chain {chain!r}: {', '.join(CHAINS)}.")
        self.data, self.host, self.port = Path(data), host, port
        listening_everywhere = host in ("0.0.0.0", "::", "")
        own = [] if listening_everywhere else [host]
        self.names: tuple[str, ...] = tuple(dict.fromkeys([*own, "localhost", *names]))
        self.now_s = now_s
        self.telemetry: list[Telemetry] = []
        self._held_bytes = 0
        self.events: list[Event] = []
        self._kinds = CHAINS[chain]
        self._context = context
        self._ignore_record_size = ignore_record_size
        self._ignoring: IgnoringTls | None = None
        self._on_event = on_event
        self._changed = threading.Condition()
        self._limits, self._faces, self._services = limits, tuple(faces), tuple(services)
        self._keep_bytes = keep_bytes
        self._ca = ca
        self._device_context: SSL.Context | None = None
        self._lines: set[Line] = set()
        self._chains = Chains()
        self._strangers: dict[asyncio.Task[None], Line | None] = {}  # oldest first
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self.core: HubCore

    # From any thread.

    def start(self) -> tuple[str, int]:
        """Listen; gives the address. Raises OutpostError where that cannot be."""
        if self._context is None:
            ca = self._ca or DevCA(self.data, self._kinds)
            leaves = [ca.server(kind, self.names) for kind in ca.kinds]
            self.show(leaves)
            if self._ignore_record_size:
                self._ignoring = IgnoringTls(leaves)
        more_files()
        listener = listen(self.host, self.port)
        self.port = listener.getsockname()[1]
        try:
            self.core = HubCore(
                self.data, self.names, self.now_s, self._heard, self._limits, self._keep_bytes
            )
        except BaseException:
            listener.close()
            raise
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._main(listener, ready)), name="hub", daemon=True
        )
        self._thread.start()
        ready.wait()
        if self._failure is not None:
            self._thread.join()
            self._thread = None
            self.core.close()
            raise self._failure
        return self.host, self.port

    def show(self, leaves: Sequence[Leaf]) -> None:
        """Who connects from now on is shown these certificates; connections that stand stay."""
        self._device_context = tls.device_context([(leaf.chain, leaf.key) for leaf in leaves])

    def stop(self) -> None:
        """Close every connection and come back when all is on disk."""
        if self._thread is None:
            return
        assert self._loop is not None and self._stop is not None
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._thread = None
        self.core.close()

    def wait_until(self, condition: Callable[[], object], timeout_s: float = 20.0) -> bool:
        """Wait until `condition()` holds; it is looked at after every event and message."""
        with self._changed:
            return bool(self._changed.wait_for(condition, timeout_s))

    def disconnect(self, device_id: str, reason: str) -> None:
        """End a device's live connection, if it has one."""
        self.core.disconnect_device(device_id, reason)

    @property
    def connected(self) -> list[str]:
        return self.core.connected

    def __enter__(self) -> "Hub":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # Inside.

    def _heard(self, record: Event, message: Telemetry | None) -> None:
        with self._changed:
            if message is not None:
                self._hold(message)
            else:
                self.events.append(record)
                del self.events[:-EVENTS_KEPT]
            self._changed.notify_all()
        if self._on_event is not None:
            self._on_event(record)

    def _hold(self, message: Telemetry) -> None:
        self.telemetry.append(message)
        self._held_bytes += len(message.body)
        drop = max(0, len(self.telemetry) - EVENTS_KEPT)
        self._held_bytes -= sum(len(m.body) for m in self.telemetry[:drop])
        while self._held_bytes > TELEMETRY_HELD_BYTES:
            self._held_bytes -= len(self.telemetry[drop].body)
            drop += 1
        del self.telemetry[:drop]

    async def _main(self, listener: socket.socket, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        # A connection that breaks while it is being closed is no news.
        self._loop.set_exception_handler(lambda _loop, _context: None)
        started: list[Service] = []
        try:
            await self.core.start()
            for service in self._services:
                await service.start(self.core)
                started.append(service)
        except BaseException as why:
            self._failure = why
            self._stop.set()
        else:
            self._say_listening()
        ready.set()
        accepting = asyncio.create_task(self._accept(listener))
        await self._stop.wait()
        accepting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await accepting
        listener.close()
        for service in reversed(started):
            with contextlib.suppress(Exception):
                await service.stop()
        for line in list(self._lines):
            line.close("the hub stops")
        if self._tasks:
            _, slow = await asyncio.wait(self._tasks, timeout=CLOSE_PATIENCE_S + 1)
            for task in slow:
                task.cancel()
            await asyncio.gather(*slow, return_exceptions=True)
        await self.core.stop()

    def _say_listening(self) -> None:
        self.core.tell("listening", host=self.host, port=self.port, names=list(self.names))

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listener)
            except OSError as why:  # out of descriptors: those who wait are served later
                self.core.tell(
                    "closed", device="", peer="", reason=f"cannot accept ({why.strerror})"
                )
                await asyncio.sleep(1)
                continue
            task = asyncio.create_task(self._serve(connection, f"{address[0]}:{address[1]}"))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            self._strangers[task] = None
            task.add_done_callback(lambda task: self._strangers.pop(task, None))
            while len(self._strangers) > STRANGERS_MAX:
                self._turn_away(next(iter(self._strangers)))
            await asyncio.sleep(0)  # each begins before the next is taken

    def _turn_away(self, task: "asyncio.Task[None]") -> None:
        line = self._strangers.pop(task)
        if line is None:
            task.cancel()
        else:
            line.close(CROWDED)

    async def _serve(self, connection: socket.socket, peer: str) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            reader, writer, facts, certificates = await self._shake_hands(connection)
        except asyncio.CancelledError:
            connection.close()
            if task not in self._strangers:  # it was turned away; else the hub stops
                self.core.tell("tls-failed", device="", peer=peer, reason=CROWDED)
            return
        except Exception as why:
            connection.close()
            reason = tls.failure(why, HANDSHAKE_PATIENCE_S)
            self.core.tell("tls-failed", device="", peer=peer, reason=reason)
            return
        line = Line(reader, writer, peer, facts, self._chains.whole(certificates))
        line.on_known = lambda: self._known(line, task)
        self._lines.add(line)
        if task in self._strangers:
            self._strangers[task] = line
        try:
            await self._run(line)
        finally:
            self._lines.discard(line)

    def _known(self, line: Line, task: "asyncio.Task[None]") -> None:
        self._strangers.pop(task, None)
        self._chains.remember(line.certificates)

    async def _run(self, line: Line) -> None:
        """Serve a connection until it ends; always says why, once."""
        work = asyncio.ensure_future(self._converse(line))
        try:
            await asyncio.wait({work, line.ending}, return_when=asyncio.FIRST_COMPLETED)
            reason = line.ending.result() if line.ending.done() else _reason(work)
        except asyncio.CancelledError:
            reason = "the hub stops"
        finally:
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await work
        if reason:
            self.core.tell("closed", device=line.device_id, peer=line.peer, reason=reason)
        await line.hang_up()

    async def _converse(self, line: Line) -> str:
        try:
            async with asyncio.timeout(CONNECT_PATIENCE_S):
                packet = await line.read(packets.CONNECT_MAX_BYTES)
        except TimeoutError:
            raise Close(f"no CONNECT within {CONNECT_PATIENCE_S} s") from None
        if packet is None:
            raise Close("it ended before CONNECT")
        if packet.name != "CONNECT":
            raise Close(f"{packet.name} came before CONNECT")
        connect = await packets.decode_connect(packet)
        for face in self._faces:
            if face.claims(connect):
                return await face.serve(line, connect)
        try:
            if self.core.throttle.wait_s("connects"):
                raise auth.Refusal(auth.UNAVAILABLE, "throttled: there are too many connections")
            admitted = auth.admit(
                connect, self.core.registry, self.names, self.now_s(), line.certificates
            )
        except auth.Refusal as refusal:
            named = refusal.code not in (auth.BAD_PROTOCOL, auth.BAD_IDENTIFIER)
            self.core.tell(
                "refused",
                device=connect.client_id if named else "",
                peer=line.peer,
                code=refusal.code,
                reason=refusal.reason,
            )
            line.write(packets.connack(refusal.code))
            async with asyncio.timeout(CLOSE_PATIENCE_S):
                await line.drain()
            return ""
        line.belongs_to(admitted.device_id)
        return await Session(self.core, line, admitted).serve(connect)

    async def _shake_hands(self, connection: socket.socket) -> Connection:
        if self._ignoring is not None:
            plain, cipher, certificates = await asyncio.to_thread(
                self._ignoring.accept, connection, HANDSHAKE_PATIENCE_S
            )
            reader, writer = await asyncio.open_connection(sock=plain)
            return reader, writer, {"tls": "TLSv1.2", "cipher": cipher}, certificates
        if self._device_context is not None:
            return await tls.accept(connection, self._device_context, HANDSHAKE_PATIENCE_S)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol,
            connection,
            ssl=self._context,
            ssl_handshake_timeout=HANDSHAKE_PATIENCE_S,
            ssl_shutdown_timeout=CLOSE_PATIENCE_S,
        )
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        own = writer.get_extra_info("ssl_object")
        return reader, writer, {"tls": own.version(), "cipher": own.cipher()[0]}, []


def _reason(work: "asyncio.Future[str]") -> str:
    why = work.exception()
    if why is None:
        return work.result()
    if isinstance(why, Close | faults.ServiceError):
        return str(why)
    if isinstance(why, packets.Malformed):
        return f"malformed: {why}"
    if isinstance(why, TimeoutError):
        return "silent for longer than its keep-alive allows"
    if isinstance(why, ConnectionError | ssl.SSLError | OSError):
        return "the connection broke"
    # A fault of ours must not take the hub along; its kind is enough to find it by.
    return f"a fault in the hub ({type(why).__name__})"
