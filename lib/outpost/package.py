"""Package: what is inside the body of a signed application package, read piece by piece.

    magic "OPAP" | format u8 | mpy version u8 | mpy sub-version and arch u8 | files u8
    | label u8 len + UTF-8 | for each file: path u8 len + text | size u32 | sha256 32 | its bytes

Loaded while one is installed. Owns nothing in flash and writes nothing; holds one entry at a time.
"""

import sys

from . import slots
from .errors import UpdateError

_MPY_HEAD = 4
_OURS = getattr(sys.implementation, "_mpy", 0)  # version, sub-version and arch, as it says
_SMALL_INT_BITS = 31  # of an ESP32: constants of more bits cannot be loaded there


class Reader:
    """The package in an open file, from byte `at` on, `size` bytes of it.

    label, files (how many), needs (bytes that its files take in flash)
    """

    def __init__(self, f, at, size):
        self._f = f
        self._end = at + size
        f.seek(at)
        self._at = at
        head = self._take(8)
        if head[:4] != slots.APP_MAGIC or head[4] != slots.APP_FORMAT:
            raise UpdateError(
                "this is no application package of a format that this device knows: "
                "build it with 'outpost app build'"
            )
        self._mpy, self._arch, self.files = head[5], head[6], head[7]
        _loadable(self._mpy, self._arch, "the package")
        if not 1 <= self.files <= slots.APP_FILES_MAX:
            raise UpdateError("the package has no files, or more than %d" % slots.APP_FILES_MAX)
        self.label = self._text(slots.APP_LABEL_MAX)
        self._first = self._at
        self.needs = 0

    def check(self):
        """Every entry, before any of it is written: UpdateError says what is wrong."""
        before, main = "", False
        for path, size, _ in self.entries():
            _plain(path)
            # In order, so that none can be there twice; and none is a folder of another.
            if path <= before or path.startswith(before + "/") and before:
                raise UpdateError("the package names %s out of order or twice" % path)
            before = path
            main = main or path == "main.py" and size > 0
            self.needs += (size + 4095) // 4096 * 4096 + 4096
            if path.endswith(".mpy"):
                head = self.read(bytearray(_MPY_HEAD))
                if len(head) < _MPY_HEAD or head[0] != 77:
                    raise UpdateError("%s is no .mpy file" % path)
                _loadable(head[1], head[2], path)
                if head[3] > _SMALL_INT_BITS:
                    raise UpdateError("%s is compiled for a machine of more bits" % path)
        if self._at != self._end:
            raise UpdateError("the package goes on after its last file")
        if not main:
            raise UpdateError("the package has no main.py")

    def entries(self):
        """Yield (path, size, sha256) of each file; between two of them read() gives its bytes."""
        self._f.seek(self._first)
        self._at = self._first
        self._left = 0
        for _ in range(self.files):
            self._f.seek(self._at)
            path = self._text(slots.APP_PATH_MAX)
            head = self._take(36)
            size = int.from_bytes(head[:4], "big")
            if size > self._end - self._at:
                raise UpdateError("%s is longer than the package" % path)
            self._left = size
            after = self._at + size
            yield path, size, head[4:]
            self._at = after

    def read(self, buffer):
        """A memoryview of what is left of this file, as much as the buffer holds."""
        view = memoryview(buffer)[: min(len(buffer), self._left)]
        n = self._f.readinto(view) or 0
        self._left -= n
        return view[:n]

    def _take(self, n):
        if n > self._end - self._at:
            raise UpdateError("the package is cut off")
        data = self._f.read(n)
        if len(data) != n:
            raise UpdateError("the package is cut off")
        self._at += n
        return data

    def _text(self, most):
        n = self._take(1)[0]
        if n > most:
            raise UpdateError("a name in the package has more than %d characters" % most)
        try:
            return str(self._take(n), "utf-8")
        except UnicodeError:
            raise UpdateError("a name in the package is no text")


def _loadable(version, flags, what):
    """UpdateError unless .mpy files of that version and arch can be loaded here."""
    ours, arch = _OURS, flags >> 2
    # Without machine code the sub-version does not matter.
    if version != ours & 0xFF or arch and (arch != ours >> 10 or flags & 3 != ours >> 8 & 3):
        raise UpdateError(
            "%s is compiled for mpy %d.%d arch %d, and this board loads %d.%d arch %d: "
            "build it with 'outpost app build' for this firmware"
            % (what, version, flags & 3, arch, ours & 0xFF, ours >> 8 & 3, ours >> 10)
        )


def _plain(path):
    """UpdateError unless it names a file inside a slot, in the one way that there is for it."""
    parts = path.split("/")
    fine = len(parts) <= slots.APP_DEPTH_MAX
    for part in parts:
        fine = fine and part and part[0] != "." and all([c in slots.APP_NAME_PLAIN for c in part])
    if not fine or path == "boot.py":
        raise UpdateError("the package has a path that it may not have")
    if path.endswith(".py") and path != "main.py":
        raise UpdateError("%s is source: a package has .mpy files, and main.py" % path)
