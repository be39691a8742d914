"""Application packages: a folder of Python becomes .mpy files in one archive, and back.

The archive is the body of an envelope of the role software (docs/updates.md, byte by byte), which
the signers sign. It owns no file; the same sources and compiler give the same bytes.
"""

import ast
import hashlib
import re
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from outpost_tools import agreed
from outpost_tools.errors import OutpostError
from outpost_tools.image import application
from outpost_tools.mpyfile import compiled

HEAD = struct.Struct(">4sBBBB")
MAIN = "main.py"
COMPILED_MAIN = "_main"
STUB = f"import {COMPILED_MAIN}\n".encode()
# What mpy-cross calls the machine code of the boards; "bytecode" runs on every one.
ARCHES = {
    "bytecode": 0,
    "x86": 1,
    "x64": 2,
    "armv6m": 4,
    "armv7m": 5,
    "armv7em": 6,
    "xtensa": 9,
    "xtensawin": 10,
    "rv32imc": 11,
}
_COMPONENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Package:
    """label, version and arch of its .mpy files, and the files by their path in the slot."""

    label: str
    mpy_version: int
    mpy_flags: int  # sub-version in the two low bits, arch above them
    files: dict[str, bytes]

    def check(self) -> None:
        if len(self.label.encode()) > agreed.APP_LABEL_MAX or not self.label.isprintable():
            raise OutpostError(f"A label is a text of at most {agreed.APP_LABEL_MAX} bytes.")
        if not self.files.get(MAIN):
            raise OutpostError("An application has a main.py: the folder holds none.")
        if len(self.files) > agreed.APP_FILES_MAX:
            raise OutpostError(f"A package has at most {agreed.APP_FILES_MAX} files.")
        for path in self.files:
            check_path(path)
            parents = [path[:at] for at, c in enumerate(path) if c == "/"]
            if not self.files.keys().isdisjoint(parents):
                raise OutpostError(f"{path} lies in what is a file of the package.")

    def encode(self) -> bytes:
        self.check()
        label = self.label.encode()
        parts = [
            HEAD.pack(
                agreed.APP_MAGIC,
                agreed.APP_FORMAT,
                self.mpy_version,
                self.mpy_flags,
                len(self.files),
            ),
            bytes((len(label),)) + label,
        ]
        for path, content in sorted(self.files.items()):
            name = path.encode()
            parts.append(bytes((len(name),)) + name + struct.pack(">I", len(content)))
            parts.append(hashlib.sha256(content).digest() + content)
        return b"".join(parts)

    @classmethod
    def decode(cls, body: bytes) -> "Package":
        """What a device reads; OutpostError where it would refuse it."""
        try:
            magic, form, version, flags, count = HEAD.unpack_from(body)
            if magic != agreed.APP_MAGIC or form != agreed.APP_FORMAT:
                raise OutpostError("This is no application package.")
            label, at = _text(body, HEAD.size)
            files: dict[str, bytes] = {}
            for _ in range(count):
                path, at = _text(body, at)
                (size,) = struct.unpack_from(">I", body, at)
                digest, start = body[at + 4 : at + 36], at + 36
                at = start + size
                content = body[start:at]
                if at > len(body) or hashlib.sha256(content).digest() != digest:
                    raise OutpostError(f"{path!a} in the package is cut off or damaged.")
                if files and path <= max(files):
                    raise OutpostError(f"The package names {path!a} out of order or twice.")
                files[path] = content
        except (struct.error, IndexError, UnicodeDecodeError):
            raise OutpostError("The package is cut off or damaged.") from None
        if at != len(body):
            raise OutpostError("The package goes on after its last file.")
        made = cls(label, version, flags, files)
        made.check()
        return made


def _text(body: bytes, at: int) -> tuple[str, int]:
    end = at + 1 + body[at]
    if end > len(body):
        raise IndexError
    return body[at + 1 : end].decode(), end


def check_path(path: str) -> None:
    """Refuse what a device would refuse, before it is signed."""
    parts = path.split("/")
    if (
        len(path) > agreed.APP_PATH_MAX
        or len(parts) > agreed.APP_DEPTH_MAX
        or not all(_COMPONENT.fullmatch(part) for part in parts)
    ):
        raise OutpostError(
            f"{path!a} cannot be in a package: at most {agreed.APP_DEPTH_MAX} levels and "
            f"{agreed.APP_PATH_MAX} characters, of letters, digits and _ - . (none first)."
        )
    if path == "boot.py":
        raise OutpostError("boot.py stays the image's own: leave it out of the application.")
    if path.endswith(".py") and path != MAIN:
        raise OutpostError(f"{path} is source: a package has .mpy files, and main.py.")


def build(folder: Path, label: str = "", arch: str = "bytecode") -> Package:
    """The application in `folder`, compiled with this tree's mpy-cross."""
    if arch not in ARCHES:
        raise OutpostError(f"There is no arch {arch!r}: {', '.join(ARCHES)}.")
    if not (folder / MAIN).is_file():
        raise OutpostError(f"{folder} is no application: it has no main.py.")
    files: dict[str, bytes] = {}
    sources: dict[str, Path] = {}
    for name, content in application(folder).items():
        path = name.lstrip("/")
        if path == "boot.py":
            check_path(path)
        if path.endswith(".py") and not (path == MAIN and _asks_its_name(content, path)):
            sources[path] = folder / path
        else:
            files[path] = content
    if MAIN in sources:
        # MicroPython runs a main.py and no main.mpy; and importing "main" would find itself.
        if f"{COMPILED_MAIN}.py" in sources or f"{COMPILED_MAIN}.mpy" in files:
            raise OutpostError(f"{COMPILED_MAIN}.py is the package's own name: call it otherwise.")
        sources[f"{COMPILED_MAIN}.py"] = sources.pop(MAIN)
        files[MAIN] = STUB
    for path, source in sources.items():
        target = path.removesuffix(".py") + ".mpy"
        if target in files:
            raise OutpostError(f"{folder} holds both {path} and {target}: leave one out.")
        files[target] = compiled(source, path, arch)
    _check_library(folder, files)
    version, flags = mpy_of(files)
    package = Package(label, version, flags, files)
    package.check()
    return package


def _check_library(folder: Path, files: Mapping[str, bytes]) -> None:
    """A package's own outpost/ goes before the board's, all of it or nothing."""
    for top in ("outpost/", "lib/outpost/"):
        if any(p.startswith(top) for p in files) and f"{top}__init__.mpy" not in files:
            raise OutpostError(
                f"{folder} brings {top} in part, which would stand before the whole one of the "
                "board: put all of the library there, or call your folder otherwise."
            )


def _asks_its_name(source: bytes, path: str) -> bool:
    """Whether main.py looks at __name__, which is "__main__" only where it runs as source."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as why:
        raise OutpostError(f"{path} is no Python: {why}.") from None
    return any(isinstance(node, ast.Name) and node.id == "__name__" for node in ast.walk(tree))


def mpy_of(files: dict[str, bytes]) -> tuple[int, int]:
    """(version, flags) that a board must load for all of the .mpy files."""
    version = flags = None
    for path, content in files.items():
        if not path.endswith(".mpy"):
            continue
        if len(content) < 4 or content[0] != ord("M"):
            raise OutpostError(f"{path} is no .mpy file.")
        if version is not None and content[1] != version:
            raise OutpostError(f"{path} is of another mpy version than the other files.")
        version = content[1]
        if content[2] >> 2:
            if flags is not None and flags != content[2]:
                raise OutpostError(f"{path} is of another arch than the other files.")
            flags = content[2]
    if version is None:
        # Source and data alone, for a board of this tree's compiler all the same.
        with tempfile.TemporaryDirectory(prefix="outpost-mpy-") as folder:
            empty = Path(folder) / "empty.py"
            empty.write_text("")
            version = compiled(empty, "empty.py")[1]
    return version, flags or 0
