"""The runner of the virtual board: restarts, waiting, and that no process is left behind.

The board here is a small script that takes the same options and ends with the same exit codes; the
real one is driven in tests/device.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from outpost_tools.board import Board, BoardTimeout
from outpost_tools.errors import OutpostError

# Runs the statements of the flash file's first line, as a board runs what is in its flash.
FAKE = f"""#!{sys.executable}
import json, os, sys, time
args = sys.argv[1:]
options = dict(zip(args[::1], args[1:] + [""]))
def say(*words):
    print(*words, flush=True)
def end(code, **report):
    with open(options["--report"], "w") as file:
        json.dump({{"exit": code, **report}}, file)
    os._exit(code)
state = options["--state"]
boots = int(open(state).read()) + 1 if os.path.exists(state) else 1
with open(state, "w") as file:
    file.write(str(boots))
exec(open(options["--flash"], "rb").readline())
"""


@pytest.fixture
def make(tmp_path):
    program = tmp_path / "fake-board"
    program.write_text(FAKE)
    program.chmod(0o755)
    boards = []

    def make_board(statements: str, **options) -> Board:
        flash = tmp_path / f"flash{len(boards)}.bin"
        content = statements.encode() + b"\n"
        flash.write_bytes(content.ljust(4 << 20, b"\xff"))
        board = Board(flash, program=program, **options)
        boards.append(board)
        return board

    yield make_board
    for board in boards:
        board.stop()


def gone(pid: int, timeout_s: float = 5) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat") as stat:
                if stat.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def test_lines_come_as_they_are_printed_with_their_time(make):
    board = make("say('one'); time.sleep(0.3); say('two'); end(0)").start()
    assert board.wait_exit() == 0
    assert [line.text for line in board.lines] == ["one", "two"]
    assert board.lines[1].at_s - board.lines[0].at_s >= 0.25
    assert board.reboots == 0 and board.report == {"exit": 0}


@pytest.mark.parametrize("code", [70, 71])
def test_restarts_after_reset_and_watchdog_and_keeps_the_state_file(make, code):
    board = make(f"say('boot', boots); end({code} if boots < 3 else 0)").start()
    assert board.wait_exit() == 0
    assert [line.text for line in board.lines] == ["boot 1", "boot 2", "boot 3"]
    assert [line.boot for line in board.lines] == [1, 2, 3]
    assert board.exit_codes == [code, code, 0] and board.reboots == 2


def test_wakes_after_deep_sleep_and_not_before(make):
    board = make("say('boot', boots); end(72, sleep_ms=400) if boots == 1 else end(0)").start()
    assert board.wait_exit() == 0
    assert board.lines[1].at_s - board.lines[0].at_s >= 0.4


def test_sleep_without_end_is_the_end(make):
    board = make("end(72, sleep_ms=-1)").start()
    assert board.wait_exit() == 72 and board.reboots == 0


@pytest.mark.parametrize("code", [0, 73, 75, 1])
def test_other_exits_are_not_restarted(make, code):
    board = make(f"end({code})").start()
    assert board.wait_exit() == code and board.boots == 1


def test_stays_down_when_told_so(make):
    board = make("end(70)", restarts=False).start()
    assert board.wait_exit() == 70 and board.boots == 1


def test_stop_ends_a_long_sleep_at_once(make):
    board = make("end(72, sleep_ms=600000)").start()
    while not board.exit_codes:
        time.sleep(0.01)
    started = time.monotonic()
    board.stop()
    assert time.monotonic() - started < 60 and not board.running


def test_options_reach_the_board_and_some_only_at_the_first_start(make):
    board = make(
        "say(json.dumps(args)); end(70 if boots == 1 else 0)",
        heapsize="64K",
        wifi="Home:key",
        mac="02:00:00:00:00:01",
        cut="7:torn",
        cause="wdt",
        clock=1_800_000_000.5,
    ).start()
    board.wait_exit()
    first, second = (json.loads(line.text) for line in board.lines)
    assert first[:3] == ["--board", "-X", "heapsize=64K"]

    def option(args, name):
        return args[args.index(name) + 1] if name in args else None

    assert option(first, "--wifi") == option(second, "--wifi") == "Home:key"
    assert option(first, "--mac") == "02:00:00:00:00:01"
    assert [option(first, n) for n in ("--cut", "--cause", "--clock")] == [
        "7:torn",
        "wdt",
        "1800000000",
    ]
    assert [option(second, n) for n in ("--cut", "--cause", "--clock")] == [None] * 3
    assert option(first, "--state") == option(second, "--state")


def test_wait_for_finds_past_present_and_unfinished_lines(make):
    board = make(
        "say('n=1'); time.sleep(0.2); say('n=2'); print('>>> ', end='', flush=True); time.sleep(60)"
    ).start()
    assert board.wait_for(r"n=(\d)").group(1) == "1"
    assert board.wait_for(r"n=(\d)", start=1).group(1) == "2"
    assert board.wait_for(r"^>>> $")
    assert board.wait_for(r"n=1", timeout_s=0)


def test_half_a_line_is_not_taken_for_a_line(make):
    board = make(
        "[(os.write(1, b'n=1'), time.sleep(0.02), os.write(1, b'%d\\n' % (n % 10))) "
        "for n in range(20)]; end(0)"
    ).start()
    for n in range(20):
        assert board.wait_for(r"n=(\d+)", start=n).group(1) == f"1{n % 10}"


def test_wait_for_shows_the_last_lines_when_it_gives_up(make):
    board = make("say('here I am'); time.sleep(60)").start()
    board.wait_for("here")
    with pytest.raises(BoardTimeout, match="here I am"):
        board.wait_for("there", timeout_s=0.2)


def test_wait_for_gives_up_at_once_when_the_board_has_ended(make):
    board = make("say('bye'); end(75)").start()
    started = time.monotonic()
    with pytest.raises(BoardTimeout, match="exit 75"):
        board.wait_for("hello", timeout_s=30)
    assert time.monotonic() - started < 10


def test_what_is_written_reaches_the_board(make):
    board = make("say('got', sys.stdin.readline().strip()); end(0)").start()
    board.write(b"hello\n")
    board.wait_for("got hello")
    board.wait_exit()
    with pytest.raises(OutpostError, match="not running"):
        board.write(b"more\n")


def test_odd_bytes_and_a_last_line_without_an_end_are_kept(make):
    board = make(r"os.write(1, b'\xff\xfe caf\xc3\xa9\r\nlast'); end(0)").start()
    board.wait_exit()
    assert [line.text for line in board.lines] == ["�� café", "last"]


def test_each_line_and_exit_is_told(make):
    lines, codes = [], []
    board = make(
        "say(boots); end(70 if boots == 1 else 0)",
        on_line=lambda line: lines.append(line.text),
        on_exit=codes.append,
    )
    board.start().wait_exit()
    assert lines == ["1", "2"] and codes == [70, 0]


def test_stop_ends_a_board_that_ignores_being_asked(make):
    statements = (
        "import signal; signal.signal(15, signal.SIG_IGN); say(os.getpid()); time.sleep(60)"
    )
    board = make(statements).start()
    pid = int(board.wait_for(r"\d+").group())
    board.stop()
    board.stop()
    assert gone(pid)


def test_leaving_the_block_by_an_exception_ends_the_board(make):
    with pytest.raises(ZeroDivisionError), make("say(os.getpid()); time.sleep(60)") as board:
        pid = int(board.wait_for(r"\d+").group())
        raise ZeroDivisionError
    assert gone(pid)


CHILD = """
import sys, time
from pathlib import Path
from outpost_tools.board import Board
board = Board(Path(sys.argv[1]), program=Path(sys.argv[2])).start()
print(board.wait_for(r"\\d+").group(), flush=True)
sys.argv[3:] and sys.exit()
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["killed", "ended"])
def test_no_board_outlives_its_runner(make, tmp_path, how):
    board = make("say(os.getpid()); time.sleep(60)")
    command = [sys.executable, "-c", CHILD, str(board.flash), str(tmp_path / "fake-board")]
    runner = subprocess.Popen(
        command + (["end"] if how == "ended" else []), stdout=subprocess.PIPE, text=True
    )
    assert runner.stdout is not None
    pid = int(runner.stdout.readline())
    if how == "killed":
        os.kill(runner.pid, signal.SIGKILL)
    runner.wait(20)
    assert gone(pid)


def test_two_boards_at_once_do_not_mix_their_lines(make):
    statements = "[say({0!r}, n) for n in range(200)]; end(0)"
    boards = [make(statements.format(name)) for name in ("a", "b")]
    threads = [threading.Thread(target=lambda b=b: b.start().wait_exit()) for b in boards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, board in zip("ab", boards, strict=True):
        assert [line.text for line in board.lines] == [f"{name} {n}" for n in range(200)]


def test_a_board_is_started_once(make):
    board = make("end(0)").start()
    with pytest.raises(OutpostError, match="another Board"):
        board.start()


def test_a_flash_of_another_size_is_refused_before_anything_runs(tmp_path):
    flash = tmp_path / "flash.bin"
    flash.write_bytes(bytes(1000))
    with pytest.raises(OutpostError, match="exactly 4, 8 or 16 MiB"):
        Board(flash)


def test_missing_binaries_name_make_micropython(make, monkeypatch, tmp_path):
    flash = make("end(0)").flash
    monkeypatch.setenv("OUTPOST_BIN", str(tmp_path / "nothing"))
    with pytest.raises(OutpostError, match="make micropython"):
        Board(flash)


def test_an_unknown_leg_lists_the_known_ones(make):
    flash = make("end(0)").flash
    with pytest.raises(OutpostError, match="outpost64, outpost32, stock32"):
        Board(flash, leg="esp32")
