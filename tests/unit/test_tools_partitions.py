"""The partition table, held against Espressif's own generator and parser.

esp-idf-defs carries Espressif's gen_esp32part (version 1.5, SPDX Espressif) as a module.
"""

import pytest
from esp_idf_defs.partitions import PartitionTable as EspressifTable
from hypothesis import given
from hypothesis import strategies as st
from outpost_tools.errors import OutpostError
from outpost_tools.partitions import (
    TABLE_OFFSET,
    Partition,
    PartitionTable,
    check_flash_size,
)
from outpost_tools.paths import tree

CSVS = sorted((tree() / "firmware" / "boards").glob("partitions-*.csv"))


def rows(table):
    return [(p.name, p.type, p.subtype, p.offset, p.size) for p in table]


@pytest.mark.parametrize("path", CSVS, ids=lambda p: p.stem)
def test_espressifs_generator_makes_the_same_bytes_from_the_same_csv(path):
    theirs = EspressifTable.from_csv(path.read_text())
    theirs.verify()
    binary = theirs.to_binary()
    ours = PartitionTable.from_csv(path.read_text()).to_binary()
    assert ours == binary[: len(ours)] and set(binary[len(ours) :]) <= {0xFF}


@pytest.mark.parametrize("path", CSVS, ids=lambda p: p.stem)
def test_espressifs_parser_reads_ours_and_the_layout_fits_its_flash(path):
    table = PartitionTable.from_csv(path.read_text())
    theirs = EspressifTable.from_binary(table.to_binary())
    assert [(p.name, p.type, p.subtype, p.offset, p.size) for p in theirs] == rows(table)
    size_mib = int(path.stem.removeprefix("partitions-").split("MiB")[0])
    theirs.verify_size_fits(size_mib << 20)
    table.check_fits(size_mib << 20)


def test_the_4_mib_layout_is_the_agreed_one():
    assert rows(PartitionTable.for_size(4)) == [
        ("nvs", 1, 0x02, 0x9000, 0x6000),
        ("phy_init", 1, 0x01, 0xF000, 0x1000),
        ("factory", 0, 0x00, 0x10000, 0x1F0000),
        ("outbox", 1, 0x40, 0x200000, 0x40000),
        ("vfs", 1, 0x81, 0x240000, 0x1C0000),
    ]


def test_binary_and_back_is_the_same_table():
    table = PartitionTable.for_size(4)
    assert rows(PartitionTable.from_binary(table.to_binary())) == rows(table)


@given(st.integers(0, 6 * 32 - 1), st.integers(1, 255))
def test_any_changed_byte_is_noticed(at, change):
    binary = bytearray(PartitionTable.for_size(4).to_binary())
    binary[at] ^= change
    with pytest.raises(OutpostError, match="damaged"):
        PartitionTable.from_binary(bytes(binary))


@given(st.binary(max_size=300))
def test_no_bytes_make_the_parser_fail_otherwise_than_by_a_sentence(data):
    try:
        PartitionTable.from_binary(data)
    except OutpostError:
        pass


@pytest.mark.parametrize(
    ("csv", "sentence"),
    [
        ("nvs, data, nvs, 0x9000", "a row is"),
        ("nvs, data, nvs, here, 0x6000", "not a offset"),
        ("nvs, date, nvs, 0x9000, 0x6000", "not a type"),
        ("nvs, data, nvs, 0x9000, 0x6000, shiny", "not a flag"),
        ("nvs, data, nvs, 0x9000, 0x2000", "at least 0x3000"),
        ("nvs, data, nvs, 0x9100, 0x6000", "does not start"),
        ("app, app, factory, 0x18000, 0x10000", "does not start"),
        ("nvs, data, nvs, 0x8000, 0x6000", "partition table itself"),
        ("a, data, nvs, 0x9000, 0x6000\na, data, phy, 0xf000, 0x1000", "twice"),
        ("a, data, nvs, 0x9000, 0x6000\nb, data, phy, 0xe000, 0x1000", "overlap"),
        ("a-name-that-is-too-long, data, nvs, 0x9000, 0x6000", "1 to 15 bytes"),
    ],
)
def test_a_wrong_layout_is_one_sentence(csv, sentence):
    with pytest.raises(OutpostError, match=sentence):
        PartitionTable.from_csv(csv)


def test_a_partition_beyond_the_flash_is_refused():
    table = PartitionTable([Partition("vfs", 1, 0x81, 0x300000, 0x200000)])
    with pytest.raises(OutpostError, match="beyond the flash of 4 MiB"):
        table.check_fits(4 << 20)


def test_sizes_are_counted_as_espressif_counts_them():
    ours = PartitionTable.from_csv("nvs, data, nvs, 36K, 24K\nvfs, data, fat, 1M, 1m")
    assert rows(ours) == [("nvs", 1, 2, 0x9000, 0x6000), ("vfs", 1, 0x81, 0x100000, 0x100000)]


def test_an_unknown_flash_size_names_the_known_ones():
    with pytest.raises(OutpostError, match="4MiB"):
        PartitionTable.for_size(5)


@pytest.mark.parametrize("size", [0, 100, (4 << 20) - 1, (4 << 20) + 1, 5 << 20])
def test_a_flash_image_of_another_size_is_refused(tmp_path, size):
    flash = tmp_path / "flash.bin"
    with flash.open("wb") as file:
        file.truncate(size)
    with pytest.raises(OutpostError, match="exactly 4, 8 or 16 MiB"):
        check_flash_size(flash)


def test_a_missing_image_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(OutpostError, match="outpost image"):
        check_flash_size(tmp_path / "flash.bin")


def test_the_table_of_an_image_file_is_read_from_its_place(tmp_path):
    flash = tmp_path / "flash.bin"
    content = bytearray(b"\xff" * (4 << 20))
    binary = PartitionTable.for_size(4).to_binary()
    content[TABLE_OFFSET : TABLE_OFFSET + len(binary)] = binary
    flash.write_bytes(content)
    assert len(PartitionTable.from_flash(flash)) == 5
    flash.write_bytes(b"\xff" * (4 << 20))
    with pytest.raises(OutpostError, match="damaged"):
        PartitionTable.from_flash(flash)
