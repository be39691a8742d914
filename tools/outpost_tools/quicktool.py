"""`python -m outpost_tools.quicktool esptool|mpremote ...`: the real tool, with less waiting.

Over RFC 2217 pyserial asks every 50 ms whether a setting has been taken, and esptool changes a
setting (the time-out) twice with each command: 0.2 s a command, of which it sends a hundred before
the first byte is written. Here pyserial asks every 2 ms; the tool itself is not touched. It owns
nothing, and a port that is no rfc2217:// one is served as ever. It is a module of its own, beside
the virtual board's: a flash starts it six times, and what it loads is what that costs.
"""

import sys
import time
from importlib.metadata import entry_points
from types import SimpleNamespace

from serial import rfc2217

ASK_EVERY_S = 0.002
TOOLS = ("esptool", "mpremote")


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TOOLS:
        sys.exit(f"usage: python -m outpost_tools.quicktool {'|'.join(TOOLS)} ...")
    (script,) = entry_points(group="console_scripts", name=sys.argv[1])
    rfc2217.time = SimpleNamespace(sleep=lambda s: time.sleep(min(s, ASK_EVERY_S)))
    sys.argv = sys.argv[1:]
    sys.exit(script.load()())


if __name__ == "__main__":
    main()
