"""Size of the device library as .mpy, by module."""

from __future__ import annotations

from bench.table import Table
from outpost_tools.image import compiled_library

BUDGET = 64 * 1024


def measure() -> list[Table]:
    table = Table("Size of lib/outpost as .mpy", ["module", "bytes"])
    sizes = {
        path.rpartition("/")[2].removesuffix(".mpy"): len(content)
        for path, content in compiled_library().items()
        if path.startswith("/lib/outpost/")
    }
    for name, size in sorted(sizes.items(), key=lambda item: -item[1]):
        table.add(name, size)
    table.add("all", sum(sizes.values()))
    table.notes.append(f"Budget for all: {BUDGET:,}.")
    return [table]
