# First code on the board: puts the flash's file system at '/'.
#
# Owns the mount. An empty partition is formatted, as stock firmware does; one that cannot be
# read is left as it is: our firmware then goes on with a file system in RAM (rescuefs.py),
# so that it can be reached and mended from afar. Where that is not possible either, SystemExit
# ends the board (exit code 75 on the host; on a real one the prompt follows), or it starts again,
# where it is in production mode. Never runs again.
import gc
import sys

import vfs
from flashbdev import bdev

try:
    import rescuefs
except ImportError:
    rescuefs = None  # a stock board


def _rescued():
    return rescuefs is not None and rescuefs.mount()


def _mounted():
    try:
        vfs.mount(bdev, "/")
        return True
    except OSError:
        return False


def _set_up():
    import inisetup

    return inisetup.setup()


def _stuck():
    # Nothing to run, and in production mode no prompt either.
    if rescuefs is None or not rescuefs.closed():
        raise SystemExit
    import time

    import machine

    print("This board is in production mode: it has no prompt, and starts again.")
    time.sleep(3)
    machine.reset()


if bdev is None:
    print("The partition table has no partition named vfs: there is no file system.")
    if not _rescued() and rescuefs is not None and rescuefs.closed():
        _stuck()
elif rescuefs is not None and rescuefs.wanted() and _rescued():
    pass  # it was being made anew when the power went
elif not _mounted() and not _rescued() and not _set_up():
    _stuck()

sys.modules.pop("rescuefs", None)
for _name in ("rescuefs", "_rescued", "_mounted", "_set_up", "_stuck"):
    del globals()[_name]
gc.collect()
