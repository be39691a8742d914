"""Times of day and dates against a clock that is blocked, leaps, goes back, and was never set."""

import pytest

PRELUDE = """
from outpost import log, timers
now = 0
log.uptime_ms = lambda: now
DAY = 86400
D = 9000 * DAY
called = []

def daily(text):
    t = timers.Timers()
    t.at(timers.moment(text), lambda: called.append(date))
    return t

def at(t, day, clock):
    "What the timers do at a time of a day (relative to D): how often they called."
    global date
    h, m, s = [int(x) for x in clock.split(":")]
    date = D + day * DAY + h * 3600 + m * 60 + s
    before = len(called)
    t.run(date)
    t.run(date)
    return len(called) - before
"""


@pytest.fixture
def run(micropython):
    return lambda script: micropython(PRELUDE + script)


def test_time_of_day_right_before_midnight_is_done_though_the_loop_was_busy_over_it(run):
    run("""
t = daily("23:59:50")
assert at(t, 0, "23:59:30") == 0
assert at(t, 1, "00:00:20") == 1        # a connection was being made
assert at(t, 1, "12:00:00") == 0
assert at(t, 1, "23:59:55") == 1
assert at(t, 2, "00:00:10") == 0
""")


def test_clock_that_leaps_does_a_day_once_and_makes_up_for_none(run):
    run("""
t = daily("06:30")
assert at(t, 0, "05:00:00") == 0
assert at(t, 0, "23:00:00") == 1        # leapt over it, the same day: late rather than never
assert at(t, 0, "05:00:00") == 0        # put back: not twice
assert at(t, 0, "06:30:00") == 0
assert at(t, 9, "05:00:00") == 0        # days later, long past: left out
assert at(t, 9, "06:30:00") == 1
assert at(t, 9, "06:30:01") == 0
assert at(t, 8, "23:00:00") == 0        # put back over midnight
assert at(t, 9, "06:29:59") == 0
assert at(t, 9, "07:00:00") == 0
assert at(t, 10, "06:30:00") == 1
""")


def test_midnight_is_done_once_a_night(run):
    run("""
t = daily("00:00")
assert at(t, 0, "12:00:00") == 0
for day in range(1, 5):
    assert at(t, day - 1, "23:59:59") == 0
    assert at(t, day, "00:00:01") == 1
    assert at(t, day - 1, "23:59:58") == 0
    assert at(t, day, "00:00:00") == 0
""")


def test_clock_that_gets_lost_and_comes_back_does_nothing_twice(run):
    run("""
t = daily("06:30")
assert at(t, 0, "06:00:00") == 0
t.run(None)
assert at(t, 0, "06:31:00") == 1
t.run(None)
assert at(t, 0, "06:32:00") == 0
""")


def test_slow_handler_of_a_period_is_never_under_way_twice(run):
    run("""
t = timers.Timers()
begun = []
def slow():
    begun.append(now)
    for _ in range(5):
        yield 100
t.every(100, slow)
for _ in range(2000):
    t.run(None)
    now += 1
assert 3 <= len(begun) <= 4 and len(t._tasks) <= 1, begun
""")
