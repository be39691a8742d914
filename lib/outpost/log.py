"""The console: one line per event, `SECONDS STAGE sentence key=value ...`.

The last lines stay in RAM (`lines()`). Never prints a secret: callers hand over
sentences from errors.py and public facts only.
"""

import time

_KEEP = 12
_WIDTH = 240
_lines = []
_last = None
_uptime_ms = 0
keeper = None  # called with the last lines whenever there is one more (lastwords.py)
shown = 2  # 0: nothing is printed, 1: errors, 2: all


def uptime_ms():
    """Milliseconds since this module was loaded; does not wrap as ticks_ms does.

    Must be called at least once in a half turn of ticks_ms (6.2 days).
    """
    global _last, _uptime_ms
    now = time.ticks_ms()
    if _last is None:
        _last = now
    _uptime_ms += time.ticks_diff(now, _last)
    _last = now
    return _uptime_ms


def _control(c):
    """Whether it moves a terminal's cursor: C0, DEL, C1, and Unicode's own line ends."""
    c = ord(c)
    return c < 32 or 127 <= c < 160 or c == 0x2028 or c == 0x2029


def say(stage, sentence):
    """Print one line and keep it; raises nothing. A control character in it becomes
    a space, so that nothing received can forge a second line."""
    try:
        _say(stage, sentence)
    except MemoryError:
        print("   -.--- log      no memory for a line: it was left out")


def _say(stage, sentence):
    if len(sentence) > _WIDTH and stage != "tls":
        sentence = sentence[:_WIDTH] + "..."
    for c in sentence:
        if _control(c):
            sentence = "".join(" " if _control(c) else c for c in sentence)
            break
    # In whole numbers: a single-precision float has no milliseconds left after 5 hours.
    ms = uptime_ms()
    line = "%4d.%03d %-8s %s" % (ms // 1000, ms % 1000, stage, sentence)
    if len(_lines) >= _KEEP:
        del _lines[0]
    _lines.append(line)
    if shown == 2 or shown and stage in ("error", "crash"):
        print(line)
    # Not for the routine of messages: it says nothing of what went wrong.
    if keeper and stage != "send":
        keeper(_lines)


def error(err):
    """Say an OutpostError at its own stage, with what becomes of it."""
    say("error", "%s: %s" % (err.stage, err))


def lines():
    """The last lines, oldest first (at most 12)."""
    return list(_lines)
