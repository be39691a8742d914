"""What a service's request says, read with suspicion: its body, its headers and its numbers.

It owns nothing. What cannot be read is a fault with a sentence (`faults`), and a body that does not
come is not waited for without end.
"""

import asyncio
import base64
import binascii
import contextlib
import datetime as dt
import json
import math
from typing import Any

from aiohttp import web

from outpost_tools.hub import faults
from outpost_tools.hub.twins import parse_json

BODY_PATIENCE_S = 30.0
# No moment that anybody means is later: the year 2286, ten digits of seconds.
MOMENT_MAX_S = 1e10


async def body(request: web.Request, patience_s: float = BODY_PATIENCE_S) -> bytes:
    try:
        async with asyncio.timeout(patience_s):
            return await request.read()
    except TimeoutError:
        raise faults.TooSlow(f"The request's body did not come in {patience_s:g} s.") from None


async def content(request: web.Request, patience_s: float = BODY_PATIENCE_S) -> Any:
    """The JSON of its body; an empty object where there is none."""
    given = await body(request, patience_s)
    return parse_json(given) if given else {}


def if_match(request: web.Request) -> str | None:
    """The etag of If-Match without its quotes; "*" for any, None where there is none."""
    given = request.headers.get("If-Match")
    if given is None:
        return None
    etag = given.strip().removeprefix("W/").strip('"')
    if not etag:
        raise faults.ArgumentInvalid('If-Match is empty: give an etag, or "*" for any.')
    return etag


def number(text: str | None, default: int) -> int:
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise faults.ArgumentInvalid(f"{text[:40]!r} is not a whole number.")
    return int(text)


def seconds(value: Any, default: int) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise faults.ArgumentInvalid("A time-out is a number of seconds.")
    return float(value)


def moment(text: str | None) -> float | None:
    """Unix seconds, or ISO 8601 (UTC where it names no zone)."""
    if not text:
        return None
    at_s = math.nan
    with contextlib.suppress(ValueError, OverflowError):
        at_s = float(text)
    if math.isnan(at_s):
        with contextlib.suppress(ValueError, OverflowError):
            at = dt.datetime.fromisoformat(text)
            at_s = (at if at.tzinfo else at.replace(tzinfo=dt.UTC)).timestamp()
    if not 0 <= at_s <= MOMENT_MAX_S:
        raise faults.ArgumentInvalid(f"{text[:40]!r} is neither seconds nor ISO 8601.")
    return at_s


def continuation(text: str | None) -> tuple[int, str]:
    """Where a query's next page begins: how many rows were given, and the last one's device."""
    if not text:
        return 0, ""
    try:
        held = json.loads(base64.b64decode(text, validate=True))
        start, after = held["start"], held["after"]
    except (ValueError, binascii.Error, KeyError, TypeError, RecursionError):
        start, after = None, None
    good = isinstance(start, int) and not isinstance(start, bool) and start >= 0
    if not (good and isinstance(after, str)):
        raise faults.ArgumentInvalid("The continuation token is not one of this hub's.")
    return start, after


def continuing(start: int, after: str) -> str:
    return base64.b64encode(json.dumps({"start": start, "after": after}).encode()).decode()
