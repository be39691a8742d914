"""The virtual board as a process: how it starts, what ends it, what outlives that.

Runs without the hub and without our library: a flash image with a main.py of a few lines.
"""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from legs import BIN, VIRTUAL
from stockboard import VFS_OFFSET, RawPrompt, blank_flash, flash_with

LEGS_HERE = VIRTUAL


@dataclass
class Run:
    code: int
    output: str
    report: dict = field(default_factory=dict)


@pytest.fixture
def board(leg: str, tmp_path: Path) -> Callable[..., Run]:
    """Start the board once and wait for its end; flash and state stay for the next start."""

    def run(main: str | None = None, *options: str, stdin: bytes = b"", timeout: float = 20) -> Run:
        flash = tmp_path / "flash.bin"
        if main is not None:
            flash_with(flash, main=main)
        report = tmp_path / "report.json"
        command = [BIN / leg, "--board", "--flash", flash, "--state", tmp_path / "state"]
        command += ["--report", report, *options]
        source = {"input": stdin} if stdin else {"stdin": subprocess.DEVNULL}
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=timeout, **source)
        output = done.stdout.decode().replace("\r\n", "\n")
        return Run(done.returncode, output, json.loads(report.read_text()))

    return run


def start(leg: str, flash: Path, *options: str, **kwargs) -> subprocess.Popen:
    command = [BIN / leg, "--board", "--flash", flash, *options]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **kwargs)


# ---------------------------------------------------------------- starting


def test_empty_flash_is_formatted_once(board, tmp_path: Path) -> None:
    blank_flash(tmp_path / "flash.bin")
    first, second = board(), board()
    assert "Performing initial setup" in first.output and first.code == 0
    assert second.output == "" and second.code == 0


@pytest.mark.parametrize("how", ["clean", "torn", "odd"])
def test_power_cut_at_any_operation_of_the_first_format_leaves_a_board_that_starts(
    board, tmp_path: Path, how: str
) -> None:
    flash = blank_flash(tmp_path / "flash.bin")
    blank = flash.read_bytes()
    flash_counts = board().report["flash"]
    operations = flash_counts["erases"] + flash_counts["programs"]
    assert operations > 3
    for number in range(1, operations + 1):
        flash.write_bytes(blank)
        assert board(None, "--cut", f"{number}:{how}").code == 73
        again = board()
        assert again.code == 0, (number, again.output)
        assert board().output == "", number


def test_a_torn_superblock_over_somebodys_files_is_not_formatted(board, tmp_path: Path) -> None:
    flash = flash_with(tmp_path / "flash.bin", main="print(1)\n" + "#" * 3000)
    image = bytearray(flash.read_bytes())
    for block in (0, 1):
        start = VFS_OFFSET + block * 4096
        image[start : start + 4096] = b"\x00" * 40 + b"\xff" * 4056
    flash.write_bytes(image)
    ran = board()
    assert ran.code == 75 and "corrupt" in ran.output
    assert flash.read_bytes() == image


def test_corrupt_file_system_ends_with_one_sentence_and_is_left_as_it_is(board, tmp_path) -> None:
    flash = blank_flash(tmp_path / "flash.bin")
    image = bytearray(flash.read_bytes())
    image[VFS_OFFSET : VFS_OFFSET + 8192] = b"\x5a" * 8192
    flash.write_bytes(image)
    ran = board()
    assert ran.code == 75
    assert ran.output.count("\n") == 1 and "corrupt" in ran.output
    assert flash.read_bytes() == image


def test_corrupt_partition_table_ends_with_one_sentence(board, tmp_path: Path) -> None:
    flash = blank_flash(tmp_path / "flash.bin")
    image = bytearray(flash.read_bytes())
    image[0x8010] ^= 0xFF
    flash.write_bytes(image)
    ran = board()
    assert ran.code == 75 and ran.output.count("\n") == 1


@pytest.mark.parametrize(
    "option",
    [
        ("--cut", "0"),
        ("--cut", "-1"),
        ("--cut", "5:bad"),
        ("--clock", "-1"),
        ("--clock", ""),
        ("--clock", str(2**63 - 1)),
        ("--mac", "-1:0:0:0:0:0"),
        ("--mac", "00:11:22"),
        ("-X", "heapsize=1K"),
        ("-X", "heapsize=64X"),
        ("--frobnicate", "1"),
    ],
    ids=" ".join,
)
def test_an_option_that_makes_no_sense_is_refused(leg: str, tmp_path: Path, option) -> None:
    flash = flash_with(tmp_path / "flash.bin", main="print('started')")
    before = flash.read_bytes()
    done = subprocess.run(
        [BIN / leg, "--board", "--flash", flash, *option],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=20,
    )
    assert done.returncode == 2 and done.stdout == b"" and b"usage:" in done.stderr
    assert flash.read_bytes() == before


def test_no_file_of_the_host_is_visible(board) -> None:
    ran = board(
        "import os, vfs\n"
        "print(sorted(os.listdir('/')), hasattr(vfs, 'VfsPosix'), hasattr(os, 'system'))\n"
        "try: open('/etc/passwd')\n"
        "except OSError as error: print(error.errno)\n"
    )
    assert ran.output.splitlines()[:2] == ["['main.py'] False False", "2"]


def test_heap_is_what_was_asked_for(board) -> None:
    ran = board(
        "import gc\ngc.collect()\nprint(gc.mem_free() + gc.mem_alloc())", "-X", "heapsize=64K"
    )
    # Of 64 KiB the collector keeps a part (about 2 %) for its own table.
    assert 62_000 < int(ran.output.split()[0]) <= 65_536


def test_boot_runs_before_main_and_a_traceback_reaches_the_console(leg, tmp_path) -> None:
    flash = flash_with(tmp_path / "f", boot="print('boot')", main="print('main')\n1 / 0")
    command = [BIN / leg, "--board", "--flash", flash]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=20)
    lines = done.stdout.decode().splitlines()
    assert lines[:3] == ["boot", "main", "Traceback (most recent call last):"]
    assert lines[-1] == "ZeroDivisionError: divide by zero" and done.returncode == 0


def test_lines_come_while_the_program_runs(leg: str, tmp_path: Path) -> None:
    flash = flash_with(tmp_path / "f", main="import time\nprint('now')\ntime.sleep(60)")
    began = time.monotonic()
    process = start(leg, flash)
    try:
        assert process.stdout.readline().strip() == b"now"
        assert time.monotonic() - began < 50
    finally:
        process.kill()
        process.communicate()


# ---------------------------------------------------------------- ending


def test_reset_ends_with_70_and_the_next_start_knows(board) -> None:
    main = (
        "import machine\nprint(machine.reset_cause())\n"
        "if machine.reset_cause() == 1: machine.reset()"
    )
    first = board(main)
    assert (first.code, first.output, first.report["exit"]) == (70, "1\n", 70)
    assert board().output == "2\n"
    assert board(None, "--cause", "deepsleep").output == "4\n"


def test_watchdog_bites_whatever_the_program_does(board) -> None:
    ran = board("import machine\nmachine.WDT(timeout=300)\nwhile True: pass")
    assert ran.code == 71 and "watchdog" in ran.output
    assert 300 <= ran.report["uptime_ms"] < 1500
    assert board("import machine\nprint(machine.reset_cause())").output == "3\n"


def test_fed_watchdog_stays_quiet(board) -> None:
    ran = board(
        "import machine, time\n"
        "wdt = machine.WDT(timeout=300)\n"
        "for _ in range(5): time.sleep_ms(150); wdt.feed()\n"
        "print('alive')\nmachine.reset()"
    )
    assert (ran.code, ran.output) == (70, "alive\n")


def test_deep_sleep_says_how_long(board) -> None:
    ran = board("import machine\nmachine.deepsleep(1500)")
    assert (ran.code, ran.report["sleep_ms"]) == (72, 1500)
    ran = board(
        "import machine\nprint(machine.reset_cause(), machine.wake_reason())\nmachine.deepsleep()"
    )
    assert ran.output == "4 4\n" and (ran.code, ran.report["sleep_ms"]) == (72, -1)


def test_power_cut_ends_with_73_at_that_operation_and_forgets_all_but_the_flash(board) -> None:
    main = (
        "import machine\nmachine.RTC().memory(b'kept')\n"
        "i = 0\nwhile True:\n"
        "    with open('/log', 'w') as file: file.write(str(i) * 500)\n    i += 1\n"
    )
    ran = board(main, "--cut", "7:torn")
    assert ran.code == 73 and ran.report["flash"]["operations"] == 6
    ran = board(None, "--cut", "1:clean")
    assert ran.code == 73
    ran = board("import machine\nprint(machine.reset_cause(), machine.RTC().memory())")
    assert ran.output == "1 b''\n"


def test_clock_and_rtc_memory_outlive_a_reset_but_not_the_power(board) -> None:
    set_clock = (
        "import machine, time\nrtc = machine.RTC()\nprint(time.gmtime()[0], rtc.memory())\n"
        "rtc.memory(b'note')\nrtc.datetime((2026, 11, 23, 0, 12, 0, 0, 0))\nmachine.reset()"
    )
    assert board(set_clock).output == "2000 b''\n"
    assert board().output == "2026 b'note'\n"
    assert board(None, "--cause", "poweron").output == "2000 b''\n"
    assert board(None, "--cause", "poweron", "--clock", "1700000000").output == "2023 b''\n"


def test_interrupt_is_a_keyboard_interrupt_in_the_program(leg: str, tmp_path: Path) -> None:
    main = (
        "import time\nprint('on')\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('stopped')"
    )
    flash = flash_with(tmp_path / "f", main=main)
    for by_character in (False, True):
        process = start(leg, flash)
        try:
            process.stdout.readline()
            if by_character:
                process.stdin.write(b"\x03")
                process.stdin.flush()
            else:
                process.send_signal(signal.SIGINT)
            assert process.stdout.readline().strip() == b"stopped"
            process.stdin.close()
            assert process.wait(10) == 0
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def test_termination_is_at_once_and_still_reported(leg: str, tmp_path: Path) -> None:
    flash = flash_with(tmp_path / "f", main="print('on')\nwhile True: pass")
    report = tmp_path / "report.json"
    process = start(leg, flash, "--report", str(report))
    process.stdout.readline()
    process.terminate()
    assert process.wait(30) == 143
    assert json.loads(report.read_text())["exit"] == 143
    process.communicate()


def test_killed_board_comes_back_cold(leg: str, board, tmp_path: Path) -> None:
    assert board("import machine\nmachine.reset()").code == 70
    flash = flash_with(tmp_path / "flash.bin", main="print('on')\nwhile True: pass")
    process = start(leg, flash, "--state", str(tmp_path / "state"))
    process.stdout.readline()
    process.kill()
    process.communicate()
    assert board("import machine\nprint(machine.reset_cause())").output == "1\n"


# ---------------------------------------------------------------- the prompt


def test_friendly_prompt_runs_lines_and_restarts_softly(board, tmp_path: Path) -> None:
    blank_flash(tmp_path / "flash.bin")
    board()
    ran = board(stdin=b"x = 6 * 7\nprint('answer', x)\n\x04import machine\nmachine.reset_cause()\n")
    assert "answer 42" in ran.output and "MPY: soft reboot" in ran.output
    assert re.search(r"machine\.reset_cause\(\)\r?\n5", ran.output)
    assert ran.code == 0


def test_raw_prompt_takes_a_program_of_many_lines(leg: str, tmp_path: Path) -> None:
    prompt = RawPrompt(leg, blank_flash(tmp_path / "flash.bin"))
    try:
        prompt.enter()
        source = "total = 0\n" + "total += 1\n" * 600 + "print(total)"
        assert prompt.run(source) == "600\r\n"
    finally:
        prompt.close()


# ---------------------------------------------------------------- network


def test_nothing_leaves_the_board_before_the_radio_is_up(board) -> None:
    ran = board(
        "import socket\n"
        "def tell(call):\n"
        "    try: print(call())\n"
        "    except OSError as error: print(error.errno)\n"
        "tell(lambda: socket.socket().connect(('127.0.0.1', 9)))\n"
        "tell(lambda: socket.getaddrinfo('localhost', 9))\n"
    )
    assert ran.output == "118\n-202\n"


def join(ssid: str, key: str = "") -> str:
    return (
        "import network, time\nw = network.WLAN(network.STA_IF)\nw.active(True)\n"
        f"w.connect({ssid!r}, {key!r})\nprint(w.status())\n"
        "for _ in range(40):\n    if w.status() != 1001: break\n    time.sleep_ms(10)\n"
        "print(w.status(), w.isconnected())\n"
    )


def test_wrong_network_and_wrong_key_are_told_apart(board) -> None:
    assert board(join("Home", "secret"), "--wifi", "Home:secret").output == "1001\n1010 True\n"
    assert board(join("Home", "wrong"), "--wifi", "Home:secret").output == "1001\n202 False\n"
    assert board(join("Other", "secret"), "--wifi", "Home:secret").output == "1001\n201 False\n"


def test_names_come_from_the_option_and_unknown_ones_do_not_resolve(board) -> None:
    main = join("Espressif") + (
        "import socket\nprint(socket.getaddrinfo('hub.example', 8883))\n"
        "try: socket.getaddrinfo('no.such.invalid', 1)\n"
        "except OSError as error: print(error.args)\n"
    )
    ran = board(main, "--hosts", "other.example=127.0.0.1,hub.example=127.0.0.9")
    assert ran.output.splitlines()[2:] == [
        "[(2, 1, 0, 'hub.example', ('127.0.0.9', 8883))]",
        "(-202,)",
    ]


def test_environment_of_the_host_does_not_reach_the_board(leg: str, tmp_path: Path) -> None:
    flash = flash_with(tmp_path / "f", main="import sys\nprint(sys.path, sys.argv, sys.platform)")
    done = subprocess.run(
        [BIN / leg, "--board", "--flash", flash],
        env=dict(os.environ, MICROPYPATH="/nowhere"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=20,
    )
    assert done.stdout.decode().strip() == "['', '.frozen', '/lib'] [] esp32"


def test_ctrl_c_stops_a_program_that_reads_nothing_however_much_was_sent(leg, tmp_path) -> None:
    main = "import time\nprint('on')\nwhile True: time.sleep(1)"
    prompt = RawPrompt(leg, flash_with(tmp_path / "f", main=main))
    try:
        prompt.until(b"on\r\n")
        prompt.send(b"x" * 20000 + b"\x03")
        prompt.until(b"KeyboardInterrupt", 10)
    finally:
        prompt.close()


def test_terminal_has_ctrl_c_in_a_program_and_single_keys_at_the_prompt(leg, tmp_path) -> None:
    flash = flash_with(tmp_path / "f", main="import time\nprint('on')\nwhile True: time.sleep(1)")
    child, terminal = pty.fork()
    if child == 0:
        os.execv(BIN / leg, [leg, "--board", "--flash", str(flash)])
    seen = b""

    def until(end: bytes) -> None:
        nonlocal seen
        while end not in seen:
            assert select.select([terminal], [], [], 10)[0], seen
            seen += os.read(terminal, 4096)
        seen = seen.split(end, 1)[1]

    try:
        until(b"on\r\n")
        os.write(terminal, b"\x03")
        until(b"KeyboardInterrupt")
        until(b">>> ")
        os.write(terminal, b"40+2\r")
        until(b"\n42\r\n>>> ")
        os.write(terminal, b"\x1d")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        child = 0
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os.close(terminal)
