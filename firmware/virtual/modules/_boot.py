# First code on the board: puts the flash's file system at '/'.
#
# Owns the mount. An empty partition is formatted, as stock firmware does; one that cannot be
# read is left as it is (SystemExit here ends the board with exit code 75). Never runs again.
import gc

import vfs
from flashbdev import bdev

if bdev:
    try:
        vfs.mount(bdev, "/")
    except OSError:
        import inisetup

        inisetup.setup()
else:
    print("The partition table has no partition named vfs: there is no file system.")

gc.collect()
