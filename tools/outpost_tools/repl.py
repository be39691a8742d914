"""A board's prompt, driven by a program: over a serial port, or on the virtual board.

It owns the port, or the virtual board's process, while it is open. What is run on the board is not
echoed, not logged and not kept; an error of the board comes back as one sentence of the board's.
"""

import queue
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from outpost_tools.board import Board
from outpost_tools.errors import OutpostError
from outpost_tools.ports import open_port

SLICE_S = 0.05
ANSWER_MAX_BYTES = 65536
ENTER_S = 10.0
RUN_S = 60.0
# A board's UART has little room: what is longer goes in pieces with a pause after each.
PIECE_BYTES = 256
PAUSE_S = 0.01

_BANNER = b"raw REPL; CTRL-B to exit\r\n>"
_ERROR = re.compile(r"(?P<kind>[A-Za-z_.]+): ?(?P<text>.*)")


class Wire(Protocol):
    def read(self, wait_s: float) -> bytes:
        """What has come, b"" where nothing came in time."""

    def write(self, data: bytes) -> None: ...


class SerialWire:
    """A serial port by its name, or any that pyserial knows (rfc2217://host:port)."""

    def __init__(self, name: str) -> None:
        self._port: Any = open_port(name)
        self._port.timeout = SLICE_S

    def read(self, wait_s: float) -> bytes:
        ends = time.monotonic() + wait_s
        try:
            # In slices: over RFC 2217 each change of the time-out costs a negotiation.
            while not (first := self._port.read(1)):
                if time.monotonic() >= ends:
                    return b""
            return first + self._port.read(self._port.in_waiting)
        except OSError:
            raise OutpostError("The board is gone from the port: plug it in again.") from None

    def write(self, data: bytes) -> None:
        try:
            self._port.write(data)
        except OSError:
            raise OutpostError("The board is gone from the port: plug it in again.") from None

    def close(self) -> None:
        with suppress(OSError):
            self._port.close()


class VirtualWire:
    """The console of a virtual board."""

    def __init__(self, flash: Path, leg: str) -> None:
        self._came: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.board = Board(flash, leg, on_bytes=self._came.put)
        self.board.start()

    def read(self, wait_s: float) -> bytes:
        try:
            return self._came.get(timeout=wait_s)
        except queue.Empty:
            if not self.board.running:
                raise OutpostError(
                    f"The virtual board stopped with {self.board.exit_code}."
                ) from None
            return b""

    def write(self, data: bytes) -> None:
        self.board.write(data)

    def close(self) -> None:
        self.board.stop()


class Prompt:
    """The board's raw prompt. `run` gives what a piece of Python printed there."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._seen = b""

    def enter(self) -> None:
        """Interrupt what runs there, and start afresh without main.py."""
        ends = time.monotonic() + ENTER_S
        while True:
            # Once more for a program that swallowed the first, or a board that just starts.
            self._wire.write(b"\r\x03\x03")
            self._drain(0.3)
            self._wire.write(b"\r\x01")
            try:
                self._until(_BANNER, 1.0)
                break
            except OutpostError:
                if time.monotonic() > ends:
                    raise OutpostError(
                        "The board shows no prompt: is it the right port, and is the board in "
                        "development mode?"
                    ) from None
        self._wire.write(b"\x04")
        self._until(b"soft reboot\r\n", ENTER_S)
        self._until(_BANNER, ENTER_S)

    def run(self, source: str, timeout_s: float = RUN_S) -> str:
        code = source.encode()
        for start in range(0, len(code), PIECE_BYTES):
            self._wire.write(code[start : start + PIECE_BYTES])
            time.sleep(PAUSE_S)
        self._wire.write(b"\x04")
        self._until(b"OK", timeout_s)
        said = self._until(b"\x04", timeout_s)
        error = self._until(b"\x04>", timeout_s).decode(errors="replace").strip()
        if error:
            raise BoardError(error)
        return said.decode(errors="replace")

    def restart(self) -> None:
        """Let the board start as after power-on."""
        self._wire.write(b"import machine; machine.reset()\x04")
        self._drain(0.3)

    def _until(self, end: bytes, timeout_s: float) -> bytes:
        ends = time.monotonic() + timeout_s
        while end not in self._seen:
            left = ends - time.monotonic()
            if left <= 0 or len(self._seen) > ANSWER_MAX_BYTES:
                raise OutpostError("The board does not answer as a prompt does: try again.")
            self._seen += self._wire.read(min(left, 0.5))
        answer, self._seen = self._seen.split(end, 1)
        return answer

    def _drain(self, wait_s: float) -> None:
        ends = time.monotonic() + wait_s
        while (left := ends - time.monotonic()) > 0:
            self._wire.read(left)
        self._seen = b""


class BoardError(OutpostError):
    """An exception on the board: its sentence, and its kind."""

    def __init__(self, trace: str) -> None:
        last = trace.splitlines()[-1].strip()
        match = _ERROR.fullmatch(last)
        self.kind = match["kind"].rpartition(".")[2] if match else last
        text = match["text"].strip().rstrip(".") if match else last
        super().__init__(f"The board says: {text or self.kind}.")


@contextmanager
def open_prompt(port: str | None, flash: Path | None, leg: str) -> Iterator[Prompt]:
    """The prompt of the board on a port, or of a flash image on the virtual board."""
    if (port is None) == (flash is None):
        raise OutpostError("Say where the board is: --port /dev/ttyUSB0, or --flash IMAGE.")
    wire = SerialWire(port) if port is not None else VirtualWire(Path(str(flash)), leg)
    try:
        prompt = Prompt(wire)
        prompt.enter()
        yield prompt
        if port is not None:
            prompt.restart()
    finally:
        wire.close()
