# First code on the board: puts the flash's file system at '/'.
#
# Owns the mount. An empty partition is formatted, as stock firmware does; one that cannot be
# read is left as it is: our firmware then goes on with a file system in RAM (rescuefs.py),
# so that it can be reached and mended from afar. Where that is not possible either, SystemExit
# ends the board (exit code 75 on the host; on a real one the prompt follows). Never runs again.
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


if bdev is None:
    print("The partition table has no partition named vfs: there is no file system.")
    _rescued()
elif rescuefs is None or not (rescuefs.wanted() and _rescued()):
    try:
        vfs.mount(bdev, "/")
    except OSError:
        import inisetup

        if not inisetup.setup() and not _rescued():
            raise SystemExit

sys.modules.pop("rescuefs", None)
gc.collect()
