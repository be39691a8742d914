"""The person's side of a serial port: the real esptool and mpremote, and a terminal.

Owns the processes that it starts and the port that a terminal holds. Never talks to a board but
through the port.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import serial
from outpost_tools.serialport import SerialPort

VENV_BIN = Path(sys.executable).parent
QUICK = (sys.executable, "-m", "outpost_tools.quicktool")


def tool(name: str, *words: object, plain: bool = False, timeout: float = 120) -> tuple[int, str]:
    """Run esptool or mpremote; its exit status and all it said.

    plain: the installed program itself, with pyserial's own waiting (0.2 s for each command)
    """
    program = (str(VENV_BIN / name),) if plain else (*QUICK, name)
    done = subprocess.run(
        [*program, *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    return done.returncode, done.stdout


def esptool(port: SerialPort, *words: object, chip: str = "auto", **options) -> tuple[int, str]:
    return tool("esptool", "--port", port.url, "--chip", chip, "--no-stub", *words, **options)


def mpremote(port: SerialPort, *words: object, **options) -> str:
    code, said = tool("mpremote", "connect", port.url, *words, **options)
    assert code == 0, said
    return said


class Terminal:
    """The port, open, and all that the board has said since."""

    def __init__(self, port: SerialPort) -> None:
        self._port = serial.serial_for_url(port.url, 115200, timeout=0.05)
        self.seen = ""
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._ending.is_set():
            try:
                first = self._port.read(1)
                waiting = self._port.read(self._port.in_waiting) if first else b""
            except (serial.SerialException, OSError):
                return
            self.seen += (first + waiting).decode(errors="replace")

    def write(self, data: bytes) -> None:
        self._port.write(data)

    def reset(self, into: str = "run") -> None:
        """By the lines, as every tool does it."""
        self._port.dtr = False
        self._port.rts = True
        if into == "download":
            self._port.dtr = True
        self._port.rts = False
        self._port.dtr = False

    def wait_for(self, pattern: str, timeout_s: float = 60) -> re.Match[str]:
        ends = time.monotonic() + timeout_s
        while not (match := re.search(pattern, self.seen)):
            assert time.monotonic() < ends, f"no {pattern!r} in:\n{self.seen[-3000:]}"
            time.sleep(0.02)
        return match

    def close(self) -> None:
        self._ending.set()
        self._thread.join()
        self._port.close()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
