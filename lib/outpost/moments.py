"""Moments: when a message was made, also where the clock was not set then.

A message of such a time carries the number of the start (boot) and the uptime. When the clock
becomes known, what the uptime counts from is kept under the boot's number, so that messages of
this and of the last starts are dated once they are sent. Owns two entries in NVS: the number of
the last start that made such a message (i32), and up to four (boot, seconds since 2000 at
uptime 0) in a blob. A start whose clock is known at once writes neither.
"""

import struct

from . import agreed, log

_KEPT = 4


class Moments:
    def __init__(self):
        self._boot = None  # this start's number, once it was needed; 0: NVS takes no more
        self._learnt = False

    def boot(self):
        """The number of this start; writes NVS the first time."""
        if self._boot is None:
            import esp32

            try:
                nvs = esp32.NVS(agreed.NVS_NAMESPACE)
                self._boot = self._last(nvs) % 0x7FFFFFFF + 1
                nvs.set_i32(agreed.NVS_BOOT, self._boot)
                nvs.commit()
            except OSError as e:
                log.say("clock", "the number of this start could not be kept in NVS (%s)" % e)
                self._boot = 0
        return self._boot

    def _last(self, nvs):
        try:
            return nvs.get_i32(agreed.NVS_BOOT)
        except OSError:
            return 0

    def learn(self, date):
        """The clock is known: `date` is now, in seconds since 2000."""
        if self._learnt or not self._boot:
            return
        self._learnt = True
        import esp32

        pair = struct.pack("<II", self._boot, max(0, date - log.uptime_ms() // 1000))
        try:
            nvs = esp32.NVS(agreed.NVS_NAMESPACE)
            nvs.set_blob(agreed.NVS_MOMENTS, pair + self._kept()[: 8 * (_KEPT - 1)])
            nvs.commit()
        except OSError as e:
            log.say("clock", "the date of this start could not be kept in NVS (%s)" % e)

    def _kept(self):
        import esp32

        blob = bytearray(8 * _KEPT)
        try:
            size = esp32.NVS(agreed.NVS_NAMESPACE).get_blob(agreed.NVS_MOMENTS, blob)
        except OSError:
            return b""
        return bytes(blob[: size & ~7])

    def date_of(self, boot, uptime):
        """Seconds since 2000 of an uptime of an earlier start, or None."""
        kept = self._kept() if boot else b""
        for at in range(0, len(kept), 8):
            number, began = struct.unpack_from("<II", kept, at)
            if number == boot:
                return began + uptime
        return None
