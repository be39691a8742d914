"""The device's own keystore.py and keychange.py, run by CPython over the virtual board's NVS.

It owns no file. Running it here lets a test cut the power thousands of times. `source_edit` breaks
one of them on purpose.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types

from chip import REPO, Chip, ChipError

FOLDER = REPO / "lib" / "outpost"


def load(source_edit: tuple[str, str] | None = None) -> types.ModuleType:
    """lib/outpost/keystore.py as a module, with what it loads to write; `source_edit` replaces a
    text in either, to break it."""
    package = types.ModuleType("outpost_keys")
    package.__path__ = [str(FOLDER)]
    sys.modules["outpost_keys"] = package
    importlib.import_module("outpost_keys.agreed")
    importlib.import_module("outpost_keys.errors")
    # What drops the TLS session, which is in RTC memory: here it is counted.
    session = types.ModuleType("outpost_keys.resumption")
    session.forgotten = 0  # type: ignore[attr-defined]

    def forget() -> None:
        session.forgotten += 1  # type: ignore[attr-defined]

    session.forget = forget  # type: ignore[attr-defined]
    sys.modules["outpost_keys.resumption"] = session
    package.resumption = session  # type: ignore[attr-defined]
    module = _module("keystore", source_edit)
    changes = _module("keychange", source_edit)
    assert not source_edit or module.edited or changes.edited
    module.do = lambda part, name, *args: getattr(changes, name)(*args)  # type: ignore[attr-defined]
    module.resumption = session  # type: ignore[attr-defined]
    return module


def _module(name: str, edit: tuple[str, str] | None) -> types.ModuleType:
    path = FOLDER / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"outpost_keys.{name}", path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    source = path.read_text()
    module.edited = edit is not None and edit[0] in source  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    exec(compile(source.replace(*edit) if edit else source, str(path), "exec"), module.__dict__)
    return module


class Nvs:
    """The calls of esp32.NVS that the key store uses, with the errors of the board."""

    def __init__(self, chip: Chip, namespace: str = "outpost") -> None:
        self.chip = chip
        self.ns = chip.namespace(namespace)

    def _call(self, call, *args):
        try:
            return call(self.ns, *args)
        except ChipError as err:
            # Where the power is gone the board runs no more: nothing may catch that.
            if err.code == 0x6001:
                raise PowerGone from None
            raise OSError(-err.code) from None

    def set_i32(self, key: str, value: int) -> None:
        self._call(self.chip.set_i32, key, value)

    def get_i32(self, key: str) -> int:
        return self._call(self.chip.get_i32, key)

    def set_blob(self, key: str, value: bytes) -> None:
        self._call(self.chip.set_blob, key, bytes(value))

    def get_blob(self, key: str, buffer: bytearray) -> int:
        value = self._call(self.chip.get_blob, key)
        if len(value) > len(buffer):
            raise OSError(-0x110C)
        buffer[: len(value)] = value
        return len(value)

    def erase_key(self, key: str) -> None:
        self._call(self.chip.erase_key, key)

    def commit(self) -> None:
        pass


class PowerGone(BaseException):
    """The chip has no power any more."""
