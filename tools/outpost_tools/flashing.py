"""Getting a flash image onto a board: what may be written, what has changed, and in which order.

The board is asked first (chip, flash, whose identity it holds) and nothing is written before all of
it is in order. What a board has of its own, the keys it made and the messages that wait, stays
where the image is for the same device. A write that was cut off anywhere is mended by the next one:
every piece is compared before it is written. It owns no port (loader.py) and prints nothing.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from outpost_tools import nvsread
from outpost_tools.errors import OutpostError
from outpost_tools.explain import Explanation, explain
from outpost_tools.loader import Loader
from outpost_tools.partitions import (
    SECTOR_BYTES,
    TABLE_DATA_BYTES,
    TABLE_OFFSET,
    TYPES,
    Partition,
    PartitionTable,
)

PIECE_BYTES = 16 * 1024  # compared, and written, at a time


@dataclass(frozen=True)
class Region:
    """A stretch of the image that belongs together; `own` where the board's goes before it."""

    name: str
    offset: int
    content: bytes = field(repr=False)
    own: bool = False
    first_last: bool = False  # sector by sector, the first one when all others are there

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        size = SECTOR_BYTES if self.first_last else PIECE_BYTES
        starts = range(0, len(self.content), size)
        for at in reversed(starts) if self.first_last else starts:
            yield self.offset + at, self.content[at : at + size]


@dataclass
class Image:
    """A flash image file, understood."""

    told: Explanation
    table: PartitionTable
    flash: bytes = field(repr=False)

    @property
    def device_id(self) -> str | None:
        return self.told.device_id

    @property
    def nvs(self) -> Partition:
        found = self.table.find("data", "nvs")
        if found is None:
            raise OutpostError(f"{self.told.source} has no NVS: it is no image of `outpost image`.")
        return found

    def part(self, partition: Partition) -> bytes:
        return self.flash[partition.offset : partition.end]

    def regions(self) -> list[Region]:
        """All that the image has to say, in the order of the flash.

        A bootloader or an application that it does not hold is the board's own.
        """
        found = []
        boot = self.flash[:TABLE_OFFSET]
        if not _blank(boot):
            start = 0 if boot[0] != 0xFF else 0x1000
            found.append(Region("bootloader", start, boot[start:]))
        table = self.flash[TABLE_OFFSET : TABLE_OFFSET + SECTOR_BYTES]
        found.append(Region("partition table", TABLE_OFFSET, table))
        for p in sorted(self.table, key=lambda p: p.offset):
            content = self.part(p)
            own = p.name in ("outbox", "nvs_keys") or p == self.nvs
            if _blank(content) and not own:
                continue
            if p.type == TYPES["app"]:
                used = len(content.rstrip(b"\xff"))
                content = content[: -(-used // SECTOR_BYTES) * SECTOR_BYTES]
            found.append(Region(p.name, p.offset, content, own, p == self.nvs))
        return found


def read_image(path: Path, device_id: str | None = None) -> Image:
    """The image, after a look whether it is for the device that is meant."""
    told = explain(path)
    flash = path.read_bytes()
    table = PartitionTable.from_binary(
        flash[TABLE_OFFSET : TABLE_OFFSET + TABLE_DATA_BYTES], f"the partition table of {path}"
    )
    image = Image(told, table, flash)
    if device_id is not None and device_id != image.device_id and not told.sealed:
        raise OutpostError(
            f"{path} is the image of {image.device_id or 'no device'}, not of {device_id}: build "
            f"it with `outpost image {device_id} -o {path}`."
        )
    return image


def _blank(content: bytes) -> bool:
    return not content.strip(b"\xff")


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def check_board(image: Image, board: Loader) -> None:
    """Whether the image is for a board of this kind; asks, and writes nothing."""
    if image.told.chip is not None and image.told.chip != board.chip:
        raise OutpostError(
            f"The board is an {board.chip}, and the image is for an {image.told.chip}: build one "
            "with the firmware for that chip. Nothing was written."
        )
    board.check_plain()


def check_size(image: Image, board: Loader) -> None:
    size = board.flash_size()
    if size is None:
        raise OutpostError(
            "The board's flash does not say how large it is: check the cable. Nothing was written."
        )
    if size < len(image.flash):
        raise OutpostError(
            f"The board has {size >> 20} MiB of flash, and the image {len(image.flash) >> 20}: "
            f"build it with --size {max(4, size >> 20)}. Nothing was written."
        )


def keeps_its_own(image: Image, board: Loader) -> bool:
    """Whether the board already is the image's device, so that its NVS and its outbox stay.

    OutpostError where it is another device, or may be one: that is lost only by --erase.
    """
    here = image.nvs
    there = _nvs_of(board, image) or here
    if board.md5(there.offset, there.size) == _md5(b"\xff" * there.size):
        return False
    if (there.offset, there.size) == (here.offset, here.size):
        if board.md5(here.offset, here.size) == _md5(image.part(here)):
            return True
    content = b""
    found = nvsread.read(content)
    for at in range(there.offset, there.end, nvsread.PAGE_BYTES):
        content += board.read(at, nvsread.PAGE_BYTES)
        found = nvsread.read(content)
        if found.device_id is not None and found.device_id != image.device_id:
            break
    _judge(image, found, content, there == here)
    return found.device_id is not None and not found.damaged


def _judge(image: Image, found: nvsread.Nvs, content: bytes, same_place: bool) -> None:
    if found.device_id is not None and found.device_id != image.device_id:
        raise OutpostError(
            f"The board is {found.device_id}, and the image is for {image.device_id}: take the "
            f"other board, or make this one {image.device_id} with --erase, which destroys the "
            f"keys of {found.device_id}. Nothing was written."
        )
    # An NVS of ours is written from its end: with its first page whole, all of it is.
    if (found.damaged or found.device_id is None) and _cut_off(image, content):
        return
    if found.device_id is None and (found.unreadable or found.has_outpost):
        raise OutpostError(
            "The board's NVS is encrypted or damaged, so nobody can tell whose keys it holds: "
            "--erase writes it anew. Nothing was written."
        )
    if found.device_id is None:
        return
    if found.damaged:
        raise OutpostError(
            f"The NVS of {found.device_id} on the board is damaged: --erase writes it anew (and "
            "a key that the board made itself is then lost). Nothing was written."
        )
    if not same_place:
        raise OutpostError(
            f"The board is {found.device_id} already, with another layout of its flash: --erase "
            "writes it anew, with the keys of the image. Nothing was written."
        )
    if image.told.production and not found.production:
        raise OutpostError(
            f"The board is {found.device_id} already, in development mode: close it with `outpost "
            f"sign command {found.device_id} software production`, or begin anew with --erase. "
            "Nothing was written."
        )


def _cut_off(image: Image, content: bytes) -> bool:
    """Whether it is what a write of this very NVS leaves behind when it is cut off."""
    wanted = image.part(image.nvs)
    return all(c in (w, 0xFF) for c, w in zip(content, wanted, strict=False)) and not _blank(wanted)


def _nvs_of(board: Loader, image: Image) -> Partition | None:
    """Where the board's own table has its NVS; None where it has no table."""
    table = image.flash[TABLE_OFFSET : TABLE_OFFSET + TABLE_DATA_BYTES]
    if board.md5(TABLE_OFFSET, TABLE_DATA_BYTES) == _md5(table):
        return image.nvs
    try:
        found = PartitionTable.from_binary(board.read(TABLE_OFFSET, TABLE_DATA_BYTES))
        return found.find("data", "nvs")
    except OutpostError as why:
        if type(why) is not OutpostError:
            raise  # the cable, not the table
        return None


@dataclass
class Outcome:
    """What was done with one region."""

    name: str
    written: int = 0  # bytes
    erased: int = 0
    same: int = 0
    kept: bool = False  # the board's own

    @property
    def sentence(self) -> str:
        if self.kept:
            return f"{self.name}: the board's own stays"
        if not self.written and not self.erased:
            return f"{self.name}: as it should be"
        done = f"{self.written >> 10} KiB written"
        if self.erased:
            done += f", {self.erased >> 10} KiB erased"
        return f"{self.name}: {done}, {self.same >> 10} KiB were the same"


def write(
    image: Image,
    board: Loader,
    keep: bool,
    erase: bool,
    progress: Callable[[str, int, int], None] = lambda name, done, of: None,
) -> list[Outcome]:
    """Bring the board to what the image holds; what is the same already is not touched."""
    if erase:
        progress("erasing", 0, 1)
        board.erase(0, len(image.flash))
    done = []
    for region in image.regions():
        outcome = Outcome(region.name, kept=region.own and keep and not erase)
        done.append(outcome)
        if outcome.kept:
            continue
        for at, content in region.pieces():
            progress(region.name, at - region.offset, len(region.content))
            if board.md5(at, len(content)) == _md5(content):
                outcome.same += len(content)
            elif _blank(content):
                # In free blocks of the file system too: an old half of a pair of blocks there
                # would go before the new one.
                board.erase(at, len(content))
                outcome.erased += len(content)
            else:
                board.write([(at, content)])
                outcome.written += len(content)
        progress(region.name, len(region.content), len(region.content))
    return done


def verify(image: Image, board: Loader, done: list[Outcome]) -> None:
    """All regions once more, whole: what was the same before and what was written."""
    kept = {outcome.name for outcome in done if outcome.kept}
    for region in image.regions():
        if region.name in kept:
            continue
        for at, content in region.pieces():
            if not _blank(content) and board.md5(at, len(content)) != _md5(content):
                raise OutpostError(
                    f"The board's {region.name} is not what was written: run the same command "
                    "again; if that does not help, the flash is worn out."
                )
