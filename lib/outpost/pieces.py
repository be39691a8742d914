"""Pieces: the calls of the method outpost.deliver, one after the other.

    {"kind": "trust", "op": "begin", "size": 5120, "sha256": "…"}      200 {"have": 0}
    {"kind": "trust", "op": "write", "sha256": "…", "at": 0, "data": "…"}   200 {"have": 2048}
    {"kind": "trust", "op": "commit", "sha256": "…"}                   what the handler answers
    {"kind": "trust", "op": "status"}, {"kind": "trust", "op": "abort"}

Each may come twice. Loaded only while a delivery is under way; owns no flash (staging.py does).
"""

import binascii
import gc

from micropython import const

from . import agreed, log, orders, staging
from .errors import DeliveryError
from .json_in import parse

_STEP = const(512)  # characters of base64, a multiple of 4
_QUOTE = const(34)
_BRACE = const(125)

_NONE = "this device takes no files of that kind"
_ONE_PLACE = (
    "this board has one place for its firmware, or knows nobody who may sign it: write it over the "
    "cable, with 'make flash'"
)

more = False  # whether another call is to be expected soon


def answer(body, kinds):
    """(status, result) of one call, or a generator that comes to it."""
    global more
    more = False
    gc.collect()
    call, piece = _read(body)
    name = call.get("kind")
    kind = kinds.get(name) if isinstance(name, str) else None
    if kind is None:
        # Nothing that stays in memory knows of firmware where there is one place for it.
        return 404, {"error": _ONE_PLACE if name == "firmware" else _NONE}
    ops = {"begin": _begin, "write": _write, "commit": _commit, "status": _status, "abort": _abort}
    op = call.get("op")
    op = ops.get(op) if isinstance(op, str) else None
    if op is None:
        raise DeliveryError("op is begin, write, commit, status or abort")
    if kind.busy and op is not _status:
        return orders.BUSY
    return op(kind, (kind.stage or staging.Staging)(name), call, piece)


def _begin(kind, staged, call, piece):
    global more
    size, sha256 = orders.announced(call)
    wait_s = staging.begins(kind)
    if wait_s:
        return _later(wait_s)
    answered = orders.judged(kind, size, sha256, call)
    if answered:
        return answered
    if sha256 != staged.sha256 or size != staged.size:
        wait_s = staging.allow(kind, staging.BEGIN_BYTES)
        if wait_s:
            return _later(wait_s)
        try:
            staged.begin(size, sha256)
        except DeliveryError as e:
            return 507, {"have": 0, "error": str(e)}
    kind.last = None
    more = True
    log.say("delivery", "%s of %d bytes begins at %d" % (kind.name, size, staged.have))
    return 200, {"have": staged.have}


def _write(kind, staged, call, piece):
    global more
    if staged.sha256 is None or orders.sha256_of(call) != staged.sha256:
        return 409, {"have": 0, "error": "begin first: this is a piece of another file"}
    more = True
    at = call.get("at")
    if not orders.is_number(at, 0, staged.size):
        raise DeliveryError("at is the place in the file that the piece begins at")
    if piece is None or not 0 < len(piece) <= agreed.DELIVERY_PIECE_BYTES:
        raise DeliveryError("data is base64 of 1 to %d bytes" % agreed.DELIVERY_PIECE_BYTES)
    if at > staged.have:
        return 409, {"have": staged.have, "error": "the piece before this one is not here"}
    fresh = at + len(piece) - staged.have
    wait_s = staging.allow(kind, max(fresh, staging.LEAST_BYTES)) if fresh > 0 else 0
    if wait_s:
        return _later(wait_s)
    try:
        staged.put(at, piece)
    except DeliveryError as e:
        return 507 if hasattr(e, "no_room") else 409, {"have": staged.have, "error": str(e)}
    return 200, {"have": staged.have}


def _commit(kind, staged, call, piece):
    sha256 = orders.sha256_of(call)
    if kind.last and kind.last[0] == sha256 != staged.sha256:
        return kind.last[1:]  # it was dealt with, and the answer did not arrive
    if sha256 != staged.sha256:
        return 409, {"have": 0, "error": "begin first: nothing of that file is here"}
    if not staged.whole():
        return 409, {"have": staged.have, "error": "it is not whole yet"}
    return orders.handed_over(kind, staged)


def _status(kind, staged, call, piece):
    last = kind.last and {"sha256": kind.last[0], "status": kind.last[1], "result": kind.last[2]}
    return 200, {
        "have": staged.have,
        "size": staged.size,
        "sha256": staged.sha256,
        "max": kind.max_bytes,
        "last": last,
    }


def _abort(kind, staged, call, piece):
    staged.drop()
    return 200, {"have": 0}


def _later(wait_s):
    return 429, {"retry_s": wait_s, "error": staging.WORN}


# The call as it came


def _read(body):
    """(the call without its data, the bytes of the data or None).

    Where the data come last, as our own tool writes them, they are decoded where they lie.
    """
    start, end = _last_text(body)
    if start:
        n = _decode(body, start, end)
        head = _object(bytes(body[:start]) + b'"}')
        if head.get("data") != "":
            raise DeliveryError("data comes last in a call")
        return head, body[start : start + n]
    call = _object(body)
    data = call.pop("data", None)
    if data is None:
        return call, None
    try:
        return call, binascii.a2b_base64(data)
    except (ValueError, TypeError):
        raise DeliveryError("data is no base64")


def _object(body):
    try:
        call = parse(body)
    except ValueError as e:
        raise DeliveryError("the call cannot be read: %s" % e)
    if not isinstance(call, dict):
        raise DeliveryError("the call is no JSON object")
    return call


def _last_text(body):
    """(start, end) of a long text without escapes that ends an object; (0, 0): there is none."""
    end = at = len(body) - 2
    if end < _STEP or body[end] != _QUOTE or body[end + 1] != _BRACE:
        return 0, 0
    while at > 0:
        low = max(0, at - _STEP)
        part = bytes(body[low:at])
        if b"\\" in part:
            break
        found = part.rfind(b'"')
        if found >= 0:
            start = low + found + 1
            return (start, end) if end - start >= _STEP else (0, 0)
        at = low
    return 0, 0


def _decode(body, start, end):
    """Decode the base64 there into the same place. Returns how many bytes it is."""
    n = 0
    for at in range(start, end, _STEP):
        text = bytes(body[at : min(at + _STEP, end)])
        try:
            part = binascii.a2b_base64(text)
        except ValueError:
            part = b""
        # MicroPython's decoder passes over what is no base64.
        if len(part) * 4 != len(text) * 3 - 4 * (len(text) - len(text.rstrip(b"="))):
            raise DeliveryError("data is no base64")
        body[start + n : start + n + len(part)] = part
        n += len(part)
    return n
