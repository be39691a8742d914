"""Changed files onto a running board in development mode, by mpremote as it is.

Only files that differ from the board's are sent, each whole before it takes its place; the
identity, the trust bundle, the configuration, staged updates and the outbox are never touched. It
owns the mpremote process while it runs. A board in production mode gives no prompt, and gets
nothing.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from outpost_tools import agreed
from outpost_tools.errors import OutpostError
from outpost_tools.mpyfile import check_mpy
from outpost_tools.ports import is_network

# What a deployment never writes, whatever the folder holds.
KEPT = ("/trust/", "/stage/", "/app/", agreed.CONFIG_PATH)
STAGING = "/deploy.new"
LIBRARY = ("/lib/outpost", "/lib/umqtt")
LIST_FILES = 200
ASK_FILES = 40  # in one question: the board holds the list while it answers
PATIENCE_S = 120

NO_PROMPT = (
    "The board gives no prompt. In production mode it takes signed software only (`outpost app "
    "push`); else check that the port is the right one."
)

_ABOUT = """
import sys
slot = -1
try:
    import esp32
    from outpost import agreed, slots
    n = esp32.NVS(agreed.NVS_NAMESPACE)
    b = bytearray(128)
    try:
        who = bytes(b[:n.get_blob(agreed.NVS_DEVICE_ID, b)]).decode()
    except OSError:
        who = None
    try:
        slot = n.get_i32(slots.NVS_APP_CURRENT)
    except OSError:
        pass
except ImportError:
    who = None
import json
print(json.dumps([getattr(sys.implementation, '_mpy', 0), who, slot]))
"""
_HASHES = """
import hashlib, binascii, json
def h(p):
    s = hashlib.sha256()
    b = bytearray(512)
    try:
        with open(p, 'rb') as f:
            while True:
                n = f.readinto(b)
                if not n:
                    break
                s.update(memoryview(b)[:n])
    except OSError:
        return None
    return binascii.hexlify(s.digest()).decode()
print(json.dumps([h(p) for p in %r]))
"""
# What an update brought would run, and not what is deployed: the board goes back to its own files.
_OWN_AGAIN = """
import esp32
from outpost import agreed, slots
n = esp32.NVS(agreed.NVS_NAMESPACE)
for k in (slots.NVS_APP_CURRENT, slots.NVS_APP_TRIAL):
    try:
        n.erase_key(k)
    except OSError:
        pass
n.commit()
"""
# In one go at the end: the board has the old files, or the new ones, but for a cut in here.
_IN_PLACE = """
import os
for n, p in enumerate(%r, %d):
    os.rename('%s/%%d' %% n, p)
"""
_REMOVE = """
import os
for p in %r:
    os.remove(p)
    while '/' in p[1:]:
        p = p[:p.rindex('/')]
        try:
            os.rmdir(p)
        except OSError:
            break
"""
_LIST = """
import os, json
def w(d, o):
    for e in os.ilistdir(d or '/'):
        p = d + '/' + e[0]
        if p in %r:
            continue
        if e[1] & 0x4000:
            w(p, o)
        elif len(o) < %d:
            o.append(p)
    return o
print(json.dumps(w('', [])))
"""
_TIDY = """
import os
for n in os.listdir('%s'):
    os.remove('%s/' + n)
os.rmdir('%s')
"""
_FOLDERS = """
import os
def d(p):
    try:
        os.mkdir(p)
    except OSError as e:
        if e.errno != 17:
            raise
d('%s')
for n in os.listdir('%s'):
    os.remove('%s/' + n)
for p in %r:
    d(p)
"""


@dataclass
class Board:
    """What a board says of itself."""

    mpy: int
    device_id: str | None
    slot: int = -1  # of an update; -1: the files in /

    @property
    def version(self) -> tuple[int, int]:
        return self.mpy & 0xFF, self.mpy >> 8 & 3


@dataclass
class Deployed:
    device_id: str | None
    sent: list[str] = field(default_factory=list)
    same: int = 0
    left_slot: bool = False  # it ran an update, and runs its own files again
    removed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)  # on the board, and not in the folder
    bytes: int = 0


def refuse_kept(files: Mapping[str, bytes]) -> None:
    for path in files:
        if any(path == kept or path.startswith(kept) and kept.endswith("/") for kept in KEPT):
            raise OutpostError(
                f"{path} is the board's own and is not deployed: leave it out. (Trust bundles go "
                "with `outpost trust push`, the configuration with a new image.)"
            )


class Mpremote:
    """mpremote on one port."""

    def __init__(self, port: str) -> None:
        # Over RFC 2217 with less of pyserial's waiting; the tool itself is the same.
        module = ["outpost_tools.quicktool", "mpremote"] if is_network(port) else ["mpremote"]
        self._words = [sys.executable, "-m", *module, "connect", port]

    def run(self, *words: str) -> str:
        """What it printed; OutpostError with a sentence where it failed."""
        try:
            done = subprocess.run(
                [*self._words, *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=PATIENCE_S,
            )
        except subprocess.TimeoutExpired:
            raise OutpostError(NO_PROMPT) from None
        if done.returncode:
            raise OutpostError(_sentence(done.stdout + done.stderr))
        return done.stdout

    def ask(self, source: str, *more: str) -> object:
        """The JSON that a piece of Python prints on the board, on its last line."""
        said = self.run("exec", source, *more).strip().splitlines()
        try:
            return json.loads(said[-1])
        except (IndexError, ValueError):
            raise OutpostError("The board's answer cannot be read: try again.") from None


def _sentence(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = lines[-1] if lines else "nothing"
    if "raw repl" in said or "TransportError" in said:
        return NO_PROMPT
    if "failed to access" in said or "no device found" in said:
        return (
            "The port does not open: is the board plugged in, and does no other program (a "
            "console) hold the port?"
        )
    if "No space left" in said or "ENOSPC" in said or "Errno 28" in said:
        return "The board's file system is full: remove something from it, and deploy again."
    if "SerialException" in said or "disconnected" in said or "Broken pipe" in said:
        return "The connection to the board was lost: check the cable and deploy again."
    return f"mpremote gave up: {last.rstrip('.')}."


def about(tool: Mpremote) -> Board:
    answer = tool.ask(_ABOUT)
    if not isinstance(answer, list) or len(answer) != 3:
        raise OutpostError("The board's answer cannot be read: try again.")
    return Board(int(answer[0]), answer[1], int(answer[2]))


def deploy(
    tool: Mpremote,
    files: Mapping[str, bytes],
    device_id: str | None = None,
    *,
    prune: bool = False,
    library: bool = False,
) -> Deployed:
    """Bring the files, by their absolute path, to the board; the caller restarts it.

    prune    what is on the board and not among the files goes
    library  lib/outpost is among the files; else it is no business of theirs
    """
    refuse_kept(files)
    board = about(tool)
    if device_id is not None and board.device_id != device_id:
        raise OutpostError(
            f"The board is {board.device_id or 'no device'}, not {device_id}: nothing was sent."
        )
    for path, content in files.items():
        if path.endswith(".mpy"):
            check_mpy(content, path, takes=board.version)
    done = Deployed(board.device_id)
    others = _others(tool, files, library)
    changed = _changed(tool, files)
    done.same = len(files) - len(changed)
    if changed:
        _send(tool, files, changed)
    # MicroPython takes a module's source before the compiled one of the same name.
    done.removed = [path for path in others if prune or _shadows(path, files)]
    done.left = [path for path in others if path not in done.removed]
    for first in range(0, len(done.removed), ASK_FILES):
        tool.run("exec", _REMOVE % (done.removed[first : first + ASK_FILES],))
    if board.slot >= 0:
        tool.run("exec", _OWN_AGAIN)
        done.left_slot = True
    done.sent = changed
    done.bytes = sum(len(files[path]) for path in changed)
    return done


def _send(tool: Mpremote, files: Mapping[str, bytes], changed: list[str]) -> None:
    parents = sorted({parent for path in changed for parent in _parents(path)})
    with tempfile.TemporaryDirectory(prefix="outpost-deploy-") as folder:
        words = ["exec", _FOLDERS % (STAGING, STAGING, STAGING, parents)]
        for number, path in enumerate(changed):
            file = Path(folder) / str(number)
            file.write_bytes(files[path])
            words += ["+", "cp", str(file), f":{STAGING}/{number}"]
        for first in range(0, len(changed), ASK_FILES):
            part = changed[first : first + ASK_FILES]
            words += ["+", "exec", _IN_PLACE % (part, first, STAGING)]
        words += ["+", "exec", f"import os; os.rmdir('{STAGING}')"]
        try:
            tool.run(*words)
        except OutpostError:
            with suppress(OutpostError):
                tool.run("exec", _TIDY % (STAGING, STAGING, STAGING))
            raise
    wrong = _changed(tool, {path: files[path] for path in changed})
    if wrong:
        raise OutpostError(f"{wrong[0]} did not arrive whole: deploy again.")


def _others(tool: Mpremote, files: Mapping[str, bytes], library: bool) -> list[str]:
    """What lies on the board beside the files, and is not the board's own."""
    skipped = [kept.rstrip("/") for kept in KEPT] + [STAGING]
    answer = tool.ask(_LIST % (skipped + ([] if library else list(LIBRARY)), LIST_FILES))
    if not isinstance(answer, list):
        raise OutpostError("The board's answer cannot be read: try again.")
    return sorted(str(path) for path in answer if path not in files)


def _shadows(path: str, files: Mapping[str, bytes]) -> bool:
    return path.endswith(".py") and path.removesuffix(".py") + ".mpy" in files


def _changed(tool: Mpremote, files: Mapping[str, bytes]) -> list[str]:
    paths = sorted(files)
    there: list[object] = []
    for first in range(0, len(paths), ASK_FILES):
        answer = tool.ask(_HASHES % (paths[first : first + ASK_FILES],))
        there += answer if isinstance(answer, list) else []
    if len(there) != len(paths):
        raise OutpostError("The board's answer cannot be read: try again.")
    return [
        path
        for path, found in zip(paths, there, strict=True)
        if found != hashlib.sha256(files[path]).hexdigest()
    ]


def _parents(path: str) -> list[str]:
    parts = path.split("/")[1:-1]
    return ["/" + "/".join(parts[: n + 1]) for n in range(len(parts))]
