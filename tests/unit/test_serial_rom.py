"""The loader in ROM and the flash behind it, byte by byte: what it does, and what it will not."""

from __future__ import annotations

import hashlib
import struct
import zlib
from functools import reduce
from operator import xor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from outpost_tools.errors import OutpostError
from outpost_tools.serialport import rom as roms
from outpost_tools.serialport.chips import CHIPS
from outpost_tools.serialport.norflash import SECTOR_BYTES, NorFlash, PowerCut, blank
from outpost_tools.serialport.rom import Rom
from outpost_tools.serialport.slip import PACKET_MAX_BYTES, Packets, framed

MAC = bytes.fromhex("240ac4000001")
BAUD = 115200
BLOCK = 0x400
MIB = 1 << 20


class Loader:
    """One chip in download mode, asked packet by packet."""

    def __init__(self, path: Path, chip: str = "esp32", on_operation=None) -> None:
        self.flash = NorFlash(path, on_operation)
        self.rom = Rom(CHIPS[chip], MAC, self.flash)
        self.baud = BAUD

    def answers(self, data: bytes) -> list[bytes]:
        return Packets().feed(self.rom.feed(data, self.baud))

    def ask(self, code: int, body: bytes = b"", checksum: int = 0) -> tuple[int, bytes, int]:
        """Value, content and error of the one answer."""
        packet = struct.pack("<BBHI", 0, code, len(body), checksum) + body
        (answer,) = self.answers(framed(packet))
        direction, op, length, value = struct.unpack("<BBHI", answer[:8])
        content, status = answer[8:-4], answer[-4:]
        assert direction == 1 and length == len(answer) - 8 and status[2:] == b"\0\0"
        assert bool(status[0]) == bool(status[1]) and op in (code, 0)
        return value, content, status[1]

    def block(self, code: int, number: int, data: bytes) -> int:
        body = struct.pack("<IIII", len(data), number, 0, 0) + data
        return self.ask(code, body, reduce(xor, data, 0xEF))[2]

    def ready(self) -> Loader:
        assert len(self.answers(framed(b"\0\x08\x24\0\0\0\0\0" + roms.SYNC_BODY))) == 8
        assert self.ask(roms.SPI_ATTACH, bytes(8))[2] == 0
        params = struct.pack("<6I", 0, self.flash.size, 65536, 4096, 256, 0xFFFF)
        assert self.ask(roms.SPI_SET_PARAMS, params)[2] == 0
        return self


def begin(size: int, offset: int, block_bytes: int = BLOCK, more: bytes = b"") -> bytes:
    return struct.pack("<IIII", size, -(-size // block_bytes), block_bytes, offset) + more


@pytest.fixture
def loader(tmp_path: Path):
    path = tmp_path / "flash.bin"
    blank(path, 4)
    made = Loader(path).ready()
    yield made
    made.flash.close()


# ---------------------------------------------------------------- flash is NOR


def test_a_program_only_clears_bits_and_an_erase_sets_a_sector(loader) -> None:
    loader.flash.program(100, b"\xf0" * 300)
    loader.flash.program(100, b"\x3c" * 300)
    assert loader.flash.read(99, 302) == b"\xff" + b"\x30" * 300 + b"\xff"
    loader.flash.erase(SECTOR_BYTES)
    assert loader.flash.read(100, 1) == b"\x30"
    loader.flash.erase(200)
    assert loader.flash.read(0, SECTOR_BYTES) == b"\xff" * SECTOR_BYTES


def test_each_page_and_each_sector_is_one_operation(tmp_path: Path) -> None:
    path, done = tmp_path / "flash.bin", []
    blank(path, 1)
    flash = NorFlash(path, lambda: done.append(1))
    flash.program(250, bytes(10))
    assert len(done) == 2
    flash.erase_range(4000, 200)
    assert len(done) == 4
    flash.close()


@pytest.mark.parametrize("how", ["clean", "torn", "odd"])
def test_a_power_cut_leaves_bits_between_before_and_after(how: str, tmp_path: Path) -> None:
    path = tmp_path / "flash.bin"
    blank(path, 1)
    flash = NorFlash(path, lambda: how)
    with pytest.raises(PowerCut):
        flash.program(0, bytes(256))
    left = flash.read(0, 512)
    flash.close()
    assert left[256:] == b"\xff" * 256
    if how == "clean":
        assert left == b"\xff" * 512
    else:
        assert left[:256] not in (bytes(256), b"\xff" * 256)


def test_two_boards_never_share_a_flash(loader) -> None:
    with pytest.raises(OutpostError, match="in use by another board"):
        NorFlash(loader.flash._file.name and Path(loader.flash._file.name))


def test_a_file_of_another_size_is_no_flash_and_a_blank_one_overwrites_nothing(tmp_path) -> None:
    path = tmp_path / "short.bin"
    path.write_bytes(b"mine")
    with pytest.raises(OutpostError, match="has 4 bytes"):
        NorFlash(path)
    with pytest.raises(OutpostError, match="there already"):
        blank(path, 4)
    with pytest.raises(OutpostError, match="1, 2, 4, 8, 16 MiB"):
        blank(tmp_path / "other.bin", 3)
    assert path.read_bytes() == b"mine"


# ---------------------------------------------------------------- writing


def test_blocks_are_written_where_they_belong_and_their_sum_is_told(loader) -> None:
    data = bytes(range(256)) * 8
    assert loader.ask(roms.FLASH_BEGIN, begin(len(data), 0x3000))[2] == 0
    assert [loader.block(roms.FLASH_DATA, i, data[i * BLOCK :][:BLOCK]) for i in (0, 1)] == [0, 0]
    _, digest, _ = loader.ask(roms.SPI_FLASH_MD5, struct.pack("<4I", 0x3000, len(data), 0, 0))
    assert digest.decode() == hashlib.md5(data).hexdigest()
    _, content, _ = loader.ask(roms.READ_FLASH_SLOW, struct.pack("<II", 0x3001, 3))
    assert content == data[1:4].ljust(64, b"\0")


def test_a_deflated_stream_is_written_and_its_last_block_may_come_twice(loader) -> None:
    plain = bytes(1000) + bytes(range(256)) * 20
    packed = zlib.compress(plain, 9)
    half = len(packed) // 2
    body = struct.pack("<IIII", len(plain), 2, half + 1, 0)
    assert loader.ask(roms.DEFL_BEGIN, body)[2] == 0
    assert loader.block(roms.DEFL_DATA, 0, packed[:half]) == 0
    assert loader.block(roms.DEFL_DATA, 0, packed[:half]) == 0
    assert loader.block(roms.DEFL_DATA, 1, packed[half:]) == 0
    assert loader.flash.read(0, len(plain)) == plain


def test_more_than_was_announced_is_not_written(loader) -> None:
    packed = zlib.compress(bytes(4 * MIB), 9)
    body = struct.pack("<IIII", SECTOR_BYTES, 99, 0x4000, 0)
    assert loader.ask(roms.DEFL_BEGIN, body)[2] == 0
    assert loader.block(roms.DEFL_DATA, 0, packed) == roms.DEFLATE_FAILED
    assert loader.flash.read(0, 2 * SECTOR_BYTES) == b"\xff" * 2 * SECTOR_BYTES
    assert loader.ask(roms.FLASH_BEGIN, begin(BLOCK, 0))[2] == 0
    assert loader.block(roms.FLASH_DATA, 1, bytes(BLOCK)) == roms.FAILED
    assert loader.block(roms.FLASH_DATA, 0, bytes(BLOCK + 1)) == roms.FAILED


def test_what_is_no_stream_and_what_comes_out_of_order_is_refused(loader) -> None:
    body = struct.pack("<IIII", SECTOR_BYTES, 9, BLOCK, 0)
    assert loader.block(roms.FLASH_DATA, 0, b"early") == roms.FAILED
    assert loader.ask(roms.DEFL_BEGIN, body)[2] == 0
    assert loader.block(roms.DEFL_DATA, 1, b"late") == roms.FAILED
    assert loader.block(roms.DEFL_DATA, 0, b"no zlib") == roms.DEFLATE_FAILED


def test_a_block_that_the_line_changed_is_not_written(loader) -> None:
    assert loader.ask(roms.FLASH_BEGIN, begin(BLOCK, 0))[2] == 0
    body = struct.pack("<IIII", 4, 0, 0, 0) + b"data"
    assert loader.ask(roms.FLASH_DATA, body, 0)[2] == roms.BAD_CHECKSUM
    assert loader.ask(roms.FLASH_DATA, body + b"!", 0)[2] == roms.INVALID
    assert loader.flash.read(0, 8) == b"\xff" * 8


@pytest.mark.parametrize(("offset", "size"), [(4 * MIB, 1), (4 * MIB - 1, 2), (0, 0xFFFFFFFF)])
def test_nothing_is_done_beyond_the_end_of_the_flash(loader, offset: int, size: int) -> None:
    assert loader.ask(roms.FLASH_BEGIN, begin(size, offset))[2] == roms.WRITE_FAILED
    assert loader.ask(roms.SPI_FLASH_MD5, struct.pack("<4I", offset, size, 0, 0))[2]
    assert loader.ask(roms.READ_FLASH_SLOW, struct.pack("<II", offset, size))[2]
    assert loader.flash.read(0, 4 * MIB) == b"\xff" * (4 * MIB)


def test_a_flash_that_is_not_attached_is_not_written(tmp_path: Path) -> None:
    blank(tmp_path / "flash.bin", 4)
    loader = Loader(tmp_path / "flash.bin")
    assert len(loader.answers(framed(b"\0\x08\x24\0\0\0\0\0" + roms.SYNC_BODY))) == 8
    assert loader.ask(roms.FLASH_BEGIN, begin(BLOCK, 0))[2] == roms.WRITE_FAILED
    loader.flash.close()


def test_the_newer_chips_take_one_number_more(tmp_path: Path) -> None:
    blank(tmp_path / "flash.bin", 4)
    loader = Loader(tmp_path / "flash.bin", "esp32c3").ready()
    assert loader.ask(roms.FLASH_BEGIN, begin(BLOCK, 0))[2] == roms.INVALID
    assert loader.ask(roms.FLASH_BEGIN, begin(BLOCK, 0, more=bytes(4)))[2] == 0
    # No key is burnt: it can encrypt nothing.
    assert loader.ask(roms.FLASH_BEGIN, begin(BLOCK, 0, more=b"\1\0\0\0"))[2] == roms.FAILED
    loader.flash.close()


# ---------------------------------------------------------------- the line


def test_nothing_is_answered_before_the_speed_is_found_out(tmp_path: Path) -> None:
    blank(tmp_path / "flash.bin", 4)
    loader = Loader(tmp_path / "flash.bin")
    assert loader.rom.feed(framed(b"\0\x0a\x04\0\0\0\0\0" + bytes(4)), BAUD) == b""
    loader.ready()
    assert loader.ask(roms.READ_REG, struct.pack("<I", 0x40001000))[0] == CHIPS["esp32"].magic
    loader.flash.close()


def test_after_a_change_of_speed_the_old_one_is_noise(loader) -> None:
    assert loader.ask(roms.CHANGE_BAUDRATE, struct.pack("<II", 921600, 0))[2] == 0
    packet = framed(b"\0\x0a\x04\0\0\0\0\0" + bytes(4))
    assert loader.rom.feed(packet, BAUD) == b""
    loader.baud = 921600
    assert len(loader.answers(packet)) == 1


def test_an_unknown_command_gets_the_roms_own_refusal(loader) -> None:
    assert loader.ask(0xD0)[2] == roms.INVALID
    assert loader.ask(roms.GET_SECURITY_INFO)[2] == roms.INVALID  # the first ESP32 has none
    assert loader.ask(roms.READ_REG, b"abc")[2] == roms.INVALID


def test_noise_between_packets_costs_at_most_the_packet_it_touches(loader) -> None:
    packet = framed(b"\0\x0a\x04\0\0\0\0\0" + bytes(4))
    assert len(loader.answers(packet + b"noise\xdb\x00" + packet + packet)) == 3
    assert loader.answers(b"\xc0" + b"x" * (PACKET_MAX_BYTES + 10)) == []
    assert len(loader.answers(packet)) == 1


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.binary(max_size=60), max_size=8), st.sampled_from([True, False]))
def test_no_bytes_whatever_stop_the_loader_or_write_without_a_begin(
    loader, pieces: list[bytes], whole: bool
) -> None:
    codes = [c for c in range(0x20) if c not in (roms.FLASH_BEGIN, roms.DEFL_BEGIN)]
    for i, piece in enumerate(pieces):
        code = codes[i * 7 % len(codes)]
        if code in (roms.FLASH_END, roms.DEFL_END, roms.CHANGE_BAUDRATE):
            continue
        packet = struct.pack("<BBHI", 0, code, len(piece), 0) + piece
        loader.rom.feed(framed(packet) if whole else piece, BAUD)
    loader.rom.feed(b"\xc0", BAUD)
    assert len(loader.answers(framed(b"\0\x08\x24\0\0\0\0\0" + roms.SYNC_BODY))) == 8
    assert loader.flash.read(0, 4 * MIB) == b"\xff" * (4 * MIB)


# ---------------------------------------------------------------- the flash's own commands


def spi(loader: Loader, code: int, address: int | None = None, read_bits: int = 0, data=b"") -> int:
    """One command through the controller's registers, as esptool sends it."""
    base, put = 0x3FF42000, []
    flags = 1 << 31
    if read_bits:
        flags |= 1 << 28
        put.append((base + 0x2C, read_bits - 1))
    if data:
        flags |= 1 << 27
        put += [(base + 0x28, len(data) * 8 - 1)]
        put += [(base + 0x80, int.from_bytes(data, "little"))]
    if address is not None:
        flags |= 1 << 30
        put += [(base + 0x20, 23 << 26), (base + 4, address << 8)]
    put += [(base + 0x1C, flags), (base + 0x24, 7 << 28 | code), (base, 1 << 18)]
    for register, value in put:
        body = struct.pack("<IIII", register, value, 0xFFFFFFFF, 0)
        assert loader.ask(roms.WRITE_REG, body)[2] == 0
    assert not loader.ask(roms.READ_REG, struct.pack("<I", base))[0] & 1 << 18
    return loader.ask(roms.READ_REG, struct.pack("<I", base + 0x80))[0]


def test_the_flash_is_identified_erased_and_programmed_by_its_own_commands(loader) -> None:
    assert spi(loader, 0x9F, read_bits=24) == 0x1640EF
    loader.flash.program(0x5000, bytes(SECTOR_BYTES * 2))
    spi(loader, 0x20, 0x5000)
    assert loader.flash.read(0x5000, 4) == bytes(4)  # not without the write enable
    spi(loader, 0x06)
    assert spi(loader, 0x05, read_bits=8) == 2
    spi(loader, 0x20, 0x5000)
    assert loader.flash.read(0x5000, SECTOR_BYTES) == b"\xff" * SECTOR_BYTES
    assert loader.flash.read(0x6000, SECTOR_BYTES) == bytes(SECTOR_BYTES)
    spi(loader, 0x06)
    spi(loader, 0x02, 0x5010, data=b"abcd")
    assert spi(loader, 0x03, 0x5010, read_bits=32) == int.from_bytes(b"abcd", "little")
    spi(loader, 0x06)
    spi(loader, 0xC7)
    assert loader.flash.read(0, 4 * MIB) == b"\xff" * (4 * MIB)
