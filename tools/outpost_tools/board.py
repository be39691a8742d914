"""One virtual board: a process that is started again as often as a board would reset.

It owns that process, the thread that reads its console, and the files that outlive a reset (memory
of the real-time clock) or describe a run (the report). It never leaves the process behind: not on
an exception, not when the interpreter ends, and, through setpriv, not when it is killed.
"""

import atexit
import contextlib
import json
import re
import shutil
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outpost_tools.errors import OutpostError
from outpost_tools.partitions import check_flash_size
from outpost_tools.paths import binary

# The builds, and the Python heap that a device does with on each.
LEGS = {"outpost64": "128K", "outpost32": "64K", "stock32": "160K", "stock-release": "2M"}

EXIT_END = 0
EXIT_RESET = 70
EXIT_WATCHDOG = 71
EXIT_DEEP_SLEEP = 72
EXIT_POWER_CUT = 73
EXIT_CANNOT_START = 75

# What a board comes back from by itself. Why it restarts stands in the state file.
RESTARTS = (EXIT_RESET, EXIT_WATCHDOG, EXIT_DEEP_SLEEP)

STOP_PATIENCE_S = 3.0
RESTART_PAUSE_S = 0.05
PROMPT_QUIET_S = 0.1

_boards: "weakref.WeakSet[Board]" = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    for board in list(_boards):
        board.stop()


class BoardTimeout(OutpostError):
    """The line that was waited for did not come; the text ends with the last lines that did."""


@dataclass(frozen=True)
class Line:
    text: str
    at_s: float  # since the first start
    boot: int  # 1 for the first start


class Board:
    """`with Board(flash, leg="outpost32", heapsize="64K") as board: board.wait_for(r"acked id=1")`.

    flash      image file; the board writes to it, as it writes to its flash
    cause, clock  reset cause and Unix time of the first start
    cut        "N", "N:torn" or "N:clean": the power ends at the Nth flash operation of the first
               start
    restarts   False leaves the board down after its first exit
    on_line    called with each Line in the reader's thread
    on_bytes   called there with what came, as it came
    speed      how many times as fast as here its time runs (not on stock-release)
    within     a command that runs the binary, such as `ip netns exec NAME`
    extra      further words for the binary's command line
    """

    def __init__(
        self,
        flash: Path,
        leg: str = "outpost64",
        heapsize: str | None = None,
        *,
        wifi: str | None = None,
        mac: str | None = None,
        cause: str | None = None,
        clock: float | None = None,
        cut: str | None = None,
        restarts: bool = True,
        on_line: Callable[[Line], None] | None = None,
        on_exit: Callable[[int], None] | None = None,
        on_bytes: Callable[[bytes], None] | None = None,
        program: Path | None = None,
        speed: int = 1,
        within: tuple[str, ...] = (),
        extra: tuple[str, ...] = (),
    ) -> None:
        if program is None and leg not in LEGS:
            raise OutpostError(f"There is no leg {leg!r}: {', '.join(LEGS)}.")
        self.flash = Path(flash)
        check_flash_size(self.flash)
        self.leg = leg
        self.lines: list[Line] = []
        self.pending = ""  # what stands on the console after the last line's end, e.g. a prompt
        self._pending_at = 0.0
        self.reports: list[dict[str, Any]] = []
        self.exit_codes: list[int] = []
        self.boots = 0
        self._program = program or binary(leg)
        self._heapsize, self._wifi, self._mac = heapsize, wifi, mac
        self._cause, self._clock, self._cut = cause, clock, cut
        self._restarts, self._on_line, self._on_exit = restarts, on_line, on_exit
        self._on_bytes, self._speed = on_bytes, speed
        self._within, self._extra = within, extra
        self._folder = Path(tempfile.mkdtemp(prefix="outpost-board-"))
        self._state = self._folder / "state"
        self._report = self._folder / "report.json"
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._started_at = 0.0
        _boards.add(self)

    @property
    def reboots(self) -> int:
        return max(0, self.boots - 1)

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def exit_code(self) -> int | None:
        """Of the last start that ended."""
        return self.exit_codes[-1] if self.exit_codes else None

    @property
    def report(self) -> dict[str, Any]:
        """What the last start that ended wrote about itself; empty where it could not."""
        return self.reports[-1] if self.reports else {}

    @property
    def text(self) -> str:
        return "\n".join(line.text for line in list(self.lines))

    def start(self) -> "Board":
        if self._thread is not None:
            raise OutpostError("This board has been started before: make another Board.")
        self._started_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="board", daemon=True)
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self.boots or not self.running)
        return self

    def stop(self) -> None:
        """End the board and wait until it is gone. Calling it twice does no harm."""
        self._stopping.set()
        with self._changed:
            process = self._process
        if process is not None:
            _end(process)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        shutil.rmtree(self._folder, ignore_errors=True)
        _boards.discard(self)

    def write(self, data: bytes) -> None:
        """To the console, as typed: b"\\x03" interrupts, b"\\x04" is a soft reset."""
        with self._changed:
            process = self._process
        if process is None or process.stdin is None:
            raise OutpostError("The board is not running.")
        try:
            process.stdin.write(data)
            process.stdin.flush()
        except BrokenPipeError:
            raise OutpostError("The board is not running.") from None

    def wait_for(self, pattern: str, timeout_s: float = 30.0, start: int = 0) -> re.Match[str]:
        """The first line from number `start` on that `pattern` is found in, or a prompt."""
        wanted = re.compile(pattern)
        deadline = time.monotonic() + timeout_s
        at = start
        with self._changed:
            while True:
                while at < len(self.lines):
                    match = wanted.search(self.lines[at].text)
                    if match:
                        return match
                    at += 1
                if at == len(self.lines) and self._quiet():
                    match = wanted.search(self.pending)
                    if match:
                        return match
                left = deadline - time.monotonic()
                if left <= 0 or not self.running:
                    break
                self._changed.wait(min(left, PROMPT_QUIET_S))
            state = "in time" if self.running else f"before it ended (exit {self.exit_code})"
            last = "\n".join(f"  {line.text}" for line in self.lines[-15:])
            raise BoardTimeout(
                f"The board did not print {pattern!r} {state}. Its last lines:\n{last}"
            )

    def _quiet(self) -> bool:
        """Whether what stands at the end is a prompt, and not the first part of a line."""
        return time.monotonic() - self._pending_at > PROMPT_QUIET_S

    def wait_exit(self, timeout_s: float = 30.0) -> int:
        """Wait until the board is down for good; gives its last exit code."""
        if self._thread is None:
            raise OutpostError("The board has not been started.")
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise BoardTimeout("The board is still running.")
        assert self.exit_code is not None
        return self.exit_code

    def __enter__(self) -> "Board":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _command(self) -> list[str]:
        command = [str(self._program), "--board"]
        if self._heapsize:
            command += ["-X", f"heapsize={self._heapsize}"]
        command += ["--flash", str(self.flash)]
        command += ["--state", str(self._state), "--report", str(self._report)]
        for option, value in (("--wifi", self._wifi), ("--mac", self._mac)):
            if value is not None:
                command += [option, value]
        if self.boots == 0:
            for option, value in (("--cause", self._cause), ("--cut", self._cut)):
                if value is not None:
                    command += [option, value]
            if self._clock is not None:
                command += ["--clock", str(int(self._clock))]
        if self._speed != 1:
            command += ["--speed", str(self._speed)]
        command += self._extra
        # The kernel ends the board when this process is gone, however it went.
        setpriv = shutil.which("setpriv")
        guard = [setpriv, "--pdeathsig", "KILL"] if setpriv else []
        return [*self._within, *guard, *command]

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                code = self._run_once()
                self.exit_codes.append(code)
                if self._on_exit is not None:
                    self._on_exit(code)
                if not self._restarts or code not in RESTARTS:
                    return
                pause_s = RESTART_PAUSE_S
                if code == EXIT_DEEP_SLEEP:
                    sleep_ms = self.report.get("sleep_ms", -1)
                    if not isinstance(sleep_ms, int | float) or sleep_ms < 0:
                        return  # asleep until someone presses the button
                    pause_s = sleep_ms / 1000 / self._speed
                self._stopping.wait(pause_s)
        finally:
            with self._changed:
                self._changed.notify_all()

    def _run_once(self) -> int:
        self._report.unlink(missing_ok=True)
        # A session of its own: a Ctrl-C at the keyboard reaches us, and we end the board in order.
        process = subprocess.Popen(
            self._command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with self._changed:
            self._process = process
            self.boots += 1
            self.pending = ""
            self._changed.notify_all()
        try:
            if self._stopping.is_set():
                _end(process)
            self._read_console(process)
            code = process.wait()
        finally:
            _end(process)
            with self._changed:
                self._process = None
                self._changed.notify_all()
        with contextlib.suppress(OSError, ValueError):
            self.reports.append(json.loads(self._report.read_text()))
        return code

    def _read_console(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        rest = b""
        while chunk := process.stdout.read1(65536):  # type: ignore[attr-defined]
            if self._on_bytes is not None:
                self._on_bytes(chunk)
            *whole, rest = (rest + chunk).split(b"\n")
            for raw in whole:
                self._take_line(raw)
            with self._changed:
                self.pending = rest.decode(errors="replace")
                self._pending_at = time.monotonic()
                self._changed.notify_all()
        if rest:
            self._take_line(rest)

    def _take_line(self, raw: bytes) -> None:
        text = raw.rstrip(b"\r").decode(errors="replace")
        line = Line(text, time.monotonic() - self._started_at, self.boots)
        with self._changed:
            self.lines.append(line)
            self.pending = ""
            self._changed.notify_all()
        if self._on_line is not None:
            self._on_line(line)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask, then insist. Closes the pipe to the board as well."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    # Not before: a thread that is writing to a board which does not read holds the pipe's lock.
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
