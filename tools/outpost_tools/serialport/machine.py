"""The board behind the serial port: its reset circuit, what runs on it, and its flash.

DTR and RTS drive EN and IO0 through two transistors, as on the usual boards:

    RTS alone   EN low: the chip is in reset
    DTR alone   IO0 low: a chip that leaves reset now stays in its ROM, for esptool
    both, none  neither

EN rises slowly (a capacitor): while both lines stand after RTS alone, the chip is still in reset,
and the next change of a line decides. It owns the running virtual board or the ROM loader, one at
a time, and the planned power cut. It never blocks on what the board does not read: as on a UART,
that is lost.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from outpost_tools.board import Board
from outpost_tools.errors import OutpostError
from outpost_tools.serialport.chips import CHIPS
from outpost_tools.serialport.norflash import HOWS, NorFlash, PowerCut, open_image
from outpost_tools.serialport.rom import Rom

EN_RISES_S = 0.3
INPUT_MAX_BYTES = 65536
MAC = "24:0a:c4:00:00:01"
CONSOLE_BAUD = 115200


@dataclass(frozen=True)
class Cut:
    """The power goes at the N-th flash operation from now, of whatever writes then."""

    operation: int
    how: str = "torn"

    @classmethod
    def parse(cls, text: str) -> "Cut":
        number, _, how = text.partition(":")
        if not number.isascii() or not number.isdigit() or not int(number):
            raise OutpostError(f"{text!r} is not a power cut: give N, N:clean, N:torn or N:odd.")
        if how and how not in HOWS:
            raise OutpostError(f"{how!r} is not a kind of power cut: {', '.join(HOWS)}.")
        return cls(int(number), how or "torn")


class Machine:
    """One board on its cable.

    on_output   called with bytes for the cable, from any thread
    on_power    called with False when the power goes, with True when it is back
    board       further options of every Board that runs here (wifi, speed, extra, ...)
    """

    def __init__(
        self,
        flash: Path,
        leg: str = "outpost64",
        heapsize: str | None = None,
        *,
        chip: str = "esp32",
        mac: str | None = None,
        cut: Cut | None = None,
        **board: object,
    ) -> None:
        if chip not in CHIPS:
            raise OutpostError(f"There is no chip {chip!r}: {', '.join(CHIPS)}.")
        open_image(flash).close()
        self.flash = flash
        self.chip = CHIPS[chip]
        self.leg = leg
        self.on_output: Callable[[bytes], None] = lambda _: None
        self.on_power: Callable[[bool], None] = lambda _: None
        self.operations = 0  # on the flash, by the loader
        self._heapsize, self._mac, self._options = heapsize, mac or MAC, board
        self._cut = cut
        self._lock = threading.RLock()
        self._lines = (False, False)
        self._held = False  # in reset
        self._rises: threading.Timer | None = None
        self._board: Board | None = None
        self._uart: _Input | None = None
        self._rom: Rom | None = None
        self._nor: NorFlash | None = None
        self._powered = False

    # ---- power

    def power_on(self) -> None:
        with self._lock:
            if not self._powered:
                self._powered = True
                self.on_power(True)
                self._start(download=False)

    def power_off(self) -> None:
        with self._lock:
            self._stop()
            if self._powered:
                self._powered = False
                self.on_power(False)

    def cut_power_at(self, cut: Cut | None) -> None:
        """Plan a power cut; None takes it back. A running board learns of it when it restarts."""
        with self._lock:
            self._cut = cut

    @property
    def mode(self) -> str:
        with self._lock:
            if not self._powered:
                return "off"
            return "reset" if self._held else "download" if self._rom else "run"

    # ---- the cable

    def lines(self, dtr: bool, rts: bool) -> None:
        with self._lock:
            before, self._lines = self._lines, (dtr, rts)
            if before == (dtr, rts) or not self._powered:
                return
            if self._rises is not None:
                self._rises.cancel()
                self._rises = None
            if rts and not dtr:
                if not self._held:
                    self._stop()
                    self._held = True
            elif self._held and dtr and rts:
                self._rises = threading.Timer(EN_RISES_S, self._risen)
                self._rises.daemon = True
                self._rises.start()
            elif self._held:
                self._start(download=dtr)

    def _risen(self) -> None:
        with self._lock:
            if self._held and self._lines == (True, True):
                self._start(download=False)

    def receive(self, data: bytes, baud: int = CONSOLE_BAUD) -> None:
        """What came over the cable at that speed."""
        with self._lock:
            if self._rom is not None:
                self._load(self._rom, data, baud)
            elif self._uart is not None:
                self._uart.put(data)

    def _load(self, rom: Rom, data: bytes, baud: int) -> None:
        try:
            answer = rom.feed(data, baud)
        except PowerCut:
            self.power_off()
            return
        if answer:
            self.on_output(answer)
        if rom.left == "run":
            self._start(download=False)
        elif rom.left == "reset":
            self._start(download=True)  # the pins are not looked at again: the same mode

    # ---- run mode and download mode

    def _start(self, download: bool) -> None:
        self._stop()
        self._held = False
        self.on_output(self.chip.says_at_start(download))
        if download:
            try:
                self._nor = NorFlash(self.flash, self._operation)
            except OutpostError as why:
                self.on_output(f"{why}\r\n".encode())
                return
            self._rom = Rom(self.chip, bytes.fromhex(self._mac.replace(":", "")), self._nor)
            return
        cut = self._cut
        try:
            self._board = Board(
                self.flash,
                self.leg,
                self._heapsize,
                mac=self._mac,
                cut=f"{cut.operation}:{cut.how}" if cut else None,
                on_bytes=lambda data: self.on_output(data),
                on_exit=self._ended,
                **self._options,  # type: ignore[arg-type]
            )
            self._uart = _Input(self._board)
            self._board.start()
        except OutpostError as why:
            self.on_output(f"{why}\r\n".encode())

    def _stop(self) -> None:
        board, self._board = self._board, None
        uart, self._uart = self._uart, None
        nor, self._nor = self._nor, None
        self._rom = None
        if self._rises is not None:
            self._rises.cancel()
            self._rises = None
        if board is not None:
            board.stop()
        if uart is not None:
            uart.close()
        if nor is not None:
            nor.close()

    def _ended(self, code: int) -> None:
        """In the board's own thread, which must not wait for the lock: stopping waits for it."""
        if code == 73:
            self._cut = None
            threading.Thread(target=self.power_off, daemon=True).start()

    def _operation(self) -> str | None:
        """Before each operation of the loader: whether the power goes at it, and how."""
        self.operations += 1
        if self._cut is None:
            return None
        if self._cut.operation > 1:
            self._cut = Cut(self._cut.operation - 1, self._cut.how)
            return None
        how = self._cut.how
        self._cut = None
        return how


class _Input:
    """The UART's way in: what the board does not take in time is lost, and nobody waits."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._waiting = bytearray()
        self._changed = threading.Condition()
        self._closed = False
        threading.Thread(target=self._pass_on, name="uart", daemon=True).start()

    def put(self, data: bytes) -> None:
        with self._changed:
            self._waiting += data[: INPUT_MAX_BYTES - len(self._waiting)]
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _pass_on(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting)
                if self._closed:
                    return
                data, self._waiting = bytes(self._waiting), bytearray()
            try:
                self._board.write(data)
            except (OutpostError, ValueError, OSError):
                pass  # between two starts nobody listens; a closed pipe is a ValueError
