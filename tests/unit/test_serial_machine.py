"""The reset circuit, the cable, and noise on it. No MicroPython runs here."""

from __future__ import annotations

import random
import socket
import threading
import time
from pathlib import Path

import pytest
import serial
from outpost_tools.errors import OutpostError
from outpost_tools.serialport import Machine, SerialPort, machine, server
from outpost_tools.serialport.machine import Cut
from outpost_tools.serialport.norflash import blank
from outpost_tools.serialport.rom import SYNC_BODY
from outpost_tools.serialport.slip import framed

SYNC = framed(b"\0\x08\x24\0\0\0\0\0" + SYNC_BODY)


class FakeBoard:
    """In the running board's place: echoes, and counts its starts."""

    running: list[FakeBoard] = []
    started = 0
    blocked = threading.Event()

    def __init__(self, flash, leg, heapsize, *, on_bytes, on_exit, **options) -> None:
        self.say, self.ended, self.options = on_bytes, on_exit, options

    def start(self) -> None:
        FakeBoard.running.append(self)
        FakeBoard.started += 1

    def stop(self) -> None:
        FakeBoard.running.remove(self)

    def write(self, data: bytes) -> None:
        if b"block" in data:
            FakeBoard.blocked.wait(20)
        self.say(b"<" + data + b">")


@pytest.fixture
def board(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(machine, "Board", FakeBoard)
    FakeBoard.running, FakeBoard.started = [], 0
    FakeBoard.blocked = threading.Event()
    path = tmp_path / "flash.bin"
    blank(path, 4)
    made = Machine(path)
    made.said = b""

    def hear(data: bytes) -> None:
        made.said += data

    made.on_output = hear
    made.power_on()
    yield made
    FakeBoard.blocked.set()
    made.power_off()
    assert FakeBoard.running == []


def until(done, timeout_s: float = 10) -> None:
    ends = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < ends
        time.sleep(0.01)


# ---------------------------------------------------------------- the circuit


def test_rts_alone_holds_it_in_reset_and_letting_go_runs_it(board) -> None:
    assert board.mode == "run" and FakeBoard.started == 1
    board.lines(False, True)
    assert board.mode == "reset" and FakeBoard.running == []
    board.lines(False, False)
    assert board.mode == "run" and FakeBoard.started == 2
    assert b"boot:0x13 (SPI_FAST_FLASH_BOOT)" in board.said


def test_dtr_as_it_leaves_reset_keeps_it_in_its_rom(board) -> None:
    for dtr, rts in ((False, True), (True, True), (True, False), (False, False)):
        board.lines(dtr, rts)
    assert board.mode == "download" and FakeBoard.running == []
    assert board.said.endswith(b"waiting for download\r\n")
    board.receive(SYNC)
    assert board.said.count(b"\x01\x08") == 8
    board.lines(False, True)
    board.lines(False, False)
    assert board.mode == "run"


def test_en_rises_while_both_lines_stand(board) -> None:
    board.lines(False, True)
    board.lines(True, True)
    assert board.mode == "reset"
    until(lambda: board.mode == "run")


@pytest.mark.parametrize("order", [((True, False), (True, True)), ((False, False),)])
def test_opening_and_closing_the_port_resets_nothing(board, order) -> None:
    for lines in (*order, (True, False), (False, False)):
        board.lines(*lines)
    assert board.mode == "run" and FakeBoard.started == 1


def test_leaving_the_loader_runs_what_is_in_the_flash(board) -> None:
    for dtr, rts in ((False, True), (True, True), (True, False), (False, False)):
        board.lines(dtr, rts)
    board.receive(SYNC)
    board.receive(framed(b"\0\x04\x04\0\0\0\0\0\x01\0\0\0"))
    assert board.mode == "run"


def test_without_power_nothing_happens(board) -> None:
    board.power_off()
    board.lines(False, True)
    board.lines(False, False)
    board.receive(b"hello")
    assert board.mode == "off" and FakeBoard.running == []


def test_a_power_cut_of_the_running_board_is_one_of_the_whole(board) -> None:
    gone = threading.Event()
    board.on_power = lambda on: None if on else gone.set()
    FakeBoard.running[0].ended(73)
    assert gone.wait(10)
    until(lambda: board.mode == "off")


def test_the_cut_is_planned_for_whoever_writes(board) -> None:
    board.cut_power_at(Cut(5, "odd"))
    board.lines(False, True)
    board.lines(False, False)
    assert FakeBoard.running[0].options["cut"] == "5:odd"


@pytest.mark.parametrize("text", ["", "0", "-1", "x", "5:hard", "1.5", "\u0661"])
def test_a_cut_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(OutpostError):
        Cut.parse(text)


def test_a_board_that_reads_nothing_blocks_nobody(board) -> None:
    board.receive(b"block")
    for _ in range(100):
        board.receive(b"x" * 10000)
    board.lines(False, True)
    assert board.mode == "reset"


# ---------------------------------------------------------------- the cable


@pytest.fixture
def port(board):
    with SerialPort(board) as made:
        yield made


def opened(port: SerialPort) -> serial.SerialBase:
    return serial.serial_for_url(port.url, 115200, timeout=5)


def test_bytes_go_both_ways_whatever_they_are(port) -> None:
    every = bytes(range(256)) * 3 + b"\xff\xff\xfd\x2c"
    with opened(port) as line:
        line.write(every)
        came = b""
        while len(came.replace(b"><", b"")) < len(every) + 2:
            came += line.read(1) + line.read(line.in_waiting)
        assert came.replace(b"><", b"")[1:-1] == every


def test_bytes_before_a_reset_reach_the_board_that_was_there_before_it(port) -> None:
    with opened(port) as line:
        line.write(b"first")
        line.rts = False
        line.dtr = False
        line.rts = True
        line.rts = False
        line.write(b"second")
        line.read_until(b"<second>")
    assert FakeBoard.started == 2


def test_a_second_program_gets_a_sentence_and_the_first_goes_on(port) -> None:
    with opened(port) as line:
        with socket.create_connection(port.address, timeout=5) as second:
            said = b""
            while piece := second.recv(4096):
                said += piece
            assert said == server.IN_USE
        line.write(b"still here")
        assert line.read_until(b"<still here>")


def test_the_next_program_is_served_as_soon_as_the_last_has_closed(port) -> None:
    for number in range(4):
        with opened(port) as line:
            line.write(b"%d" % number)
            assert line.read_until(b">").endswith(b"<%d>" % number)


def test_a_pulled_cable_is_an_end_and_a_plugged_one_a_beginning(port) -> None:
    port.comes_back = False
    with socket.create_connection(port.address, timeout=5) as line:
        port.pull_cable(after_bytes=10)
        line.sendall(b"0123456789abcdef")
        heard = b""
        while piece := line.recv(4096):
            heard += piece
    until(lambda: port._client is None)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(port.address, timeout=5)
    address = port.address
    port.plug_in()
    assert port.address == address
    with opened(port) as line:
        line.write(b"again")
        assert line.read_until(b"<again>")


def test_power_that_goes_takes_the_port_along(board, port) -> None:
    with socket.create_connection(port.address, timeout=5) as line:
        until(lambda: port._client is not None)
        board.power_off()
        while line.recv(4096):
            pass
    until(lambda: port._client is None)
    with opened(port) as line:  # whoever plugs it in again powers it
        assert board.mode == "run"
        line.write(b"x")
        assert line.read_until(b"<x>")


NOISE = (
    b"\xff\xf0",  # the end of an option that never began
    b"\xff\xfa\x2c\xff\xf0",
    b"\xff\xfa\x2c\x01\xff\xf0",  # a speed without a number
    b"\xff\xfa\x2c\x01\0\0\0\0\xff\xf0",
    b"\xff\xfa\x2c\x03\x77\xff\xf0",  # a parity that is none
    b"\xff\xfa\x2c\x0a\xff\xf0",  # a mask without a mask
    b"\xff\xfa\x2c\x0b\xff\xf0",
    b"\xff\xfa\x2c" + b"y" * 5000,  # one that never ends
    b"\xff\xfb\x99\xff\xfd\x98\xff\xfc\x97\xff\xfe\x96",
    b"\xff",
)


@pytest.mark.parametrize("noise", NOISE, ids=range(len(NOISE)))
def test_noise_on_the_cable_is_borne(port, noise: bytes) -> None:
    with socket.create_connection(port.address, timeout=5) as line:
        line.sendall(noise)
        line.sendall(noise)
        time.sleep(0.05)
    with opened(port) as line:
        line.write(b"alive")
        assert line.read_until(b"<alive>").endswith(b"<alive>")


def test_random_noise_in_either_mode_is_borne(board, port) -> None:
    chance = random.Random(7)
    for _ in range(30):
        with socket.create_connection(port.address, timeout=5) as line:
            chosen = [0xFF, 0xFA, 0xF0, 0x2C, 0xC0, 0xDB, 5, 8, 9, 11, 0]
            line.sendall(bytes(chance.choices([*chosen, *range(256)], k=2000)))
    with opened(port) as line:
        line.dtr = False
        line.rts = True
        line.dtr = True
        line.rts = False
        line.dtr = False
        assert line.read_until(b"waiting for download\r\n").endswith(b"download\r\n")
        line.write(SYNC)
        assert line.read(14 * 8).count(b"\x01\x08") == 8


def test_a_program_that_does_not_listen_stops_nobody(board, port) -> None:
    with socket.create_connection(port.address, timeout=5):
        until(lambda: port._client is not None)
        for _ in range(200):
            FakeBoard.running[0].say(b"z" * 100000)
        assert board.mode == "run"
    with opened(port) as line:
        line.write(b"next")
        assert line.read_until(b"<next>").endswith(b"<next>")


def test_a_port_that_is_taken_is_a_sentence(port, board) -> None:
    with pytest.raises(OutpostError, match="give another, or 0"):
        SerialPort(Machine(board.flash), port.address[1]).start()


def test_it_listens_on_loopback_alone(port) -> None:
    assert port.address[0] == "127.0.0.1" and port.url.startswith("rfc2217://127.0.0.1:")


def test_an_unknown_chip_lists_the_known_ones(board) -> None:
    with pytest.raises(OutpostError, match="esp32, esp32s2, esp32s3, esp32c3, esp32c6"):
        Machine(board.flash, chip="esp8266")
