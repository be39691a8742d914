"""Last words: the console's last lines outlive a crash, and are reported once connected.

They lie in RTC memory (rtcmem.py), at most 480 bytes, brought up to date with each line but those
of routine messages, so that what a hang was preceded by is there when the watchdog bites. Reported
as the property outpost.stopped after a start that the watchdog caused, or that follows a program
which ended with an exception. Loaded at the start and at the end of a life alone. Owns no flash;
what is lost with the power is lost.
"""

from . import log, rtcmem

_CRASHED = b"c"  # the first byte of the part


def begin(report):
    """Report what an earlier life left, where it ended badly; from now on keep this one's lines.

    report  Device.report
    """
    if log.keeper:
        return
    try:
        import machine

        kept = rtcmem.get(rtcmem.LAST_WORDS)
        bitten = machine.reset_cause() == machine.WDT_RESET
    except (ImportError, AttributeError, MemoryError, OSError):
        return  # a board without RTC memory
    if kept and (bitten or kept[:1] == _CRASHED):
        why = "watchdog" if kept[:1] != _CRASHED else "exception"
        lines = str(kept[1:], "utf-8").split("\n")
        log.say("boot", "the last start ended badly (%s): its last lines are reported" % why)
        report({"outpost": {"stopped": {"why": why, "lines": lines}}})
    log.keeper = rtcmem.keep_lines
    rtcmem.keep_lines(log.lines())


def crashed(e):
    """The program ends with this exception. Its type alone is kept: its text may hold anything."""
    if log.keeper is None:
        return
    log.keeper = None
    log.say("crash", "the program ended with %s" % type(e).__name__)
    rtcmem.keep_lines(log.lines(), _CRASHED)
