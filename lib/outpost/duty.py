"""Duty cycle: wake, connect, empty the outbox, take commands, sleep deeply, begin again.

Deep sleep ends the program: at each wake boot.py and main.py run from their start, with the clock
and the TLS session of before (RTC memory). Whatever was not sent stays in the outbox. A device that
cannot connect sleeps all the same, said on the console; its battery outlives the hub's outage.
Owns no flash.
"""

import os
import time

from . import log

_LEAST_S = 1


def run(device, every_s, linger_s, longest_s):
    """One turn, which ends in deep sleep. ValueError where these are no times to live by."""
    _check(every_s, linger_s, longest_s)
    device.begin()
    try:
        why = _stay_awake(device, linger_s, longest_s)
    finally:
        device.close()
    _sleep(every_s, why)


def _check(every_s, linger_s, longest_s):
    for name, value, low in (
        ("every", every_s, 1),
        ("linger", linger_s, 0),
        ("longest", longest_s, 5),
    ):
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not low <= value <= 1e6
        ):
            raise ValueError(
                "run_and_sleep(): %s must be a number of seconds from %d to 1e6" % (name, low)
            )


def _stay_awake(device, linger_s, longest_s):
    """step() until all that waits is sent and nothing has come for linger_s, or longest_s is over.

    Returns a sentence on why it ended. Being online, the device takes what the hub held for it.
    """
    end = log.uptime_ms() + int(longest_s * 1000)
    quiet = None
    while True:
        wait_ms = device.step()
        now = log.uptime_ms()
        if device.idle():
            quiet = now if quiet is None else quiet
            if now - quiet >= linger_s * 1000:
                return "all sent"
        else:
            quiet = None
        if now >= end:
            if device.online:
                return "%d messages wait still" % device.waiting()
            return "not connected, %d messages wait" % device.waiting()
        device.pause(min(wait_ms, end - now, 200))


def _sleep(every_s, why):
    """Sleep deeply until `every_s` after the start, or a little longer: does not return."""
    import machine

    # Up to a tenth more: devices that woke together do not stay together.
    period_ms = int(every_s * 1000) + int(every_s * 100) * os.urandom(1)[0] // 255
    left_ms = max(_LEAST_S * 1000, period_ms - log.uptime_ms())
    log.say("sleep", "%s: deep sleep for %.1f s" % (why, left_ms / 1000))
    time.sleep_ms(20)  # for the console
    machine.deepsleep(left_ms)
