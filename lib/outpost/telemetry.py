"""Telemetry: what send() takes, checked before it is queued. Keeps nothing."""

import json

MAX_BYTES = 65536
_DEPTH = 16


def encode(body):
    """The bytes to publish: of bytes a copy, of anything else its JSON.

    ValueError where it is too long, or has no JSON.
    """
    if not is_json(body):
        # A copy: the caller may fill its buffer again before this is sent.
        return bytes(_fitting(body))
    _check(body, _DEPTH)
    return _fitting(json.dumps(body).encode())


def is_json(body):
    """Whether encode() makes JSON of it; bytes are whatever their author says."""
    return not isinstance(body, (bytes, bytearray, memoryview))


def _fitting(body):
    if len(body) > MAX_BYTES:
        raise ValueError("a message of %d bytes is too long: %d at most" % (len(body), MAX_BYTES))
    return body


def _check(value, depth):
    # MicroPython's json.dumps writes what it is given, as <object> or nan where need be:
    # no JSON, and of no use to whoever reads it.
    if isinstance(value, float):
        if value - value != 0:
            raise ValueError("send() cannot put %s into JSON" % value)
    elif isinstance(value, (dict, list, tuple)):
        if not depth:
            raise ValueError("send() cannot put more than %d levels into JSON" % _DEPTH)
        for item in value:
            if isinstance(value, dict):
                if not isinstance(item, str):
                    raise ValueError("send() cannot put a key into JSON that is not a text")
                item = value[item]
            _check(item, depth - 1)
    elif value is not None and not isinstance(value, (bool, int, str)):
        raise ValueError("send() cannot put a %s into JSON" % type(value).__name__)
