"""Modules of lib/outpost run by CPython: fast, and thousands of times, over the real virtual flash.

It owns no file. What MicroPython has and CPython has not is given here: const, cryptolib's AES (by
`cryptography`), and esp32.NVS over the virtual board's own NVS (`storekeys.Nvs`).
"""

from __future__ import annotations

import importlib
import itertools
import sys
import types
from typing import Any

from chip import REPO
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

FOLDER = REPO / "lib" / "outpost"
_count = itertools.count()


class _Aes:
    def __init__(self, key: bytes, mode: int, iv: bytes) -> None:
        assert mode == 2
        self._cipher = Cipher(algorithms.AES(key), modes.CBC(iv))

    def encrypt(self, data: bytes) -> bytes:
        return self._cipher.encryptor().update(data)

    def decrypt(self, data: bytes) -> bytes:
        return self._cipher.decryptor().update(data)


class Library:
    """`Library().signed` is lib/outpost/signed.py, loaded afresh.

    esp32  what `import esp32` gives inside the functions
    edits  {module: (text, its replacement)} to break a module on purpose
    """

    def __init__(self, esp32: Any = None, edits: dict[str, tuple[str, str]] | None = None) -> None:
        sys.modules.setdefault("micropython", types.SimpleNamespace(const=lambda x: x))  # type: ignore[arg-type]
        sys.modules["cryptolib"] = types.SimpleNamespace(aes=_Aes)  # type: ignore[assignment]
        self._esp32 = esp32
        self._edits = edits or {}
        self.name = f"outpost_cpython_{next(_count)}"
        package = types.ModuleType(self.name)
        package.__path__ = [str(FOLDER)]
        sys.modules[self.name] = package
        for module, (old, new) in self._edits.items():
            self._load_edited(module, old, new)

    def _load_edited(self, module: str, old: str, new: str) -> None:
        path = FOLDER / f"{module}.py"
        source = path.read_text()
        assert old in source, (module, old)
        made = types.ModuleType(f"{self.name}.{module}")
        made.__package__ = self.name
        sys.modules[made.__name__] = made
        exec(compile(source.replace(old, new), str(path), "exec"), made.__dict__)
        setattr(sys.modules[self.name], module, made)

    def __getattr__(self, module: str) -> types.ModuleType:
        if self._esp32 is not None:
            sys.modules["esp32"] = self._esp32
        return importlib.import_module(f"{self.name}.{module}")
