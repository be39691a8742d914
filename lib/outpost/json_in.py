"""JSON from outside: measured before memory is taken for it, and read whole or not at all.

MicroPython's parser takes a text that ends early for a whole one, and nests as deep as memory
goes. Keeps nothing.
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
    _measure(data)
    try:
        return json.loads(data)
    except (ValueError, RuntimeError):  # UnicodeError is a ValueError
        raise ValueError("it is not JSON in UTF-8")


def _measure(data):
    depth = values = 0
    quoted = escaped = False
    for b in data:
        if escaped:
            escaped = False
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
