"""Damaged NVS: nothing crashes, nothing is erased at the start, no wrong value is ever returned."""

from __future__ import annotations

import random
import struct

import chip as c
import pytest
from chip import SECTOR, Chip, ChipError

SIZE = 0x6000


@pytest.fixture
def chip(tmp_path):
    chip = Chip(tmp_path / "flash.bin")
    assert chip.start() == 0
    yield chip
    chip.close()


def fill(chip: Chip) -> dict[str, int | bytes]:
    """Three pages and a half of values, each written once."""
    source = random.Random(9)
    ns = chip.namespace("n")
    values: dict[str, int | bytes] = {}
    for n in range(60):
        values[f"k{n}"] = source.choice([n * 1000, source.randbytes(source.randrange(150))])
    values["big"] = source.randbytes(7000)
    for key, value in values.items():
        chip.set(ns, key, value)
    return values


def check(chip: Chip, values: dict[str, int | bytes]) -> int:
    """Every value is right or not there; how many are there."""
    try:
        ns = chip.namespace("n", create=False)
    except ChipError:
        return 0
    there = 0
    for key, value in values.items():
        got = chip.get(ns, key)
        assert got is None or got == value, key
        there += got is not None
    return there


def test_single_bit_flips_anywhere_never_give_a_wrong_value_and_never_an_erase(chip):
    values = fill(chip)
    whole = chip.nvs_bytes
    source = random.Random(10)
    erases = chip.counts().erases
    for _ in range(1500):
        image = bytearray(whole)
        for _ in range(source.choice([1, 1, 2, 8])):
            image[source.randrange(4 * SECTOR)] ^= 1 << source.randrange(8)
        chip.nvs_bytes = bytes(image)
        chip.restart()
        check(chip, values)
        assert chip.counts().erases == erases


def test_pages_of_noise_zeros_and_old_data_are_left_alone(chip):
    values = fill(chip)
    whole = chip.nvs_bytes
    source = random.Random(11)
    junk = [bytes(SECTOR), source.randbytes(SECTOR), b"\xff" * 100 + source.randbytes(SECTOR - 100)]
    for page in range(6):
        for content in junk:
            image = bytearray(whole)
            image[page * SECTOR : (page + 1) * SECTOR] = content
            chip.nvs_bytes = bytes(image)
            chip.restart()
            there = check(chip, values)
            assert chip.nvs_bytes[page * SECTOR : (page + 1) * SECTOR] == content
            if page >= 4:
                assert there == len(values)
            if content is not junk[2]:
                assert chip.status().pages_unreadable == 1
                assert b"1 of 6 NVS pages cannot be read" in chip.status().sentence


STATES = [0, 0x55555555, 0xFFFFFFF0, 0xFFFFFFF8, 0xFFFFFFFC, 0xFFFFFFFE, 0xFFFFFFFF, 0xFFFFFFFA]


@pytest.mark.parametrize("state", STATES, ids=hex)
def test_whatever_state_a_page_header_claims_no_wrong_value_comes_of_it(chip, state):
    values = fill(chip)
    whole = chip.nvs_bytes
    for page in range(6):
        image = bytearray(whole)
        struct.pack_into("<I", image, page * SECTOR, state)
        chip.nvs_bytes = bytes(image)
        erases = chip.counts().erases
        chip.restart()
        check(chip, values)
        check(chip, values)
        if state == 0xFFFFFFF8 and page < 4:
            # Taken for a page on the move, it is moved: not one value is lost.
            assert check(chip, values) == len(values)
        else:
            assert chip.counts().erases == erases
        chip.restart()
        check(chip, values)


def test_each_byte_of_a_header_may_be_damaged(chip):
    values = fill(chip)
    whole = chip.nvs_bytes
    for page in range(4):
        for at in range(64):
            for damage in (0x01, 0x80, 0xFF):
                image = bytearray(whole)
                image[page * SECTOR + at] ^= damage
                chip.nvs_bytes = bytes(image)
                chip.restart()
                check(chip, values)


def test_a_partition_without_one_readable_page_is_refused_and_left_as_it_is(chip):
    noise = random.Random(12).randbytes(SIZE)
    chip.nvs_bytes = noise
    assert chip.restart() == c.NO_FREE_PAGES
    for call in (lambda: chip.namespace("outpost"), lambda: chip.set_i32(1, "k", 1)):
        with pytest.raises(ChipError) as err:
            call()
        assert err.value.code == c.NO_FREE_PAGES
    assert chip.nvs_bytes == noise
    assert chip.status().sentence.startswith(b"the NVS is corrupt: none of its 6 pages can be read")


def test_without_a_free_page_values_are_read_and_nothing_is_written(chip):
    values = fill(chip)
    image = bytearray(chip.nvs_bytes)
    for page in range(6):
        if image[page * SECTOR : (page + 1) * SECTOR] == b"\xff" * SECTOR:
            image[page * SECTOR : (page + 1) * SECTOR] = random.Random(page).randbytes(SECTOR)
    chip.nvs_bytes = bytes(image)
    assert chip.restart() == c.NO_FREE_PAGES
    assert check(chip, values) == len(values)
    with pytest.raises(ChipError) as err:  # as ESP-IDF's partition that is marked read-only
        chip.namespace("n")
    assert err.value.code == c.NOT_ALLOWED
    ns = chip.namespace("n", create=False)
    for call in (lambda: chip.set_i32(ns, "new", 1), lambda: chip.erase_key(ns, "k1")):
        with pytest.raises(ChipError) as err:
            call()
        assert err.value.code == c.READ_ONLY
    assert chip.nvs_bytes == bytes(image)
    assert b"it can be read, not written" in chip.status().sentence


def test_the_stock_board_erases_what_our_firmware_leaves_alone(tmp_path):
    parts = c.table([(1, 2, 0x9000, SIZE, "nvs")]).ljust(SECTOR, b"\xff")
    left = {}
    for name, defines in (("ours", ()), ("stock", ("OUTPOST_LEG_STOCK",))):
        chip = Chip(tmp_path / name, *defines)
        chip.image[0x8000:0x9000] = parts
        chip.start()
        fill(chip)
        image = bytearray(chip.nvs_bytes)
        image[8], image[28:32] = (
            0xFD,
            struct.pack("<I", c.crc(bytes(image[4:8]) + b"\xfd" + b"\xff" * 19)),
        )
        chip.nvs_bytes = bytes(image)
        chip.lib.nvs_start()
        left[name] = chip.nvs_bytes == bytes(image), chip.nvs_bytes == b"\xff" * SIZE
        chip.close()
    assert left == {"ours": (True, False), "stock": (False, True)}


def test_a_newer_format_is_not_touched(chip):
    fill(chip)
    image = bytearray(chip.nvs_bytes)
    image[8] = 0xFD
    image[28:32] = struct.pack("<I", c.crc(bytes(image[4:28])))
    chip.nvs_bytes = bytes(image)
    assert chip.restart() == c.NEW_VERSION_FOUND
    assert chip.nvs_bytes == bytes(image)
    with pytest.raises(ChipError):
        chip.namespace("n")
    assert b"newer format" in chip.status().sentence


def test_values_of_a_lost_namespace_never_turn_up_in_another(chip):
    ns = chip.namespace("secret")
    chip.set_blob(ns, "key", b"theirs")
    image = bytearray(chip.nvs_bytes)
    image[64 + 8] ^= 1  # the first letter of the namespace's name
    chip.nvs_bytes = bytes(image)
    chip.restart()
    assert chip.get(chip.namespace("other"), "key") is None
    assert chip.status().entries_damaged == 1


def test_a_damaged_value_is_missing_and_can_be_written_again(chip):
    ns = chip.namespace("n")
    chip.set_blob(ns, "key", b"A" * 5000)
    at = chip.nvs_bytes.index(b"A" * 64)
    image = bytearray(chip.nvs_bytes)
    image[at] = 0
    chip.nvs_bytes = bytes(image)
    chip.restart()
    assert chip.get(ns, "key") is None
    assert b"damaged" in chip.status().sentence
    chip.set_blob(ns, "key", b"B" * 5000)
    assert chip.get_blob(ns, "key") == b"B" * 5000


def test_any_bytes_at_all_never_crash_it(chip):
    """Also what is written afterwards: a partition full of nonsense that looks like pages."""
    fill(chip)
    whole = chip.nvs_bytes
    source = random.Random(13)
    for _ in range(400):
        image = bytearray(whole)
        for _ in range(source.randrange(1, 40)):
            page = source.randrange(6) * SECTOR
            at = page + source.choice([0, 32, 64, source.randrange(SECTOR - 64)])
            length = source.choice([1, 4, 32])
            image[at : at + length] = source.choice([source.randbytes(length), bytes(length)])
        chip.nvs_bytes = bytes(image)
        chip.restart()
        try:
            ns = chip.namespace("n")
            for n in range(30):
                chip.set_blob(ns, f"new{n % 7}", bytes(200 + n))
                chip.set_i32(ns, "number", n)
            assert chip.get(ns, "number") == 29 and chip.get(ns, "new1") == bytes(229)
        except ChipError as err:
            assert err.code in (
                c.NO_FREE_PAGES,
                c.NOT_ENOUGH_SPACE,
                c.NEW_VERSION_FOUND,
                c.NOT_ALLOWED,
            )
