"""`make bench`: measures every topic, prints tables and writes docs/numbers.md.

A topic is a module `bench_*.py` beside this one with a function `measure() -> list[Table]`; a
new file is a new topic. It owns docs/numbers.md, which it writes only when all topics ran.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
from pathlib import Path

import rich.console
from bench.table import Table

HERE = Path(__file__).resolve().parent
NUMBERS = HERE.parent.parent / "docs" / "numbers.md"

HEAD = """\
# Numbers

Measured by `make bench`, which writes this file. The figures of memory come from the 32-bit
build, whose objects are as large as an ESP32's; they are bytes as asked for, without the
allocator's own. Times depend on the machine: read them as a ratio to the stock build beside them
in the same run.

Machine: {machine}.
"""


def machine() -> str:
    """The machine in general terms."""
    system = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    return f"{platform.machine()}, {os.cpu_count()} processors, {system}"


def topics() -> list[str]:
    return sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bench", description="Measures the budgets of the design."
    )
    parser.add_argument("--only", nargs="+", choices=topics(), help="print these alone")
    options = parser.parse_args()
    console = rich.console.Console()
    tables: list[Table] = []
    for name in options.only or topics():
        with console.status(f"measuring {name}"):
            made = importlib.import_module(f"bench.bench_{name}").measure()
        for table in made:
            console.print(table.for_terminal())
        tables += made
    if not options.only:
        NUMBERS.parent.mkdir(exist_ok=True)
        body = "\n".join(table.as_markdown() for table in tables)
        NUMBERS.write_text(HEAD.format(machine=machine()) + "\n" + body, encoding="utf-8")
        console.print(f"written to {NUMBERS.relative_to(NUMBERS.parent.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
