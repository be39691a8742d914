"""The builds under test, and the GC heap that each must do with.

outpost64, outpost32   our firmware on the virtual board
stock32                the virtual board on MicroPython's own TLS configuration, without tlspolicy
stock-release          an unmodified MicroPython release, its board stand-ins in Python
"""

from pathlib import Path

from outpost_tools.board import LEGS

REPO = Path(__file__).resolve().parent.parent
BIN = REPO / "build" / "bin"

OURS = ("outpost64", "outpost32")
VIRTUAL = (*OURS, "stock32")  # the virtual board's stand-ins, in C

__all__ = ["BIN", "LEGS", "OURS", "REPO", "VIRTUAL"]
