"""The power goes at every flash operation in which a message's id is kept: nothing else in NVS is
touched, no message is lost, none is taken for known that was not had, and only the one whose id was
being written may reach its handler twice.

The device's own commands.py and seen.py run over the virtual board's NVS. A list that is broken on
purpose must be caught by the same loop.
"""

from __future__ import annotations

import random
import time
import types
from collections import Counter
from pathlib import Path

import pytest
import storekeys
from chip import CLEAN, ODD, TORN, Chip
from devicelib import Library

MODES = (CLEAN, TORN, ODD)
OTHERS = {f"key{n}": bytes([n]) * (40 + n) for n in range(6)}


class Hub:
    """Keeps each message until its acknowledgement, and sends what is left at each connection."""

    def __init__(self, rng: random.Random, count: int) -> None:
        self.queue = [b"%d" % n for n in range(count)]
        self.rng = rng
        self.lost = 0  # acknowledgements that were lost on their way

    def publish(self, topic: str, body: bytes, qos: int = 1) -> None:
        raise AssertionError("a message has no answer")

    def deliver(self, commands: object) -> None:
        self.acks: list[int] = []
        sent = list(self.queue[: self.rng.randrange(1, 6)])
        for pid, mid in enumerate(sent, 1):
            commands.on_message({}, mid, None, b"body", pid)  # type: ignore[attr-defined]
        for pid, mid in enumerate(sent, 1):
            if pid in self.acks:
                if self.rng.random() < 0.3:
                    self.lost += 1
                else:
                    self.queue.remove(mid)

    def puback(self, pid: int) -> None:
        self.acks.append(pid)


class Device:
    def __init__(self, chip: Chip, edits: dict[str, tuple[str, str]] | None = None) -> None:
        time.ticks_ms = lambda: 0  # type: ignore[attr-defined]
        time.ticks_diff = lambda a, b: a - b  # type: ignore[attr-defined]
        esp32 = types.SimpleNamespace(NVS=lambda namespace: storekeys.Nvs(chip, namespace))
        self.library = Library(esp32, edits)
        self.library.log.say = lambda stage, sentence: None
        self.profile = self.library.iothub
        self.had: Counter[bytes] = Counter()

    def start(self, hub: Hub) -> object:
        """What a restart makes: nothing of RAM is left."""
        commands = self.library.commands.Commands(self.library.tasks.Tasks())
        commands.attach(hub, self.profile, "press-7")

        def on_message(properties, mid, expires, body, pid):
            def handler(body, properties):
                self.had[mid] += 1

            commands.message(handler)
            commands.on_message(properties, mid, expires, body, pid)

        return types.SimpleNamespace(on_message=on_message)


def operations(chip: Chip) -> int:
    counts = chip.counts()
    return counts.erases + counts.programs


def prepared(folder: Path, fill: int) -> Chip:
    """A chip whose NVS has other things in it; `fill` writes bring it near a page's end."""
    chip = Chip(folder / "flash.bin")
    assert chip.start() == 0
    nvs = storekeys.Nvs(chip)
    for name, value in OTHERS.items():
        nvs.set_blob(name, value)
    for n in range(fill):
        nvs.set_i32("churn", n)
    return chip


def run(chip: Chip, device: Device, seed: int, cut: int = 0, mode: int = CLEAN) -> tuple[int, int]:
    """All messages, to the last acknowledgement. Returns (operations, messages done twice)."""
    rng = random.Random(seed)
    hub, device.had = Hub(rng, 24), Counter()
    first, rounds, cuts = operations(chip), 0, 0
    if cut:
        chip.cut_after(cut, mode, seed=cut)
    while hub.queue:
        rounds += 1
        assert rounds < 500, "a message stays with the hub for ever"
        try:
            hub.deliver(device.start(hub))
        except storekeys.PowerGone:
            cuts += 1
            chip.cut_after(0)
            assert chip.restart() == 0
    nvs = storekeys.Nvs(chip)
    for name, value in OTHERS.items():
        buffer = bytearray(99)
        assert nvs.get_blob(name, buffer) == len(value) and buffer[: len(value)] == value, name
    assert len(device.had) == 24, "a message was lost"
    twice = sum(device.had.values()) - 24
    assert hub.lost and twice <= cuts, (device.had, cuts)
    return operations(chip) - first, twice


def cut_everywhere(folder: Path, edits=None, sample: int | None = None) -> tuple[int, int]:
    cases = twice = 0
    for fill in (0, 290):
        chip = prepared(folder, fill)
        before = chip.nvs_bytes
        device = Device(chip, edits)
        total, _ = run(chip, device, fill)
        points = [(n, mode) for n in range(1, total + 1) for mode in MODES]
        if sample:
            points = random.Random(fill).sample(points, min(sample, len(points)))
        for n, mode in points:
            chip.nvs_bytes = before
            assert chip.restart() == 0
            twice += run(chip, device, fill, n, mode)[1]
            cases += 1
        chip.close()
        (folder / "flash.bin").unlink()
    return cases, twice


def test_power_cut_while_an_id_is_kept_loses_no_message_and_doubles_that_one_at_most(tmp_path):
    cases, twice = cut_everywhere(tmp_path, sample=60)
    assert cases >= 120 and 0 < twice < cases


@pytest.mark.exhaustive
def test_power_cut_at_every_operation_of_keeping_an_id(tmp_path):
    cases, twice = cut_everywhere(tmp_path)
    assert cases > 600 and 0 < twice < cases


BROKEN = {
    "keeps the id before the handler was called": {
        "commands": (
            "        self.messages += 1\n",
            "        self._seen.add(mark)\n        self.messages += 1\n",
        )
    },
    "acknowledges before it keeps the id": {
        "commands": (
            "            if mid:\n                self._seen.add(mark)\n",
            "            if mid and self.messages < 0:\n                self._seen.add(mark)\n",
        )
    },
    "writes the list in two steps": {
        "seen": (
            "            nvs.set_blob(agreed.NVS_SEEN, ",
            "            nvs.erase_key(agreed.NVS_SEEN) if len(self._marks) > 1 else 0\n"
            "            nvs.set_blob(agreed.NVS_SEEN, ",
        )
    },
}


@pytest.mark.parametrize("name", BROKEN)
def test_keeping_of_ids_that_is_broken_on_purpose_is_caught(tmp_path, name):
    with pytest.raises(AssertionError):
        cut_everywhere(tmp_path, BROKEN[name], sample=150)
