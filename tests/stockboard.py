"""A virtual board with a stock flash layout: its image, and its raw prompt.

Owns the layout that MicroPython's release images have. Never uses our library or our image builder,
so that what it tests is the board alone.
"""

from __future__ import annotations

import hashlib
import select
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from legs import BIN
from littlefs import LittleFS

VFS_OFFSET = 0x200000
VFS_BLOCKS = 512

# The partitions of the stock image that the probes were run on.
LAYOUT = (
    (1, 0x02, 0x9000, 0x6000, b"nvs"),
    (1, 0x01, 0xF000, 0x1000, b"phy_init"),
    (0, 0x00, 0x10000, 0x1F0000, b"factory"),
    (1, 0x81, 0x200000, 0x200000, b"vfs"),
)


def blank_flash(path: Path) -> Path:
    """4 MiB as they come from the factory, but for the partition table."""
    table = b"".join(
        struct.pack("<HBBII16sI", 0x50AA, kind, subtype, offset, size, label, 0)
        for kind, subtype, offset, size, label in LAYOUT
    )
    table += b"\xeb\xeb" + b"\xff" * 14 + hashlib.md5(table).digest()
    image = bytearray(b"\xff" * (4 << 20))
    image[0x8000 : 0x8000 + len(table)] = table
    path.write_bytes(image)
    return path


def flash_with(path: Path, **files: str) -> Path:
    """A flash image whose file system holds the files, written by littlefs-python."""
    system = LittleFS(
        block_size=4096, block_count=VFS_BLOCKS, disk_version=0x00020000, name_max=255
    )
    for name, text in files.items():
        with system.open(name + ".py", "w") as file:
            file.write(text)
    blank_flash(path)
    with path.open("r+b") as image:
        image.seek(VFS_OFFSET)
        image.write(system.context.buffer)
    return path


class RawPrompt:
    """A board at its raw prompt."""

    def __init__(self, leg: str, flash: Path) -> None:
        command = [BIN / leg, "--board", "-X", "heapsize=160K", "--flash", flash]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._seen = b""

    def until(self, end: bytes, timeout_s: float = 60) -> bytes:
        deadline = time.monotonic() + timeout_s
        while end not in self._seen:
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self._process.stdout], [], [], left)[0], self._seen
            chunk = self._process.stdout.read1(65536)
            assert chunk, f"the board ended: {self._seen!r}"
            self._seen += chunk
        answer, self._seen = self._seen.split(end, 1)
        return answer

    def send(self, data: bytes) -> None:
        self._process.stdin.write(data)
        self._process.stdin.flush()

    def enter(self) -> None:
        """As mpremote does before it runs a script: raw prompt, soft reset."""
        self.until(b">>> ")
        self.send(b"\x01")
        self.until(b"raw REPL; CTRL-B to exit\r\n>")
        self.send(b"\x04")
        self.until(b"soft reboot\r\n")
        self.until(b"raw REPL; CTRL-B to exit\r\n>")

    def run(self, source: str) -> str:
        self.send(source.encode() + b"\x04")
        self.until(b"OK")
        output = self.until(b"\x04")
        error = self.until(b"\x04>")
        assert not error, error.decode()
        return output.decode()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.terminate()
        self._process.wait(10)
        self._process.stdout.close()


@contextmanager
def raw_prompt(leg: str, flash: Path) -> Iterator[RawPrompt]:
    prompt = RawPrompt(leg, flash)
    try:
        prompt.enter()
        yield prompt
    finally:
        prompt.close()
