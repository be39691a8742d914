"""The partition table at 0x8000: what is in it, and a clear sentence for each way to be broken."""

from __future__ import annotations

import random
import struct

import chip as c
import pytest
from chip import MIB, SECTOR, Chip, ChipError, table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

STOCK = [
    (1, 2, 0x9000, 0x6000, "nvs"),
    (1, 1, 0xF000, 0x1000, "phy_init"),
    (0, 0, 0x10000, 0x1F0000, "factory"),
    (1, 129, 0x200000, 0x200000, "vfs"),
]
OTA = [
    (1, 2, 0x9000, 0x4000, "nvs"),
    (1, 0, 0xD000, 0x2000, "otadata"),
    (0, 0x10, 0x10000, 0x180000, "ota_0"),
    (0, 0x11, 0x190000, 0x180000, "ota_1"),
    (1, 129, 0x310000, 0xF0000, "vfs"),
]


@pytest.fixture
def chip(tmp_path):
    chip = Chip(tmp_path / "flash.bin")
    yield chip
    chip.close()


def put(chip: Chip, data: bytes) -> None:
    chip.image[0x8000 : 0x8000 + SECTOR] = data.ljust(SECTOR, b"\xff")


def test_the_stock_table_is_read_as_it_was_written(chip):
    put(chip, table(STOCK))
    found = chip.partitions()
    assert [(p.type, p.subtype, p.offset, p.size, p.label.decode()) for p in found] == STOCK
    assert not any(p.encrypted or p.readonly for p in found)


def test_partitions_are_found_by_type_subtype_and_label(chip):
    put(chip, table(STOCK))
    find = chip.lib.flash_partition_find
    assert find(1, 0xFF, b"vfs").contents.offset == 0x200000
    assert find(0, 0xFF, None).contents.label == b"factory"
    assert find(0xFF, 1, None).contents.label == b"phy_init"
    assert not find(0, 0xFF, b"vfs")
    assert not find(1, 0xFF, b"vf")


def test_a_label_of_16_characters_has_no_end_mark_and_is_read_whole(chip):
    put(chip, table([*STOCK[:3], (1, 129, 0x200000, 0x1000, "sixteen_letters_")]))
    assert chip.partitions()[3].label == b"sixteen_letters_"


def test_reads_and_writes_stay_inside_their_partition(chip):
    put(chip, table(STOCK))
    chip.partitions()
    nvs = chip.lib.flash_partition_find(1, 2, None)
    buffer = b"\0" * 16
    write, erase = chip.lib.flash_partition_write, chip.lib.flash_partition_erase
    assert write(nvs, 0x6000 - 16, buffer, 16) == 0
    assert write(nvs, 0x6000 - 15, buffer, 16) == c.INVALID_SIZE
    assert write(nvs, 0x6001, buffer, 1) == c.INVALID_ARG
    assert erase(nvs, 0x5000, 0x2000) == c.INVALID_SIZE
    assert erase(nvs, 0x5000, 0x800) == c.INVALID_SIZE
    assert erase(nvs, 0x800, 0x1000) == c.INVALID_ARG
    assert chip.image[0xF000] == 0xFF
    assert erase(nvs, 0, 0x6000) == 0
    chip.lib.flash_partition_erases.restype = c.ctypes.c_uint64
    assert chip.lib.flash_partition_erases(nvs) == 6


def broken(change) -> bytes:
    data = bytearray(table(STOCK))
    change(data)
    return bytes(data)


def entry(**fields: int) -> bytes:
    """The stock table with one field of its last entry changed, and its MD5 made right again."""
    row = dict(zip(("type", "subtype", "offset", "size", "label"), STOCK[3], strict=True)) | fields
    return table([*STOCK[:3], tuple(row.values())])


BROKEN = {
    "empty": (b"", "there is no partition table at 0x8000 (the flash is empty there)"),
    "zeros": (bytes(SECTOR), "entry 0 at 0x8000 is not a partition (it begins with 00 00)"),
    "noise": (random.Random(1).randbytes(SECTOR), "entry 0 at 0x8000 is not a partition"),
    "bit": (broken(lambda d: d.__setitem__(70, d[70] ^ 4)), "its MD5 does not match"),
    "md5": (broken(lambda d: d.__setitem__(-1, d[-1] ^ 1)), "its MD5 does not match"),
    "no md5": (table(STOCK)[:-32], "its MD5 is missing"),
    "magic": (broken(lambda d: d.__setitem__(64, 0)), "entry 2 at 0x8040 is not a partition"),
    "nothing": (table([]), "it lists no partition"),
    "after": (table(STOCK) + table(STOCK)[:32], "there is an entry after its end"),
    "unaligned": (entry(offset=0x200800), "partition 3 (vfs) is not made of whole 4 KiB sectors"),
    "size 0": (entry(size=0), "partition 3 (vfs) is not made of whole 4 KiB sectors"),
    "beyond": (entry(size=0x201000), "partition 3 (vfs) ends beyond 4 MiB"),
    "wraps": (entry(size=0xFFFFF000), "partition 3 (vfs) ends beyond 4 MiB"),
    "overlap": (entry(offset=0x1FF000), "partitions factory and vfs overlap"),
    "bootloader": (entry(offset=0x1000), "lies over the bootloader or the table itself"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_way_to_be_broken_has_its_sentence(chip, name):
    data, words = BROKEN[name]
    put(chip, data)
    with pytest.raises(ChipError) as err:
        chip.partitions()
    sentence = str(err.value)
    assert words in sentence and "flash the board again" in sentence
    assert not chip.lib.flash_partition_find(1, 2, None)


def test_a_label_never_spoils_the_console(chip):
    put(chip, entry(label="\x1b[2J\n\x7f", size=0))
    with pytest.raises(ChipError) as err:
        chip.partitions()
    assert "?[2J??" in str(err.value) and str(err.value).isprintable()


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400), st.integers(0, 160))
def test_whatever_stands_there_the_answer_is_a_table_or_a_sentence(chip, junk, at):
    data = bytearray(table(STOCK).ljust(SECTOR, b"\xff"))
    data[at : at + len(junk)] = junk
    put(chip, bytes(data))
    try:
        assert chip.partitions()
    except ChipError as err:
        assert str(err).endswith("(0x-1)") and len(str(err)) > 30


# ---- which application starts


def ota(chip: Chip) -> dict[str, c.Partition]:
    put(chip, table(OTA))
    chip.image[0x10000], chip.image[0x190000] = 0xE9, 0xE9  # an application begins so
    chip.lib.flash_close()
    chip.open()
    return {p.label.decode(): p for p in chip.partitions()}


def boots(chip: Chip) -> str:
    return chip.lib.flash_boot_partition().contents.label.decode()


def set_boot(chip: Chip, part: c.Partition) -> int:
    return chip.lib.flash_set_boot_partition(chip.lib.flash_partition_find(0, part.subtype, None))


def test_without_otadata_the_factory_application_starts_and_there_is_no_update(chip):
    put(chip, table(STOCK))
    running = chip.lib.flash_running_partition()
    assert boots(chip) == running.contents.label.decode() == "factory"
    assert not chip.lib.flash_next_update_partition(running)
    assert chip.lib.flash_set_boot_partition(running) == 0x105
    assert chip.lib.flash_mark_app_valid() == 0x105


def test_the_slots_take_turns_and_what_runs_stays_what_it_was(chip):
    parts = ota(chip)
    assert boots(chip) == "ota_0"
    for turn in range(8):
        name = f"ota_{(turn + 1) % 2}"
        running = chip.lib.flash_running_partition()
        assert chip.lib.flash_next_update_partition(running).contents.label == b"ota_1"
        assert set_boot(chip, parts[name]) == 0
        assert boots(chip) == name
        assert running.contents.label == b"ota_0"
    counters = struct.unpack_from("<I", chip.image, 0xD000) + struct.unpack_from(
        "<I", chip.image, 0xE000
    )
    assert sorted(counters) == [8, 9]  # one record is always whole: they are written in turn


def test_a_slot_without_an_application_is_refused(chip):
    parts = ota(chip)
    chip.image[0x190000] = 0xFF
    assert set_boot(chip, parts["ota_1"]) == 0x1503
    assert boots(chip) == "ota_0"


def start(chip: Chip) -> str:
    """Power on: what the bootloader starts."""
    chip.power_on()
    chip.lib.flash_running_forget()
    chip.lib.flash_bootloader()
    return chip.lib.flash_running_partition().contents.label.decode()


def test_new_firmware_that_does_not_confirm_itself_is_started_once(chip):
    parts = ota(chip)
    assert start(chip) == "ota_0"
    assert set_boot(chip, parts["ota_1"]) == 0
    assert [start(chip) for _ in range(3)] == ["ota_1", "ota_0", "ota_0"]
    assert set_boot(chip, parts["ota_1"]) == 0
    assert start(chip) == "ota_1"
    assert chip.lib.flash_mark_app_valid() == 0
    assert [start(chip) for _ in range(3)] == ["ota_1"] * 3
    # And back again, with one before it to fall back to.
    assert set_boot(chip, parts["ota_0"]) == 0
    assert [start(chip) for _ in range(2)] == ["ota_0", "ota_1"]


def test_confirming_twice_writes_nothing(chip):
    parts = ota(chip)
    set_boot(chip, parts["ota_1"])
    start(chip)
    assert chip.lib.flash_mark_app_valid() == 0
    operations = chip.lib.flash_operations()
    assert chip.lib.flash_mark_app_valid() == 0
    assert chip.lib.flash_operations() == operations


@pytest.mark.parametrize("mode", (c.CLEAN, c.TORN, c.ODD))
def test_power_cut_at_every_operation_of_a_start_and_a_confirmation_leaves_one_that_starts(
    chip, mode
):
    parts = ota(chip)
    start(chip)
    assert set_boot(chip, parts["ota_1"]) == 0
    before = chip.image[0xD000:0xF000]
    for operation in (1, 2, 3, 4):
        chip.image[0xD000:0xF000] = before
        chip.power_on()
        chip.lib.flash_running_forget()
        chip.cut_after(operation, mode, operation)
        chip.lib.flash_bootloader()
        chip.lib.flash_mark_app_valid()
        seen = [start(chip) for _ in range(3)]
        assert set(seen) <= {"ota_0", "ota_1"} and len(set(seen[1:])) == 1


def test_choosing_a_slot_survives_a_power_cut_at_every_operation(chip):
    parts = ota(chip)
    set_boot(chip, parts["ota_1"])
    before = chip.image[0xD000:0xF000]
    for mode in (c.CLEAN, c.TORN, c.ODD):
        for operation in (1, 2):
            chip.image[0xD000:0xF000] = before
            chip.cut_after(operation, mode, operation)
            assert set_boot(chip, parts["ota_0"]) == c.POWER_GONE
            chip.power_on()
            assert boots(chip) in ("ota_0", "ota_1")


def test_the_sizes_of_the_test_layouts_fit_their_chip():
    for layout in (STOCK, OTA):
        assert max(offset + size for _, _, offset, size, _ in layout) == 4 * MIB
