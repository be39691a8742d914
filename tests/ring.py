"""The device's own outbox.py, run by CPython over the virtual board's flash.

It owns no file. The module is plain Python but for `micropython.const`; running it here lets a test
start it thousands of times.
"""

from __future__ import annotations

import importlib.util
import sys
import types

from chip import REPO, SECTOR, Chip


def load(source_edit: tuple[str, str] | None = None) -> types.ModuleType:
    """lib/outpost/outbox.py as a module; `source_edit` replaces a text in it, to break it."""
    sys.modules.setdefault("micropython", types.SimpleNamespace(const=lambda x: x))  # type: ignore[arg-type]
    package = types.ModuleType("outpost_ring")
    package.__path__ = [str(REPO / "lib" / "outpost")]
    sys.modules["outpost_ring"] = package
    path = REPO / "lib" / "outpost" / "outbox.py"
    spec = importlib.util.spec_from_file_location("outpost_ring.outbox", path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    source = path.read_text()
    if source_edit:
        assert source_edit[0] in source
        source = source.replace(*source_edit)
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module


class Partition:
    """The calls of esp32.Partition that the outbox uses, over `sectors` sectors of a chip."""

    def __init__(self, chip: Chip, offset: int, sectors: int) -> None:
        self.chip, self.offset, self.sectors = chip, offset, sectors

    def ioctl(self, op: int, arg: int) -> int:
        if op == 4:
            return self.sectors
        if op == 5:
            return SECTOR
        assert op == 6 and 0 <= arg < self.sectors
        self.chip.erase(self.offset + arg * SECTOR)
        return 0

    def readblocks(self, block: int, buffer, offset: int = 0) -> None:
        view = memoryview(buffer)
        assert 0 <= block < self.sectors and offset + len(view) <= SECTOR
        view[:] = self.chip.read(self.offset + block * SECTOR + offset, len(view))

    def writeblocks(self, block: int, data, offset: int) -> None:
        data = bytes(data)
        assert 0 <= block < self.sectors and offset + len(data) <= SECTOR
        self.chip.program(self.offset + block * SECTOR + offset, data)
