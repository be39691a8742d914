# The block device that holds the file system: the partition named vfs.
#
# Owns the name `bdev` (None where there is no such partition). Never writes.
from esp32 import Partition

_found = Partition.find(Partition.TYPE_DATA, label="vfs")
bdev = _found[0] if _found else None
