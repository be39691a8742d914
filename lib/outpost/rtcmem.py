"""RTC memory: 2,048 bytes that outlive deep sleep and a reset, and go with the power.

Holds small parts, each under a number, with a CRC over all of it: memory that was not written by
us, or not whole, counts as empty. What is here may be lost at any time, and can be read by
whoever holds the board; nothing of it ever goes to flash. An application that writes
machine.RTC().memory() itself takes it away from the library, which then goes on without.
"""

import binascii
import struct

from micropython import const

_MAGIC = b"ORT1"
_SIZE = const(2048)

CLOCK_VOUCHED = const(1)  # one byte: 1 where the board's clock was set by one who vouched for it
SESSION = const(2)  # a TLS session (resumption.py)


def _load():
    """{number: bytes} of what is there."""
    import machine

    whole = machine.RTC().memory()
    parts = {}
    if len(whole) < 8 or whole[:4] != _MAGIC:
        return parts
    if binascii.crc32(whole[8:]) != struct.unpack_from("<I", whole, 4)[0]:
        return parts
    at = 8
    while at + 3 <= len(whole):
        number, size = struct.unpack_from("<BH", whole, at)
        parts[number] = whole[at + 3 : at + 3 + size]
        at += 3 + size
    return parts


def get(number):
    """The bytes kept under a number, or None."""
    return _load().get(number)


def put(number, data):
    """Keep bytes under a number; None takes them out. False where there is no room."""
    parts = _load()
    if parts.get(number) == data:
        return True
    parts.pop(number, None)
    if data is not None:
        parts[number] = data
    body = b"".join([struct.pack("<BH", n, len(d)) + d for n, d in parts.items()])
    if len(body) + 8 > _SIZE:
        return False
    import machine

    machine.RTC().memory(_MAGIC + struct.pack("<I", binascii.crc32(body)) + body)
    return True
