"""Takes a device's commands to it, over one connection.

It owns what is under way: which packet id stands for which command, since when. A command leaves
the queue at its PUBACK; without one it is tried again after the queue's `lock_s`, or by the next
connection.
"""

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from outpost_tools.hub import packets
from outpost_tools.hub.commands import Command

if TYPE_CHECKING:
    from outpost_tools.hub.session import Session

WINDOW = 16


class Courier:
    def __init__(self, session: "Session") -> None:
        self._session, self._core = session, session.core
        self._queue = session.core.commands
        self._due = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._under_way: dict[int, tuple[Command, float]] = {}
        self._held: set[int] = set()  # numbers marked as sent by us, to be released at the end
        self._died: set[int] = set()  # packet ids whose command died before its PUBACK
        self._over = False

    def wake(self) -> None:
        self._due.set()
        if self._task is None and not self._over:
            self._task = asyncio.create_task(self._run())
            self._task.add_done_callback(self._ended)

    def has(self, packet_id: int) -> bool:
        return packet_id in self._under_way or packet_id in self._died

    def acknowledged(self, packet_id: int) -> bool:
        """The device's PUBACK; False where nothing was sent under that id."""
        entry = self._under_way.pop(packet_id, None)
        if entry is None:
            was = packet_id in self._died
            self._died.discard(packet_id)
            return was
        self._core.keep_task(self._complete(entry[0]))
        return True

    def stop(self) -> None:
        """The connection is over: what was not acknowledged waits for the next."""
        if self._task is not None and not self._over:
            self._task.cancel()
            self._core.keep_task(self._release())
        self._over = True

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and task.exception() is not None:
            self._session.close("its commands could not be delivered: is the disk full?")

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._patience_s()):
                    await self._due.wait()
            self._due.clear()
            await self._try_again()
            await self._send_new()

    def _patience_s(self) -> float | None:
        if not self._under_way:
            return None
        oldest = min(since for _, since in self._under_way.values())
        return max(0.05, oldest + self._queue.lock_s - time.monotonic())

    async def _send_new(self) -> None:
        while self._session.command_qos is not None and len(self._under_way) < WINDOW:
            room = WINDOW - len(self._under_way)
            taken, dead = await self._core.on_disk(self._take, room)
            self._core.buried(dead)
            if not taken:
                return
            for command in taken:
                await self._send(command)

    def _take(self, room: int) -> tuple[list[Command], list[Command]]:
        # In the disk's own thread, so that a cancelled wait for it loses no number.
        taken, dead = self._queue.take(self._session.device_id, room)
        self._held.update(command.number for command in taken)
        return taken, dead

    async def _try_again(self) -> None:
        late = time.monotonic() - self._queue.lock_s
        for packet_id, (command, since) in list(self._under_way.items()):
            if since > late:
                continue
            again, dead = await self._core.on_disk(self._queue.retry, command.number)
            self._core.buried(dead)
            if self._under_way.pop(packet_id, None) is None:
                continue  # its PUBACK came meanwhile
            if again is None:
                self._died.add(packet_id)
            else:
                await self._send(again, packet_id)

    async def _send(self, command: Command, packet_id: int | None = None) -> None:
        qos = self._session.command_qos
        if qos is None:  # unsubscribed meanwhile
            await self._core.on_disk(self._queue.release, [command.number])
            return
        if qos:
            packet_id = packet_id or self._session.new_packet_id()
            self._under_way[packet_id] = (command, time.monotonic())
        self._session.line.write(
            packets.publish(
                command.topic,
                command.body,
                qos,
                packet_id if qos else None,
                dup=bool(qos and command.deliveries > 1),
            )
        )
        self._core.tell(
            "command-sent",
            device=command.device_id,
            message_id=command.message_id,
            deliveries=command.deliveries,
        )
        await self._session.line.drain()
        if not qos:
            await self._complete(command)

    async def _complete(self, command: Command) -> None:
        done = await self._core.on_disk(self._queue.complete, command.number)
        self._held.discard(command.number)
        if done is not None:
            self._core.tell(
                "command-completed",
                device=done.device_id,
                message_id=done.message_id,
                deliveries=done.deliveries,
                ack=done.ack,
            )
        self._due.set()

    async def _release(self) -> None:
        await self._core.on_disk(lambda: self._queue.release(list(self._held)))
        self._core.wake(self._session.device_id)
