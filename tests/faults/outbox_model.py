"""A ring, and what must be in it: the model that the outbox is compared with, step by step.

It owns nothing on disk: the chip is the test's.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import ring
from chip import Chip

OFFSET = 0x200000
SECTORS = 4
SIZES = (0, 1, 3, 40, 100, 100, 100, 257, 600, 2000, 4000)
MANY_SMALL = (0, 3, 40, 100, 100, 100, 257, 600)


@dataclass(frozen=True)
class Message:
    body: bytes
    priority: int
    time: int
    boot: int


class Workload:
    """`waiting` holds what was accepted and neither released nor dropped, by number."""

    def __init__(self, chip: Chip, module, seed: int, full: int = 0) -> None:
        self.chip, self.module, self.full = chip, module, full
        self.random = random.Random(seed)
        self.sizes = SIZES if seed % 2 else MANY_SMALL
        self.appends = 0.55 if seed % 3 else 0.9  # every third one runs over
        self.waiting: dict[int, Message] = {}
        self.appending: Message | None = None
        self.releasing: int | None = None
        self.refused = self.dropped = self.moved = self.dropped_at_cut = 0
        self.start()

    def start(self) -> None:
        self.box = self.module.Outbox(ring.Partition(self.chip, OFFSET, SECTORS), self.full)

    def step(self) -> None:
        choice = self.random.random()
        if choice < self.appends:
            self.append()
        elif choice < 0.97:
            self.release()
        else:
            self.start()

    def append(self) -> None:
        size = self.random.choice(self.sizes)
        priority = self.random.choice((0, 0, 1, 1, 1, 2, 3))
        boot = self.random.choice((0, 0, 7))
        message = Message(
            self.random.randbytes(size), priority, self.random.randrange(1 << 30), boot
        )
        flags = priority << 1 | (1 if boot else 0)
        before = self.box.dropped
        self.appending = message
        try:
            number = self.box.append(message.body, message.time, flags, boot)
        except self.module.OutboxFull:
            self.refused += 1
            number = None
        if self.box.dropped != before:
            self.settle_drops(self.numbers(), number, priority)
        if number is not None:
            self.waiting[number] = message
        self.appending = None

    def settle_drops(self, found: set[int], number: int | None, priority: int) -> None:
        """What went for a newcomer was counted, and was the right thing to take."""
        gone = set(self.waiting) - found
        assert len(gone) == self.box.dropped - self.dropped, "dropped and counted differ"
        self.dropped = self.box.dropped
        if self.full == self.module.OLDEST:
            assert all(g < min(found - {number}, default=g + 1) for g in gone), "not the oldest"
        else:
            assert all(self.waiting[g].priority <= priority for g in gone), "too important"
        for g in gone:
            del self.waiting[g]

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
        entry = self.random.choice(window)
        self.releasing = entry[6]
        self.box.release(entry[4])
        del self.waiting[entry[6]]
        self.releasing = None

    def numbers(self) -> set[int]:
        return set(self.content())

    def content(self) -> dict[int, Message]:
        found: dict[int, Message] = {}
        after = 0
        last = 0
        while (entry := self.box.read(after)) is not None:
            sequence, time, flags, body, _, boot, number = entry
            assert sequence > after and number not in found, "a message is there twice"
            if not flags & self.module.MOVED:
                assert number == sequence and number > last
                last = number
            else:
                self.moved += 1
            found[number] = Message(bytes(body), flags >> 1 & 3, time, boot)
            after = sequence
        return found

    def check(self) -> None:
        """What is in the ring is what must be; settles what the cut left open either way."""
        found = self.content()
        required = dict(self.waiting)
        if self.releasing is not None:
            required.pop(self.releasing)  # may be there once more
        lost = [number for number in required if number not in found]
        dropped = self.box.dropped - self.dropped
        if self.full and self.appending is not None:
            # The power went while room was made: all of it went and was counted, or none.
            assert len(lost) == dropped, f"{len(lost)} are gone and {dropped} are counted"
            limit = 3 if self.full == self.module.OLDEST else self.appending.priority
            assert all(required.pop(number).priority <= limit for number in lost)
            self.dropped_at_cut += dropped
        else:
            assert not lost, f"message {lost[0]} is lost"
            assert not dropped, "counted as dropped, and is there"
        self.dropped = self.box.dropped
        for number, message in found.items():
            if number in self.waiting:
                assert message == self.waiting[number]
            else:
                assert message == self.appending, "a message is invented"
                assert number > max(self.waiting, default=0)
        assert len(self.box) == len(found)
        assert self.box.damaged == 0
        self.waiting, self.appending, self.releasing = found, None, None
