"""The power goes at every flash operation of append, release and ring wrap: no accepted message is
missing, none is invented, order is kept, and the ring can still be used.

The device's own outbox.py runs over the virtual board's flash, against a model. Each case replays a
random workload, cuts it at operation N, starts again, compares, goes on, and compares again. A ring
that is broken on purpose must be caught by the same loop.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ring
from chip import CLEAN, ODD, TORN, Chip, ChipError

OFFSET = 0x200000
SECTORS = 4
MODES = (CLEAN, TORN, ODD)


class Workload:
    """A ring, and what must be in it: `waiting` holds what was accepted and not released."""

    def __init__(self, chip: Chip, module, seed: int) -> None:
        self.chip, self.module = chip, module
        self.random = random.Random(seed)
        self.waiting: dict[int, bytes] = {}
        self.appending: bytes | None = None
        self.releasing: int | None = None
        self.refused = 0
        self.start()

    def start(self) -> None:
        self.box = self.module.Outbox(ring.Partition(self.chip, OFFSET, SECTORS))
        self.places: dict[int, tuple] = {}

    def step(self) -> None:
        choice = self.random.random()
        if choice < 0.55:
            self.append()
        elif choice < 0.97:
            self.release()
        else:
            self.start()

    def append(self) -> None:
        size = self.random.choice((0, 1, 3, 40, 100, 100, 100, 257, 600, 2000, 4060))
        self.appending = self.random.randbytes(size)
        try:
            sequence = self.box.append(self.appending, time=self.box.next_sequence)
        except self.module.OutboxFull:
            self.refused += 1
        else:
            self.waiting[sequence] = self.appending
        self.appending = None

    def release(self) -> None:
        # A window of 8, acknowledged in any order, as the device does it.
        after = 0
        window = []
        for _ in range(8):
            found = self.box.read(after)
            if found is None:
                break
            after = found[0]
            window.append(found)
        if not window:
            return
        sequence, _, _, _, place = self.random.choice(window)
        self.releasing = sequence
        self.box.release(place)
        del self.waiting[sequence]
        self.releasing = None

    def content(self) -> dict[int, bytes]:
        found, after = {}, 0
        while (entry := self.box.read(after)) is not None:
            sequence, time, flags, body, _ = entry
            assert sequence > after and time == sequence and flags == 0
            found[sequence] = bytes(body)
            after = sequence
        return found

    def check(self) -> None:
        """What is in the ring is what must be; settles what the cut left open either way."""
        found = self.content()
        required = dict(self.waiting)
        if self.releasing is not None:
            required.pop(self.releasing)  # may be there once more
        for sequence, body in required.items():
            assert found.get(sequence) == body, f"message {sequence} is lost"
        for sequence, body in found.items():
            if sequence in self.waiting:
                assert body == self.waiting[sequence]
            else:
                assert self.appending is not None and body == self.appending, (
                    "a message is invented"
                )
                assert sequence > max(self.waiting, default=0)
        assert len(self.box) == len(found)
        assert self.box.damaged == 0
        self.waiting, self.appending, self.releasing = found, None, None


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


def cut_everywhere(chip: Chip, module, seeds, most: int, stride: int = 1) -> int:
    """Replay each seed's workload, cut at every `stride`-th operation; returns how many cuts."""
    cuts = 0
    for seed in seeds:
        for mode in MODES:
            for operation in range(1 + seed % stride, most, stride):
                wipe(chip)
                work = Workload(chip, module, seed)
                chip.cut_after(operation, mode, seed * 1000 + operation)
                try:
                    while True:
                        work.step()
                except ChipError:
                    pass
                cuts += 1
                chip.power_on()
                work.start()
                work.check()
                for _ in range(20):
                    work.step()
                work.start()
                work.check()
    return cuts


def test_ring_agrees_with_a_model(tmp_path):
    with flash(tmp_path) as chip:
        module = ring.load()
        refused = 0
        for seed in range(6):
            wipe(chip)
            work = Workload(chip, module, seed)
            for _ in range(400):
                work.step()
                work.check()
            refused += work.refused
        assert refused  # it was full at times


def test_power_cut_loses_no_accepted_message(tmp_path):
    with flash(tmp_path) as chip:
        assert cut_everywhere(chip, ring.load(), range(4), most=160, stride=3) > 500


@pytest.mark.exhaustive
@pytest.mark.timeout(3000)
def test_power_cut_at_every_operation_loses_no_accepted_message(tmp_path):
    with flash(tmp_path) as chip:
        assert cut_everywhere(chip, ring.load(), range(12), most=300) > 10000


@pytest.mark.parametrize(
    "edit",
    [
        # A half-written record taken for a whole one.
        ("not self._whole(sector, at, size, flags, sequence, time, crc)", "False"),
        # Written on behind what a power cut left half written.
        ("or not self._blank_from(self._at)", ""),
        # A sector taken although something in it still waits.
        ("if self._waiting[following]:", "if False:"),
        # Something put into a sector that is marked as drained.
        ("if spent == self._number or", "if"),
    ],
    ids=["no-crc", "no-blank-check", "overwrites", "writes-into-drained"],
)
def test_ring_that_is_broken_on_purpose_is_caught(tmp_path, edit):
    with flash(tmp_path) as chip:
        broken = ring.load(edit)
        with pytest.raises((AssertionError, KeyError, OverflowError)):
            cut_everywhere(chip, broken, range(6), most=300)


def test_erases_per_thousand_messages_of_100_bytes_are_within_the_budget(tmp_path):
    with flash(tmp_path) as chip:
        wipe(chip)
        box = ring.load().Outbox(ring.Partition(chip, OFFSET, 64))
        before = chip.counts().erases
        for _ in range(5000):
            box.append(bytes(100))
            box.release(box.read()[4])
        assert (chip.counts().erases - before) / 5 <= 30
