"""A flash chip over an image file, as the chip's own loader sees it: NOR, no partitions.

It owns the file while it is open, under the same lock as the running board: never both. A program
only clears bits, an erase sets one sector; every page and every sector is one operation, and the
power can go at the N-th. It never writes outside the file.
"""

import fcntl
import mmap
import random
from collections.abc import Callable
from pathlib import Path

from outpost_tools.errors import OutpostError

SECTOR_BYTES = 4096
PAGE_BYTES = 256
SIZES_MIB = (1, 2, 4, 8, 16)
BLANK = b"\xff"
HOWS = ("torn", "clean", "odd")


class PowerCut(Exception):
    """The power went at the operation that was planned for it."""


class NorFlash:
    def __init__(self, path: Path, on_operation: Callable[[], str | None] | None = None) -> None:
        """on_operation: asked before each one; where it names a kind of cut, the power goes."""
        self._on_operation = on_operation or (lambda: None)
        self._file = open_image(path)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise OutpostError(f"The flash image {path} is in use by another board.") from None
        self._cells = mmap.mmap(self._file.fileno(), 0)
        self.size = len(self._cells)

    def close(self) -> None:
        self._cells.close()
        self._file.close()

    def read(self, offset: int, length: int) -> bytes:
        """Addresses wrap at the end of the chip, as they do on the wires."""
        found = b""
        while len(found) < length:
            at = (offset + len(found)) % self.size
            found += self._cells[at : at + length - len(found)]
        return found

    def program(self, offset: int, data: bytes) -> None:
        done = 0
        while done < len(data):
            at = (offset + done) % self.size
            piece = data[done : done + PAGE_BYTES - at % PAGE_BYTES]
            self._one(at, self._both(at, piece))
            done += len(piece)

    def erase(self, offset: int) -> None:
        at = offset % self.size
        at -= at % SECTOR_BYTES
        self._one(at, BLANK * SECTOR_BYTES)

    def erase_range(self, offset: int, length: int) -> None:
        for at in range(offset - offset % SECTOR_BYTES, offset + length, SECTOR_BYTES):
            self.erase(at)

    def _both(self, at: int, data: bytes) -> bytes:
        before = self._cells[at : at + len(data)]
        both = int.from_bytes(before) & int.from_bytes(data)
        return both.to_bytes(len(data))

    def _one(self, at: int, after: bytes) -> None:
        """One operation: all of it, or what the power left of it."""
        how = self._on_operation()
        if how is None:
            self._cells[at : at + len(after)] = after
            return
        if how != "clean":
            before = self._cells[at : at + len(after)]
            self._cells[at : at + len(after)] = _torn(before, after, how, at)
        raise PowerCut


def _torn(before: bytes, after: bytes, how: str, seed: int) -> bytes:
    """Between the two, bit by bit: from the front (torn), or anywhere (odd)."""
    noise = random.Random(seed)
    done = len(after) // 2 if how == "torn" else 0
    left = range(done, done + 1) if how == "torn" else range(len(after))
    mixed = bytearray(after[:done] + before[done:])
    for i in left:
        chosen = noise.randrange(256)
        mixed[i] = before[i] & ~chosen | after[i] & chosen
    return bytes(mixed)


def open_image(path: Path):  # noqa: ANN201 - a binary file, open for reading and writing
    """The image file, open; or the sentence that says why it is none."""
    try:
        file = path.open("r+b")
    except OSError as why:
        raise OutpostError(f"Cannot open the flash image {path} ({why.strerror}).") from None
    size = file.seek(0, 2)
    if size not in [mib << 20 for mib in SIZES_MIB]:
        file.close()
        known = ", ".join(map(str, SIZES_MIB))
        raise OutpostError(
            f"{path} has {size} bytes: a flash chip has {known} MiB. Make a blank one with --blank."
        )
    return file


def blank(path: Path, size_mib: int) -> None:
    """A chip as it comes from the factory. A file that is there is never touched."""
    if size_mib not in SIZES_MIB:
        raise OutpostError(f"A flash chip has {', '.join(map(str, SIZES_MIB))} MiB.")
    try:
        with path.open("xb") as file:
            file.write(BLANK * (size_mib << 20))
    except FileExistsError:
        raise OutpostError(f"{path} is there already: a blank flash needs a new name.") from None
    except OSError as why:
        raise OutpostError(f"Cannot write {path} ({why.strerror}).") from None
