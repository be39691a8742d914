"""What tells one chip of the ESP32 family from another, as far as its ROM loader shows it.

It owns the numbers: register addresses, identification, what stands in the eFuses. It never holds
state: `registers` gives a fresh set of those that read as something other than zero.
"""

import struct
from dataclasses import dataclass, field

MAGIC_ADDRESS = 0x40001000  # a word of the ROM that differs from chip to chip
APB_CTL_DATE = 0x3FF6607C
RTC_CALIBRATION = 0x3FF5F06C
CRYSTAL_HZ = 40_000_000


@dataclass(frozen=True)
class SpiRegisters:
    """The controller that the flash hangs on: its base and its registers' offsets."""

    base: int
    usr: int = 0x18
    usr1: int = 0x1C
    usr2: int = 0x20
    mosi_length: int = 0x24
    miso_length: int = 0x28
    data: int = 0x58
    address_at_top: bool = False  # the address stands in the upper bits of its register


@dataclass(frozen=True)
class Chip:
    name: str  # as esptool writes it
    spi: SpiRegisters
    efuses: int  # ESP32: block 0; the others: block 1, which begins with the MAC
    uart_divider: int
    magic: int = 0
    chip_id: int | None = None  # what its security information says; None: it says none
    knows_security: bool = True
    fixed: dict[int, int] = field(default_factory=dict)  # eFuse words, by offset
    boot_log: tuple[str, str] = ("0x8 (SPI_FAST_FLASH_BOOT)", "0x0 (DOWNLOAD(USB/UART0))")
    rom_banner: str = "ESP-ROM"

    def registers(self, mac: bytes) -> dict[int, int]:
        if len(mac) != 6:
            raise ValueError("a MAC has six bytes")
        words = {self.efuses + offset: value for offset, value in self.fixed.items()}
        high, low = struct.unpack(">HI", mac)
        if self.name == "ESP32":
            words[self.efuses + 4] = low
            words[self.efuses + 8] = high | _crc8(mac) << 16
            words[APB_CTL_DATE] = 1 << 31  # silicon of revision 3
            # Times the 8 MHz clock's trim in eFuse word 4: a crystal of 40 MHz.
            words[RTC_CALIBRATION] = 2048 << 7
        else:
            words[self.efuses] = low
            words[self.efuses + 4] = words.get(self.efuses + 4, 0) | high
        words[MAGIC_ADDRESS] = self.magic
        return words

    def security_info(self) -> bytes:
        """No secure boot, no encryption, no key in use."""
        plain = bytes(12)
        return plain if self.chip_id is None else plain + struct.pack("<II", self.chip_id, 0)

    def says_at_start(self, download: bool) -> bytes:
        boot = self.boot_log[download]
        lines = [self.rom_banner, "", f"rst:0x1 (POWERON_RESET),boot:{boot}"]
        if download:
            lines.append("waiting for download")
        return "".join(f"{line}\r\n" for line in lines).encode()


def _crc8(mac: bytes) -> int:
    """The check that stands beside the MAC in an ESP32's eFuses (Maxim's CRC-8)."""
    crc = 0
    for byte in mac:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x8C if crc & 1 else 0)
    return crc


CHIPS = {
    "esp32": Chip(
        "ESP32",
        SpiRegisters(0x3FF42000, 0x1C, 0x20, 0x24, 0x28, 0x2C, 0x80, address_at_top=True),
        efuses=0x3FF5A000,
        uart_divider=0x3FF40014,
        magic=0x00F01D83,
        knows_security=False,
        # Package 1 (D0WD), 240 MHz, and the bits of revision 3; the clock's trim.
        fixed={0x0C: 1 << 9 | 1 << 13 | 1 << 15, 0x10: 50, 0x14: 1 << 20},
        boot_log=("0x13 (SPI_FAST_FLASH_BOOT)", "0x3 (DOWNLOAD_BOOT(UART0/UART1/SDIO_REI_REO_V2))"),
        rom_banner="ets Jul 29 2019 12:21:46",
    ),
    "esp32s2": Chip(
        "ESP32-S2",
        SpiRegisters(0x3F402000),
        efuses=0x3F41A044,
        uart_divider=0x3F400014,
        magic=0x000007C6,
        rom_banner="ESP-ROM:esp32s2-rc4-20191025",
    ),
    "esp32s3": Chip(
        "ESP32-S3",
        SpiRegisters(0x60002000),
        efuses=0x60007044,
        uart_divider=0x60000014,
        chip_id=9,
        fixed={0x0C: 2 << 18},  # revision 0.2
        rom_banner="ESP-ROM:esp32s3-20210327",
    ),
    "esp32c3": Chip(
        "ESP32-C3",
        SpiRegisters(0x60002000),
        efuses=0x60008844,
        uart_divider=0x60000014,
        chip_id=5,
        fixed={0x0C: 4 << 18},  # revision 0.4
        boot_log=("0xc (SPI_FAST_FLASH_BOOT)", "0x4 (DOWNLOAD(USB/UART0/1))"),
        rom_banner="ESP-ROM:esp32c3-api1-20210207",
    ),
    "esp32c6": Chip(
        "ESP32-C6",
        SpiRegisters(0x60003000),
        efuses=0x600B0844,
        uart_divider=0x60000014,
        chip_id=13,
        fixed={0x04: 0xFFFE << 16, 0x0C: 1 << 18, 0x10: 1},  # the longer MAC's middle; 0.1; 4 MB
        boot_log=("0xc (SPI_FAST_FLASH_BOOT)", "0x4 (DOWNLOAD(USB/UART0/SDIO_FEI_FEO))"),
        rom_banner="ESP-ROM:esp32c6-20220919",
    ),
}
