"""Watchdog: the board resets where the loop has come to no end of a slice for too long.

Fed by progress only: at the end of each slice of the loop and of each stage of the walk, never by
a timer. Once armed it stays so until the reset, as on the chip. Owns nothing in flash.
"""

from . import log

_wdt = None
_refused = False


def arm(seconds):
    """Start it, once. 0: not at all."""
    global _wdt, _refused
    if not seconds or _wdt is not None or _refused:
        return
    try:
        from machine import WDT

        _wdt = WDT(timeout=seconds * 1000)
    except (ImportError, ValueError, OSError) as e:
        _refused = True
        log.say("boot", "this board has no watchdog (%s): a hang is not ended" % e)


def feed():
    if _wdt is not None:
        _wdt.feed()
