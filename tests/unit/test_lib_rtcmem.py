"""RTC memory: what was put is there, what is not ours counts as empty, nothing exceeds its size."""

import pytest
from legs import OURS

# Compiled from its source, the library leaves stock32 no 2 KB in one piece.
LEGS_HERE = (*OURS, "stock-release")

PRELUDE = "import gc, machine, os\nfrom outpost import rtcmem\ngc.collect()\nrtc = machine.RTC()\n"


def test_parts_are_kept_apart_and_replaced(micropython):
    micropython(
        PRELUDE
        + """
assert rtcmem.get(1) is None
assert rtcmem.put(1, b"one") and rtcmem.put(2, bytes(1000)) and rtcmem.put(1, b"two")
assert rtcmem.get(1) == b"two" and rtcmem.get(2) == bytes(1000) and rtcmem.get(3) is None
assert rtcmem.put(2, None) and rtcmem.get(2) is None and rtcmem.get(1) == b"two"
assert len(rtc.memory()) == 8 + 3 + 3
"""
    )


def test_what_does_not_fit_changes_nothing(micropython):
    micropython(
        PRELUDE
        + """
assert rtcmem.put(1, b"one") and rtcmem.put(2, bytes(2048 - 8 - 6 - 3))
assert len(rtc.memory()) == 2048
assert rtcmem.put(2, bytes(2048 - 8 - 6 - 2)) is False
assert rtcmem.get(1) == b"one" and len(rtcmem.get(2)) == 2031
"""
    )


@pytest.mark.parametrize("damage", ["flip", "short", "long", "random", "empty", "application"])
def test_memory_that_is_not_ours_or_not_whole_counts_as_empty(micropython, damage):
    micropython(
        PRELUDE
        + f"""
damage = {damage!r}
rtcmem.put(1, b"one")
whole = rtc.memory()
if damage == "flip":
    for at in range(len(whole)):
        for bit in range(8):
            changed = bytearray(whole)
            changed[at] ^= 1 << bit
            rtc.memory(changed)
            assert rtcmem.get(1) is None, at
elif damage == "random":
    for size in list(range(0, 40)) + [2044]:
        rtc.memory(os.urandom(size))
        assert rtcmem.get(1) is None
        rtc.memory(b"ORT1" + os.urandom(size))
        assert rtcmem.get(1) is None
else:
    rtc.memory({{"short": whole[:-1], "long": whole + b"x", "empty": b"",
                "application": b"my own bytes"}}[damage])
    assert rtcmem.get(1) is None
assert rtcmem.put(1, b"again") and rtcmem.get(1) == b"again"
"""
    )
