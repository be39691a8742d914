"""A board's console at a port: its lines, as they come, until one that was waited for.

It owns the reading; what it shows has no control characters of the board's.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

from outpost_tools.console import LINE
from outpost_tools.errors import OutpostError

LINE_MAX_BYTES = 4096
GONE = "The board is gone from the port: plug it in again."


def restart(port: Any) -> None:
    """Reset the board by the lines of the port, as every tool does."""
    try:
        port.dtr = False
        port.rts = True
        time.sleep(0.2)
        port.rts = False
    except OSError:
        raise OutpostError(GONE) from None


def plain(raw: bytes) -> str:
    text = raw.rstrip(b"\r").decode(errors="replace")
    return "".join(c if c.isprintable() or c == "\t" else "?" for c in text)


def lines(port: Any, until: float | None = None) -> Iterator[str | None]:
    """Whole lines; None now and then while nothing comes. Ends at that time (monotonic)."""
    rest = b""
    port.timeout = 0.2
    while until is None or time.monotonic() < until:
        try:
            came = port.read(max(1, port.in_waiting))
        except OSError:
            raise OutpostError(GONE) from None
        *whole, rest = (rest + came).split(b"\n")
        for raw in whole:
            yield plain(raw)
        if len(rest) > LINE_MAX_BYTES:
            yield plain(rest)
            rest = b""
        if not came:
            yield None
    if rest:
        yield plain(rest)


def connected(line: str) -> bool:
    """Whether the line says that the hub has accepted the device."""
    match = LINE.fullmatch(line)
    return bool(match and match["stage"] == "hub" and match["sentence"].startswith("connected"))


def until_connected(port: Any, wait_s: float, show: Callable[[str], None]) -> bool:
    for line in lines(port, time.monotonic() + wait_s):
        if line is not None:
            show(line)
            if connected(line):
                return True
    return False
