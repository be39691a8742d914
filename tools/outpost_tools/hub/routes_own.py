"""Routes of our own on the service side: sending and watching, which are AMQP on the real service.

It owns nothing. `rest` has asked for the right before a function here is called.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING
from urllib.parse import unquote

from aiohttp import web

from outpost_tools.hub import asking, faults, forms

if TYPE_CHECKING:
    from outpost_tools.hub.core import Event, HubCore

STREAM_PAGE = 500
STREAM_ALIVE_S = 15
APP_PREFIX = "iothub-app-"


async def send(core: "HubCore", request: web.Request, body: bytes) -> web.Response:
    device_id = request.match_info["id"]
    headers = request.headers
    properties = {
        unquote(name[len(APP_PREFIX) :]): unquote(value)
        for name, value in headers.items()
        if name.lower().startswith(APP_PREFIX)
    }
    command = await core.send_command(
        device_id,
        body,
        properties,
        message_id=headers.get("iothub-messageid"),
        expiry_s=asking.moment(headers.get("iothub-expiry")),
        ack=headers.get("iothub-ack", "none"),
        correlation_id=headers.get("iothub-correlationid"),
        content_type=headers.get("Content-Type"),
        content_encoding=headers.get("iothub-contentencoding"),
    )
    answer = {
        "messageId": command.message_id,
        "device": device_id,
        "expiryS": command.expiry_s,
    }
    return web.json_response(answer, status=201)


async def commands(core: "HubCore", device_id: str) -> web.Response:
    core.device(device_id)
    waiting = await core.commands_waiting(device_id)
    dead = await core.commands_dead(device_id)
    return web.json_response(
        {
            "waiting": [command.as_json() for command in waiting],
            "dead": [command.as_json() for command in dead],
            "feedback": await core.commands_feedback(device_id),
        }
    )


async def events(core: "HubCore", request: web.Request) -> web.StreamResponse:
    """One event a line; with follow=1 until the caller has had enough."""
    asked = request.query
    device_id = asked.get("device") or None
    kinds = set(filter(None, asked.get("kinds", "").split(",")))
    follow = asked.get("follow", "0") not in ("0", "", "false")
    since_s = asking.moment(asked.get("since"))
    after = asking.number(asked["after"], 0) if asked.get("after") else None
    if device_id is not None and core.registry.find(device_id) is None:
        # What a removed device has sent can be read still.
        if not await core.telemetry_since(None, device_id, 0, 1):
            raise faults.DeviceNotFound(f"There is no device {device_id[:128]!r} in this hub.")
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    async with contextlib.AsyncExitStack() as stack:
        live = await stack.enter_async_context(core.events()) if follow else None
        await response.prepare(request)
        last = after or 0
        if since_s is not None or after is not None or not follow:
            async for event in _kept(core, since_s, device_id, last):
                last = max(last, int(event.get("number") or 0))
                if not kinds or event.get("event") in kinds:
                    await response.write(forms.event_line(event))
        while live is not None:
            try:
                async with asyncio.timeout(STREAM_ALIVE_S):
                    event = await live.get()
            except TimeoutError:
                await response.write(b"\n")  # finds out whether anybody still reads
                continue
            if device_id is not None and event.get("device") != device_id:
                continue
            if event.get("event") == "telemetry" and 0 < int(event.get("number") or 0) <= last:
                continue  # was among the kept ones
            if not kinds or event.get("event") in kinds:
                await response.write(forms.event_line(event))
    await response.write_eof()
    return response


async def _kept(
    core: "HubCore", since_s: float | None, device_id: str | None, after: int
) -> AsyncIterator["Event"]:
    while True:
        page = await core.telemetry_since(since_s, device_id, after, STREAM_PAGE)
        if not page:  # a page may be short because its messages are large
            return
        for event in page:
            after = max(after, int(event.get("number") or 0))
            yield event
