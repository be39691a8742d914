"""esptool and mpremote, as PyPI has them, at the virtual board's serial port."""

from __future__ import annotations

import random
import re
import subprocess
import time
from pathlib import Path

import pytest
from outpost_tools.serialport import SerialPort, served
from outpost_tools.serialport.chips import CHIPS
from outpost_tools.serialport.machine import Cut
from outpost_tools.serialport.norflash import HOWS, blank
from serialside import VENV_BIN, Terminal, esptool, mpremote, tool
from stockboard import flash_with
from world import DEVICE_ID

LEGS_HERE = ("outpost32",)

MIB = 1 << 20
IN_USE = "in use by another program"


def flash_of(folder: Path, size_mib: int = 4) -> Path:
    path = folder / "board.bin"
    blank(path, size_mib)
    return path


def noise(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


# ---------------------------------------------------------------- from an empty desk


def test_a_blank_board_is_written_boots_connects_and_stays_itself(world, tmp_path) -> None:
    hub = world.hub()
    image = world.image(hub.port)
    script = tmp_path / "ask.py"
    script.write_text("import outpost.agreed, os\nprint('ran', sorted(os.listdir('/')))\n")
    with served(flash_of(tmp_path), world.leg, heapsize="160K") as port:
        # Once with nothing of ours between: the installed program, as a person types it.
        code, said = esptool(
            port, "--after", "no-reset", "write-flash", "-z", "0", image, plain=True, timeout=200
        )
        assert code == 0 and "Hash of data verified" in said, said
        assert port.machine.mode == "download"
        with Terminal(port) as terminal:
            terminal.reset()
            terminal.wait_for(r"hub +connected")
            terminal.wait_for(r"send +acked id=")
        assert "config.json" in mpremote(port, "ls")
        mpremote(port, "cp", script, ":/ask.py")
        assert "ran ['ask.py', 'boot.py'" in mpremote(port, "run", script)
        mpremote(port, "soft-reset")
        mpremote(port, "reset")
        before = len(hub.telemetry)
        with Terminal(port) as terminal:
            terminal.wait_for(r"send +acked id=")
    assert len(hub.telemetry) > before
    assert {message.device_id for message in hub.telemetry} == {DEVICE_ID}


@pytest.mark.parametrize(
    "leg",
    [pytest.param("outpost64", marks=pytest.mark.exhaustive), "outpost32", "stock32"],
    indirect=True,
)
def test_mpremote_does_on_it_what_it_does_on_a_board(leg, tmp_path: Path) -> None:
    main = "import time\nprint('main runs')\nwhile True: time.sleep(1)\n"
    flash = flash_with(tmp_path / "board.bin", main=main)
    long = tmp_path / "long.py"
    # Longer than any buffer on the way.
    long.write_text("total = 0\n" + "total += 1  # one more\n" * 400 + "print('total', total)\n")
    data = tmp_path / "data.bin"
    data.write_bytes(bytes(range(256)) * 24)
    back = tmp_path / "back.bin"
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "inner.py").write_text("print('from the host')\n")
    with served(flash, leg) as port:
        assert "main.py" in mpremote(port, "ls")
        assert "total 400" in mpremote(port, "run", long)
        mpremote(port, "cp", data, ":/data.bin", "+", "cp", ":/data.bin", back)
        assert back.read_bytes() == data.read_bytes()
        assert "from the host" in mpremote(port, "mount", shared, "exec", "import inner")
        assert mpremote(port, "soft-reset", "eval", "6*7").strip() == "42"
        mpremote(port, "rm", ":/data.bin")
        with Terminal(port) as terminal:
            terminal.reset()
            terminal.wait_for("main runs")
            terminal.write(b"\x03")
            terminal.wait_for("KeyboardInterrupt")
            terminal.write(b"\x04")
            terminal.wait_for(r"soft reboot\r\nmain runs")


# ---------------------------------------------------------------- what esptool sees


@pytest.mark.parametrize("chip", CHIPS)
def test_esptool_tells_chip_mac_and_flash(chip: str, tmp_path: Path) -> None:
    size = {"esp32": 4, "esp32s2": 2, "esp32s3": 16, "esp32c3": 8, "esp32c6": 1}[chip]
    with served(flash_of(tmp_path, size), chip=chip, mac="7c:df:a1:0c:04:9e") as port:
        code, said = esptool(port, "flash-id")
    assert code == 0, said
    assert f"Connected to {CHIPS[chip].name} on" in said
    assert re.search(r"MAC: +7c:df:a1:(ff:fe:)?0c:04:9e", said)
    assert f"Detected flash size: {size}MB" in said


def test_a_board_of_another_chip_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    flash = flash_of(tmp_path)
    with served(flash, chip="esp32c3") as port:
        image = tmp_path / "image.bin"
        image.write_bytes(noise(5000))
        code, said = esptool(port, "write-flash", "0", image, chip="esp32s3")
        assert code != 0 and "This chip is ESP32-C3, not ESP32-S3" in said
        assert port.machine.operations == 0
    assert flash.read_bytes() == b"\xff" * (4 * MIB)


def test_a_flasher_stub_is_refused_at_once_and_not_waited_for(tmp_path: Path) -> None:
    with served(flash_of(tmp_path)) as port:
        code, said = tool("esptool", "--port", port.url, "flash-id", timeout=60)
    assert code != 0 and "Failed to enter RAM download mode" in said, said


@pytest.mark.parametrize("chip", ["esp32", "esp32c3"])
def test_written_verified_read_back_and_erased(chip: str, tmp_path: Path) -> None:
    flash = flash_of(tmp_path)
    content = noise(9000) + b"\0" * 20000 + noise(300, 2)
    image = tmp_path / "image.bin"
    image.write_bytes(content)
    other = tmp_path / "other.bin"
    other.write_bytes(noise(len(content), 3))
    back = tmp_path / "back.bin"
    with served(flash, chip=chip) as port:
        code, said = esptool(port, "--baud", "921600", "write-flash", "-z", "0x10000", image)
        assert code == 0 and "Hash of data verified" in said, said
        assert "compressed) at 0x00010000" in said
        code, said = esptool(port, "write-flash", "--no-compress", "0x20000", image)
        assert code == 0 and "Hash of data verified" in said, said
        code, said = esptool(port, "verify-flash", "0x10000", image)
        assert code == 0 and "digest matched" in said, said
        code, said = esptool(port, "verify-flash", "0x10000", other)
        assert code != 0 and "failed" in said.lower()
        code, said = esptool(port, "read-flash", "0x10000", "0x400", back)
        assert code == 0 and back.read_bytes() == content[:0x400]
        code, said = esptool(port, "erase-region", "0x10000", "0x1000")
        assert code == 0, said
    written = flash.read_bytes()
    assert written[0x10000:0x11000] == b"\xff" * 0x1000
    assert written[0x11000 : 0x10000 + len(content)] == content[0x1000:]
    assert written[0x20000 : 0x20000 + len(content)] == content
    assert written[:0x10000] == b"\xff" * 0x10000


def test_an_image_that_is_too_large_for_the_flash_is_refused(tmp_path: Path) -> None:
    flash = flash_of(tmp_path, 2)
    image = tmp_path / "image.bin"
    image.write_bytes(b"\xff" * (4 * MIB))
    with served(flash) as port:
        code, said = esptool(port, "write-flash", "-z", "0", image)
        assert code != 0 and "will not fit in 2097152 bytes of flash" in said
        assert port.machine.operations == 0


# ---------------------------------------------------------------- accidents


def write(port: SerialPort, image: Path) -> tuple[int, str]:
    return esptool(port, "write-flash", "-z", "0x10000", image)


def pages_are_old_erased_or_new(flash: Path, old: bytes, new: bytes, torn: int) -> None:
    """Where the writing broke off; `torn` pages at most may be something between."""
    now, other = flash.read_bytes(), 0
    for at in range(0, len(now), 256):
        page = now[at : at + 256]
        known = (old[at : at + 256], new[at : at + 256], b"\xff" * 256)
        other += page not in known
    # A page that two deflate blocks share is new in its first part and erased in its last.
    assert other <= torn


@pytest.mark.parametrize(
    "share", [*(pytest.param(s, marks=pytest.mark.exhaustive) for s in (0.0, 0.5)), 0.02, 0.97]
)
def test_a_cable_pulled_at_any_point_of_writing_leaves_a_board_that_is_written_again(
    share: float, tmp_path: Path
) -> None:
    flash, image = flash_of(tmp_path), tmp_path / "image.bin"
    image.write_bytes(noise(30000))
    old = flash.read_bytes()
    new = old[:0x10000] + image.read_bytes() + old[0x10000 + 30000 :]
    with served(flash) as port:
        port.comes_back = False
        # About 5,500 bytes are asked and told before the first block is sent.
        port.pull_cable(after_bytes=int(5500 + share * 30000) if share else 700)
        code, said = write(port, image)
        assert code != 0, said
        pages_are_old_erased_or_new(flash, old, new, torn=1)
        port.plug_in()
        code, said = write(port, image)
        assert code == 0 and "Hash of data verified" in said, said
    assert flash.read_bytes() == new


@pytest.mark.parametrize(
    "hows",
    [
        ("clean", "torn", "odd"),
        *(pytest.param((how,) * 3, marks=pytest.mark.exhaustive) for how in HOWS),
    ],
    ids="-".join,
)
def test_power_that_goes_while_writing_leaves_a_board_that_is_written_again(
    hows: tuple[str, str, str], tmp_path: Path
) -> None:
    flash, image = flash_of(tmp_path), tmp_path / "image.bin"
    image.write_bytes(noise(30000))
    old = flash.read_bytes()
    new = old[:0x10000] + image.read_bytes() + old[0x10000 + 30000 :]
    with served(flash) as port:
        port.comes_back = False
        for operation, how in zip((3, 20, 80), hows, strict=True):
            port.machine.cut_power_at(Cut(operation, how))
            code, said = write(port, image)
            assert code != 0 and port.machine.mode == "off", said
            pages_are_old_erased_or_new(flash, old, new, torn=17)
            port.plug_in()
        code, said = write(port, image)
        assert code == 0 and "Hash of data verified" in said, said
    assert flash.read_bytes() == new


def test_a_port_in_use_refuses_the_second_program_and_serves_the_first(tmp_path: Path) -> None:
    flash = flash_with(tmp_path / "board.bin", main="print('main runs')")
    with served(flash) as port:
        with Terminal(port) as terminal:
            terminal.reset()
            terminal.wait_for("main runs")
            code, said = tool("mpremote", "connect", port.url, "ls")
            assert code != 0 and IN_USE in said
            code, said = esptool(port, "flash-id")
            assert code != 0 and "the port is busy" in said
            terminal.write(b"print(6*7)\r")
            terminal.wait_for(r"\r\n42\r\n")
        assert "main.py" in mpremote(port, "ls")


# ---------------------------------------------------------------- as a command


def test_board_serve_ends_with_whoever_started_it(tmp_path: Path) -> None:
    flash = flash_with(tmp_path / "board.bin", main="while True: pass")
    out = tmp_path / "out"
    command = f"'{VENV_BIN / 'outpost'}' board serve '{flash}' > '{out}' & echo $!; sleep 60"
    parent = subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        served_by = int(parent.stdout.readline())
        ends = time.monotonic() + 30
        while not (out.exists() and out.read_text().startswith("rfc2217://127.0.0.1:")):
            assert time.monotonic() < ends
            time.sleep(0.05)
    finally:
        parent.kill()
        parent.wait()
    ends = time.monotonic() + 15
    while Path(f"/proc/{served_by}").exists() and time.monotonic() < ends:
        time.sleep(0.05)
    assert not Path(f"/proc/{served_by}").exists()
    # Its board is gone too: the flash can be taken.
    with served(flash) as port:
        assert port.machine.mode == "run"
        assert "main.py" in mpremote(port, "ls")
