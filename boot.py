# The earliest code on the device. It says that the board is up and where the
# software comes from: /lib on the flash file system, where there is an `outpost`
# in it, goes before the one frozen into the firmware. Nothing here can fail, so
# that main.py is always reached.
import os
import sys

try:
    os.stat("/lib/outpost")
    # A list of paths is searched in order; '' (the current directory) stays first.
    sys.path.remove("/lib")
    sys.path.insert(1, "/lib")
except (OSError, ValueError):
    pass

import machine

print(
    "   0.000 boot     Outpost boots reset_cause=%d library=%s"
    % (machine.reset_cause(), "flash" if sys.path[1:2] == ["/lib"] else "frozen")
)
