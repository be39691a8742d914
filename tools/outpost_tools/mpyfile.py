"""Compiled Python (.mpy): made, and whether the board's MicroPython would load it.

MicroPython says "incompatible .mpy file" on the board, where nobody reads it; here it is a
sentence. It owns nothing.
"""

import functools
import re
import subprocess
import tempfile
from pathlib import Path

from outpost_tools.errors import OutpostError
from outpost_tools.paths import binary

# Native code, by the number in the header; bytecode alone (0) runs on every chip.
ARCHITECTURES = {0: "none", 10: "xtensawin", 11: "rv32imc"}
CHIP_ARCHITECTURES = {
    "esp32": 10,
    "esp32s2": 10,
    "esp32s3": 10,
    "esp32c3": 11,
    "esp32c6": 11,
}
SMALL_INT_BITS = 31  # of a 32-bit chip


@functools.cache
def emitted() -> tuple[int, int]:
    """The version, and the version of native code, that our MicroPython's compiler emits."""
    try:
        done = subprocess.run(
            [binary("mpy-cross"), "--version"], capture_output=True, text=True, check=True
        )
    except subprocess.CalledProcessError:
        raise OutpostError(
            "mpy-cross does not run: build it again with `make micropython`."
        ) from None
    match = re.search(r"mpy v(\d+)(?:\.(\d+))?", done.stdout)
    if match is None:
        raise OutpostError("mpy-cross does not say its version: run `make micropython` again.")
    return int(match[1]), int(match[2] or 0)


def compiled(source: Path, name: str, arch: str = "bytecode", lines: bool = True) -> bytes:
    """One .mpy file; `name` is what tracebacks call it, so no path of this machine is in it.

    lines  whether it knows the numbers of its lines
    """
    with tempfile.TemporaryDirectory(prefix="outpost-mpy-") as folder:
        out = Path(folder) / "out.mpy"
        options = [] if arch == "bytecode" else [f"-march={arch}"]
        options += [] if lines else ["-O3"]
        done = subprocess.run(
            [binary("mpy-cross"), *options, "-s", name, "-o", out, source],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["mpy-cross failed"]
            raise OutpostError(f"{source} does not compile: {last[0]}")
        return out.read_bytes()


def check_mpy(
    data: bytes,
    source: str,
    chip: str | None = None,
    takes: tuple[int, int] | None = None,
) -> None:
    """OutpostError where a board would not load it: one of ours, or one that `takes` those."""
    version, native = takes or emitted()
    if len(data) < 4 or data[0:1] != b"M":
        raise OutpostError(f"{source} is no compiled Python: compile it again with mpy-cross.")
    if data[1] != version:
        raise OutpostError(
            f"{source} is of .mpy version {data[1]}, and the board's MicroPython loads version "
            f"{version}: compile it with that one's mpy-cross."
        )
    architecture = data[2] >> 2 & 0xF
    if architecture:
        wanted = CHIP_ARCHITECTURES.get(chip) if chip else None
        if architecture not in ARCHITECTURES or wanted not in (None, architecture):
            raise OutpostError(f"{source} holds machine code for another chip: compile it again.")
        if data[2] & 3 != native:
            raise OutpostError(
                f"{source} holds machine code of version {data[2] & 3}, and the board's "
                f"MicroPython loads version {native}: compile it with that one's mpy-cross."
            )
    if data[3] > SMALL_INT_BITS:
        raise OutpostError(f"{source} is compiled for a 64-bit machine: compile it for the board.")
