"""Seen: which cloud-to-device messages this device has had, over resets.

Owns one blob in NVS: marks of the last 16 message ids, 8 bytes of SHA-256 each, oldest first. One
small write for each message that has an id: with Espressif's 24 KiB NVS a sector is erased once in
about 20 of them, and has 100,000 erases: ten million messages. Never writes for anything else.
"""

import hashlib

from micropython import const

from . import agreed, log

_KEEP = const(16)
_MARK = const(8)


class Seen:
    def __init__(self):
        self._marks = []
        buffer = bytearray(_KEEP * _MARK)
        try:
            n = self._nvs().get_blob(agreed.NVS_SEEN, buffer)
        except (OSError, ValueError):
            return  # none yet, or not what we wrote: it begins anew
        for at in range(0, n - n % _MARK, _MARK):
            self._marks.append(bytes(buffer[at : at + _MARK]))

    def _nvs(self):
        import esp32

        return esp32.NVS(agreed.NVS_NAMESPACE)

    def mark(self, device_id, mid, body):
        """Of a message to that device: by its id, or by its body where it has none.

        The device's id is in it: a board that becomes another device has had none of its messages.
        """
        h = hashlib.sha256(device_id.encode())
        h.update(b"\0id\0" if mid else b"\0body\0")
        h.update(mid or body)
        return h.digest()[:_MARK]

    def __contains__(self, mark):
        return mark in self._marks

    def add(self, mark):
        """In flash when this returns. Where NVS takes no more it holds until the next reset."""
        self._marks.append(mark)
        del self._marks[:-_KEEP]
        try:
            nvs = self._nvs()
            nvs.set_blob(agreed.NVS_SEEN, b"".join(self._marks))
            nvs.commit()
        except OSError as e:
            log.say("message", "its id could not be kept in NVS (%s)" % e)
