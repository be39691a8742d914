"""Orders: what is said of a file before it comes, and what becomes of it when it is here.

Pushed or pulled. Loaded while a delivery is under way; owns no flash.
"""

from . import log
from .errors import DeliveryError, OutpostError

BUSY = 429, {"retry_s": 1, "error": "the file before this one is being dealt with: wait"}


def announced(call):
    """(size, sha256) of what is said of a file; DeliveryError where it makes no sense."""
    size = call.get("size")
    if not is_number(size, 1, 0x7FFFFFFF):
        raise DeliveryError("size is how many bytes the file has")
    return size, sha256_of(call)


def judged(kind, size, sha256, call):
    """The answer to a file that is not to come, or None."""
    if size > kind.max_bytes:
        words = "a file of %d bytes is more than the %d that this device takes"
        return 413, {"error": words % (size, kind.max_bytes)}
    try:
        return kind.check_begin(size, sha256, call)
    except OutpostError as e:
        return 409, {"error": str(e)}


def handed_over(kind, staged):
    """What the handler of a file that is whole comes to, or a generator that does.

    Until then nothing touches the file: kind.busy.
    """
    if kind.busy:
        return BUSY
    if not staged.right():
        staged.drop()
        log.say("delivery", "%s is not what was announced: dropped" % kind.name)
        return 422, {"have": 0, "error": "its SHA-256 is another one: it was dropped, begin again"}
    sha256 = staged.sha256
    log.say("delivery", "%s is here whole" % kind.name)
    try:
        result = kind.handler(staged.path)
    except OutpostError as e:
        result = 409, {"error": str(e)}
    if isinstance(result, tuple):
        return _dealt_with(kind, staged, sha256, result)
    kind.busy = True
    return _going_on(kind, staged, sha256, result)


def _going_on(kind, staged, sha256, steps):
    try:
        result = yield from steps
    except OutpostError as e:
        result = 409, {"error": str(e)}
    finally:
        kind.busy = False
    return _dealt_with(kind, staged, sha256, result)


def _dealt_with(kind, staged, sha256, result):
    kind.last = (sha256,) + result
    if result[0] < 300:
        staged.drop()
    log.say("delivery", "%s was handed over status=%d" % (kind.name, result[0]))
    return result


def sha256_of(call):
    sha256 = call.get("sha256")
    if isinstance(sha256, str) and len(sha256) == 64:
        sha256 = sha256.lower()
        if not [c for c in sha256 if c not in "0123456789abcdef"]:
            return sha256
    raise DeliveryError("sha256 is the SHA-256 of the file, 64 hexadecimal digits")


def is_number(value, low, high):
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
