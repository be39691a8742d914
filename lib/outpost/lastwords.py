"""Last words: the console's last lines outlive a crash, and are reported once connected.

They lie in RTC memory (rtcmem.py), at most 480 bytes, brought up to date with each line but those
of routine messages, so that what a hang was preceded by is there when the watchdog bites. Reported
as the property outpost.stopped after a start that the watchdog caused, or that follows a program
which ended with an exception. Owns no flash; what is lost with the power is lost.
"""

from micropython import const

from . import log, rtcmem

_MAX = const(480)
_RUNS, _CRASHED = b"r", b"c"  # the first byte of the part


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
    log.keeper = _keep
    _keep(log.lines())


def crashed(e):
    """The program ends with this exception. Its type alone is kept: its text may hold anything."""
    if log.keeper is None:
        return
    log.keeper = None
    log.say("crash", "the program ended with %s" % type(e).__name__)
    _keep(log.lines(), _CRASHED)


def _keep(lines, mark=_RUNS):
    try:
        rtcmem.put(rtcmem.LAST_WORDS, mark + _tail(lines))
    except (MemoryError, OSError):
        pass  # the lines are a help, and no more


def _tail(lines):
    """As many of the last lines as have room, whole, in ASCII."""
    first, size = len(lines), 0
    while first and size + len(lines[first - 1]) + 1 <= _MAX:
        first -= 1
        size += len(lines[first]) + 1
    text = "\n".join(lines[first:]) if first < len(lines) else lines[-1][:_MAX] if lines else ""
    out = bytearray(len(text))
    for i, c in enumerate(text):
        out[i] = ord(c) if ord(c) < 127 else 63
    return bytes(out)
