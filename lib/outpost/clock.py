"""Clock: the time, where it came from, and a floor it never goes below.

An ESP32 starts at 2000-01-01, so every certificate is "not yet valid" until the
clock is set: by time servers (sntp.py, loaded only to ask them), never below the
floor, which is raised only by what is signed. Owns the floor in NVS, an i32 of
seconds since 2000-01-01 UTC. Time here is Unix seconds (int) whatever epoch the
port counts from.
"""

import struct
import time

from micropython import const

from . import agreed, log, rtcmem
from .parts import do

# `time` counts from 2000 on the ESP32 and from 1970 on a unix port.
_EPOCH = agreed.UNIX_2000 if time.gmtime(0)[0] == 2000 else 0
AGREE_S = 10  # how near two servers must be
# In deep sleep a board's clock goes wrong by minutes a day: what was vouched for is asked for again
# when it is so old, and when it is so old and nobody has answered it is vouched for no more.
_AGAIN_S = const(86400)
_STALE_S = const(30 * 86400)
# The end of an i32 from 2000, in 2068: the board's own date arithmetic ends there.
LAST = agreed.UNIX_2000 + 0x7FFFFFFF


def now():
    """Unix seconds by the board's clock, vouched for or not."""
    return int(time.time()) + _EPOCH


def text(unix):
    """ISO 8601 of Unix seconds (up to 2068, where the board's calendar ends)."""
    t = time.gmtime(min(unix, LAST) - _EPOCH)
    return "%04d-%02d-%02dT%02d:%02d:%02dZ" % t[:6]


def unix(year, month, day, hour=0, minute=0, second=0):
    """Unix seconds of a UTC date."""
    return time.mktime((year, month, day, hour, minute, second, 0, 0)) + _EPOCH


def stamp(text):
    """Unix seconds of 'YYYYMMDDHHMMSS', at most where the board's calendar ends."""
    if int(text[:4]) > 2067:
        return LAST
    return unix(*[int(text[a:b]) for a, b in ((0, 4), (4, 6), (6, 8), (8, 10), (10, 12), (12, 14))])


class Clock:
    """source: "unknown" (not looked at yet), "floor" (set to the floor: late, but
    never early), "rtc" (kept over a reset), "unvouched" (doubted, or set from answers
    that nobody confirms), or the names of the SNTP servers that agreed."""

    def __init__(self, servers):
        self.servers = servers
        self._asked = False
        self._doubts = 0  # refusals since the clock was last vouched for
        self._choices = 0  # times that the last settle() could choose from
        self._vouched_at = self._asked_at = 0
        self.source = "unknown"
        self.floor = self._load_floor()

    def _load_floor(self):
        import esp32

        try:
            floor = esp32.NVS(agreed.NVS_NAMESPACE).get_i32(agreed.NVS_TIME_FLOOR)
        except OSError:
            floor = 0
        return agreed.UNIX_2000 + max(0, floor)

    def raise_floor(self, unix_s):
        """Raise the floor to a time that something signed vouches for. Never lowers it.

        Writes one NVS entry when it rises by a day or more, so that a year of
        connections costs few erases. Where NVS takes no more (it is full), the floor
        holds until the next restart.
        """
        if unix_s < self.floor + 86400 or unix_s > LAST:
            return
        self.floor = unix_s
        import esp32

        try:
            nvs = esp32.NVS(agreed.NVS_NAMESPACE)
            nvs.set_i32(agreed.NVS_TIME_FLOOR, unix_s - agreed.UNIX_2000)
            nvs.commit()
        except OSError as e:
            log.say("clock", "the floor of time could not be kept in NVS (%s)" % e)

    def doubt(self):
        """The server's certificate or our token was refused: the clock may be why.

        True where the next settle() will ask SNTP though this one did not, or had no answer, or
        has another time to try: trying again soon can help. Without this, one wrong answer of
        SNTP, kept over every reset, would keep a device away until its power is cut.
        """
        self._doubts += 1
        self._become("floor" if self.source == "floor" else "unvouched")
        return not self._asked or not self._choices or self._doubts < self._choices

    def vouched(self):
        """Whether the time is worth writing down: servers gave it, or it was kept since."""
        return self.source not in ("unknown", "floor", "unvouched")

    def _become(self, source):
        """Set the source; whether it vouches, and since when, is known after a reset too."""
        self.source = source
        self._vouched_at = now()
        self._remember()

    def _remember(self):
        """The time of now is the one at which servers were asked last."""
        self._asked_at = now()
        pair = None
        if self.vouched():
            pair = struct.pack(
                "<II", self._vouched_at - agreed.UNIX_2000, self._asked_at - agreed.UNIX_2000
            )
        rtcmem.put(rtcmem.CLOCK_VOUCHED, pair)

    def _recall(self):
        """Whether the board's clock was vouched for before this reset, and ran on."""
        import machine

        if machine.reset_cause() == machine.PWRON_RESET:
            return False
        kept = rtcmem.get(rtcmem.CLOCK_VOUCHED)
        if kept is None or len(kept) != 8:
            return False
        vouched, asked = struct.unpack("<II", kept)
        self._vouched_at = vouched + agreed.UNIX_2000
        self._asked_at = asked + agreed.UNIX_2000
        return True

    def _good(self):
        """Whether the clock is vouched for and runs on from there: a sleep may have upset it."""
        if self.source == "unknown" and self._recall():
            self.source = "rtc"
        if not self.vouched():
            return False
        if self._possible(now()) and self._vouched_at <= now() < self._vouched_at + _STALE_S:
            return True
        self._become("unvouched")
        return False

    def _possible(self, unix_s):
        return self.floor <= unix_s <= LAST

    def settle(self):
        """Make the clock usable: keep it, ask SNTP, or fall back to the floor.

        Returns the time in Unix seconds; source says what it is worth. Raises
        nothing that a bad network could cause: a device whose SNTP is blocked
        still tries to connect with the floor, and says so.
        """
        self._asked = False
        good = self._good()
        if good and self._asked_at <= now() < self._asked_at + _AGAIN_S:
            return now()
        self._asked = True
        answers, agreeing = do("sntp", "ask", self.servers, self._possible, self.floor)
        self._choices = len(answers)
        if agreeing:
            self._doubts = 0
            self._choices = 1
            unix_s = answers[-1] + log.uptime_ms() // 1000
            if good and abs(unix_s - now()) > AGREE_S:
                log.say("clock", "it was wrong by %d s" % (now() - unix_s))
            _set(unix_s)
            self._become(agreeing)
        elif good:
            self._remember()  # what nobody confirms does not undo it: asked again in a day
        elif answers:
            # Each in turn, then the floor: the server's certificate will tell.
            self._choices = len(answers) + 1
            choice = self._doubts % self._choices
            alone = choice < len(answers)
            _set(answers[choice] + log.uptime_ms() // 1000 if alone else self.floor)
            self._become("unvouched" if alone else "floor")
        elif not self._possible(now()):
            _set(self.floor)
            self._become("floor")
        elif self.source != "floor":
            self._become("unvouched")
        return now()


def _set(unix_s):
    import machine

    t = time.gmtime(unix_s - _EPOCH)
    machine.RTC().datetime((t[0], t[1], t[2], t[6], t[3], t[4], t[5], 0))
