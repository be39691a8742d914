"""What a rollout keeps: its waves, and how far each device has come, in one file.

The file is JSON lines: the whole plan first, then one line for each change, on disk before the
rollout goes on. A program that was killed leaves at most a torn last line, which counts for
nothing. It owns that file and a lock beside it; it never talks to a device.
"""

import fcntl
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from outpost_tools.errors import OutpostError
from outpost_tools.paths import private_dir

FORMAT = 1
WAITING, SENT, DONE, FAILED, AWAY = "waiting", "sent", "done", "failed", "away"
STATES = (WAITING, SENT, DONE, FAILED, AWAY)


def plan(device_ids: Sequence[str], sizes: str) -> list[list[str]]:
    """The devices in waves: "1,10%,30%" is one device, a tenth, three tenths, then the rest.

    A percentage is of all the devices and rounded up; a wave has at least one.
    """
    waves, left = [], list(device_ids)
    for text in sizes.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(%?)\s*", text)
        if match is None or int(match[1]) == 0 or (match[2] and int(match[1]) > 100):
            raise OutpostError(
                f"{sizes!r} does not say how large the waves are: give e.g. 1,10%,30%."
            )
        size = -(-int(match[1]) * len(device_ids) // 100) if match[2] else int(match[1])
        waves.append(left[:size])
        left = left[size:]
    return [wave for wave in (*waves, left) if wave]


@contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Hold the lock in the file `path`; another program that has it already gets a sentence."""
    private_dir(path.parent)
    try:
        lock = path.open("w")
    except OSError as why:
        raise OutpostError(f"Cannot write {path} ({why.strerror}).") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OutpostError(f"Another program is at work on {what}: wait for its end.") from None
        yield


class Ledger:
    """The state of one rollout in `path`. Only inside `held()` may it be written."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.kind = ""
        self.what: dict[str, Any] = {}
        self.waves: list[list[str]] = []
        self.devices: dict[str, dict[str, Any]] = {}
        self._counts = dict.fromkeys(STATES, 0)
        self._lock = threading.Lock()
        if self.path.exists():
            self._read()

    @property
    def begun(self) -> bool:
        return bool(self.waves)

    def begin(self, kind: str, what: Mapping[str, Any], waves: Sequence[Sequence[str]]) -> None:
        # One line: of half a plan the rest would come to be one wave.
        plan = {"kind": kind, "what": dict(what), "waves": [list(wave) for wave in waves]}
        self._write({"format": FORMAT, **plan})

    def add(self, wave: Sequence[str]) -> None:
        """One more wave at the end."""
        self._write({"wave": list(wave)})

    def set(self, device_id: str, state: str, why: str = "", **more: Any) -> None:
        self._write({"device": device_id, "state": state, "why": why, **more})

    def check(self, kind: str, what: Mapping[str, Any]) -> None:
        """OutpostError where what has begun here is another rollout."""
        if (self.kind, self.what) != (kind, dict(what)):
            raise OutpostError(
                f"The rollout in {self.path} is of something else: give another --state."
            )

    def state(self, device_id: str) -> str:
        return str(self.devices.get(device_id, {}).get("state", WAITING))

    def why(self, device_id: str) -> str:
        return str(self.devices.get(device_id, {}).get("why", ""))

    def in_state(self, *states: str, among: Sequence[str] | None = None) -> list[str]:
        ids = among if among is not None else [one for wave in self.waves for one in wave]
        return [one for one in ids if self.state(one) in states]

    def counts(self) -> dict[str, int]:
        return dict(self._counts)

    @contextmanager
    def held(self) -> Iterator["Ledger"]:
        """No other process works on this rollout meanwhile."""
        with alone(self.path.with_suffix(".lock"), f"the rollout in {self.path}"):
            self.waves, self.devices = [], {}
            self._counts = dict.fromkeys(STATES, 0)
            if self.path.exists():
                self._read(mend=True)
            yield self

    def _read(self, mend: bool = False) -> None:
        """mend  take a torn line away: only where nobody can be writing it just now"""
        try:
            content = self.path.read_bytes()
        except OSError as why:
            raise OutpostError(f"Cannot read {self.path} ({why.strerror}).") from None
        *lines, torn = content.split(b"\n")
        try:
            for line in lines:
                self._take(json.loads(line))
        except (ValueError, KeyError, TypeError):
            raise OutpostError(
                f"{self.path} is damaged: move it away, and the rollout begins anew; devices that "
                "have the new version are not sent it again."
            ) from None
        if torn and mend:
            try:
                os.truncate(self.path, len(content) - len(torn))
            except OSError as why:
                raise self._unwritten(why) from None

    def _take(self, line: Mapping[str, Any]) -> None:
        if "format" in line:
            if line["format"] != FORMAT:
                raise OutpostError(f"{self.path} is of another format: use the newer `outpost`.")
            self.kind, self.what = str(line["kind"]), dict(line["what"])
            for wave in line["waves"]:
                self._take_wave(wave)
        elif "wave" in line:
            self._take_wave(line["wave"])
        else:
            if line["state"] not in STATES:
                raise ValueError
            device_id = str(line["device"])
            self._counts[self.state(device_id)] -= 1
            self.devices[device_id] = dict(line)
            self._counts[self.state(device_id)] += 1

    def _take_wave(self, wave: Sequence[str]) -> None:
        self.waves.append([str(one) for one in wave])
        self._counts[WAITING] += len(self.waves[-1])

    def _write(self, line: dict[str, Any]) -> None:
        data = json.dumps(line).encode() + b"\n"
        with self._lock:
            private_dir(self.path.parent)
            try:
                handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                try:
                    self._append(handle, data)
                finally:
                    os.close(handle)
            except OSError as why:
                raise self._unwritten(why) from None
            self._take(line)

    @staticmethod
    def _append(handle: int, data: bytes) -> None:
        """All of it, or nothing."""
        end = os.lseek(handle, 0, os.SEEK_END)
        try:
            while data:
                data = data[os.write(handle, data) :]
            os.fsync(handle)
        except OSError:
            os.ftruncate(handle, end)
            raise

    def _unwritten(self, why: OSError) -> OutpostError:
        return OutpostError(
            f"Cannot write {self.path} ({why.strerror}): the rollout was stopped, and the same "
            "command goes on."
        )
