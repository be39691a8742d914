"""The power goes at every flash operation of every NVS call: no other key is touched, and the one
being written is whole, old or new.

Each case starts from a prepared partition, cuts at operation N (before it, or in the middle of it
in two ways), starts again and compares everything, with our own reading and with a second,
independent reader. A writer that is broken on purpose must be caught by the same loop.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import chip as c
import nvs_reader
import pytest
from chip import CLEAN, ODD, TORN, Chip, ChipError

SIZE = 0x6000
MODES = (CLEAN, TORN, ODD)
Model = dict[tuple[str, str], int | bytes]


def blob(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


@dataclass
class Case:
    """One call, and what the key in question may hold after a cut: before or after."""

    key: tuple[str, str]
    call: Callable[[Chip], None]
    after: int | bytes | None


def setting(key: str, value: int | bytes, space: str = "n") -> Case:
    def call(chip: Chip) -> None:
        chip.set(chip.namespace(space), key, value)

    return Case((space, key), call, value)


def erasing(key: str) -> Case:
    def call(chip: Chip) -> None:
        chip.erase_key(chip.namespace("n"), key)

    return Case(("n", key), call, None)


CASES = {
    "set_i32 of a new key": setting("fresh", 1),
    "set_i32 of a key that is there": setting("number", 2),
    "set_blob of a new key": setting("fresh", blob(20, 44)),
    "set_blob of a key that is there": setting("small", blob(21, 100)),
    "set_blob in two chunks or more": setting("big", blob(22, 5200)),
    "set_blob made shorter": setting("big", blob(23, 60)),
    "set_blob made empty": setting("small", b""),
    "set_blob of nothing but ff": setting("small", b"\xff" * 300),
    "a number becomes a blob": setting("number", blob(24, 70)),
    "a blob becomes a number": setting("big", -1),
    "a namespace is made": setting("number", 3, space="another"),
    "erase_key of a number": erasing("number"),
    "erase_key of a blob": erasing("big"),
}


def content(chip: Chip) -> Model:
    ns = chip.namespace("n")
    model: Model = {("n", "number"): 1, ("n", "small"): blob(1, 80), ("n", "big"): blob(2, 4900)}
    model |= {("n", f"other{n}"): n for n in range(8)}
    model |= {("n", f"part{n}"): blob(n, 30 * n) for n in range(8)}
    for (_, key), value in model.items():
        chip.set(ns, key, value)
    return model


def fresh(chip: Chip) -> Model:
    return content(chip)


def nearly_full(chip: Chip) -> Model:
    """Every page used over and over, little room, and the next entry makes a page move."""
    model = content(chip)
    ns = chip.namespace("n")
    for n in range(12):
        model["n", f"fill{n}"] = blob(n, 180)
        chip.set(ns, f"fill{n}", model["n", f"fill{n}"])
    n = 0
    while True:
        before, erases = chip.nvs_bytes, chip.counts().erases
        chip.set_i32(ns, "churn", n)
        if chip.counts().erases >= 3 and chip.counts().erases > erases:
            chip.nvs_bytes = before
            model["n", "churn"] = n - 1
            return model
        n += 1


def brim_full(chip: Chip) -> Model:
    """Like nearly_full, and the page that moves is as full of values as it can be."""
    model = nearly_full(chip)
    chip.restart()
    ns = chip.namespace("n")
    n = 0
    try:
        while True:
            chip.set_i32(ns, f"brim{n}", n)
            model["n", f"brim{n}"] = n
            n += 1
    except ChipError as err:
        assert err.code == c.NOT_ENOUGH_SPACE
    for k in range(n - 14, n):
        chip.erase_key(ns, f"brim{k}")
        del model["n", f"brim{k}"]
    return model


BASES = {"fresh": fresh, "nearly full": nearly_full, "brim full": brim_full}


@cache
def prepared(name: str, folder: Path) -> tuple[bytes, Model]:
    chip = Chip(folder / "base.bin", "PREPARE")  # a copy of the library of its own
    chip.start()
    chip.nvs_bytes = b"\xff" * SIZE
    chip.restart()
    chip.lib.flash_counts_reset()
    model = BASES[name](chip)
    chip.restart()
    image = chip.nvs_bytes
    chip.close()
    assert nvs_reader.read(image) == model
    return image, model


class Bench:
    def __init__(self, folder: Path, *defines: str) -> None:
        self.folder = folder
        self.chip = Chip(folder / "flash.bin", *defines)
        self.chip.start()

    def load(self, base: str) -> Model:
        image, model = prepared(base, self.folder)
        self.chip.power_on()
        self.chip.nvs_bytes = image
        assert self.chip.restart() == 0
        return model

    def operations(self, base: str, case: Case) -> int | None:
        """How many flash operations the call takes; None where there is no room for it."""
        self.load(base)
        before = self.chip.lib.flash_operations()
        try:
            case.call(self.chip)
        except ChipError as err:
            assert err.code == c.NOT_ENOUGH_SPACE
            return None
        return self.chip.lib.flash_operations() - before

    def cut(self, base: str, case: Case, n: int, mode: int, seed: int) -> Model:
        model = self.load(base)
        self.chip.cut_after(n, mode, seed)
        with pytest.raises(ChipError) as err:
            case.call(self.chip)
        assert err.value.code == c.POWER_GONE
        return model

    def check(self, model: Model, case: Case, note: object) -> None:
        chip = self.chip
        assert chip.restart() == 0, note
        status = chip.status()
        assert (status.pages_unreadable, status.sentence) == (0, b""), (note, status.sentence)
        assert status.pages_free >= 1, note
        ns = chip.namespace("n", create=False)
        for key, value in model.items():
            if key != case.key:
                assert chip.get(ns, key[1]) == value, (note, key)
        found = nvs_reader.read(chip.nvs_bytes, after_power_cut=True)
        now = found.pop(case.key, None)
        assert now in (model.get(case.key), case.after), (note, now)
        assert found == {k: v for k, v in model.items() if k != case.key}, note
        # And it goes on working: the same call, now uncut, ends as it should.
        case_value = None
        if case.after is not None or now is not None:
            case.call(chip)
            case_value = case.after
        chip.restart()
        found = nvs_reader.read(chip.nvs_bytes, after_power_cut=True)
        assert found.get(case.key) == case_value, note


@pytest.fixture
def bench(tmp_path_factory) -> Bench:
    bench = Bench(tmp_path_factory.mktemp("cut"))
    yield bench
    bench.chip.close()


def every_case(bench: Bench) -> list[tuple[str, str, int]]:
    """All (base, case, number of operations) that there is room for."""
    found = []
    for base in BASES:
        for name, case in CASES.items():
            count = bench.operations(base, case)
            if count is not None:
                found.append((base, name, count))
    return found


def test_the_cases_cover_garbage_collection_and_every_call(bench):
    cases = every_case(bench)
    assert {name for _, name, _ in cases} == set(CASES)
    for base in ("nearly full", "brim full"):
        bench.load(base)
        before = bench.chip.counts().erases
        CASES["set_i32 of a key that is there"].call(bench.chip)
        assert bench.chip.counts().erases == before + 1, base
    assert sum(count for *_, count in cases) > 1500


def sweep(bench: Bench, step: int, seeds: range) -> int:
    done = 0
    for base, name, count in every_case(bench):
        case = CASES[name]
        for mode in MODES:
            for seed in seeds if mode != CLEAN else seeds[:1]:
                for n in range(1 + (seed + mode) % step, count + 1, step):
                    model = bench.cut(base, case, n, mode, seed)
                    bench.check(model, case, (base, name, n, mode, seed))
                    done += 1
    return done


def test_power_cut_in_a_call_keeps_every_value_sampled(bench):
    assert sweep(bench, 31, range(1)) > 300


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
def test_power_cut_at_every_operation_of_every_call_keeps_every_value(bench):
    assert sweep(bench, 1, range(4)) > 10_000


def cut_twice(
    bench: Bench, rng: random.Random, base: str, name: str, n: int, most: int | None
) -> int:
    """Cut the call, then the start that mends it, at `most` of its operations (None: all)."""
    case = CASES[name]
    first, second, seed = rng.choice(MODES), rng.choice(MODES), rng.randrange(1000)
    bench.cut(base, case, n, first, seed)
    before = bench.chip.lib.flash_operations()
    assert bench.chip.restart() == 0
    count = bench.chip.lib.flash_operations() - before
    places = list(range(1, count + 1))
    if most is not None and count > most:
        places = rng.sample(places, most)
    for again in places:
        model = bench.cut(base, case, n, first, seed)
        bench.chip.power_on()
        bench.chip.cut_after(again, second, seed)
        assert bench.chip.start() == c.POWER_GONE
        bench.check(model, case, (base, name, n, first, again, second, seed))
    return len(places)


def test_power_cut_while_the_start_mends_the_last_one_sampled(bench):
    rng = random.Random(31)
    cases = every_case(bench)
    done = 0
    while done < 250:
        base, name, count = rng.choice(cases)
        done += cut_twice(bench, rng, base, name, rng.randrange(1, count + 1), 4)


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
def test_power_cut_while_the_start_mends_the_last_one(bench):
    rng = random.Random(32)
    for base, name, count in every_case(bench):
        for n in range(1, count + 1, 3):
            cut_twice(bench, rng, base, name, n, 10)


@pytest.mark.parametrize("base", ["fresh", "nearly full"])
def test_a_writer_that_erases_the_old_value_first_is_caught(tmp_path, base):
    bench = Bench(tmp_path, "NVS_TEST_ERASE_OLD_FIRST")
    caught = set()
    for name in ("set_i32 of a key that is there", "set_blob of a key that is there"):
        count = bench.operations(base, CASES[name])
        for n in range(1, count + 1):
            model = bench.cut(base, CASES[name], n, CLEAN, 1)
            try:
                bench.check(model, CASES[name], n)
            except AssertionError:
                caught.add(name)
    bench.chip.close()
    assert len(caught) == 2
