"""JSON from outside: measured before memory is taken for it, and read whole or not at all.

MicroPython's parser takes a text that ends early for a whole one, nests as deep as memory goes,
and makes two halves of a character that is escaped in two (as other parsers write an emoji):
text that is no UTF-8, which whoever it is sent to refuses. Keeps nothing.
"""

import json

from micropython import const

DEPTH_MAX = const(12)  # IoT Hub's twins have ten levels at most
_VALUES_MAX = const(512)  # each costs memory, however short it is written


def parse(data):
    """The value of JSON in UTF-8 (bytes or memoryview); None of nothing at all.

    ValueError says in a sentence what is wrong.
    """
    if not len(data):
        return None
    if _measure(data):
        data = _joined(data)
    try:
        return json.loads(data)
    except (ValueError, RuntimeError):  # UnicodeError is a ValueError
        raise ValueError("it is not JSON in UTF-8")


def _measure(data):
    """Whether it has an escaped surrogate; ValueError where it is too much."""
    depth = values = 0
    quoted = escaped = halves = False
    for i, b in enumerate(data):
        if escaped:
            escaped = False
            # u, then D8 to DF
            if b == 117 and i + 2 < len(data) and data[i + 1] | 32 == 100 and data[i + 2] > 55:
                halves = True
        elif quoted:
            escaped = b == 92  # backslash
            quoted = b != 34
        elif b == 34:
            quoted = True
        elif b == 123 or b == 91:
            depth += 1
            values += 1
            if depth > DEPTH_MAX:
                raise ValueError("it has more than %d levels" % DEPTH_MAX)
        elif b == 125 or b == 93:
            depth -= 1
        elif b == 44:
            values += 1
    if values > _VALUES_MAX:
        raise ValueError("it has more than %d values" % _VALUES_MAX)
    if depth or quoted:
        raise ValueError("it ends in the middle")
    return halves


def _half(data, at):
    """The surrogate that is escaped at this place, or 0."""
    if at + 6 > len(data) or data[at] != 92 or data[at + 1] != 117:
        return 0
    try:
        code = int(bytes(data[at + 2 : at + 6]), 16)
    except ValueError:
        return 0
    return code if 0xD800 <= code <= 0xDFFF else 0


def _joined(data):
    """A copy in which each two halves are one character in UTF-8, and a half alone is U+FFFD."""
    out = bytearray()
    at = 0
    while at < len(data):
        first = _half(data, at)
        if first:
            second = _half(data, at + 6)
            at += 6
            if first < 0xDC00 <= second:
                at += 6
                out += chr(0x10000 + ((first & 0x3FF) << 10) + (second & 0x3FF)).encode()
            else:
                out += b"\xef\xbf\xbd"
        elif data[at] == 92:
            out += data[at : at + 2]
            at += 2
        else:
            out.append(data[at])
            at += 1
    return out
