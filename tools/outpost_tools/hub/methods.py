"""Direct methods on their way: who waits for which answer.

It owns the calls that are under way, each with its request id, and forgets them when the answer,
the time-out or the end of the connection comes. It keeps nothing on disk: a call is now or never.
"""

import asyncio
import itertools
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from outpost_tools.hub import faults, limits

if TYPE_CHECKING:
    from outpost_tools.hub.session import Session

Answer = tuple[int, Any]


@dataclass
class _Call:
    device_id: str
    session: "Session"
    answer: "asyncio.Future[Answer]" = field(repr=False)


class MethodDesk:
    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._calls: dict[str, _Call] = {}
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}

    def __len__(self) -> int:
        return len(self._calls)

    async def call(
        self, session: "Session", name: str, body: bytes, response_timeout_s: float
    ) -> Answer:
        """Send the request on this connection and wait for what it answers."""
        rid = f"{next(self._numbers):x}"
        call = _Call(session.device_id, session, asyncio.get_running_loop().create_future())
        self._calls[rid] = call
        try:
            session.send_method(name, rid, body)
            async with asyncio.timeout(response_timeout_s):
                return await call.answer
        except TimeoutError:
            raise faults.GatewayTimeout(
                f"The device did not answer the method within {response_timeout_s:g} s."
            ) from None
        finally:
            del self._calls[rid]

    def answered(self, session: "Session", rid: str, status: int, payload: Any) -> bool:
        """A device's answer; False where nobody waits for it (any more)."""
        call = self._calls.get(rid)
        if call is None or call.session is not session or call.answer.done():
            return False
        call.answer.set_result((status, payload))
        return True

    def lost(self, session: "Session") -> None:
        """The connection ended: its calls cannot be answered any more."""
        for call in self._calls.values():
            if call.session is session and not call.answer.done():
                call.answer.set_exception(
                    faults.DeviceNotOnline("The device lost its connection during the method.")
                )

    def arrived(self, device_id: str) -> None:
        """The device can take methods now."""
        for waiter in self._waiters.pop(device_id, ()):
            if not waiter.done():
                waiter.set_result(None)

    async def ready(
        self, sessions: Mapping[str, "Session"], device_id: str, timeout_s: float
    ) -> "Session":
        """The device's connection, once it takes methods; DeviceNotOnline after the time."""
        end = time.monotonic() + timeout_s
        while True:
            session = sessions.get(device_id)
            if session is not None and session.takes_methods:
                return session
            left_s = end - time.monotonic()
            if left_s <= 0:
                raise faults.DeviceNotOnline(f"The device {device_id!r} is not online.")
            await self._wait_for(device_id, left_s)

    async def _wait_for(self, device_id: str, timeout_s: float) -> None:
        """Come back when the device can take methods, or when the time is over."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(device_id, set())
        waiters.add(waiter)
        try:
            await asyncio.wait({waiter}, timeout=timeout_s)
        finally:
            waiters.discard(waiter)
            if not waiters and self._waiters.get(device_id) is waiters:
                del self._waiters[device_id]


def request_body(name: str, payload: Any) -> bytes:
    """The payload as it goes to the device, checked against the limits."""
    fits = 0 < len(name) <= limits.METHOD_NAME_MAX and name.isprintable()
    if not fits or set(name) & set("/#+?"):
        raise faults.ArgumentInvalid("A method's name has 1 to 100 characters and none of / # + ?")
    try:
        body = json.dumps(payload, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError):
        raise faults.ArgumentInvalid("The method's payload is no JSON value.") from None
    if len(body) > limits.METHOD_MAX_BYTES:
        raise faults.TooLarge(
            f"The method's payload has {len(body)} bytes; {limits.METHOD_MAX_BYTES} are the limit."
        )
    return body


def check_timeouts(connect_timeout_s: float, response_timeout_s: float) -> None:
    if not 0 <= connect_timeout_s <= limits.METHOD_TIMEOUT_MAX_S:
        raise faults.ArgumentInvalid("The connect time-out is 0 to 300 seconds.")
    if not limits.METHOD_TIMEOUT_MIN_S <= response_timeout_s <= limits.METHOD_TIMEOUT_MAX_S:
        raise faults.ArgumentInvalid("The response time-out is 5 to 300 seconds.")
