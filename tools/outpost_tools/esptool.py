"""Espressif's esptool, run as the program it is: one call is one process, its answer is text.

It owns the process while it runs and the temporary files it is handed. It never imports esptool,
and never tells it to write to a board: that is flashing.py's decision.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from outpost_tools.errors import OutpostError

# Sentences of esptool's that mean something a person can do; the first that is found counts.
_KNOWN = (
    (
        r"could not exclusively lock|Resource busy|Device or resource busy|port is busy",
        "The port is in use: close the other program that holds it (a console, another flash).",
    ),
    (
        r"Could not open|does not exist|No such file or directory|Permission denied",
        "The port does not open: is the board plugged in, and may you use the port?",
    ),
    (
        r"No serial data received|Wrong boot mode|Failed to connect|Timed out waiting for packet",
        "The board does not answer in download mode: check the cable, or hold BOOT while it "
        "starts, and try again.",
    ),
    (
        r"device reports readiness to read|disconnected|Broken pipe|Input/output error"
        r"|connection failed|Connection reset|write timeout|Write timeout|stopped responding"
        r"|Invalid head of packet|Packet content transfer stopped|Serial data stream stopped"
        r"|timed out|Socket closed",
        "The connection to the board was lost: check the cable and run the same command again; "
        "it goes on with what is missing.",
    ),
    (
        r"flash encryption|secure boot|Secure Download Mode|Secure Boot",
        "The board has flash encryption or secure boot switched on: this tool writes plain images "
        "only.",
    ),
)


class EsptoolError(OutpostError):
    """What esptool could not do, as one sentence."""


def _sentence(text: str, doing: str) -> str:
    for pattern, sentence in _KNOWN:
        if re.search(pattern, text, re.IGNORECASE):
            return sentence
    last = [line.strip() for line in text.splitlines() if line.strip()]
    said = last[-1].removeprefix("A fatal error occurred:").strip() if last else "nothing"
    return f"esptool could not {doing}; it said: {said}"


def run(
    words: Sequence[str],
    doing: str,
    show: Callable[[str], None] | None = None,
    quiet_s: float = 120,
) -> str:
    """What esptool printed; EsptoolError with a sentence where it failed.

    show     called with what it prints, as it comes
    quiet_s  it is ended where it has nothing to say for so long
    """
    import queue
    import threading

    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "esptool", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    came: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        assert process.stdout is not None
        while chunk := process.stdout.read1(4096):  # type: ignore[attr-defined]
            came.put(chunk)
        came.put(b"")

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    said = b""
    try:
        while chunk := came.get(timeout=quiet_s):
            said += chunk
            if show is not None:
                show(chunk.decode(errors="replace"))
        code = process.wait(quiet_s)
    except (queue.Empty, subprocess.TimeoutExpired):
        raise EsptoolError(
            "The board does not answer any more: check the cable and run the same command again."
        ) from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        reader.join(1)
        if process.stdout is not None:
            process.stdout.close()
    text = said.decode(errors="replace")
    if code:
        raise EsptoolError(_sentence(text, doing))
    return text


@contextmanager
def handed(pieces: Sequence[tuple[int, bytes]]) -> Iterator[list[str]]:
    """The words `0x1000 FILE 0x8000 FILE ...` for pieces of a flash, while the block lasts."""
    with tempfile.TemporaryDirectory(prefix="outpost-flash-") as folder:
        words = []
        for offset, content in pieces:
            file = Path(folder) / f"{offset:08x}.bin"
            file.touch(0o600)
            file.write_bytes(content)
            words += [f"{offset:#x}", str(file)]
        yield words
