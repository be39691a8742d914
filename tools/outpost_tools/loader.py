"""A board in download mode, through Espressif's esptool: asked, compared, written.

esptool is run as a program, a process for each step, and what it prints is read; none of its code
is loaded here. This owns the processes while they run, the files that they are given, and the one
translation of esptool's errors into sentences. It decides nothing about what may be written: that
is flashing.py.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from outpost_tools.errors import OutpostError
from outpost_tools.ports import is_network, open_port
from outpost_tools.watching import restart

FAST_BAUD = 460800  # every USB bridge on a board does that
SILENCE_S = 300.0  # the erasure of 16 MiB says nothing while it lasts
EFUSES_AT, EFUSES_BYTES = 0x3FF5A000, 28  # block 0 of an ESP32, which says nothing by itself
LOST = (
    "The connection to the board was lost: check the cable and run the same command again; it goes "
    "on with what is missing."
)
STOPPED = "Stopped before anything was written: the board is as it was."
STOPPED_HALFWAY = (
    "Stopped while the board was being written: run the same command again; it goes on with what "
    "is missing."
)
LOCKED = (
    "The board has flash encryption or secure boot switched on, and this tool writes plain images "
    "only: nothing was written."
)
_KNOWN = (
    (r"[Ss]ecure download mode", LOCKED),
    (
        r"Failed to connect|No serial data received|Wrong boot mode|Could not enter",
        "The board does not answer in download mode: check the cable, or hold BOOT while it "
        "starts, and try again.",
    ),
    (r"Failed to autodetect", "The board's chip is none that esptool knows: is it an ESP32?"),
    (
        r"serial exception|SerialException|timed out|Timed out|Invalid head|Packet content|"
        r"No more data|stopped responding|Lost connection|Could not open",
        LOST,
    ),
    (
        r"MD5 of file does not match|written flash region is empty",
        "The flash does not hold what was written: it is worn out or badly powered; try another "
        "cable, then another board.",
    ),
    (
        r"No space left on device",
        "The disk of this computer is full, or its folder for temporary files: make room.",
    ),
)
_CHIP = re.compile(r"Connected to (\S+) on ")
_SIZE = re.compile(r"Auto-detected flash size: (\d+)(KB|MB)")
_AGREES = re.compile(r"Verification (successful|failed) \(")

Piece = tuple[int, bytes]


class LoaderError(OutpostError):
    """What esptool could not do, as one sentence."""


def sentence(said: str) -> str:
    text = " ".join(said.split())
    for pattern, known in _KNOWN:
        if re.search(pattern, text):
            return known
    # After a cable is pulled esptool may end without a word.
    told = text.partition("error occurred: ")[2].split("For troubleshooting")[0].strip()
    return f"esptool gave up: {told.rstrip('.')}." if told else LOST


class Loader:
    """The chip on a port; made by `opened`."""

    def __init__(self, name: str, stub: bool, folder: Path) -> None:
        self._name = name
        # Over RFC 2217 with less of pyserial's waiting; the tool itself is the same.
        module = "outpost_tools.quicktool" if is_network(name) else "esptool"
        self._words = [sys.executable, "-m", module]
        self._words += ["esptool"] if is_network(name) else []
        # Held in download mode between two steps: what is on it does not run meanwhile.
        self._words += ["--port", name, "--after", "no-reset"]
        if not stub:
            self._words += ["--no-stub"]
        elif not is_network(name):
            self._words += ["--baud", str(FAST_BAUD)]
        self._folder = folder
        self.chip = ""
        self.flash_size: int | None = None  # None where it does not say
        self.touched = False  # whether a write or an erasure has begun

    def look(self, offset: int, size: int) -> bytes:
        """What is there; the first look also says which chip it is and how large its flash."""
        file = self._folder / "look"
        said = self._run("read-flash", "--flash-size", "detect", hex(offset), hex(size), str(file))
        chip, flash = _CHIP.search(said), _SIZE.search(said)
        if chip is None:
            raise LoaderError(sentence(said))
        self.chip = chip[1]
        self.flash_size = int(flash[1]) << (20 if flash[2] == "MB" else 10) if flash else None
        content = file.read_bytes()
        if len(content) != size:
            raise LoaderError(LOST)
        return content

    def check_plain(self) -> None:
        """OutpostError for a board whose eFuses want more than a plain image."""
        if self.chip == "ESP32":
            file = self._folder / "efuses"
            self._run("dump-mem", hex(EFUSES_AT), str(EFUSES_BYTES), str(file))
            words = [int.from_bytes(file.read_bytes()[at : at + 4], "little") for at in (0, 24)]
            # FLASH_CRYPT_CNT: an odd number of its bits; ABS_DONE_0 and ABS_DONE_1.
            locked = bool((words[0] >> 20 & 0x7F).bit_count() % 2 or words[1] >> 4 & 3)
        else:
            said = self._run("get-security-info")
            locked = "Secure Boot: Disabled" not in said or "Flash Encryption: Disabled" not in said
        if locked:
            raise LoaderError(LOCKED)

    def differing(
        self, pieces: Sequence[Piece], progress: Callable[[int], None] = lambda done: None
    ) -> list[Piece]:
        """Those that the flash does not hold, compared by their MD5 in the chip."""
        if not pieces:
            return []
        agree: list[bool] = []

        def take(line: str) -> None:
            if found := _AGREES.match(line):
                agree.append(found[1] == "successful")
                progress(len(agree))

        said = self._run("verify-flash", *self._files(pieces), on_line=take, may_fail=True)
        if len(agree) != len(pieces):
            raise LoaderError(sentence(said))
        return [piece for piece, same in zip(pieces, agree, strict=True) if not same]

    def erase(self, offset: int, size: int) -> None:
        self.touched = True
        self._run("erase-region", hex(offset), hex(size))

    def write(
        self, pieces: Sequence[Piece], progress: Callable[[int], None] = lambda done: None
    ) -> None:
        """Write them in this order, each compared with what is there afterwards."""
        if not pieces:
            return
        done = 0

        def take(line: str) -> None:
            nonlocal done
            if line.startswith("Hash of data verified"):
                done += 1
                progress(done)

        self.touched = True
        said = self._run("write-flash", "-z", *self._files(pieces), on_line=take)
        if done != len(pieces):
            raise LoaderError(sentence(said))

    def _files(self, pieces: Sequence[Piece]) -> list[str]:
        words = []
        for offset, content in pieces:
            file = self._folder / f"{offset:x}"
            file.write_bytes(content)
            words += [hex(offset), str(file)]
        return words

    def _run(
        self,
        *words: str,
        on_line: Callable[[str], None] = lambda line: None,
        may_fail: bool = False,
    ) -> str:
        """All that it printed; LoaderError where it failed."""
        plain = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "400", "PYTHONUNBUFFERED": "1"}
        try:
            process = subprocess.Popen(
                [*self._words, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=os.environ | plain,
                start_new_session=True,  # a Ctrl-C comes to us, and we end it
            )
        except OSError as why:
            raise LoaderError(f"esptool cannot be started ({why.strerror}).") from None
        said = []
        try:
            assert process.stdout is not None
            watch = _Watch(process)
            for line in process.stdout:
                watch.heard()
                said.append(line)
                on_line(line)
            code = process.wait()
        finally:
            watch.end()
            _end(process)
        if code and not may_fail:
            raise LoaderError(sentence("".join(said)))
        return "".join(said)


class _Watch:
    """Ends a process that has said nothing for too long."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._timer: threading.Timer | None = None
        self.heard()

    def heard(self) -> None:
        self.end()
        self._timer = threading.Timer(SILENCE_S, self._process.kill)
        self._timer.daemon = True
        self._timer.start()

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def _end(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()


@contextmanager
def opened(name: str, stub: bool) -> Iterator[Loader]:
    """The board on the port. Where nothing was written when the block ends, it runs again."""
    open_port(name).close()  # its own sentences for a port that is not there, or in use
    with tempfile.TemporaryDirectory(prefix="outpost-flash-") as folder:
        board = Loader(name, stub, Path(folder))
        try:
            yield board
        except BaseException as why:
            if not board.touched:
                _run_again(name)
            if isinstance(why, KeyboardInterrupt):
                said = STOPPED_HALFWAY if board.touched else STOPPED
                raise LoaderError(said) from None
            raise


def _run_again(name: str) -> None:
    with suppress(OutpostError):
        port = open_port(name)
        try:
            restart(port)
        finally:
            port.close()
