"""A board in download mode, through Espressif's esptool: asked, compared, written, reset.

It owns the port while it is open, and the one translation of esptool's errors into sentences. It
decides nothing about what may be written: that is flashing.py.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from outpost_tools.errors import OutpostError
from outpost_tools.ports import CONSOLE_BAUD, is_network, open_port

FAST_BAUD = 460800  # every USB bridge on a board does that
LOST = (
    "The connection to the board was lost: check the cable and run the same command again; it goes "
    "on with what is missing."
)
_KNOWN = (
    (
        r"Failed to connect|No serial data received|Wrong boot mode|Could not enter",
        "The board does not answer in download mode: check the cable, or hold BOOT while it "
        "starts, and try again.",
    ),
    (r"Failed to autodetect", "The board's chip is none that esptool knows: is it an ESP32?"),
    (r"timed out|Invalid head|Packet content|No more data|stopped responding|Timed out", LOST),
    (
        r"MD5 of file does not match|written flash region is empty|Verification failed",
        "The flash does not hold what was written: it is worn out or badly powered; try another "
        "cable, then another board.",
    ),
)

T = TypeVar("T")


class LoaderError(OutpostError):
    """What esptool could not do, as one sentence."""


def sentence(why: BaseException) -> str:
    import serial

    if isinstance(why, serial.SerialException):
        return LOST
    text = " ".join(str(why).split())
    for pattern, known in _KNOWN:
        if re.search(pattern, text):
            return known
    return f"esptool gave up: {text.split('For troubleshooting')[0].strip().rstrip('.')}."


class Loader:
    """The chip on a port; made by `opened`."""

    def __init__(self, esp: Any, name: str) -> None:
        self._esp = esp
        self._name = name

    @property
    def chip(self) -> str:
        return str(self._esp.CHIP_NAME)

    @property
    def port(self) -> Any:
        return self._esp._port

    def check_plain(self) -> None:
        """OutpostError for a board whose eFuses want more than a plain image."""
        esp = self._esp
        if self._do(
            lambda: (
                esp.secure_download_mode
                or esp.get_flash_encryption_enabled()
                or esp.get_secure_boot_enabled()
            )
        ):
            raise LoaderError(
                "The board has flash encryption or secure boot switched on, and this tool writes "
                "plain images only: nothing was written."
            )

    def attach(self, stub: bool) -> None:
        """Make its flash readable; with `stub` through esptool's own faster loader."""
        import esptool

        def do() -> None:
            if stub:
                self._esp = esptool.run_stub(self._esp)
                if not is_network(self._name):
                    self._esp.change_baud(FAST_BAUD)
            esptool.attach_flash(self._esp)
            size = esptool.detect_flash_size(self._esp)
            if size:
                self._esp.flash_set_parameters(_bytes(size))

        self._do(do)

    def flash_size(self) -> int | None:
        """Bytes of the flash chip; None where it does not say."""
        import esptool

        found = self._do(lambda: esptool.detect_flash_size(self._esp))
        return _bytes(found) if found else None

    def md5(self, offset: int, size: int) -> str:
        return self._do(lambda: str(self._esp.flash_md5sum(offset, size)))

    def read(self, offset: int, size: int) -> bytes:
        return self._do(lambda: bytes(self._esp.read_flash(offset, size)))

    def erase(self, offset: int, size: int) -> None:
        import esptool

        self._do(lambda: esptool.erase_region(self._esp, offset, size))

    def write(self, pieces: Sequence[tuple[int, bytes]]) -> None:
        """Write, and compare what is there afterwards."""
        import esptool

        self._do(
            lambda: esptool.write_flash(self._esp, list(pieces), compress=True, no_progress=True)
        )

    def reset(self) -> None:
        """Let it start; the port stays open, at the console's speed."""
        self.port.baudrate = CONSOLE_BAUD
        self._do(self._esp.hard_reset)

    def _do(self, action: Callable[[], T]) -> T:
        import serial
        from esptool.util import FatalError

        try:
            return action()
        except (FatalError, serial.SerialException, OSError) as why:
            raise LoaderError(sentence(why)) from None


def _bytes(size: str) -> int:
    number = int(re.sub(r"\D", "", size))
    return number << (20 if "MB" in size else 10)


@contextmanager
def opened(name: str) -> Iterator[Loader]:
    """The board on the port, brought into download mode."""
    import esptool
    import serial
    from esptool.logger import log
    from esptool.util import FatalError

    log.set_verbosity("silent")
    port = open_port(name)
    try:
        try:
            esp = esptool.detect_chip(port)
        except (FatalError, serial.SerialException, OSError) as why:
            raise LoaderError(sentence(why)) from None
        yield Loader(esp, name)
    finally:
        port.close()
