"""Espressif's NVS format: we read what their generator writes, a second reader what we write."""

from __future__ import annotations

import base64
import csv
import random
from pathlib import Path
from types import SimpleNamespace

import chip as c
import nvs_reader
import pytest
from chip import Chip, ChipError
from esp_idf_nvs_partition_gen import nvs_partition_gen


@pytest.fixture
def chip(tmp_path):
    chip = Chip(tmp_path / "flash.bin")
    assert chip.start() == 0
    yield chip
    chip.close()


def generate(folder: Path, rows: list[tuple[str, str, str, str]], size: int = 0x6000) -> bytes:
    source = folder / "nvs.csv"
    with source.open("w", newline="") as file:
        csv.writer(file).writerows([("key", "type", "encoding", "value"), *rows])
    nvs_partition_gen.generate(
        SimpleNamespace(
            input=str(source), output="nvs.bin", size=hex(size), version=2, outdir=str(folder)
        )
    )
    return (folder / "nvs.bin").read_bytes()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_a_partition_of_espressifs_generator_reads_right(chip, tmp_path):
    source = random.Random(2)
    lengths = (1, 31, 32, 33, 200, 3999, 4000, 4001, 9000)
    blobs = {f"blob{n}": source.randbytes(n) for n in lengths}
    rows = [("first", "namespace", "", "")]
    rows += [(key, "data", "base64", b64(value)) for key, value in blobs.items()]
    rows += [("minus", "data", "i32", "-2147483648"), ("plus", "data", "i32", "2147483647")]
    rows += [("second", "namespace", "", ""), ("minus", "data", "i32", "7")]
    rows += [("text", "data", "string", "some text"), ("u8", "data", "u8", "200")]
    rows += [("i64", "data", "i64", "-5"), ("hex", "data", "hex2bin", "00ff10")]
    image = generate(tmp_path, rows, 0x9000)
    chip.start(size=0x9000)
    chip.nvs_bytes = image
    assert chip.restart() == 0
    first, second = chip.namespace("first", create=False), chip.namespace("second", create=False)
    for key, value in blobs.items():
        assert chip.get_blob(first, key) == value
    assert chip.get_i32(first, "minus") == -(2**31) and chip.get_i32(first, "plus") == 2**31 - 1
    assert chip.get_i32(second, "minus") == 7
    assert chip.get_blob(second, "hex") == b"\x00\xff\x10"
    for key in ("text", "u8", "i64"):  # reading a value as another type: not found
        for read in (chip.get_i32, chip.get_blob):
            with pytest.raises(ChipError) as err:
                read(second, key)
            assert err.value.code == c.NOT_FOUND
    assert chip.nvs_bytes == image, "reading changed the partition"
    assert chip.status().sentence == b""


def test_a_generated_partition_is_written_on_without_losing_anything_in_it(chip, tmp_path):
    keep = random.Random(3).randbytes(6000)
    rows = [("outpost", "namespace", "", ""), ("keep", "data", "base64", b64(keep))]
    rows += [("text", "data", "string", "words"), ("floor", "data", "i32", "1")]
    chip.nvs_bytes = generate(tmp_path, rows)
    assert chip.restart() == 0
    ns = chip.namespace("outpost")
    for n in range(2000):
        chip.set_i32(ns, "floor", n)
        chip.set_blob(ns, "state", bytes([n % 256]) * (n % 90))
    assert chip.restart() == 0
    assert nvs_reader.read(chip.nvs_bytes) == {
        ("outpost", "keep"): keep,
        ("outpost", "text"): "words",
        ("outpost", "floor"): 1999,
        ("outpost", "state"): bytes([1999 % 256]) * (1999 % 90),
    }


@pytest.mark.parametrize(
    "length", [0, 1, 31, 32, 33, 64, 1984, 3968, 3999, 4000, 4001, 8000, 15000]
)
def test_a_blob_of_any_length_is_read_by_the_second_reader(chip, length):
    ns = chip.namespace("n")
    value = random.Random(length).randbytes(length)
    chip.set_blob(ns, "blob", value)
    assert nvs_reader.read(chip.nvs_bytes) == {("n", "blob"): value}
    assert chip.get_blob(ns, "blob") == value
    chip.restart()
    assert chip.get_blob(ns, "blob") == value


def test_a_blob_begins_in_what_is_left_of_a_page_and_goes_on_in_the_next(chip):
    ns = chip.namespace("n")
    first, second = bytes(2000), bytes(range(256)) * 16
    chip.set_blob(ns, "first", first)
    chip.set_blob(ns, "second", second)
    assert [chip.image[0x9000 + 4096 * n] != 0xFF for n in range(4)] == [True, True, False, False]
    assert chip.get_blob(ns, "second") == second


def test_the_answers_to_wrong_use_are_espressifs(chip):
    ns = chip.namespace("n")
    chip.set_i32(ns, "i", -5)
    chip.set_blob(ns, "b", b"hello")
    for call, code in (
        (lambda: chip.get_i32(ns, "none"), c.NOT_FOUND),
        (lambda: chip.get_blob(ns, "i"), c.NOT_FOUND),
        (lambda: chip.get_i32(ns, "b"), c.NOT_FOUND),
        (lambda: chip.get_blob(ns, "b", room=4), c.INVALID_LENGTH),
        (lambda: chip.erase_key(ns, "none"), c.NOT_FOUND),
        (lambda: chip.namespace("n" * 16), c.KEY_TOO_LONG),
        (lambda: chip.namespace("none", create=False), c.NOT_FOUND),
        (lambda: chip.set_i32(ns, "k" * 16, 1), c.KEY_TOO_LONG),
        (lambda: chip.set_blob(ns, "k" * 16, b"1"), c.KEY_TOO_LONG),
        (lambda: chip.set_blob(ns, "big", bytes(5 * 4000 + 1)), c.VALUE_TOO_LONG),
    ):
        with pytest.raises(ChipError) as err:
            call()
        assert err.value.code == code
    assert chip.get_i32(ns, "i") == -5 and chip.get_blob(ns, "b") == b"hello"


def test_of_a_key_of_16_characters_only_15_are_looked_at(chip):
    """Why a stock board seems to take one: the key of 15 had that value, so nothing is written."""
    ns = chip.namespace("n")
    chip.set_i32(ns, "k" * 15, 1)
    before = chip.nvs_bytes
    chip.set_i32(ns, "k" * 16, 1)
    assert chip.get_i32(ns, "k" * 16) == 1
    with pytest.raises(ChipError) as err:
        chip.set_i32(ns, "k" * 16, 2)
    assert err.value.code == c.KEY_TOO_LONG
    assert chip.nvs_bytes == before and chip.get_i32(ns, "k" * 15) == 1


def test_writing_the_same_value_again_touches_no_flash(chip):
    ns = chip.namespace("n")
    values: dict[str, int | bytes] = {"i": 7, "b": bytes(5000), "e": b""}
    for key, value in values.items():
        chip.set(ns, key, value)
    before = chip.lib.flash_operations()
    for key, value in values.items():
        chip.set(ns, key, value)
    chip.restart()
    assert chip.lib.flash_operations() == before


def test_namespaces_keep_their_keys_apart(chip):
    numbers = {name: chip.namespace(name) for name in ("a", "b", "n" * 15)}
    assert len(set(numbers.values())) == 3
    for name, ns in numbers.items():
        chip.set_blob(ns, "key", name.encode())
    chip.restart()
    for name in numbers:
        assert chip.get_blob(chip.namespace(name), "key") == name.encode()
    chip.erase_key(numbers["a"], "key")
    assert chip.get_blob(numbers["b"], "key") == b"b"


def test_254_namespaces_are_the_limit(chip):
    for n in range(254):
        chip.namespace(f"n{n}")
    with pytest.raises(ChipError) as err:
        chip.namespace("more")
    assert err.value.code == c.NOT_ENOUGH_SPACE


def test_a_value_of_another_type_replaces_the_old_one(chip):
    ns = chip.namespace("n")
    for value in (1, b"blob", 2, bytes(5000), 3):
        chip.set(ns, "key", value)
        assert nvs_reader.read(chip.nvs_bytes) == {("n", "key"): value}


def test_a_partition_that_was_never_written_is_empty_and_stays_untouched_until_it_is(chip):
    assert chip.nvs_bytes == b"\xff" * 0x6000
    with pytest.raises(ChipError):
        chip.namespace("n", create=False)
    assert chip.nvs_bytes == b"\xff" * 0x6000


def test_the_radios_settings_go_into_the_nvs_once(chip):
    assert chip.lib.nvs_wifi_init() == 0
    keys = {key for space, key in nvs_reader.read(chip.nvs_bytes) if space == "nvs.net80211"}
    assert {"opmode", "sta.ssid", "sta.pswd", "sta.chan"} <= keys
    before = chip.lib.flash_operations()
    assert chip.lib.nvs_wifi_init() == 0
    assert chip.lib.flash_operations() == before


def test_before_the_start_nothing_answers(tmp_path):
    chip = Chip(tmp_path / "flash.bin")
    for call in (lambda: chip.namespace("n"), lambda: chip.set_i32(1, "k", 1)):
        with pytest.raises(ChipError) as err:
            call()
        assert err.value.code == c.NOT_INITIALIZED
    chip.close()


@pytest.mark.parametrize("size", [0x2000, 0x6800, 65 * 0x1000])
def test_a_partition_of_an_impossible_size_is_refused(chip, size):
    assert chip.start(size=size) == c.INVALID_SIZE
