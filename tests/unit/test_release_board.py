"""The release leg: its launcher and its stand-ins, on the unmodified MicroPython."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from legs import REPO
from outpost_tools.board import Board
from outpost_tools.image import littlefs_partition
from outpost_tools.partitions import PartitionTable
from test_release_nvs import BOARD_READS, BOARD_WRITES, blank_image, vflash

PROGRAM = REPO / "firmware" / "virtual" / "release" / "board"


def with_main(main: str) -> bytes:
    """A flash with this main.py alone in its file system, and an empty NVS."""
    image = blank_image()
    vfs = PartitionTable.for_size(4)["vfs"]
    image[vfs.offset : vfs.end] = littlefs_partition({"/main.py": main.encode()}, vfs.size)
    return bytes(image)


def boot_once(folder: Path, image: bytes) -> tuple[int, str, dict]:
    """Boot with a console that is closed from the start: (exit code, output, report)."""
    flash, report = folder / "once.bin", folder / "once.json"
    flash.write_bytes(image)
    done = subprocess.run(
        [PROGRAM, "--board", "--flash", flash, "--report", report],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )
    return done.returncode, done.stdout + done.stderr, json.loads(report.read_text())


@pytest.fixture
def boot(tmp_path: Path) -> Iterator[Callable[..., Board]]:
    """Boot an image with this main.py and no boot.py; gives the Board once it is down."""
    boards = []

    def run(main: str, image: bytes | None = None, down: bool = True, **options) -> Board:
        flash = tmp_path / "flash.bin"
        flash.write_bytes(image or with_main(main))
        board = Board(flash, program=PROGRAM, **options)
        boards.append(board)
        board.start()
        if down:
            board.wait_exit(30)
        return board

    yield run
    for board in boards:
        board.stop()


def test_program_clears_bits_and_only_an_erase_sets_them():
    flash = vflash.Flash(io.BytesIO(blank_image()))
    flash.program(0x200000, b"\x0f\xf0\xaa\x55")
    flash.program(0x200000, b"\xf0\x0f\x55\xaa")
    assert flash.read(0x200000, 5) == b"\0\0\0\0\xff"
    flash.erase(0x200000)
    assert flash.read(0x200000, 4096) == b"\xff" * 4096
    flash.program(0x2000FE, bytes(4))  # over a page's end: two operations
    assert (flash.erases, flash.programs, flash.bytes_programmed) == (1, 4, 12)


def test_power_cut_leaves_half_a_page_and_nothing_after_it():
    flash = vflash.Flash(io.BytesIO(blank_image()))
    flash.cut_after(2, True)
    flash.program(0x200000, bytes(4))
    with pytest.raises(vflash.PowerCut):
        flash.program(0x200100, bytes(8))
    with pytest.raises(vflash.PowerCut):
        flash.erase(0x200000)
    assert flash.read(0x200000, 4) == bytes(4)
    assert flash.read(0x200100, 8) == bytes(4) + b"\xff" * 4


def test_partition_table_is_the_one_of_the_csv_and_damage_is_named():
    image = blank_image()
    table = vflash.partitions(vflash.Flash(io.BytesIO(image)))
    own = PartitionTable.for_size(4)
    assert [p[:5] for p in table] == [(p.type, p.subtype, p.offset, p.size, p.name) for p in own]
    image[0x800D] ^= 1
    with pytest.raises(ValueError, match="checksum is wrong"):
        vflash.partitions(vflash.Flash(io.BytesIO(image)))


def test_application_sees_the_flash_and_nothing_of_the_host(boot):
    board = boot(
        "import os, sys, machine\n"
        "print(sys.path, sorted(os.listdir('/')), sys.argv, __name__)\n"
        f"try: os.stat({str(REPO)!r})\n"
        "except OSError as e: print('stat', e.args[0])\n"
        "machine.deepsleep()\n"
    )
    assert board.exit_code == 72 and board.report["sleep_ms"] == -1
    assert board.lines[0].text == "['', '.frozen', '/lib'] ['main.py'] [] __main__"
    assert board.lines[1].text == "stat 2"


def test_reset_keeps_rtc_memory_and_tells_its_cause(boot):
    board = boot(
        "import machine\n"
        "r = machine.RTC()\n"
        "print(machine.reset_cause(), r.memory())\n"
        "r.memory(b'kept')\n"
        "machine.reset() if machine.reset_cause() == 1 else machine.deepsleep(-1)\n"
    )
    assert [line.text for line in board.lines] == ["1 b''", "2 b'kept'"]
    assert board.exit_codes == [70, 72]


@pytest.mark.parametrize("hang", ["while True: pass", "import time; time.sleep(20)"])
def test_watchdog_ends_a_hang(boot, hang):
    board = boot(
        "import machine, time\n"
        "if machine.reset_cause() == machine.WDT_RESET: machine.deepsleep()\n"
        "w = machine.WDT(timeout=300)\n"
        "for _ in range(8): time.sleep_ms(100); w.feed()\n"
        f"print('hangs')\n{hang}\n"
    )
    assert board.exit_codes == [71, 72]
    assert [line.text.split(":")[0] for line in board.lines] == ["hangs", "watchdog"]


def test_uncaught_error_is_shown_and_the_board_waits_for_its_console(boot, tmp_path):
    board = boot("1 / 0\n", down=False)
    board.wait_for("ZeroDivisionError")
    assert board.running
    code, output, report = boot_once(tmp_path, with_main("1 / 0\n"))
    assert code == report["exit"] == 0 and "ZeroDivisionError" in output


def test_power_cut_in_the_file_system_ends_with_73_and_the_files_survive(boot, tmp_path):
    main = "f = open('/new', 'w'); f.write('x' * 5000); f.close(); print('whole')\n"
    for cut in range(1, 12):
        board = boot(main, cut=f"{cut}:torn")
        assert board.exit_code == 73 and board.text == ""
        assert boot_once(tmp_path, board.flash.read_bytes())[:2] == (0, "whole\n")


def test_empty_file_system_is_formatted(tmp_path):
    code, output, report = boot_once(tmp_path, bytes(blank_image()))
    assert (code, output) == (0, "")
    assert report["flash"]["erases_by_partition"]["vfs"] > 0


def test_damaged_flash_is_one_sentence(boot):
    image = blank_image()
    image[0x8000:0x8C00] = bytes(0xC00)
    board = boot("", image=bytes(image))
    assert board.exit_code == 75 and len(board.lines) == 1
    assert board.text == "The board cannot start: there is no whole partition table at 0x8000."


def test_nvs_on_the_unmodified_micropython_agrees_with_itself(boot):
    board = boot(BOARD_WRITES + BOARD_READS + "import machine; machine.deepsleep()\n")
    assert board.text == "read" and board.exit_code == 72


def test_full_nvs_keeps_the_radio_from_starting(boot):
    board = boot(
        "import esp32, network, machine\n"
        "n = esp32.NVS('x')\n"
        "try:\n"
        "    for i in range(400): n.set_blob('f%d' % i, bytes(200))\n"
        "except OSError as e: print(e.args)\n"
        "try:\n"
        "    for i in range(400): n.set_i32('i%d' % i, 1)\n"
        "except OSError as e: print(e.args)\n"
        "try: network.WLAN(0)\n"
        "except RuntimeError as e: print(e.args)\n"
        "for i in range(60): n.erase_key('f%d' % i)\n"
        "print(network.WLAN(0).status())\n"
        "machine.deepsleep()\n"
    )
    full = "(-4357, 'ESP_ERR_NVS_NOT_ENOUGH_SPACE')"
    assert board.text.split("\n") == [full, full, "('Wifi Unknown Error 0x1105',)", "1000"]


@pytest.mark.parametrize("how", ["clean", "torn"])
def test_power_cut_at_any_operation_of_the_first_format_leaves_a_board_that_starts(tmp_path, how):
    flash, report = tmp_path / "flash.bin", tmp_path / "report.json"

    def start(*options: str) -> int:
        words = ["--board", "--flash", flash, "--report", report, *options]
        return subprocess.run(
            [PROGRAM, *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=30
        ).returncode

    flash.write_bytes(blank_image())
    assert start() == 0
    operations = json.loads(report.read_text())["flash"]["operations"]
    for number in range(1, operations + 1):
        flash.write_bytes(blank_image())
        assert start("--cut", f"{number}:{how}") == 73
        assert start() == 0, number
