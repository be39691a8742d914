"""The device's own outbox.py and its parts, run by CPython over the virtual board's flash.

It owns no file. The module is plain Python but for `micropython.const`; running it here lets a test
start it thousands of times.
"""

from __future__ import annotations

import importlib.util
import sys
import types

from chip import REPO, SECTOR, Chip

PARTS = ("errors", "parts", "outbox", "outbox_scan", "outbox_room")


def load(source_edit: tuple[str, str, str] | None = None) -> types.ModuleType:
    """lib/outpost/outbox.py as a module, with what it imports.

    `source_edit` is (module, text, replacement): it breaks that module on purpose.
    """
    sys.modules.setdefault("micropython", types.SimpleNamespace(const=lambda x: x))  # type: ignore[arg-type]
    for name in [name for name in sys.modules if name.startswith("outpost_ring")]:
        del sys.modules[name]
    package = types.ModuleType("outpost_ring")
    package.__path__ = [str(REPO / "lib" / "outpost")]
    sys.modules["outpost_ring"] = package
    made = {}
    for part in PARTS:
        path = REPO / "lib" / "outpost" / f"{part}.py"
        spec = importlib.util.spec_from_file_location(f"outpost_ring.{part}", path)
        assert spec is not None
        module = made[part] = importlib.util.module_from_spec(spec)
        sys.modules[f"outpost_ring.{part}"] = module
        setattr(package, part, module)
        source = path.read_text()
        if source_edit and source_edit[0] == part:
            assert source_edit[1] in source
            source = source.replace(*source_edit[1:])
        exec(compile(source, str(path), "exec"), module.__dict__)
    # It loads its parts when it needs them; here they are there, also those that are broken.
    outbox = made["outbox"]
    outbox.do = lambda part, name, *args: getattr(made[part], name)(*args)  # type: ignore[attr-defined]
    outbox._room = lambda: made["outbox_room"]  # type: ignore[attr-defined]
    return outbox


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
