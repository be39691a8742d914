"""Bad luck at run time: each time the device says what happened, goes on, and gets through."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time

import pytest
from legs import OURS, VIRTUAL
from outpost_tools.registry import Registry
from servers import in_time
from world import World, line_number

ONE_MESSAGE = b"from outpost import Device\nd = Device()\nd.send(b'one')\nd.run()\n"


def whole(board) -> None:
    assert "Traceback" not in board.text
    assert "a fault in the software" not in board.text
    assert board.running and board.reboots == 0


class Wire:
    """A TCP connection in between that can stop carrying bytes without closing."""

    def __init__(self, upstream: int) -> None:
        self.cut = threading.Event()
        self._upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._upstream))
                self._ends += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                if not self.cut.is_set():
                    target.sendall(data)

    def stop(self) -> None:
        for end in (self._listener, *self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
def test_idle_connection_is_kept_and_a_dead_one_found_in_a_keep_alive_and_a_half(world):
    hub = world.hub()
    wire = Wire(hub.port)
    world._closing.append(wire)
    config = {"keepalive_s": 10}
    board = world.board(world.image(wire.port, config=config, files={"/main.py": ONE_MESSAGE}))
    board.wait_for(r"acked id=1", 60)
    time.sleep(32)
    assert hub.connected == [world.device.device_id] and "error" not in board.text
    wire.cut.set()
    start = time.monotonic()
    board.wait_for(r"error +mqtt: the server did not answer a ping", 60)
    assert time.monotonic() - start < in_time(15)
    wire.cut.clear()
    board.wait_for(r"hub +connected", 60, start=line_number(board, r"did not answer a ping"))
    whole(board)


@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
def test_dead_connection_is_found_as_soon_while_messages_are_sent(world):
    hub = world.hub()
    wire = Wire(hub.port)
    world._closing.append(wire)
    board = world.board(world.image(wire.port, config={"keepalive_s": 10}))
    board.wait_for(r"acked id=2", 60)
    wire.cut.set()
    start = time.monotonic()
    board.wait_for(r"error +mqtt: ", 60)
    assert time.monotonic() - start < in_time(15)
    whole(board)


MEASURE = b"""
import gc, tlspolicy
from outpost import Device
d = Device()
n = 0
@d.every(seconds=0.1)
def beat():
    global n
    if d.online and d.acked == n:
        gc.collect()
        print("HELD", d.acked, gc.mem_alloc(), tlspolicy.heap()[0])
        n += 1
        d.send(b"x" * 100)
d.run()
"""


@pytest.mark.parametrize("leg", OURS, indirect=True)
def test_twenty_reconnections_leak_no_memory(world):
    hub = world.hub()
    board = world.board(world.image(hub.port, files={"/main.py": MEASURE}))
    at = 0
    for _ in range(20):
        acked = r"acked id="
        at = line_number(board, acked, at) + 1
        hub.disconnect(world.device.device_id, "test")
        at = line_number(board, r"error +mqtt: ", at) + 1
    at = line_number(board, r"hub +connected", at)
    at = line_number(board, r"HELD", at)
    whole(board)
    held = [tuple(map(int, re.findall(r"\d+", x.text))) for x in board.lines if "HELD" in x.text]
    after_first = [h for h in held if h[0] >= 3]
    # The log's ring and a longer uptime are all that may grow.
    assert after_first[-1][1] - after_first[0][1] < 1500, held
    assert after_first[-1][2] - after_first[0][2] < 200, held


@pytest.mark.parametrize("offset_s", [46 * 365 * 86400, 70 * 365 * 86400])
def test_sntp_far_beyond_the_calendar_is_not_believed(world, offset_s):
    hub = world.hub()
    board = world.board(world.image(hub.port, world.sntp(offset_s=offset_s)))
    board.wait_for(r"clock +127\.0\.0\.1 says .*not believed", 30)
    board.wait_for(r"clock .*source=(floor|unvouched)", 30)
    whole(board)


@pytest.mark.parametrize("leg", VIRTUAL, indirect=True)  # the release leg's clock is the host's
def test_clock_that_one_wrong_answer_pushed_forward_comes_back_by_itself(world):
    hub = world.hub()
    sntp = world.sntp(offset_s=20 * 365 * 86400)
    main = (
        b"from outpost import Device\nimport machine\nd = Device()\nn = 0\n"
        b"@d.every(seconds=0.5)\n"
        b"def reset():\n"
        b"    global n\n"
        b"    n += 1\n"
        b"    if n == 4 and machine.reset_cause() == machine.PWRON_RESET:\n"
        b"        machine.reset()\n"
        b"d.send(b'one')\nd.run()\n"
    )
    board = world.board(world.image(hub.port, sntp, files={"/main.py": main}))
    start = line_number(board, r"error +tls: .*this device's clock")
    # A reset keeps the wrong clock, which nobody vouches for since the refusal: it asks again.
    start = line_number(board, r"boot +Outpost boots", start)
    sntp.offset_s = 0
    board.wait_for(r"clock .*source=127\.0\.0\.1", 30, start=start)
    board.wait_for(r"acked id=1", 30, start=start)


def test_token_is_renewed_and_nothing_lost_when_the_clock_leaps(world):
    hub = world.hub()
    main = (
        b"from outpost import Device\nfrom outpost import clock\nd = Device()\nn = 0\n"
        b"@d.every(seconds=0.3)\n"
        b"def beat():\n"
        b"    global n\n"
        b"    if d.acked == n:\n"
        b"        n += 1\n"
        b"        d.send(b'x')\n"
        b"    if n in (2, 4):\n"
        b"        clock._set(clock.now() + (86400 * 4000 if n == 2 else -86400 * 8000))\n"
        b"        n += 1\n"
        b"        d.send(b'leap')\n"
        b"d.run()\n"
    )
    board = world.board(world.image(hub.port, files={"/main.py": main}))
    at = line_number(board, r"acked id=8")
    whole(board)
    assert sum("hub      connected" in x.text for x in board.lines[:at]) == 1


@pytest.mark.parametrize("name", ["d" * 128, "Az09-:.%_*?!(),=@;$'" + "x" * 100])
def test_longest_and_oddest_device_id_connects(world, name):
    hub = world.hub()
    device = Registry(world.data).add(name)
    board = world.board(world.image(hub.port, device=device))
    board.wait_for(r"acked id=2", 60)
    assert {t.device_id for t in hub.telemetry} == {name}


def test_full_nvs_keeps_nobody_from_connecting(world):
    hub = world.hub()
    main = (
        b"import esp32, network\n"
        b"network.WLAN(network.STA_IF).active(True)\n"
        b"nvs = esp32.NVS('mine')\nn = 0\n"
        b"try:\n"
        b"    while True:\n"
        b"        nvs.set_i32('k%d' % n, n)\n"
        b"        n += 1\n"
        b"except OSError:\n"
        b"    print('FULL')\n"
        b"from outpost import Device\nd = Device()\n"
        b"@d.every(seconds=0.5)\n"
        b"def beat():\n"
        b"    d.send(b'x')\n"
        b"d.run()\n"
    )
    old = int(time.time()) - 3000 * 86400
    flash = world.image(hub.port, build_time_s=old, files={"/main.py": main})
    board = world.board(flash)
    board.wait_for("FULL", 30)
    board.wait_for(r"acked id=3", 60)
    whole(board)
    assert "error" not in board.text


@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
@pytest.mark.parametrize("heapsize", ["34K", "37K"])
def test_heap_that_is_too_small_is_said_and_the_device_goes_on(world, heapsize):
    hub = world.hub()
    board = world.board(world.image(hub.port), heapsize=heapsize)
    at = 0
    for _ in range(4):
        at = line_number(board, r"error +device: out of memory", at) + 1
    whole(board)


@pytest.mark.parametrize("leg", VIRTUAL, indirect=True)
def test_messages_that_wait_leave_room_for_the_connection_that_takes_them_away(world):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    main = (
        b"from outpost import Device, OutpostError\nd = Device()\nn = 0\n"
        b"@d.every(seconds=0.02)\n"
        b"def fill():\n"
        b"    global n\n"
        b"    if n >= 0:\n"
        b"        try:\n"
        b"            n = d.send({'n': n, 'x': 'x' * 2000})\n"
        b"        except OutpostError as e:\n"
        b"            print('TAKEN', n, e)\n"
        b"            n = -1\n"
        b"d.run()\n"
    )
    flash = world.image(port, config={"queue": 256}, files={"/main.py": main})
    board = world.board(flash)
    taken = int(board.wait_for(r"TAKEN (\d+) ", 60)[1])
    hub = world.hub(port=port)
    board.wait_for(rf"acked id={taken}", 60)
    assert [json.loads(t.body)["n"] for t in hub.telemetry] == list(range(taken))
    whole(board)


# The release has no console input: there a Ctrl-C is a signal.
@pytest.mark.parametrize("leg", VIRTUAL, indirect=True)
def test_ctrl_c_closes_the_connection_in_order(world: World):
    hub = world.hub()
    board = world.board(world.image(hub.port, files={"/main.py": ONE_MESSAGE}))
    board.wait_for(r"acked id=1", 60)
    board.write(b"\x03")
    assert hub.wait_until(lambda: not hub.connected, 10)
    closed = [e for e in hub.events if e["event"] == "closed"]
    assert closed and "broke" not in closed[-1]["reason"], closed
