"""The TLS listener and what all sessions share.

It owns the listening socket, the thread with its event loop, and the table of which device is
connected: one connection each, the newer wins. TLS 1.2 with the design's suites and nothing else.
It listens where it is told, loopback unless told otherwise, and never logs what a device sent as
its password.
"""

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from outpost_tools import agreed
from outpost_tools.errors import OutpostError
from outpost_tools.hub.ignoring import IgnoringTls
from outpost_tools.hub.session import CLOSE_PATIENCE_S, Session, Telemetry
from outpost_tools.hub.store import TelemetryStore
from outpost_tools.pki import DevCA, Kind
from outpost_tools.registry import Registry

Chain = Literal["rsa", "ecdsa", "both"]
Event = dict[str, Any]
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter, dict[str, str]]

HANDSHAKE_PATIENCE_S = 20
BACKLOG = 512
EVENTS_KEPT = 10000

CHAINS: dict[str, tuple[Kind, ...]] = {
    "rsa": ("rsa",),
    "ecdsa": ("ecdsa",),
    "both": ("rsa", "ecdsa"),
}


def openssl_suites() -> str:
    """The design's suites by OpenSSL's names, in order."""
    return ":".join(
        name.removeprefix("TLS-").replace("-WITH-", "-").replace("AES-", "AES").replace("-CBC", "")
        for name in agreed.SUITES
    )


def server_context(leaves: Sequence[tuple[Path, Path]]) -> ssl.SSLContext:
    """TLS 1.2 exactly; one (chain, key) pair of files for each kind of certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(openssl_suites())
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_RENEGOTIATION
    for chain, key in leaves:
        context.load_cert_chain(chain, key)
    return context


class Hub:
    """`with Hub(data) as hub: hub.port, hub.telemetry`.

    data       folder of the registry, the development CA and the telemetry
    names      further host names of the hub, for its certificate and its devices' user names
    on_event   called in the hub's thread with each event, a dictionary with "event" in it
    now_s      the hub's clock
    context    TLS of one's own, for tests of what a server may do wrong
    ignore_record_size  take no notice of the record size that devices ask for
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
    ) -> None:
        if chain not in CHAINS:
            raise OutpostError(f"There is no chain {chain!r}: {', '.join(CHAINS)}.")
        self.data, self.host, self.port = Path(data), host, port
        listening_everywhere = host in ("0.0.0.0", "::", "")
        own = [] if listening_everywhere else [host]
        self.names: tuple[str, ...] = tuple(dict.fromkeys([*own, "localhost", *names]))
        self.now_s = now_s
        self.telemetry: list[Telemetry] = []
        self.events: list[Event] = []
        self._kinds = CHAINS[chain]
        self._context = context
        self._ignore_record_size = ignore_record_size
        self._ignoring: IgnoringTls | None = None
        self._on_event = on_event
        self._changed = threading.Condition()
        self._sessions: dict[str, Session] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self.registry: Registry
        self.store: TelemetryStore

    # From any thread.

    def start(self) -> tuple[str, int]:
        """Listen; gives the address. Raises OutpostError where that cannot be."""
        if self._context is None:
            ca = DevCA(self.data, self._kinds)
            leaves = [ca.server(kind, self.names) for kind in self._kinds]
            self._context = server_context([(leaf.chain, leaf.key) for leaf in leaves])
            if self._ignore_record_size:
                self._ignoring = IgnoringTls(leaves)
        listener = self._listen()
        try:
            self.registry = Registry(self.data)
            self.store = TelemetryStore(self.data)
        except BaseException:
            listener.close()
            raise
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._main(listener, ready)), name="hub", daemon=True
        )
        self._thread.start()
        ready.wait()
        return self.host, self.port

    def stop(self) -> None:
        """Close every connection and come back when all is on disk."""
        if self._thread is None:
            return
        assert self._loop is not None and self._stop is not None
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._thread = None
        self.store.close()
        self.registry.close()

    def wait_until(self, condition: Callable[[], object], timeout_s: float = 20.0) -> bool:
        """Wait until `condition()` holds; it is looked at after every event and message."""
        with self._changed:
            return bool(self._changed.wait_for(condition, timeout_s))

    def disconnect(self, device_id: str, reason: str) -> None:
        """End a device's live connection, if it has one."""

        def close() -> None:
            session = self._sessions.get(device_id)
            if session is not None:
                session.close(reason)

        assert self._loop is not None
        self._loop.call_soon_threadsafe(close)

    @property
    def connected(self) -> list[str]:
        return sorted(self._sessions)

    def __enter__(self) -> "Hub":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # From sessions, in the hub's thread.

    def join(self, session: Session) -> None:
        older = self._sessions.get(session.device_id)
        self._sessions[session.device_id] = session
        if older is not None:
            older.close("a newer connection of the same device took its place")

    def leave(self, session: Session) -> None:
        if self._sessions.get(session.device_id) is session:
            del self._sessions[session.device_id]

    def took(self, telemetry: Telemetry) -> None:
        self.tell(
            "telemetry",
            device=telemetry.device_id,
            qos=telemetry.qos,
            dup=telemetry.dup,
            properties=telemetry.properties,
            body=telemetry.text,
            message=telemetry,
        )

    def tell(self, event: str, **facts: Any) -> None:
        message = facts.pop("message", None)
        record = {"event": event, "at_s": round(self.now_s(), 3), **facts}
        with self._changed:
            if message is not None:
                self.telemetry.append(message)
                del self.telemetry[:-EVENTS_KEPT]
            else:
                self.events.append(record)
                del self.events[:-EVENTS_KEPT]
            self._changed.notify_all()
        if self._on_event is not None:
            self._on_event(record)

    # Inside.

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self.host, self.port))
            listener.listen(BACKLOG)
        except (OSError, OverflowError) as why:
            listener.close()
            raise OutpostError(self._cannot_listen(why)) from None
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        return listener

    def _cannot_listen(self, why: Exception) -> str:
        where = f"Port {self.port} on {self.host or 'every address'}"
        code = why.errno if isinstance(why, OSError) else None
        if code == errno.EADDRINUSE:
            return f"{where} is in use by another program: stop it, or give another --port."
        if code == errno.EACCES:
            return f"{where} needs more rights than you have: give a --port above 1023."
        if code == errno.EADDRNOTAVAIL or isinstance(why, socket.gaierror):
            return f"{self.host} is no address of this machine: give another --host."
        text = os.strerror(code) if code and code > 0 else str(why)
        return f"{where} cannot be listened on ({text}): give another --host or --port."

    async def _main(self, listener: socket.socket, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        # A connection that breaks while it is being closed is no news.
        self._loop.set_exception_handler(lambda _loop, _context: None)
        self.tell("listening", host=self.host, port=self.port, names=list(self.names))
        ready.set()
        accepting = asyncio.create_task(self._accept(listener))
        await self._stop.wait()
        accepting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await accepting
        listener.close()
        for session in list(self._sessions.values()):
            session.close("the hub stops")
        if self._tasks:
            _, slow = await asyncio.wait(self._tasks, timeout=CLOSE_PATIENCE_S + 1)
            for task in slow:
                task.cancel()
            await asyncio.gather(*slow, return_exceptions=True)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listener)
            except OSError as why:  # out of descriptors: those who wait are served later
                self.tell("closed", device="", peer="", reason=f"cannot accept ({why.strerror})")
                await asyncio.sleep(1)
                continue
            task = asyncio.create_task(self._serve(connection, f"{address[0]}:{address[1]}"))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: socket.socket, peer: str) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._ignoring is None:
                reader, writer, tls = await self._shake_hands(connection)
            else:
                reader, writer, tls = await self._shake_hands_ignoring(self._ignoring, connection)
        except asyncio.CancelledError:
            connection.close()
            return
        except Exception as why:
            connection.close()
            self.tell("tls-failed", device="", peer=peer, reason=handshake_failure(why))
            return
        await Session(self, reader, writer, peer, tls).run()

    async def _shake_hands(self, connection: socket.socket) -> Connection:
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
        tls = writer.get_extra_info("ssl_object")
        return reader, writer, {"tls": tls.version(), "cipher": tls.cipher()[0]}

    async def _shake_hands_ignoring(
        self, ignoring: IgnoringTls, connection: socket.socket
    ) -> Connection:
        plain, cipher = await asyncio.to_thread(ignoring.accept, connection, HANDSHAKE_PATIENCE_S)
        reader, writer = await asyncio.open_connection(sock=plain)
        return reader, writer, {"tls": "TLSv1.2", "cipher": cipher}


def handshake_failure(why: Exception) -> str:
    """OpenSSL's word for it, made readable."""
    reason = getattr(why, "reason", None)
    if isinstance(why, ssl.SSLError) and reason:
        text = reason.lower().replace("_", " ")
        for prefix in ("tlsv1 alert ", "sslv3 alert ", "tlsv13 alert "):
            if text.startswith(prefix):
                return f"the device refused: {text.removeprefix(prefix)}"
        return text
    if isinstance(why, ConnectionAbortedError):
        return f"not finished within {HANDSHAKE_PATIENCE_S} s"
    return "the connection broke"


def in_words(event: Event) -> str:
    """One line for a person. Telemetry is the device's own text, its control characters shown."""
    who = event.get("device") or event.get("peer") or ""
    match event["event"]:
        case "listening":
            return f"listening on {event['host']}:{event['port']} as {', '.join(event['names'])}"
        case "connected":
            return f"{who} connected with {event['tls']} {event['cipher']}"
        case "refused":
            return f"{who} refused with CONNACK {event['code']}: {event['reason']}"
        case "tls-failed":
            return f"{who} TLS handshake failed: {event['reason']}"
        case "telemetry":
            body = "".join(c if c.isprintable() else repr(c)[1:-1] for c in event["body"])
            again = " (again)" if event["dup"] else ""
            return f"{who} sent{again} {body}"
        case _:
            return f"{who} closed: {event['reason']}"
