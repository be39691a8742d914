"""The NVS encrypted as ESP-IDF does it (AES-XTS, keys in a partition of their own).

Espressif's own generator makes what the board reads, and decrypts what the board wrote.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import chip as c
import devicekeys
import nvs_reader
import pytest
import tlsdevice
from chip import CLEAN, ODD, TORN, Chip, ChipError
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from stockboard import LAYOUT, blank_flash

KEY = bytes(range(1, 65))
SIZE = 0x6000
NVS_AT, KEYS_AT = 0x9000, 0x3FF000


def keys_partition(key: bytes = KEY) -> bytes:
    return key + struct.pack("<I", zlib.crc32(key, 0xFFFFFFFF)) + b"\xff" * (4096 - 68)


def generator(*words: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "esp_idf_nvs_partition_gen", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def decrypted(partition: bytes, folder: Path, key: bytes = KEY) -> bytes:
    (folder / "keys.bin").write_bytes(keys_partition(key))
    (folder / "in.bin").write_bytes(partition)
    generator("decrypt", folder / "in.bin", folder / "keys.bin", folder / "out.bin")
    return (folder / "out.bin").read_bytes()


def opened(partition: bytes, key: bytes = KEY) -> bytes:
    """The same by `cryptography`: what is erased in the flash stays as it is."""
    image = bytearray(partition)
    for page in range(0, len(image), 4096):
        for at in range(page + 64, page + 64 + 126 * 32, 32):
            if image[at : at + 32] != b"\xff" * 32:
                tweak = struct.pack("<I", at) + bytes(12)
                cipher = Cipher(algorithms.AES(key), modes.XTS(tweak)).decryptor()
                image[at : at + 32] = cipher.update(bytes(image[at : at + 32]))
    return bytes(image)


@pytest.fixture
def chip(tmp_path: Path) -> Iterator[Chip]:
    chip = Chip(tmp_path / "flash.bin", "ENCRYPTED")  # a copy of the library of its own
    chip.lib.nvs_set_key(KEY)
    chip.nvs_offset, chip.nvs_size = NVS_AT, SIZE
    yield chip
    chip.lib.nvs_set_key(None)
    chip.close()


def test_what_espressif_s_generator_encrypts_is_read(chip: Chip, tmp_path: Path) -> None:
    blob = random.Random(1).randbytes(5000)
    (tmp_path / "blob.bin").write_bytes(blob)
    (tmp_path / "keys.bin").write_bytes(keys_partition())
    (tmp_path / "in.csv").write_text(
        "key,type,encoding,value\nfirst,namespace,,\nnumber,data,i32,-77\n"
        f"large,file,binary,{tmp_path / 'blob.bin'}\n"
        "second,namespace,,\nsmall,data,hex2bin,00ff10\n"
    )
    generator(
        "encrypt", tmp_path / "in.csv", tmp_path / "made.bin", hex(SIZE),
        "--inputkey", tmp_path / "keys.bin",
    )  # fmt: skip
    chip.nvs_bytes = (tmp_path / "made.bin").read_bytes()
    assert chip.start() == 0 and chip.status().entries_damaged == 0
    first, second = (chip.namespace(name, create=False) for name in ("first", "second"))
    assert chip.get_i32(first, "number") == -77
    assert chip.get_blob(first, "large") == blob
    assert chip.get_blob(second, "small") == b"\x00\xff\x10"
    chip.set_i32(first, "number", 5)
    chip.set_blob(first, "large", blob[::-1])
    assert chip.restart() == 0
    assert chip.get_i32(first, "number") == 5 and chip.get_blob(first, "large") == blob[::-1]


def test_what_the_board_writes_espressif_s_generator_decrypts(chip: Chip, tmp_path: Path) -> None:
    chip.start()
    namespace = chip.namespace("n")
    rng = random.Random(2)
    model = {("n", f"k{n}"): rng.randbytes(rng.randrange(1, 300)) for n in range(20)}
    for _ in range(16):  # enough to move pages
        for name, key in model:
            model[name, key] = rng.randbytes(rng.randrange(1, 300))
            chip.set_blob(namespace, key, model[name, key])
    assert chip.counts().erases > 2
    found = nvs_reader.read(opened(chip.nvs_bytes), after_power_cut=True)
    assert found == model
    # The generator decrypts the erased entries too; what is written is the same.
    theirs, ours = decrypted(chip.nvs_bytes, tmp_path), opened(chip.nvs_bytes)
    for page in range(0, SIZE, 4096):
        for entry in range(126):
            at = page + 64 + entry * 32
            if theirs[page + 32 + entry // 4] >> (entry % 4 * 2) & 3 == 2:
                assert theirs[at : at + 32] == ours[at : at + 32]
    for value in model.values():
        assert value[:24] not in chip.nvs_bytes or len(value) < 24
    assert b"k1\0" not in chip.nvs_bytes


def test_with_another_key_nothing_is_read_and_that_is_said(chip: Chip) -> None:
    chip.start()
    namespace = chip.namespace("n")
    chip.set_blob(namespace, "secret", bytes(100))
    for key in (KEY[:-1] + b"\0", b"\0" + KEY[1:], None):
        chip.lib.nvs_set_key(key)
        assert chip.restart() == 0
        assert chip.status().entries_damaged > 0 and b"damaged" in chip.status().sentence
        with pytest.raises(ChipError) as missing:
            chip.namespace("n", create=False)
        assert missing.value.code == c.NOT_FOUND
    chip.lib.nvs_set_key(KEY)


@pytest.mark.parametrize("mode", [CLEAN, TORN, ODD])
def test_power_cut_at_every_operation_keeps_the_old_value_or_the_new(chip: Chip, mode: int) -> None:
    chip.start()
    namespace = chip.namespace("n")
    old, new = os.urandom(150), os.urandom(200)
    chip.set_blob(namespace, "key", old)
    chip.set_i32(namespace, "other", 7)
    image = chip.nvs_bytes
    seen = set()
    for number in range(1, 100):
        chip.nvs_bytes = image
        assert chip.restart() == 0
        chip.cut_after(number, mode, number)
        try:
            chip.set_blob(namespace, "key", new)
            break
        except ChipError as error:
            assert error.code == c.POWER_GONE
        assert chip.restart() == 0, number
        value = chip.get_blob(namespace, "key")
        assert value in (old, new) and chip.get_i32(namespace, "other") == 7
        seen.add(value)
        chip.set_blob(namespace, "key", new)
        assert nvs_reader.read(opened(chip.nvs_bytes), after_power_cut=True)["n", "key"] == new
    assert number > 10 and seen == {old, new}


# ---------------------------------------------------------------- on the board


def board_with_keys(path: Path, keys: bytes) -> Path:
    layout = [(kind, sub, at, size, name.decode()) for kind, sub, at, size, name in LAYOUT]
    layout[-1] = (1, 0x81, 0x200000, 0x1FF000, "vfs")
    layout.append((1, 0x04, KEYS_AT, 0x1000, "nvs_keys"))
    blank_flash(path)
    with path.open("r+b") as image:
        image.seek(0x8000)
        image.write(c.table(layout))
        image.seek(KEYS_AT)
        image.write(keys)
    return path


@pytest.mark.parametrize("leg", tlsdevice.OURS)
def test_a_board_with_a_partition_of_keys_keeps_no_private_key_in_the_clear(
    leg: str, tmp_path: Path
) -> None:
    flash = board_with_keys(tmp_path / "flash.bin", keys_partition())
    script = """
import esp32
tlspolicy.key_new(0)
esp32.NVS("outpost").set_blob("id", b"pump-7 is its name")
errors = [attempt(lambda: esp32.Partition("nvs_keys").readblocks(0, bytearray(64))),
          attempt(lambda: esp32.Partition("nvs_keys").writeblocks(0, bytearray(64)))]
report(point=tlspolicy.key_public(0).hex(), errors=errors)
"""
    done = tlsdevice.one(leg, tmp_path, script, flash=flash)
    again = tlsdevice.one(leg, tmp_path, "report(point=tlspolicy.key_public(0).hex())", flash=flash)
    assert again["point"] == done["point"]
    assert done["errors"] == ["OSError: (-269, 'ESP_ERR_NOT_ALLOWED')"] * 2
    image = flash.read_bytes()
    values = nvs_reader.read(opened(image[NVS_AT : NVS_AT + SIZE]))
    blob = values["outpost_keys", "k0"]
    assert isinstance(blob, bytes)
    assert devicekeys.point(devicekeys.private(blob[1:33])).hex() == done["point"]
    for word in (blob[1:17], blob[33:50], b"pump-7", b"outpost"):
        assert word not in image


@pytest.mark.parametrize(
    "keys, sentence",
    [
        (b"\xff" * 4096, "the partition of the NVS keys is empty: make the image with its keys"),
        (b"\0" + keys_partition()[1:], "the partition of the NVS keys is damaged"),
        (keys_partition()[:60] + b"\xff" * 8, "the partition of the NVS keys is damaged"),
    ],
)
def test_a_board_whose_keys_are_gone_says_so_and_touches_nothing(
    keys: bytes, sentence: str, tmp_path: Path
) -> None:
    flash = board_with_keys(tmp_path / "flash.bin", keys)
    chip = Chip(flash, "ENCRYPTED")
    chip.lib.nvs_set_key(KEY)
    chip.start(NVS_AT, SIZE)
    chip.set_blob(chip.namespace("n"), "value", b"kept")
    chip.lib.nvs_set_key(None)
    chip.close()
    before = flash.read_bytes()[NVS_AT : NVS_AT + SIZE]
    command = [tlsdevice.BIN / "outpost32", "--board", "--flash", flash]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=20)
    assert sentence in done.stdout.decode()
    script = """
import esp32
report(errors=[attempt(lambda: esp32.NVS("n")), attempt(lambda: tlspolicy.key_new(0))])
"""
    errors = tlsdevice.one("outpost32", tmp_path, script, flash=flash)["errors"]
    assert all("ESP_ERR_NVS_" in error and "KEY" in error for error in errors), errors
    assert flash.read_bytes()[NVS_AT : NVS_AT + SIZE] == before
