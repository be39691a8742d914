"""Delivery: files that come to this device piece by piece, and what is done with them.

    delivery.register("trust", 16384, check_begin, handler)

Who wants a kind of file says so here; this part stays in memory and is small. What writes the
pieces (pieces.py, staging.py) is loaded when the first one comes, and let go of. Bytes that
arrive are staged, compared with the hash that was announced, and handed over: they are believed
by nobody here, the handler judges them. Owns no flash itself; staging.py owns /stage.
"""

from . import agreed
from .errors import DeliveryError

_kinds = {}
_device = None  # the Delivery that takes the calls


class Kind:
    """left and left_at: what may still be written of it, see pieces.py. last: what the last
    commit came to, for a sender who did not hear the answer."""

    def __init__(self, max_bytes, check_begin, handler):
        self.max_bytes = max_bytes
        self.check_begin = check_begin
        self.handler = handler
        self.left = self.left_at = None
        self.last = None


def register(kind, max_bytes, check_begin, handler):
    """Take files of this kind, of up to max_bytes.

    kind                             letters, digits and - : it is the name of its file too
    check_begin(size, sha256, args)  None, and it may come; (status, result), and that is the
                                     answer: nothing is taken. OutpostError: a refusal with its
                                     sentence. args is what else the sender said of it, a dict
    handler(path)                    all of it is there, with that hash: (status, result), or a
                                     generator that comes to it. Below 300: it is dealt with, and
                                     what is left at `path` is removed; else it stays there, and
                                     can be committed again. It may come to it twice (a power cut)
    """
    if not kind or [c for c in kind if not ("a" <= c <= "z" or "0" <= c <= "9" or c == "-")]:
        raise ValueError("a kind of file is named with a to z, 0 to 9 and - alone")
    _kinds[kind] = Kind(max_bytes, check_begin, handler)
    if _device:
        _device.open()


def opened(device):
    """The Delivery of a device: it takes calls as soon as there is a kind of file to take."""
    global _device
    _device = Delivery(device)
    if _kinds:
        _device.open()
    return _device


class Delivery:
    def __init__(self, device):
        self._device = device
        self._open = False
        self._loaded = None  # pieces.py, while it is at work

    def open(self):
        if not self._open:
            self._open = True
            self._device.commands.method(agreed.DELIVERY_METHOD, self.deliver, raw=True)

    def packet_bytes(self):
        """The longest packet that it needs to be let through."""
        return agreed.DELIVERY_PACKET_BYTES if self._open else 0

    def deliver(self, body):
        """One call of the method: (status, result), or a generator that comes to it."""
        from . import pieces

        self._loaded = pieces
        try:
            return pieces.answer(body, _kinds)
        except DeliveryError as e:
            return 400, {"error": str(e)}
        except MemoryError:
            return 413, {"error": "there is no memory for it now: send smaller pieces"}
        finally:
            if not pieces.more:
                self.rest()

    def rest(self):
        """No piece is to be expected soon."""
        if self._loaded:
            from .walk import _let_go

            _let_go(self._loaded.staging)
            _let_go(self._loaded)
            self._loaded = None
