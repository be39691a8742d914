"""The virtual board's serial port: what esptool and mpremote find at a real board's USB.

`server` speaks RFC 2217 on loopback, `machine` is the board behind it (reset circuit, run mode,
download mode), `rom` the loader in the chip's ROM, `spi` and `norflash` its flash, `chips` what
tells an ESP32 from its relatives. Nothing here is used when a real port is.
"""

from outpost_tools.serialport.chips import CHIPS, Chip
from outpost_tools.serialport.machine import Machine
from outpost_tools.serialport.server import SerialPort, served

__all__ = ["CHIPS", "Chip", "Machine", "SerialPort", "served"]
