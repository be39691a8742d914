"""Which port is meant, where none was named; and a disk that is full while an image is written."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from outpost_tools.errors import OutpostError
from outpost_tools.ports import find_port
from serial.tools import list_ports

OUTPOST = Path(sys.executable).parent / "outpost"


def plugged_in(monkeypatch, *names: str) -> None:
    ports = [SimpleNamespace(device=name, vid=0x10C4) for name in names]
    ports.append(SimpleNamespace(device="/dev/ttyS0", vid=None))  # of the machine's own
    monkeypatch.setattr(list_ports, "comports", lambda: ports)


def test_the_one_board_that_is_plugged_in_is_found(monkeypatch):
    plugged_in(monkeypatch, "/dev/ttyUSB3")
    assert find_port(None) == find_port("") == "/dev/ttyUSB3"


def test_between_two_boards_nothing_is_guessed(monkeypatch):
    plugged_in(monkeypatch, "/dev/ttyUSB3", "/dev/ttyACM0")
    with pytest.raises(OutpostError, match="2 ports, /dev/ttyACM0, /dev/ttyUSB3: say --port"):
        find_port(None)
    assert find_port("/dev/ttyUSB3") == "/dev/ttyUSB3"


def test_no_board_says_what_to_do(monkeypatch):
    plugged_in(monkeypatch)
    with pytest.raises(OutpostError, match="plug it in, or name its port"):
        find_port(None)


def test_a_full_disk_is_one_sentence_and_the_image_that_was_there_stays(tmp_path):
    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    there = tmp_path / "pump-7.bin"
    there.write_bytes(b"the one before")
    done = subprocess.run(
        [OUTPOST, "image", "pump-7", "--born", "--data", tmp_path / "data"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=no_room,
    )
    assert done.returncode == 1 and "The disk is full" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and there.read_bytes() == b"the one before"
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["pump-7.bin"]
