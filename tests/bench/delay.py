"""A TCP proxy on loopback that holds every byte for a while, in both directions.

It owns one listening socket and a thread; what was sent arrives in order, later.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading


class DelayProxy:
    """`with DelayProxy(port, delay_s) as proxy: proxy.port`. delay_s is for one way."""

    def __init__(self, target_port: int, delay_s: float) -> None:
        self._target, self._delay_s = target_port, delay_s
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)

    def __enter__(self) -> DelayProxy:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        # Closed, not cancelled: every connection then ends by itself.
        for writer in self._writers:
            writer.close()
        await asyncio.sleep(2 * self._delay_s + 0.1)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers |= {writer, onward_writer}
        await asyncio.gather(self._carry(reader, onward_writer), self._carry(onward_reader, writer))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                if not data:
                    break
                writer.write(data)
                await writer.drain()
            writer.close()

        delivery = asyncio.create_task(deliver())
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                queue.put_nowait((self._loop.time() + self._delay_s, data))
        queue.put_nowait((self._loop.time() + self._delay_s, b""))
        with contextlib.suppress(OSError):
            await delivery
