"""What the hub knows and can do, apart from how anyone reaches it.

The device side (session), DPS (dps) and the service side (rest) all work through the one `HubCore`
of a hub. It owns the table of live connections and joins the parts that own files: the registry,
twins, commands, methods, telemetry.

Coroutines run in the hub's event loop, where the sessions and the REST handlers live; another
thread uses `core.wait(core.twin_get("pump-7"))`. Plain methods may be called from any thread.
What goes wrong for a reason that the caller should hear is a `faults.ServiceError`.
"""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from outpost_tools.errors import OutpostError
from outpost_tools.hub import faults
from outpost_tools.hub.commands import Command, CommandQueue
from outpost_tools.hub.faces import Face, Service
from outpost_tools.hub.guard import Guard
from outpost_tools.hub.methods import MethodDesk, check_timeouts, request_body
from outpost_tools.hub.news import Event, News, Reader
from outpost_tools.hub.presence import Connection, Presence
from outpost_tools.hub.store import KEEP_BYTES, Telemetry, TelemetryStore
from outpost_tools.hub.subscriptions import Subscriptions
from outpost_tools.hub.throttle import Limits, Throttle
from outpost_tools.hub.twins import Json, Twin, TwinStore
from outpost_tools.registry import Device, Registry

if TYPE_CHECKING:
    from outpost_tools.hub.session import Session

T = TypeVar("T")

__all__ = ["Connection", "Event", "Face", "HubCore", "Service"]

SWEEP_EVERY_S = 1.0
SAVE_EVERY_ROUNDS = 30


class HubCore:
    """registry, twins, commands, methods, telemetry: the parts; use the methods here first.

    names     the hub's host names, as devices and services may call it; the first is its own
    listener  told each event, with the message where it is telemetry
    limits    of rates; none unless given
    keep_bytes  how much telemetry is kept, where seven days' is more
    """

    def __init__(
        self,
        data: Path,
        names: Sequence[str],
        now_s: Callable[[], float] = time.time,
        listener: Callable[[Event, Telemetry | None], None] | None = None,
        limits: Limits | None = None,
        keep_bytes: int = KEEP_BYTES,
    ) -> None:
        self.data, self.names, self.now_s = Path(data), tuple(names), now_s
        self.registry = Registry(self.data)
        self.presence = Presence(self.registry, now_s)
        self._guard = Guard(self.data, self.presence)
        self.telemetry = TelemetryStore(self.data, now_s, keep_bytes=keep_bytes)
        self.twins = TwinStore(self.data, now_s, self._desired_in_disk_thread)
        self.commands = CommandQueue(self.data, now_s)
        self.subscriptions = Subscriptions(self.data)
        self.methods = MethodDesk()
        self.throttle = Throttle(limits)
        self._listener = listener
        self._disk = ThreadPoolExecutor(1, "hub-disk")
        self._news = News()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._steady: list[asyncio.Task[None]] = []
        self.commands.recover()

    # From any thread.

    def wait(self, work: Coroutine[Any, Any, T], timeout_s: float | None = 60.0) -> T:
        """Run a coroutine of the core in the hub's loop, from another thread."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    def connection(self, device_id: str) -> Connection:
        """Whether a device is connected, since when, and when it was last heard of."""
        return self.presence.connection(device_id)

    @property
    def connected(self) -> list[str]:
        """The ids of the connected devices, sorted."""
        return sorted(self.presence.sessions)

    def statistics(self) -> dict[str, int]:
        """totalDeviceCount, enabledDeviceCount, disabledDeviceCount, connectedDeviceCount."""
        total, enabled = self.registry.counts()
        return {
            "totalDeviceCount": total,
            "enabledDeviceCount": enabled,
            "disabledDeviceCount": total - enabled,
            "connectedDeviceCount": len(self.presence.sessions),
        }

    def device(self, device_id: str) -> Device:
        """The registry's entry, or faults.DeviceNotFound."""
        device = self.registry.find(device_id)
        if device is None:
            raise faults.DeviceNotFound(f"There is no device {device_id!r} in this hub.")
        return device

    def check_registry(self) -> None:
        """Close, now, what the registry no longer admits.

        Called by whoever changes it in this process; a change by another process is seen within
        a quarter of a second anyway.
        """
        self._in_loop(self._guard.check)

    def disconnect_device(self, device_id: str, reason: str) -> None:
        """End a device's live connection, if it has one."""

        def close() -> None:
            session = self.presence.sessions.get(device_id)
            if session is not None:
                session.close(reason)

        self._in_loop(close)

    def tell(self, event: str, message: Telemetry | None = None, **facts: Any) -> None:
        """Let everyone know: the hub's log, and who reads `events`."""
        record = {"event": event, "at_s": round(self.now_s(), 3), **facts}
        if self._listener is not None:
            self._listener(record, message)
        if self._news:
            self._in_loop(lambda: self._news.spread(record))

    # Twins. `if_match` is the twin's etag without quotes; None or "*" takes whatever is there.

    async def twin_get(self, device_id: str) -> Twin:
        """tags, desired and reported with their $metadata, versions and etag (see twins.Twin)."""
        return await self.on_disk(self.twins.get, device_id)

    async def twin_patch(
        self,
        device_id: str,
        tags: Json | None = None,
        desired: Json | None = None,
        if_match: str | None = None,
    ) -> Twin:
        """Merge, as PATCH /twins/{id} does: null deletes, what is not named stays.

        A device that has subscribed is sent the desired part. Raises DeviceNotFound,
        PreconditionFailed, ArgumentInvalid (names, depth, values), TooLarge (32 KB, tags 8 KB).
        """
        return await self.on_disk(self.twins.change, device_id, tags, desired, if_match)

    async def twin_replace(
        self,
        device_id: str,
        tags: Json | None = None,
        desired: Json | None = None,
        if_match: str | None = None,
    ) -> Twin:
        """Put in the place of what is there, as PUT /twins/{id} does; None empties that part."""
        return await self.on_disk(self.twins.change, device_id, tags, desired, if_match, True)

    async def twin_patch_reported(self, device_id: str, patch: Json) -> int:
        """What a device reports; gives the new version of its reported properties."""
        twin = await self.on_disk(self.twins.report, device_id, patch)
        self.tell("twin-reported", device=device_id, version=twin.reported_version)
        return twin.reported_version

    async def twins_all(self) -> list[Twin]:
        """Every device's twin in the order of ids: what queries select from."""
        return await self.on_disk(self.twins.all)

    # Direct methods.

    async def invoke_method(
        self,
        device_id: str,
        name: str,
        payload: Any = None,
        connect_timeout_s: float = 0.0,
        response_timeout_s: float = 30.0,
    ) -> tuple[int, Any]:
        """Call a method on a device; gives its status and its payload (any JSON value).

        Raises DeviceNotFound, DeviceNotOnline (404103) when it is not there within
        `connect_timeout_s`, GatewayTimeout (504101) when it does not answer within
        `response_timeout_s`, ArgumentInvalid for time-outs out of range (connect 0 to 300,
        response 5 to 300), TooLarge for a payload over 128 KB.
        """
        check_timeouts(connect_timeout_s, response_timeout_s)
        body = request_body(name, payload)
        self.device(device_id)
        self.throttle.check("methods")
        session = await self.methods.ready(self.presence.sessions, device_id, connect_timeout_s)
        try:
            status, answer = await self.methods.call(session, name, body, response_timeout_s)
        except faults.ServiceError as why:
            self.tell("method", device=device_id, name=name, status=None, reason=why.message)
            raise
        self.tell("method", device=device_id, name=name, status=status)
        return status, answer

    # Commands (cloud-to-device messages).

    async def send_command(
        self,
        device_id: str,
        body: bytes,
        properties: Mapping[str, str] | None = None,
        message_id: str | None = None,
        expiry_s: float | None = None,
        ack: str = "none",
        correlation_id: str | None = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
    ) -> Command:
        """Queue a command; it is on disk when this returns, with a message id made if none given.

        expiry_s  Unix time after which it goes to the dead letters; default: one hour from now
        ack       "none", "positive", "negative" or "full": which feedback is wanted

        Raises DeviceNotFound, QueueFull (fifty wait already), TooLarge (64 KB), ArgumentInvalid.
        """
        self.throttle.check("commands")
        given = {"$.cid": correlation_id, "$.ct": content_type, "$.ce": content_encoding}
        command = await self.on_disk(
            self.commands.add,
            device_id,
            body,
            properties,
            message_id,
            expiry_s,
            ack,
            {name: text for name, text in given.items() if text},
        )
        self.tell("command-queued", device=device_id, message_id=command.message_id)
        self.wake(device_id)
        return command

    async def commands_waiting(self, device_id: str) -> list[Command]:
        """Queued or sent and not acknowledged, oldest first."""
        self.device(device_id)
        return await self.on_disk(self.commands.waiting, device_id)

    async def commands_dead(self, device_id: str | None = None) -> list[Command]:
        """The dead letters: expired, tried too often, or purged; `state` says which."""
        return await self.on_disk(self.commands.dead, device_id)

    async def commands_feedback(self, device_id: str | None = None) -> list[dict[str, Any]]:
        """What became of commands that were sent with an `ack`; kept for seven days."""
        return await self.on_disk(self.commands.feedback, device_id)

    async def commands_purge(self, device_id: str) -> int:
        """Empty a device's queue; gives how many there were."""
        self.device(device_id)
        purged = await self.on_disk(self.commands.purge, device_id)
        self.buried(purged)
        return len(purged)

    # Events: connections, telemetry, commands' fates, twin changes.

    def events(self) -> contextlib.AbstractAsyncContextManager[Reader]:
        """A reader of everything from now on; one that is too slow loses the oldest.

        Each is a dictionary with "event", "at_s" and "device". Kinds: connected, closed, refused,
        telemetry (number, body, properties, system, made_s, received_s, qos, dup),
        command-queued, command-sent, command-completed, command-dead (state), twin-desired,
        twin-reported (version), method (name, status).
        """
        return self._news.reader()

    async def telemetry_since(
        self,
        since_s: float | None = None,
        device_id: str | None = None,
        after_number: int = 0,
        limit: int = 1000,
    ) -> list[Event]:
        """Kept telemetry in order of arrival, in the form of the event "telemetry".

        Fewer than `limit` where they are large; none only where there are no more.
        """
        return await asyncio.to_thread(self.telemetry.read, since_s, device_id, after_number, limit)

    # From sessions, in the hub's loop.

    def join(self, session: "Session") -> None:
        """A device is in; an older connection of it has to go."""
        older = self.presence.enter(session)
        if older is not None:
            older.give_way()
        self.tell("connected", device=session.device_id, peer=session.line.peer, **session.line.tls)
        # What the registry lost between its admission and now was no reason for anyone to close it.
        if reason := self._guard.refuses(session.admitted):
            session.close(reason)

    def leave(self, session: "Session") -> None:
        self.methods.lost(session)
        self.presence.leave(session)

    def took(self, telemetry: Telemetry, number: int) -> None:
        """A message is on disk."""
        self.tell("telemetry", telemetry, **telemetry.as_event(number))

    def buried(self, dead: Sequence[Command]) -> None:
        """These commands will not be delivered any more."""
        for command in dead:
            self.tell(
                "command-dead",
                device=command.device_id,
                message_id=command.message_id,
                state=command.state,
                deliveries=command.deliveries,
                ack=command.ack,
            )

    def wake(self, device_id: str) -> None:
        """There may be a command for the device."""
        session = self.presence.sessions.get(device_id)
        if session is not None and session.command_qos is not None:
            session.wake()

    async def on_disk(self, work: Callable[..., T], *given: Any) -> T:
        """Run what may block in the one thread for it: in the order of the calls."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._disk, partial(work, *given))
        except sqlite3.Error as why:
            raise faults.Unavailable(
                f"The hub cannot use its disk ({why}): is it full, or another program at its files?"
            ) from None

    def keep_task(self, work: Coroutine[Any, Any, None]) -> None:
        """See to the end of something that nobody waits for."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # From the hub.

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._steady = [
            asyncio.create_task(self._guard.watch()),
            asyncio.create_task(self._sweep()),
        ]

    async def stop(self) -> None:
        """After the sessions have ended: finish what is under way."""
        for task in self._steady:
            task.cancel()
        await asyncio.gather(*self._steady, return_exceptions=True)
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(faults.Unavailable, OutpostError):
            await self.on_disk(self.presence.save)

    def close(self) -> None:
        """Last of all, from the thread that made it."""
        self._disk.shutdown()
        for part in (self.telemetry, self.twins, self.commands, self.subscriptions):
            part.close()
        self._guard.close()
        self.registry.close()

    # Inside.

    def _in_loop(self, work: Callable[[], None]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the hub has stopped
                self._loop.call_soon_threadsafe(work)

    def _desired_in_disk_thread(self, device_id: str, patch: Json, version: int) -> None:
        self._in_loop(lambda: self._desired(device_id, patch, version))

    def _desired(self, device_id: str, patch: Json, version: int) -> None:
        self.tell("twin-desired", device=device_id, version=version)
        session = self.presence.sessions.get(device_id)
        if session is not None:
            session.send_desired(patch, version)

    async def _sweep(self) -> None:
        """Bury what expires while nobody asks for it; keep when devices were active."""
        rounds = 0
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            rounds += 1
            with contextlib.suppress(faults.Unavailable, OutpostError):
                self.buried(await self.on_disk(self.commands.sweep))
                if rounds % SAVE_EVERY_ROUNDS == 0:
                    await self.on_disk(self.presence.save)
