"""Getting a flash image onto a board: what may be written, what has changed, and in which order.

The board is asked first (chip, flash, whose identity it holds) and nothing is written before all of
it is in order. What a board has of its own, the keys it made and the messages that wait, stays
where the image is for the same device. A write that was cut off anywhere is mended by the next one:
every piece is compared before it is written. It owns no port (loader.py) and prints nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from outpost_tools import nvsread
from outpost_tools.errors import OutpostError
from outpost_tools.explain import Explanation, explain
from outpost_tools.loader import Loader, Piece
from outpost_tools.partitions import (
    SECTOR_BYTES,
    TABLE_DATA_BYTES,
    TABLE_OFFSET,
    TYPES,
    Partition,
    PartitionTable,
)

PIECE_BYTES = 16 * 1024  # compared, and written, at a time
PIECES = 256  # of a flash, at most: esptool holds them all open at once


@dataclass(frozen=True)
class Region:
    """A stretch of the image that belongs together; `own` where the board's goes before it."""

    name: str
    offset: int
    content: bytes = field(repr=False)
    own: bool = False
    first_last: bool = False  # sector by sector, the first one when all others are there

    def pieces(self, flash_bytes: int) -> Iterator[Piece]:
        size = SECTOR_BYTES if self.first_last else max(PIECE_BYTES, flash_bytes // PIECES)
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


@dataclass
class Found:
    """What a board was found to hold, before anything is written."""

    nvs: bytes | None = field(default=None, repr=False)  # where the image has its own; None: unread
    keep: bool = False  # it is the image's device already: its NVS and its outbox stay


def check_board(image: Image, board: Loader) -> bytes:
    """Whether the image is for a board of this kind; asks, and writes nothing.

    Gives what the board has at the place of the partition table, and the page behind it.
    """
    start = board.look(TABLE_OFFSET, SECTOR_BYTES + nvsread.PAGE_BYTES)
    if image.told.chip is not None and image.told.chip != board.chip:
        raise OutpostError(
            f"The board is an {board.chip}, and the image is for an {image.told.chip}: build one "
            "with the firmware for that chip. Nothing was written."
        )
    board.check_plain()
    size = board.flash_size
    if size is None:
        raise OutpostError(
            "The board's flash does not say how large it is: check the cable. Nothing was written."
        )
    if size < len(image.flash):
        raise OutpostError(
            f"The board has {size >> 20} MiB of flash, and the image {len(image.flash) >> 20}: "
            f"build it with --size {max(4, size >> 20)}. Nothing was written."
        )
    return start


def whose(image: Image, board: Loader, start: bytes) -> Found:
    """What the board's NVS holds, and whether it stays.

    OutpostError where it is another device, or may be one: that is lost only by --erase.
    """
    here = image.nvs
    there = _nvs_of(start) or here
    same_place = (there.offset, there.size) == (here.offset, here.size)
    content = _nvs_there(image, board, there, start)
    if _blank(content):
        return Found(content if same_place else None)
    if same_place and content == image.part(here):
        return Found(content, keep=True)
    found = nvsread.read(content)
    _judge(image, found, content, same_place)
    keep = found.device_id is not None and not found.damaged
    return Found(content if same_place else None, keep)


def _nvs_there(image: Image, board: Loader, there: Partition, start: bytes) -> bytes:
    """The board's NVS. Reading is slow, so what can be guessed is compared, not read."""
    page = nvsread.PAGE_BYTES
    inside = there.offset - TABLE_OFFSET
    first = start[inside : inside + page] if inside <= page else board.look(there.offset, page)
    rest = there.size - page
    guess = b"\xff" * rest
    if not _blank(first) and there.size == image.nvs.size:
        guess = image.part(image.nvs)[page:]
    if not board.differing([(there.offset + page, guess)]):
        return first + guess
    return first + board.look(there.offset + page, rest)


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


def _nvs_of(start: bytes) -> Partition | None:
    """Where the board's own table has its NVS; None where it has no table."""
    try:
        return PartitionTable.from_binary(start[:TABLE_DATA_BYTES]).find("data", "nvs")
    except OutpostError:
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
    found: Found,
    erase: bool,
    progress: Callable[[str, int, int], None] = lambda name, done, of: None,
) -> list[Outcome]:
    """Bring the board to what the image holds; what is the same already is not touched."""
    regions = [r for r in image.regions() if erase or not (r.own and found.keep)]
    outcomes = {r.name: Outcome(r.name) for r in regions}
    kept = [Outcome(r.name, kept=True) for r in image.regions() if r.name not in outcomes]
    pieces = [(r, at, content) for r in regions for at, content in r.pieces(len(image.flash))]
    if erase:
        progress("erasing", 0, 1)
        board.erase(0, len(image.flash))
        due = {at for _, at, content in pieces if not _blank(content)}
    else:
        due = _due(image, board, found, pieces, progress)
    for region, at, content in pieces:
        outcome = outcomes[region.name]
        if at not in due:
            outcome.same += len(content)
        elif _blank(content):
            outcome.erased += len(content)
        else:
            outcome.written += len(content)
    wanted = [(at, content) for _, at, content in pieces if at in due]
    board.write(wanted, lambda done: progress("writing", done, len(wanted)))
    return [*outcomes.values(), *kept]


def _due(
    image: Image,
    board: Loader,
    found: Found,
    pieces: list[tuple[Region, int, bytes]],
    progress: Callable[[str, int, int], None],
) -> set[int]:
    """Where the board holds something else than the image.

    Free blocks of the file system count: an old half of a pair of blocks there would go before the
    new one.
    """
    due = set()
    asked = []
    for region, at, content in pieces:
        if region.first_last and found.nvs is not None:  # it has been read
            inside = at - region.offset
            if found.nvs[inside : inside + len(content)] != content:
                due.add(at)
        else:
            asked.append((at, content))
    others = board.differing(asked, lambda done: progress("comparing", done, len(asked)))
    return due | {at for at, _ in others}


def verify(
    image: Image,
    board: Loader,
    done: list[Outcome],
    progress: Callable[[str, int, int], None] = lambda name, done, of: None,
) -> None:
    """All regions once more, where anything was written: what was the same before, too."""
    kept = {outcome.name for outcome in done if outcome.kept}
    if not any(outcome.written or outcome.erased for outcome in done):
        return
    regions = [region for region in image.regions() if region.name not in kept]
    wanted = [(region.offset, region.content) for region in regions]
    wrong = board.differing(wanted, lambda done: progress("verifying", done, len(wanted)))
    if wrong:
        name = next(region.name for region in regions if region.offset == wrong[0][0])
        raise OutpostError(
            f"The board's {name} is not what was written: run the same command again; if that "
            "does not help, the flash is worn out."
        )
