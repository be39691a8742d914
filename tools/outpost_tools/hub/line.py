"""One connection on the device listener, below whoever speaks on it: packets in, bytes out.

It owns the streams, the keep-alive's clock and the end: whoever wants the connection closed says
why, and the first reason given is the one that is logged.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from outpost_tools import agreed
from outpost_tools.hub import packets

CLOSE_PATIENCE_S = 2
TURN_PACKETS = 32
# What may wait for a device that does not read: many of the largest methods and twins.
UNREAD_MAX_BYTES = 4 << 20


class Close(Exception):
    """The connection ends here, for this reason."""


class Line:
    """tls           "tls": version, "cipher"
    certificates  what the client showed in the handshake, leaf first, as DER
    device_id     whose it is, once that is known
    on_known      called when it is
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        peer: str,
        tls: dict[str, str],
        certificates: Sequence[bytes] = (),
    ) -> None:
        self.reader, self.writer = reader, writer
        self.peer, self.tls, self.certificates = peer, tls, list(certificates)
        self.device_id = ""
        self.on_known: Callable[[], None] | None = None
        self.ending: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._silence_s: float | None = None
        self._turn = 0

    def belongs_to(self, device_id: str) -> None:
        """Who it is has been shown."""
        self.device_id = device_id
        if self.on_known is not None:
            self.on_known()

    def keep_alive(self, keep_alive_s: int) -> None:
        """From now on silence for one and a half times that long ends the connection."""
        self._silence_s = 1.5 * min(keep_alive_s or agreed.KEEPALIVE_MAX_S, agreed.KEEPALIVE_MAX_S)

    async def read(self, limit: int = packets.PACKET_MAX_BYTES) -> packets.Packet | None:
        """The next packet, None at the end; TimeoutError after too much silence."""
        self._turn += 1
        if self._turn % TURN_PACKETS == 0:
            # What has come already is read without waiting: others must have their turn.
            await asyncio.sleep(0)
        async with asyncio.timeout(self._silence_s):
            return await packets.read_packet(self.reader, limit)

    def write(self, data: bytes) -> None:
        if not self.writer.is_closing():
            self.writer.write(data)
            if self.writer.transport.get_write_buffer_size() > UNREAD_MAX_BYTES:
                self.close("it does not read what it is sent")

    async def drain(self) -> None:
        """Wait while the other side reads too slowly."""
        async with asyncio.timeout(self._silence_s):
            await self.writer.drain()

    def close(self, reason: str) -> None:
        """End the connection from outside, e.g. because a newer one took its place."""
        if not self.ending.done():
            self.ending.set_result(reason)

    async def hang_up(self) -> None:
        with contextlib.suppress(Exception, asyncio.CancelledError):
            self.writer.close()
            async with asyncio.timeout(CLOSE_PATIENCE_S):
                await self.writer.wait_closed()
        # What has not gone out by now never will.
        self.writer.transport.abort()
