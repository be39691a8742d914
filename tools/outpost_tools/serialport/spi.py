"""The SPI controller's registers, and what the flash chip answers to the commands sent with them.

It owns the registers' values since the last reset. It knows the commands that every SPI flash has
(JEDEC); any other is answered as by an empty wire. It never changes the flash without the write
enable that goes before.
"""

import math

from outpost_tools.serialport.chips import CRYSTAL_HZ, Chip
from outpost_tools.serialport.norflash import SECTOR_BYTES, NorFlash

COMMAND_GO = 1 << 18
USR_ADDRESS, USR_MISO, USR_MOSI = 1 << 30, 1 << 28, 1 << 27
DATA_BYTES = 64
REGISTERS_MAX = 4096  # what a stranger writes is kept up to here

WRITE_STATUS, PROGRAM, READ, WRITE_DISABLE, READ_STATUS, WRITE_ENABLE = 1, 2, 3, 4, 5, 6
READ_STATUS_2, READ_STATUS_3, READ_SFDP, READ_ID = 0x35, 0x15, 0x5A, 0x9F
ERASE_BYTES = {0x20: SECTOR_BYTES, 0x52: 32 << 10, 0xD8: 64 << 10}
ERASE_ALL = (0x60, 0xC7)
WRITABLE = 2  # in the status register
SFDP = b"SFDP\x06\x01\x00\xff".ljust(0x10, b"\xff") + b"\xef"  # ends with the maker
MAKER = 0xEF  # Winbond's, of type 0x40: the chip on most modules


class Registers:
    """Every register that the loader can read or write."""

    def __init__(self, chip: Chip, mac: bytes, flash: NorFlash) -> None:
        self._chip = chip
        self._flash = flash
        self._values = chip.registers(mac)
        self._writable = False
        self.baud = 115200

    def read(self, address: int) -> int:
        if address == self._chip.uart_divider:
            return CRYSTAL_HZ // self.baud
        return self._values.get(address, 0)

    def write(self, address: int, value: int, mask: int) -> None:
        if address not in self._values and len(self._values) >= REGISTERS_MAX:
            return
        self._values[address] = self._values.get(address, 0) & ~mask | value & mask
        if address == self._chip.spi.base and self._values[address] & COMMAND_GO:
            self._transfer()
            self._values[address] &= ~COMMAND_GO

    def _transfer(self) -> None:
        """One command with the address and data that stand in the registers."""
        spi = self._chip.spi
        usr, usr1, usr2 = (self.read(spi.base + at) for at in (spi.usr, spi.usr1, spi.usr2))
        address = 0
        if usr & USR_ADDRESS:
            address = self.read(spi.base + 4)
            if spi.address_at_top:
                address >>= 32 - ((usr1 >> 26) + 1)
        out = b""
        if usr & USR_MOSI:
            out = self._data(self.read(spi.base + spi.mosi_length))
        wanted = 0
        if usr & USR_MISO:
            bits = (self.read(spi.base + spi.miso_length) & 0x3FF) + 1
            wanted = min(math.ceil(bits / 8), DATA_BYTES)
        answer = self._command(usr2 & 0xFF, address & 0xFFFFFF, out, wanted)
        padded = answer[:wanted].ljust(wanted, b"\xff").ljust(math.ceil(wanted / 4) * 4, b"\0")
        for at in range(0, len(padded), 4):
            word = int.from_bytes(padded[at : at + 4], "little")
            self._values[spi.base + spi.data + at] = word

    def _data(self, bits: int) -> bytes:
        length = min(((bits & 0x3FF) + 8) // 8, DATA_BYTES)
        base = self._chip.spi.base + self._chip.spi.data
        words = [self.read(base + at).to_bytes(4, "little") for at in range(0, DATA_BYTES, 4)]
        return b"".join(words)[:length]

    def _command(self, code: int, address: int, data: bytes, wanted: int) -> bytes:
        if code == READ_ID:
            capacity = self._flash.size.bit_length() - 1
            return bytes([MAKER, 0x40, capacity])
        if code == READ_SFDP:
            return SFDP[address:]
        if code == READ:
            return self._flash.read(address, wanted)
        if code == READ_STATUS:
            return bytes([WRITABLE if self._writable else 0])
        if code in (READ_STATUS_2, READ_STATUS_3):
            return b"\0"
        if code in (WRITE_ENABLE, WRITE_DISABLE):
            self._writable = code == WRITE_ENABLE
        elif self._writable and (code in ERASE_BYTES or code in ERASE_ALL or code == PROGRAM):
            self._writable = False
            self._change(code, address, data)
        return b""

    def _change(self, code: int, address: int, data: bytes) -> None:
        if code in ERASE_ALL:
            self._flash.erase_range(0, self._flash.size)
        elif code == PROGRAM:
            self._flash.program(address, data)
        else:
            size = ERASE_BYTES[code]
            self._flash.erase_range(address - address % size, size)
