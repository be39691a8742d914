"""Events on their way to those who watch the hub.

It owns one queue for each reader, bounded in number and in bytes: a reader that is too slow loses
the oldest. What telemetry it loses is in the store.
"""

import asyncio
import collections
import contextlib
from collections.abc import AsyncIterator
from typing import Any

Event = dict[str, Any]

WAITING_MAX = 10000
WAITING_MAX_BYTES = 16 << 20


class Reader:
    """What happened and was not read yet."""

    def __init__(self) -> None:
        self._waiting: collections.deque[tuple[Event, int]] = collections.deque()
        self._bytes = 0
        self._come = asyncio.Event()

    def put(self, event: Event) -> None:
        size = len(event.get("body", "")) + len(event.get("base64", ""))
        self._waiting.append((event, size))
        self._bytes += size
        while len(self._waiting) > WAITING_MAX or self._bytes > WAITING_MAX_BYTES:
            self._bytes -= self._waiting.popleft()[1]
        self._come.set()

    async def get(self) -> Event:
        while not self._waiting:
            self._come.clear()
            await self._come.wait()
        event, size = self._waiting.popleft()
        self._bytes -= size
        return event

    def get_nowait(self) -> Event:
        """The next one; IndexError where there is none."""
        event, size = self._waiting.popleft()
        self._bytes -= size
        return event


class News:
    """In the hub's loop alone."""

    def __init__(self) -> None:
        self._readers: set[Reader] = set()

    def __bool__(self) -> bool:
        return bool(self._readers)

    @contextlib.asynccontextmanager
    async def reader(self) -> AsyncIterator[Reader]:
        reader = Reader()
        self._readers.add(reader)
        try:
            yield reader
        finally:
            self._readers.discard(reader)

    def spread(self, event: Event) -> None:
        for reader in self._readers:
            reader.put(event)
