"""The virtual flash chip: NOR rules, counters, and the power cut at operation N."""

from __future__ import annotations

import random

import chip as c
import pytest
from chip import MIB, ODD, SECTOR, TORN, Chip, ChipError


@pytest.fixture
def chip(tmp_path):
    chip = Chip(tmp_path / "flash.bin")
    yield chip
    chip.close()


def test_a_program_only_clears_bits(chip):
    chip.program(0x3000, b"\x0f\xf0\xaa\x55")
    chip.program(0x3000, b"\xf0\x0f\x55\xff")
    assert chip.read(0x3000, 5) == b"\x00\x00\x00\x55\xff"


def test_an_erase_is_one_whole_sector(chip):
    for offset in (0x2FFF, 0x3000, 0x3FFF, 0x4000):
        chip.program(offset, b"\x00")
    chip.erase(0x3000)
    assert chip.read(0x2FFF, 0x1002) == b"\x00" + b"\xff" * SECTOR + b"\x00"
    with pytest.raises(ChipError) as err:
        chip.erase(0x3001)
    assert err.value.code == c.INVALID_ARG


def test_nothing_is_read_or_changed_outside_the_chip(chip):
    for call in (
        lambda: chip.read(4 * MIB - 1, 2),
        lambda: chip.read(0xFFFFFFFF, 2),
        lambda: chip.program(4 * MIB, b"\0"),
        lambda: chip.program(4 * MIB - 2, b"\0\0\0"),
        lambda: chip.erase(4 * MIB),
    ):
        with pytest.raises(ChipError) as err:
            call()
        assert err.value.code == c.INVALID_SIZE
    assert chip.read(4 * MIB - 2, 2) == b"\xff\xff"


def test_each_page_programmed_and_each_erase_is_counted(chip):
    chip.program(0x10F0, bytes(0x20))  # across the end of a 256-byte page: two
    chip.program(0x2000, bytes(1024))
    chip.erase(0x1000)
    chip.erase(0x1000)
    counts = chip.counts()
    assert (counts.programs, counts.bytes_programmed, counts.erases) == (6, 0x20 + 1024, 2)
    assert chip.lib.flash_operations() == 8
    assert chip.lib.flash_sector_erases(0x1ABC) == 2
    assert chip.lib.flash_sector_erases(0x2000) == 0


def test_what_is_programmed_is_in_the_file_at_once(chip):
    chip.program(0x1234, b"kept")
    assert chip.path.read_bytes()[0x1234:0x1238] == b"kept"


def test_at_a_clean_cut_the_operation_has_not_begun_and_the_chip_is_dead(chip):
    chip.cut_after(3)
    chip.program(0, b"\0")
    chip.erase(SECTOR)
    with pytest.raises(ChipError) as err:
        chip.program(1, b"\0")
    assert err.value.code == c.POWER_GONE
    for call in (lambda: chip.program(2, b"\0"), lambda: chip.erase(0), lambda: chip.read(0, 1)):
        with pytest.raises(ChipError):
            call()
    chip.power_on()
    assert chip.read(0, 3) == b"\x00\xff\xff"


@pytest.mark.parametrize("mode", [TORN, ODD])
def test_a_torn_program_clears_some_of_the_bits_it_was_to_clear_and_no_other(chip, mode):
    source = random.Random(5)
    seen_partial = 0
    for n in range(200):
        offset = 0x10000 + 256 * n
        data = source.randbytes(source.randrange(1, 257))
        chip.cut_after(1, mode, n)
        with pytest.raises(ChipError):
            chip.program(offset, data)
        chip.power_on()
        after = chip.read(offset, 256)
        assert all(is_ & want == want for is_, want in zip(after, data, strict=False))
        assert after[len(data) :] == b"\xff" * (256 - len(data))
        seen_partial += after[: len(data)] not in (data, b"\xff" * len(data))
        if mode == TORN:
            assert after[: len(data) // 2] == data[: len(data) // 2]
    assert seen_partial > 150


@pytest.mark.parametrize("mode", [TORN, ODD])
def test_a_torn_erase_only_raises_bits_and_leaves_its_neighbours_alone(chip, mode):
    before = random.Random(6).randbytes(3 * SECTOR)
    partial = 0
    for seed in range(60):
        chip.image[0 : 3 * SECTOR] = before
        chip.cut_after(1, mode, seed)
        with pytest.raises(ChipError):
            chip.erase(SECTOR)
        chip.power_on()
        after = chip.image[0 : 3 * SECTOR]
        assert after[:SECTOR] == before[:SECTOR] and after[2 * SECTOR :] == before[2 * SECTOR :]
        sector = after[SECTOR : 2 * SECTOR]
        assert all(new & old == old for new, old in zip(sector, before[SECTOR:], strict=False))
        partial += sector not in (before[SECTOR : 2 * SECTOR], b"\xff" * SECTOR)
    assert partial > 50


def test_the_same_seed_gives_the_same_damage(chip):
    for mode in (TORN, ODD):
        images = []
        for _ in range(2):
            chip.image[0:SECTOR] = bytes(SECTOR)
            chip.cut_after(1, mode, 77)
            with pytest.raises(ChipError):
                chip.erase(0)
            chip.power_on()
            images.append(chip.image[0:SECTOR])
        assert images[0] == images[1]


def test_a_planned_cut_can_be_taken_back(chip):
    chip.cut_after(1)
    chip.cut_after(0)
    chip.program(0, b"\0")
    assert chip.read(0, 1) == b"\0"


@pytest.mark.parametrize("mib", [4, 8, 16])
def test_chips_of_4_8_and_16_mib_are_taken(tmp_path, mib):
    chip = Chip(tmp_path / "flash.bin", size=mib * MIB)
    assert chip.lib.flash_size() == mib * MIB
    chip.program(mib * MIB - 1, b"\0")
    chip.close()


@pytest.mark.parametrize("size", [0, 1, MIB, 4 * MIB - 1, 4 * MIB + 4096, 32 * MIB])
def test_an_image_of_another_size_is_refused_in_one_sentence(tmp_path, size):
    path = tmp_path / "flash.bin"
    with path.open("wb") as file:
        file.truncate(size)
    with pytest.raises(ChipError, match=f"has {size} bytes: a chip has 4, 8 or 16 MiB"):
        Chip(path)


def test_a_missing_image_and_a_directory_are_refused_in_one_sentence(chip, tmp_path):
    for name, words in (("none.bin", b"No such file"), (".", b"directory")):
        path = str(tmp_path / name).encode()
        assert chip.lib.flash_open(path) == -1
        assert words in chip.lib.flash_error()
    chip.open()


def test_two_boards_never_share_one_flash(chip, tmp_path):
    second = Chip(tmp_path / "other.bin", "SECOND_BOARD")  # another copy of the library
    assert second.lib.flash_open(str(chip.path).encode()) == -1
    assert "in use by another board" in second.error()
    second.close()
    chip.program(0, b"\0")
