"""Clock: the time, where it came from, and a floor it never goes below.

An ESP32 starts at 2000-01-01, so every certificate is "not yet valid" until the
clock is set. SNTP (RFC 4330) can be forged, so its answer must lie above the
floor, which is raised only by what is signed. Owns the floor in NVS, an i32 of
seconds since 2000-01-01 UTC. Time here is Unix seconds (int) whatever epoch the
port counts from.
"""

import os
import socket
import struct
import time

from . import agreed
from .errors import ClockError

# `time` counts from 2000 on the ESP32 and from 1970 on a unix port.
_EPOCH = agreed.UNIX_2000 if time.gmtime(0)[0] == 2000 else 0
_NTP_TO_UNIX = 2208988800
_ERA = 1 << 32


def now():
    """Unix seconds by the board's clock, vouched for or not."""
    return int(time.time()) + _EPOCH


def text(unix):
    """ISO 8601 of Unix seconds."""
    t = time.gmtime(unix - _EPOCH)
    return "%04d-%02d-%02dT%02d:%02d:%02dZ" % t[:6]


def unix(year, month, day, hour=0, minute=0, second=0):
    """Unix seconds of a UTC date."""
    return time.mktime((year, month, day, hour, minute, second, 0, 0)) + _EPOCH


class Clock:
    """source: "unknown" (the clock is below the floor or was never set), "floor"
    (set to the floor: late, but never early), "rtc" (kept over a reset), or the
    name of the SNTP server that answered."""

    def __init__(self, servers):
        self._servers = servers
        self.source = "unknown"
        self.floor = self._load_floor()

    def _load_floor(self):
        import esp32

        try:
            return esp32.NVS(agreed.NVS_NAMESPACE).get_i32(agreed.NVS_TIME_FLOOR) + agreed.UNIX_2000
        except OSError:
            return agreed.UNIX_2000

    def raise_floor(self, unix_s):
        """Raise the floor to a time that something signed vouches for. Never lowers it.

        Writes one NVS entry when it rises by a day or more, so that a year of
        connections costs few erases.
        """
        if unix_s < self.floor + 86400:
            return
        import esp32

        nvs = esp32.NVS(agreed.NVS_NAMESPACE)
        nvs.set_i32(agreed.NVS_TIME_FLOOR, unix_s - agreed.UNIX_2000)
        nvs.commit()
        self.floor = unix_s

    def settle(self):
        """Make the clock usable: keep it, ask SNTP, or fall back to the floor.

        Returns the time in Unix seconds; source says what it is worth. Raises
        nothing that a bad network could cause: a device whose SNTP is blocked
        still tries to connect with the floor, and says so.
        """
        if self.source not in ("unknown", "floor") and now() >= self.floor:
            return now()
        import machine

        if machine.reset_cause() != machine.PWRON_RESET and now() >= self.floor + 1:
            self.source = "rtc"
            return now()
        for host, port in self._servers:
            try:
                unix_s = query(host, port)
            except (OSError, ClockError):
                continue
            # Below the floor: a forgery or a broken server. The next one may do better.
            if unix_s >= self.floor:
                _set(unix_s)
                self.source = host
                return unix_s
        if now() < self.floor:
            _set(self.floor)
        self.source = "floor"
        return now()


def _set(unix_s):
    import machine

    t = time.gmtime(unix_s - _EPOCH)
    machine.RTC().datetime((t[0], t[1], t[2], t[6], t[3], t[4], t[5], 0))


def query(host, port=123, timeout_ms=3000):
    """Unix seconds from one SNTP server; OSError or ClockError where it gives none.

    The answer must echo a random number of ours (its originate timestamp), so
    that only one who saw the question can answer it, come from a synchronised
    server, and arrive in time.
    """
    address = socket.getaddrinfo(host, port)[0][-1]
    nonce = os.urandom(8)
    packet = bytearray(48)
    packet[0] = 0x23  # no leap warning, version 4, client
    packet[40:48] = nonce
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        s.settimeout(timeout_ms / 1000)
        start = time.ticks_ms()
        s.sendto(packet, address)
        while time.ticks_diff(time.ticks_ms(), start) < timeout_ms:
            answer = s.recv(68)
            if len(answer) < 48 or answer[24:32] != nonce:
                continue  # not to this question
            if answer[0] & 7 != 4 or answer[0] >> 6 == 3 or not 1 <= answer[1] <= 15:
                raise ClockError("SNTP server %s is not synchronised" % host)
            seconds = struct.unpack("!I", answer[40:44])[0]
            if not seconds:
                raise ClockError("SNTP server %s gave no time" % host)
            # Era 0 ended in 2036: a small number is of era 1 (RFC 4330, section 3).
            return seconds - _NTP_TO_UNIX + (_ERA if seconds < 0x80000000 else 0)
    finally:
        s.close()
    raise ClockError("SNTP server %s did not answer in %d ms" % (host, timeout_ms))
