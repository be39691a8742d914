"""The power goes at every flash operation of append, release, making room and ring wrap: no
accepted message is missing, none is invented, order is kept, what a policy dropped is counted, and
the ring can still be used.

The device's own outbox.py runs over the virtual board's flash, against a model. Each case replays a
random workload, cuts it at operation N, starts again, compares, goes on, and compares again. A ring
that is broken on purpose must be caught by the same loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import ring
from chip import CLEAN, ODD, TORN, Chip, ChipError
from outbox_model import OFFSET, SECTORS, Workload

MODES = (CLEAN, TORN, ODD)
REFUSE, OLDEST, PRIORITY = 0, 1, 2
POLICIES = pytest.mark.parametrize(
    "full", [REFUSE, OLDEST, PRIORITY], ids=["refuse", "oldest", "priority"]
)


@contextmanager
def flash(tmp_path: Path) -> Iterator[Chip]:
    chip = Chip(tmp_path / "flash.bin")
    try:
        yield chip
    finally:
        chip.close()


def wipe(chip: Chip) -> None:
    chip.power_on()
    chip.image[OFFSET : OFFSET + SECTORS * 4096] = b"\xff" * (SECTORS * 4096)


def cut_everywhere(chip: Chip, module, seeds, most: int, stride: int = 1, full: int = 0) -> int:
    """Replay each seed's workload, cut at every `stride`-th operation; returns how many cuts."""
    cuts = 0
    for seed in seeds:
        for mode in MODES:
            for operation in range(1 + seed % stride, most, stride):
                wipe(chip)
                work = Workload(chip, module, seed, full)
                chip.cut_after(operation, mode, seed * 1000 + operation)
                try:
                    while True:
                        work.step()
                except ChipError:
                    pass
                # Often the power goes once more while the first cut is being mended.
                again = operation % 4
                chip.power_on()
                if again:
                    chip.cut_after(again, mode, operation)
                    try:
                        work.start()
                        work.check()
                        work.append()
                    except ChipError:
                        pass
                    chip.power_on()
                cuts += 1
                work.start()
                work.check()
                for _ in range(20):
                    work.step()
                work.start()
                work.check()
    return cuts


@POLICIES
def test_ring_agrees_with_a_model(tmp_path, full):
    with flash(tmp_path) as chip:
        module = ring.load()
        refused = dropped = moved = 0
        for seed in range(6):
            wipe(chip)
            work = Workload(chip, module, seed, full)
            for _ in range(400):
                work.step()
                work.check()
            refused += work.refused
            dropped += work.box.dropped
            moved += work.moved
        # It was full at times, and did what its policy says.
        assert bool(refused) == (full != OLDEST)
        assert bool(dropped) == (full != REFUSE)
        assert bool(moved) == (full == PRIORITY)


@POLICIES
def test_power_cut_loses_no_accepted_message(tmp_path, full):
    with flash(tmp_path) as chip:
        assert cut_everywhere(chip, ring.load(), range(4), most=160, stride=5, full=full) > 350


@POLICIES
@pytest.mark.exhaustive
@pytest.mark.timeout(3000)
def test_power_cut_at_every_operation_loses_no_accepted_message(tmp_path, full):
    with flash(tmp_path) as chip:
        assert cut_everywhere(chip, ring.load(), range(12), most=300, full=full) > 10000


@pytest.mark.parametrize(
    ("full", "edit"),
    [
        # A half-written record taken for a whole one.
        (
            REFUSE,
            (
                "outbox_scan",
                "not _whole(box, sector, at, size, flags, sequence, time, crc)",
                "False",
            ),
        ),
        # Written on behind what a power cut left half written.
        (REFUSE, ("outbox_scan", "or not _blank_from(box, box._at)", "")),
        # A sector taken although something in it still waits.
        (REFUSE, ("outbox", "if self._waiting[following]:", "if False:")),
        # Something put into a sector that is marked as drained.
        (REFUSE, ("outbox_scan", "if spent == box._number or", "if")),
        # Dropped before it is counted.
        (
            OLDEST,
            (
                "outbox_room",
                "    dropped = 0\n",
                "    dropped = 0\n    box._drain_if_done(sector) if "
                "box._waiting.__setitem__(sector, 0) is None else 0\n"
                "    box._waiting[sector] = 1\n",
            ),
        ),
        # Counted, and there again after a start.
        (OLDEST, ("outbox_scan", "if made_room:", "if False:")),
        # A copy that counts although its original is still there.
        (PRIORITY, ("outbox_scan", "        _void_copies(box)", "        pass")),
        # A number written over one that a power cut spoilt.
        (PRIORITY, ("outbox_room", 'if bytes(four) == b"\\xff\\xff\\xff\\xff":', "if True:")),
        # The number of what was dropped lost with the next sector.
        (OLDEST, ("outbox", "self.dropped & 0xFFFFFFFF", "0")),
    ],
    ids=[
        "no-crc",
        "no-blank-check",
        "overwrites",
        "writes-into-drained",
        "drops-uncounted",
        "drops-come-back",
        "copies-count-twice",
        "number-over-number",
        "number-forgotten",
    ],
)
def test_ring_that_is_broken_on_purpose_is_caught(tmp_path, full, edit):
    with flash(tmp_path) as chip:
        broken = ring.load(edit)
        with pytest.raises((AssertionError, KeyError, OverflowError)):
            cut_everywhere(chip, broken, range(6), most=300, full=full)


def test_erases_per_thousand_messages_of_100_bytes_are_within_the_budget(tmp_path):
    with flash(tmp_path) as chip:
        wipe(chip)
        box = ring.load().Outbox(ring.Partition(chip, OFFSET, 64))
        before = chip.counts().erases
        for _ in range(5000):
            box.append(bytes(100))
            box.release(box.read()[4])
        assert (chip.counts().erases - before) / 5 <= 30


@pytest.mark.parametrize("full", [OLDEST, PRIORITY], ids=["oldest", "priority"])
def test_erases_stay_bounded_while_the_ring_runs_over(tmp_path, full):
    with flash(tmp_path) as chip:
        wipe(chip)
        module = ring.load()
        box = module.Outbox(ring.Partition(chip, OFFSET, 16), full)
        before = chip.counts().erases
        for n in range(5000):
            with suppress(module.OutboxFull):
                box.append(bytes(100), 0, (n % 3) << 1)
        # At the worst half of each sector is taken by what moves.
        assert (chip.counts().erases - before) / 5 <= (30 if full == OLDEST else 60)
        assert box.dropped > 1000


def test_what_is_less_important_than_all_that_waits_is_refused_without_a_program(tmp_path):
    with flash(tmp_path) as chip:
        wipe(chip)
        module = ring.load()
        box = module.Outbox(ring.Partition(chip, OFFSET, SECTORS), PRIORITY)
        for _ in range(200):
            box.append(bytes(100), 0, 3 << 1)
        kept = box.dropped
        with pytest.raises(module.OutboxFull):
            for _ in range(40):
                box.append(bytes(100), 0, 0)
        before = chip.counts().programs
        for _ in range(50):
            with pytest.raises(module.OutboxFull):
                box.append(bytes(100), 0, 0)
        assert chip.counts().programs == before and box.dropped == kept
        assert box.refused == 51


def test_policy_that_changes_while_the_ring_is_full_takes_effect(tmp_path):
    with flash(tmp_path) as chip:
        wipe(chip)
        module = ring.load()
        box = module.Outbox(ring.Partition(chip, OFFSET, SECTORS), REFUSE)
        made = 0
        with pytest.raises(module.OutboxFull):
            while True:
                box.append(bytes(500))
                made += 1
        box.full = OLDEST
        number = box.append(bytes(500))
        again = module.Outbox(ring.Partition(chip, OFFSET, SECTORS), REFUSE)
        assert box.dropped == again.dropped and len(again) == len(box) == made + 1 - box.dropped
        after, last = 0, 0
        while (entry := again.read(after)) is not None:
            after = last = entry[0]
        assert last == number
