# A file system for an empty partition.
#
# Owns the decision whether it is empty: every byte of it is 0xff, but for the first write of a
# format that the power cut short. Stock looks at the first block alone, which an erase that was
# cut off leaves blank over a whole file system.
# Never formats over anything else, because what cannot be read may still be saved.
import vfs
from flashbdev import bdev

_BOOT = """\
# The board runs this file at every start, also when it wakes from deep sleep.
# main.py is run after it: write what the board shall do in there.
# Without a main.py the board waits at its prompt.
"""


# A format begins with one page in one of the first two blocks.
_PAGE = 256


def blank():
    block = bytearray(bdev.ioctl(5, 0))
    erased = b"\xff" * len(block)
    for number in range(bdev.ioctl(4, 0)):  # 4: how many blocks
        bdev.readblocks(number, block)
        if number < 2:
            block[:_PAGE] = erased[:_PAGE]
        if block != erased:
            return False
    return True


def setup():
    # The new file system, or None where there is one that cannot be read.
    if not blank():
        print("The file system in partition vfs is corrupt: write the flash image again.")
        return None
    print("Performing initial setup")
    vfs.VfsLfs2.mkfs(bdev)
    fs = vfs.VfsLfs2(bdev)
    vfs.mount(fs, "/")
    with open("boot.py", "w") as file:
        file.write(_BOOT)
    return fs
