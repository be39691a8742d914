"""Where things are: the source tree, what was built in it, and the person's own data.

It owns the rule that secrets go into folders and files which only their owner can read. It never
creates anything at import.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from outpost_tools.errors import OutpostError


def tree() -> Path:
    """The top of the source tree, where boot.py, lib/ and firmware/ are."""
    named = os.environ.get("OUTPOST_TREE")
    top = Path(named) if named else Path(__file__).resolve().parents[2]
    if not (top / "firmware" / "boards").is_dir():
        raise OutpostError(
            f"{top} is not Outpost's source tree: set OUTPOST_TREE to the folder above firmware/."
        )
    return top


def binary(name: str) -> Path:
    """A program that `make micropython` built, e.g. "outpost64" or "mpy-cross"."""
    folder = os.environ.get("OUTPOST_BIN")
    path = (Path(folder) if folder else tree() / "build" / "bin") / name
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise OutpostError(f"{path} is missing: run `make micropython`, which builds it.")
    return path


def data_dir(given: Path | None = None) -> Path:
    """Folder of the registry and the development CA: as given, or named by $OUTPOST_DATA."""
    return given or Path(os.environ.get("OUTPOST_DATA") or "outpost-data")


def private_dir(path: Path) -> Path:
    """Make `path`, readable by its owner alone, or say in one sentence why not."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise OutpostError(f"{path} is a file: give a folder with --data.") from None
    except OSError as why:
        raise OutpostError(
            f"Cannot make the folder {path} ({why.strerror}): give another with --data."
        ) from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise OutpostError(f"The folder {path} cannot be written: give another with --data.")
    return path


@contextmanager
def replacing(path: Path, mode: int = 0o600) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place, whole, when the block ends well."""
    if path.exists() and not path.is_file():
        # Above all a device: root would put a file in its place.
        kind = "a folder" if path.is_dir() else "no ordinary file"
        raise OutpostError(f"Cannot write {path}: it is {kind}.")
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except FileNotFoundError:
        raise OutpostError(f"There is no folder {path.parent} to write {path.name} in.") from None
    except OSError as why:
        raise OutpostError(f"Cannot write {path} ({why.strerror}).") from None
    os.close(handle)
    draft = Path(name)
    try:
        yield draft
        draft.chmod(mode)
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        try:
            draft.replace(path)
        except OSError as why:
            raise OutpostError(f"Cannot write {path} ({why.strerror}).") from None
    finally:
        draft.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a file so that a reader, or a power cut, sees the old one or the new one."""
    with replacing(path, mode) as draft:
        draft.write_bytes(content)
