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
_LINES_MAX = const(480)

CLOCK_VOUCHED = const(1)  # when the board's clock was vouched for, and SNTP asked (clock.py)
SESSION = const(2)  # a TLS session (resumption.py)
LAST_WORDS = const(3)  # the last lines of the console (lastwords.py)
WEAR = const(4)  # what may still be written of files that come (staging.py)


def _load():
    """The memory as it is, where it is ours and whole; else nothing."""
    import machine

    whole = machine.RTC().memory()
    if len(whole) < 8 or whole[:4] != _MAGIC:
        return b""
    if binascii.crc32(memoryview(whole)[8:]) != struct.unpack_from("<I", whole, 4)[0]:
        return b""
    return whole


def _parts(whole):
    """(number, begin, end) of each part in it."""
    at = 8
    while at + 3 <= len(whole):
        number, size = struct.unpack_from("<BH", whole, at)
        yield number, at + 3, at + 3 + size
        at += 3 + size


def get(number):
    """The bytes kept under a number, or None."""
    whole = _load()
    for found, begin, end in _parts(whole):
        if found == number:
            return whole[begin:end]
    return None


def put(number, data):
    """Keep bytes under a number; None takes them out. False where there is no room."""
    whole = memoryview(_load())
    size = 8 if data is None else 11 + len(data)
    for found, begin, end in _parts(whole):
        if found != number:
            size += 3 + end - begin
        elif data is not None and data == whole[begin:end]:
            return True
    if size > _SIZE:
        return False
    import machine

    # In one piece, as large as it will be: the memory may be in many.
    after = bytearray(size)
    at = 8
    for found, begin, end in _parts(whole):
        if found != number:
            after[at : at + 3 + end - begin] = whole[begin - 3 : end]
            at += 3 + end - begin
    if data is not None:
        struct.pack_into("<BH", after, at, number, len(data))
        after[at + 3 :] = data

    after[:4] = _MAGIC
    struct.pack_into("<I", after, 4, binascii.crc32(memoryview(after)[8:]))
    machine.RTC().memory(after)
    return True


def keep_lines(lines, mark=b"r"):
    """Keep as many of the last lines as have room, whole, in ASCII, after a byte of mark."""
    first, size = len(lines), 0
    while first and size + len(lines[first - 1]) < _LINES_MAX:
        first -= 1
        size += len(lines[first]) + 1
    text = bytearray("\n".join(lines[first:] or lines[-1:]).encode()[:_LINES_MAX])
    for i in range(len(text)):
        if text[i] > 126:
            text[i] = 63
    try:
        put(LAST_WORDS, mark + text)
    except (MemoryError, OSError):
        pass  # the lines are a help, and no more
