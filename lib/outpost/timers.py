"""Timers: what is to be done again and again, at a time of day, at a date, or in a while.

Periods go by the uptime, which every board has. Times go by the clock, and wait while nobody
vouches for it: they are never guessed. Owns nothing in flash: a restart begins anew.
"""

from micropython import const

from . import agreed, log
from .tasks import Tasks

_LOOK_MS = const(1000)  # a time is hit within a second
_DAY_S = const(86400)
_LATE_S = const(3600)  # how late a time of day is still done when midnight lies between


class _Every:
    def __init__(self, period_ms, handler):
        self.period_ms = period_ms
        self.handler = handler
        self.due = log.uptime_ms()
        self.busy = False

    def is_due(self, now, date):
        if now < self.due:
            return False
        # Missed periods are not made up for: one call, then on the grid again.
        self.due += ((now - self.due) // self.period_ms + 1) * self.period_ms
        return True

    def wait(self, now):
        return self.due - now


class _After:
    def __init__(self, delay_ms, handler):
        self.handler = handler
        self.due = log.uptime_ms() + delay_ms
        self.busy = False

    def is_due(self, now, date):
        return now >= self.due

    def wait(self, now):
        return self.due - now


class _OnDate:
    """Once: at once where the time has passed when the clock is first known."""

    def __init__(self, unix_s, handler):
        self.date = unix_s - agreed.UNIX_2000
        self.handler = handler
        self.busy = False

    def is_due(self, now, date):
        return date is not None and date >= self.date

    def wait(self, now):
        return _LOOK_MS


class _Daily:
    """Each day, UTC. A day whose time has passed when the clock is first known is left out."""

    def __init__(self, second, handler):
        self.second = second
        self.handler = handler
        self.busy = False
        self._done = None  # the day that was dealt with last

    def is_due(self, now, date):
        if date is None:
            return False
        # The last day on which the time has come: yesterday's counts where a slice of the loop
        # (making a connection) went past midnight.
        late = (date - self.second) % _DAY_S
        day = (date - self.second) // _DAY_S
        if self._done is None:
            self._done = day if late else day - 1
        # A clock that is put back does not do a day twice, unless by more than a day.
        if day == self._done or day == self._done - 1:
            return False
        self._done = day
        return late <= _LATE_S or date % _DAY_S >= self.second

    def wait(self, now):
        return _LOOK_MS


class Timers:
    def __init__(self):
        self._timers = []
        self._tasks = Tasks()
        self._warned = False

    def every(self, period_ms, handler):
        self._timers.append(_Every(period_ms, handler))

    def after(self, delay_ms, handler):
        self._timers.append(_After(delay_ms, handler))

    def at(self, moment, handler):
        """`moment` as moment() makes it."""
        self._timers.append((_Daily if moment < _DAY_S else _OnDate)(moment, handler))

    def busy(self):
        """Whether a handler is under way."""
        return len(self._tasks) > 0

    def run(self, date):
        """Call what is due; `date` is seconds since 2000 or None. Returns ms until the next is."""
        wait = self._tasks.step()
        for timer in list(self._timers):
            now = log.uptime_ms()
            if date is None and not hasattr(timer, "due") and not self._warned:
                self._warned = True
                log.say("clock", "a time of day is waited for: it counts once the clock is known")
            if timer.is_due(now, date) and not timer.busy:
                if isinstance(timer, (_After, _OnDate)):
                    self._timers.remove(timer)
                self._call(timer)
                # What it yields until is looked at in the next slice.
                wait = 0 if timer.busy else wait
            wait = min(wait, max(0, timer.wait(now)))
        return wait

    def _call(self, timer):
        timer.busy = True

        def done(outcome, value):
            timer.busy = False

        self._tasks.call(timer.handler, (), done)


def milliseconds(seconds, who):
    # Whole seconds stay whole: a single-precision float has no room for many days.
    if not 0.001 <= seconds <= 1e9:
        raise ValueError("%s wants a number of seconds from 0.001 to 1e9" % who)
    return int(seconds * 1000)


def moment(when):
    """The second of the day of a text such as "06:30", or Unix seconds as they are."""
    if isinstance(when, str):
        parts = when.split(":")
        if 2 <= len(parts) <= 3 and all([len(p) == 2 and p.isdigit() for p in parts]):
            h, m, s = [int(p) for p in parts + ["00"]][:3]
            if h < 24 and m < 60 and s < 60:
                return h * 3600 + m * 60 + s
    elif isinstance(when, int) and not isinstance(when, bool) and when >= agreed.UNIX_2000:
        return when
    raise ValueError('at() wants a time of day in UTC such as "06:30", or Unix seconds (int)')
