"""The loader in the chip's ROM: what answers esptool while the board is in download mode.

It owns the state of one download: registers, the write in progress, the speed. Every command is
judged by its length and its checksum before anything is done; what makes no sense is answered with
the ROM's own error and changes nothing. Flash is written as the ROM does: erased where a write
begins, then programmed. It never takes code into RAM: no flasher stub starts.
"""

import hashlib
import struct
import zlib
from collections.abc import Callable
from functools import reduce
from operator import xor

from outpost_tools.serialport.chips import Chip
from outpost_tools.serialport.norflash import NorFlash
from outpost_tools.serialport.slip import Packets, framed
from outpost_tools.serialport.spi import Registers

FLASH_BEGIN, FLASH_DATA, FLASH_END = 0x02, 0x03, 0x04
MEM_BEGIN = 0x05
SYNC, WRITE_REG, READ_REG = 0x08, 0x09, 0x0A
SPI_SET_PARAMS, SPI_ATTACH, READ_FLASH_SLOW = 0x0B, 0x0D, 0x0E
CHANGE_BAUDRATE, DEFL_BEGIN, DEFL_DATA, DEFL_END = 0x0F, 0x10, 0x11, 0x12
SPI_FLASH_MD5, GET_SECURITY_INFO = 0x13, 0x14

INVALID, FAILED, BAD_CHECKSUM = 0x05, 0x06, 0x07
WRITE_FAILED, READ_FAILED, READ_TOO_LONG, DEFLATE_FAILED = 0x08, 0x09, 0x0A, 0x0B

SYNC_BODY = b"\x07\x07\x12\x20" + b"\x55" * 32
SYNC_VALUE = 0x20120707
SYNC_ANSWERS = 8
CHECKSUM_START = 0xEF
SLOW_READ_BYTES = 64
BLOCK_MAX_BYTES = 0x4000
SIZE_AT_START = 2 << 20  # what the ROM takes the flash for until it is told
SIZE_MAX = 16 << 20  # addresses have 24 bits

Answer = tuple[int, bytes]  # the value, and what stands before the status


class Refused(Exception):
    """The ROM's error code for a command that it does not carry out."""

    def __init__(self, code: int) -> None:
        super().__init__(f"error {code:#x}")
        self.code = code


class Rom:
    def __init__(self, chip: Chip, mac: bytes, flash: NorFlash) -> None:
        self._chip = chip
        self._flash = flash
        self._registers = Registers(chip, mac, flash)
        self._packets = Packets()
        self._synced = False
        self._attached = False
        self._size = SIZE_AT_START
        self._write: _Write | None = None
        self.left: str | None = None  # "run" or "reset", once it is told to leave
        self._commands: dict[int, Callable[[bytes], Answer]] = {
            FLASH_BEGIN: lambda body: self._begin(body, _Write),
            FLASH_DATA: self._data,
            FLASH_END: self._end,
            MEM_BEGIN: self._mem_begin,
            WRITE_REG: self._write_registers,
            READ_REG: self._read_register,
            SPI_SET_PARAMS: self._set_params,
            SPI_ATTACH: self._attach,
            READ_FLASH_SLOW: self._read_slow,
            CHANGE_BAUDRATE: self._change_baud,
            DEFL_BEGIN: lambda body: self._begin(body, _Inflating),
            DEFL_DATA: self._data,
            DEFL_END: self._end,
            SPI_FLASH_MD5: self._md5,
            GET_SECURITY_INFO: self._security,
        }
        if not chip.knows_security:
            del self._commands[GET_SECURITY_INFO]

    @property
    def baud(self) -> int | None:
        """The speed it listens at; None before it has found it out by the first packet."""
        return self._registers.baud if self._synced else None

    def feed(self, data: bytes, baud: int) -> bytes:
        """What came in at that speed; gives what goes out."""
        if self.baud not in (None, baud):
            return b""  # at another speed all bytes are noise
        answers = b""
        for packet in self._packets.feed(data):
            if self.left is None:
                answers += self._packet(packet, baud)
        return answers

    def _packet(self, packet: bytes, baud: int) -> bytes:
        if len(packet) < 8 or packet[0] != 0:
            return b""
        _, code, length, checksum = struct.unpack("<BBHI", packet[:8])
        body = packet[8:]
        if code == SYNC and body == SYNC_BODY:
            self._synced = True
            self._registers.baud = baud
            return _answer(SYNC, SYNC_VALUE, b"") * SYNC_ANSWERS
        if not self._synced:
            return b""
        if length != len(body) or code not in self._commands:
            return _answer(0, 0, b"", INVALID)
        try:
            if code in (FLASH_DATA, DEFL_DATA):
                body = _checked(body, checksum)
            value, content = self._commands[code](body)
        except Refused as why:
            return _answer(code, 0, b"", why.code)
        except struct.error:
            return _answer(code, 0, b"", INVALID)
        return _answer(code, value, content)

    # ---- flash

    def _begin(self, body: bytes, kind: "type[_Write]") -> Answer:
        size, blocks, block_bytes, offset = _numbers(body[:16], 4)
        if self._chip.name != "ESP32":
            (encrypted,) = _numbers(body[16:], 1)
            if encrypted:
                raise Refused(FAILED)
        if block_bytes > BLOCK_MAX_BYTES:
            raise Refused(INVALID)
        self._reach(offset, size, WRITE_FAILED)
        self._write = None
        self._flash.erase_range(offset, size)
        self._write = kind(self._flash, offset, size, blocks, block_bytes)
        return 0, b""

    def _data(self, body: bytes) -> Answer:
        if self._write is None:
            raise Refused(FAILED)
        self._write.take(int.from_bytes(body[:4], "little"), body[4:])
        return 0, b""

    def _end(self, body: bytes) -> Answer:
        (stays,) = _numbers(body, 1)
        self._write = None
        self.left = "run" if stays else "reset"
        return 0, b""

    def _read_slow(self, body: bytes) -> Answer:
        offset, length = _numbers(body, 2)
        if length > SLOW_READ_BYTES:
            raise Refused(READ_TOO_LONG)
        self._reach(offset, length, READ_FAILED)
        return 0, self._flash.read(offset, length).ljust(SLOW_READ_BYTES, b"\0")

    def _md5(self, body: bytes) -> Answer:
        offset, length, _, _ = _numbers(body, 4)
        self._reach(offset, length, READ_FAILED)
        digest = hashlib.md5(self._flash.read(offset, length), usedforsecurity=False)
        return 0, digest.hexdigest().encode()

    def _reach(self, offset: int, length: int, code: int) -> None:
        if not self._attached or offset + length > self._size:
            raise Refused(code)

    def _attach(self, body: bytes) -> Answer:
        _numbers(body, 2)
        self._attached = True
        return 0, b""

    def _set_params(self, body: bytes) -> Answer:
        self._size = min(_numbers(body, 6)[1], SIZE_MAX)
        return 0, b""

    # ---- registers, speed, identity

    def _read_register(self, body: bytes) -> Answer:
        (address,) = _numbers(body, 1)
        return self._registers.read(address), b""

    def _write_registers(self, body: bytes) -> Answer:
        if not body or len(body) % 16:
            raise Refused(INVALID)
        for address, value, mask, _delay in struct.iter_unpack("<IIII", body):
            self._registers.write(address, value, mask)
        return 0, b""

    def _change_baud(self, body: bytes) -> Answer:
        baud, _ = _numbers(body, 2)
        if not baud:
            raise Refused(INVALID)
        self._registers.baud = baud
        return 0, b""

    def _security(self, body: bytes) -> Answer:
        if body:
            raise Refused(INVALID)
        return 0, self._chip.security_info()

    def _mem_begin(self, body: bytes) -> Answer:
        """Nothing is taken into RAM: esptool would wait for its stub's first word for ever."""
        _numbers(body, 4)
        raise Refused(FAILED)


class _Write:
    """Blocks of one size, one after the other; the same one again is written again."""

    def __init__(
        self, flash: NorFlash, offset: int, size: int, blocks: int, block_bytes: int
    ) -> None:
        self._flash = flash
        self._offset = offset
        self._end = offset + -(-size // 4096) * 4096
        self._blocks = blocks
        self._block_bytes = block_bytes

    def take(self, number: int, data: bytes) -> None:
        if number >= self._blocks or len(data) > self._block_bytes:
            raise Refused(FAILED)
        at = self._offset + number * self._block_bytes
        if at + len(data) > self._end:
            raise Refused(WRITE_FAILED)
        self._flash.program(at, data)


class _Inflating(_Write):
    """A zlib stream in blocks: in order, and never more than was announced."""

    def __init__(
        self, flash: NorFlash, offset: int, size: int, blocks: int, block_bytes: int
    ) -> None:
        super().__init__(flash, offset, size, blocks, block_bytes)
        self._stream = zlib.decompressobj()
        self._next = 0
        self._at = offset

    def take(self, number: int, data: bytes) -> None:
        if number + 1 == self._next:
            return  # its answer was lost, and it came again
        if number != self._next or number >= self._blocks or len(data) > self._block_bytes:
            raise Refused(FAILED)
        room = self._end - self._at
        try:
            plain = self._stream.decompress(data, room + 1)
        except zlib.error:
            raise Refused(DEFLATE_FAILED) from None
        if len(plain) > room or self._stream.unused_data:
            raise Refused(DEFLATE_FAILED)
        self._flash.program(self._at, plain)
        self._at += len(plain)
        self._next += 1


def _numbers(body: bytes, count: int) -> tuple[int, ...]:
    return struct.unpack(f"<{count}I", body)


def _checked(body: bytes, checksum: int) -> bytes:
    """Number and content of a block whose length and checksum are right."""
    length, number, _, _ = _numbers(body[:16], 4)
    content = body[16:]
    if length != len(content):
        raise Refused(INVALID)
    if reduce(xor, content, CHECKSUM_START) != checksum:
        raise Refused(BAD_CHECKSUM)
    return number.to_bytes(4, "little") + content


def _answer(code: int, value: int, content: bytes, error: int = 0) -> bytes:
    status = bytes([1 if error else 0, error, 0, 0])
    body = content + status
    return framed(struct.pack("<BBHI", 1, code, len(body), value) + body)
