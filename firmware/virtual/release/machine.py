# SPDX-License-Identifier: MIT
"""Stand-in for the ESP32's `machine` module on an unmodified MicroPython for unix.

Resets, sleep and the watchdog end the process with the code that the runner
understands. RTC.datetime() reads the host's clock and sets nothing (board.py says
why); RTC.memory() outlives a reset through the state file.
"""

import _thread
import os
import sys
import time

PWRON_RESET, HARD_RESET, WDT_RESET, DEEPSLEEP_RESET, SOFT_RESET = 1, 2, 3, 4, 5

# Set by board.py, read by it at the end.
cause = PWRON_RESET
next_cause = HARD_RESET
mac = b"\x24\x0a\xc4\x00\x00\x01"
memory = b""
sleep_ms = None


def _end(code, cause):
    global next_cause
    next_cause = cause
    sys.exit(code)


def reset():
    _end(70, HARD_RESET)


def soft_reset():
    _end(70, SOFT_RESET)


def deepsleep(time_ms=-1):
    global sleep_ms
    sleep_ms = time_ms
    _end(72, DEEPSLEEP_RESET)


def reset_cause():
    return cause


def wake_reason():
    return 4 if cause == DEEPSLEEP_RESET else 0


def unique_id():
    return mac


def freq():
    return 160000000


class RTC:
    def datetime(self, value=None):
        if value is None:
            t = time.gmtime()
            us = time.time_ns() // 1000 % 1000000
            return (t[0], t[1], t[2], t[6], t[3], t[4], t[5], us)

    def memory(self, value=None):
        global memory
        if value is None:
            return memory
        if len(value) > 2048:
            raise ValueError("buffer too long")
        memory = bytes(value)


class WDT:
    """Ends the process when it is not fed: by an interrupt that board.py turns into
    exit code 71, and where nothing reacts to that, by SIGKILL a second later."""

    bitten = False

    def __init__(self, id=0, timeout=5000):
        if timeout < 1:
            raise ValueError("WDT timeout too short")
        self._timeout = timeout
        self.feed()
        _thread.start_new_thread(self._watch, ())

    def feed(self):
        self._fed = time.ticks_ms()

    def _watch(self):
        while True:
            left = self._timeout - time.ticks_diff(time.ticks_ms(), self._fed)
            if left <= 0:
                break
            time.sleep_ms(min(left, 100))
        WDT.bitten = True
        # In the background: system() itself keeps interrupts away while it waits.
        os.system("(sleep 0.1; kill -INT $PPID; sleep 1; kill -KILL $PPID 2>/dev/null) &")
