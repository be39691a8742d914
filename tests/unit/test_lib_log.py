"""The console's lines: nothing received can forge one, they are bounded, and time goes on."""

import re

import pytest


@pytest.mark.parametrize("code", [0, 8, 10, 13, 27, 127, 0x85, 0x9B, 0x2028, 0x2029])
def test_control_character_cannot_forge_a_line(micropython, code):
    printed = micropython(
        f"from outpost import log\nlog.say('error', 'a' + chr({code}) + '   1.000 hub connected')\n"
    )
    assert re.fullmatch(r" +\d+\.\d{3} error    a    1\.000 hub connected\n", printed)
    assert len(printed.splitlines()) == 1


def test_long_sentence_is_cut_and_the_ring_is_bounded(micropython):
    micropython("""
from outpost import log
for n in range(40):
    log.say("error", "%d " % n + "x" * 1000)
kept = log.lines()
assert len(kept) == 12
assert " 28 x" in kept[0] and " 39 x" in kept[-1]
assert max(len(line) for line in kept) < 270
kept.append("mine")
assert len(log.lines()) == 12
""")


def test_uptime_goes_on_when_the_ticks_wrap(micropython):
    micropython("""
import time
from outpost import log
turn_ms = time.ticks_add(0, -1) + 1     # 2**30 on a board
class Ticks:
    now = turn_ms - 500
    ticks_diff = time.ticks_diff
    @classmethod
    def ticks_ms(cls):
        return cls.now % turn_ms
log.time = Ticks
start = log.uptime_ms()
last = start
for turn in range(20):
    Ticks.now += turn_ms // 4
    now = log.uptime_ms()
    assert now - last == turn_ms // 4, (turn, now, last)
    last = now
assert last - start == turn_ms * 5
""")


def test_uptime_is_printed_to_the_millisecond_after_weeks(micropython):
    printed = micropython("""
from outpost import log
log.uptime_ms = lambda: 2419200123
log.say("boot", "hello")
log.uptime_ms = lambda: 7
log.say("boot", "hello")
""")
    assert printed == "2419200.123 boot     hello\n   0.007 boot     hello\n"


def test_line_that_memory_is_too_short_for_says_so_and_raises_nothing(micropython):
    printed = micropython("""
from outpost import log
def no_memory():
    raise MemoryError
log.uptime_ms = no_memory
log.say("error", "x")
""")
    assert "no memory for a line" in printed and len(printed.splitlines()) == 1
