"""Desk: signed commands come in by one direct method and go to whoever does what they say.

    desk.on("keys", "drop", handler)    handler(args, payload) -> result, or (status, result)

Every command is judged by signed.check() first, which keeps its counter in flash, so a handler is
called at most once for each. Owns no flash itself; answers in sentences, never with a traceback.
"""

import gc
import os

from . import agreed, log, trust
from .errors import OutpostError, TrustError
from .parts import do

_ANSWERED_S = 2  # in which the answer goes out before the board starts anew


def opened(way, commands, after=None):
    """(Desk, Rotation) of a board that knows signers, ready to take commands; on any other both
    are None."""
    if not _signers():
        return None, None
    # Only boards that can be sent such commands pay for the modules that judge and do them; they
    # are loaded now, while memory is in one piece.
    from . import jwe, signed
    from .rotate import Rotation

    desk, rotation = Desk(way, signed.check), Rotation(way, jwe.open_sealed)
    desk.open(commands)
    rotation.open(desk, commands)
    if after:
        desk.on("software", "production", lambda args, payload: _close_prompt(after))
    return desk, rotation


def _signers():
    """Whether the bundle in use, or else the image, names who may command this device."""
    try:
        if trust.signers():
            return True
    except TrustError:
        pass
    try:
        os.stat(agreed.SIGNERS_PATH)
    except OSError:
        return False
    return True


def _close_prompt(after):
    do("production", "close")
    after(_ANSWERED_S, _restart)  # boot.py does the rest
    return {"production": True}


def _restart():
    import machine

    machine.reset()


class Desk:
    def __init__(self, way, check):
        self._way = way  # Walk: who this device is, and its clock
        self._check = check  # signed.check
        self._handlers = {}

    def on(self, role, op, handler):
        self._handlers[role, op] = handler

    def open(self, commands):
        """Take commands from a dispatcher of direct methods."""
        commands.method(agreed.COMMAND_METHOD, self.command, raw=True)

    def command(self, body):
        """The answer to one signed command: (status, result).

        body  a JSON string whose text is the JWS, as it came: a token has nothing escaped
        """
        gc.collect()
        whole = len(body) > 2 and body[0] == 34 and body[len(body) - 1] == 34
        token = memoryview(body)[1 : len(body) - 1] if whole else None
        try:
            payload = self._check(token, self._way.who, self._way.clock)
        except OutpostError as e:
            log.say("signed", "refused: %s" % e)
            return 403, {"error": str(e)}
        name = "%s.%s" % (payload["role"], payload["op"])
        handler = self._handlers.get((payload["role"], payload["op"]))
        if handler is None:
            return 404, {"error": "this device has no command %s" % name}
        log.say("signed", "command=%s counter=%d" % (name, payload["ctr"]))
        try:
            answer = handler(payload["args"], payload)
        except OutpostError as e:
            log.say("signed", "%s was not done: %s" % (name, e))
            return 409, {"error": str(e)}
        return answer if isinstance(answer, tuple) else (200, answer)
