"""The whole device on bad networks: real TCP over packets lost, late, doubled or swallowed.

The board and the hub (a process of its own) each have a network namespace; weather.py is between.
Whatever happened, what send() accepted is in the hub's store in the end, and the device is back.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import weather
from devca import put_ca
from hubs import eventually
from legs import LEGS
from outpost_tools.board import Board
from outpost_tools.image import Settings, build_image
from outpost_tools.registry import Registry
from servers import in_time, stop
from weather import Weather

LEGS_HERE = ("outpost32",)
PROGRAM = str(Path(sys.executable).parent / "outpost")
PORT, SNTP_PORT = 8883, 1123  # of a namespace of its own: free in it
MAIN = b"""
import binascii, os
from outpost import Device, OutpostError
device = Device()
start = binascii.hexlify(os.urandom(4)).decode()
made = 0

@device.every(seconds=PERIOD)
def measure():
    global made
    if made < COUNT:
        device.send({"start": start, "n": made + 1})
        made += 1
        print("accepted", start, made)

device.run()
"""


class Sky:
    """A hub and a board with weather between them."""

    def __init__(self, folder: Path, net: weather.Network, leg: str, speed: int = 1) -> None:
        self.folder, self.net, self.leg, self.speed = folder, net, leg, speed
        self.data = folder / "data"
        self.ca = put_ca(self.data)
        with Registry(self.data) as registry:
            self.device = registry.add("press-7")
        self.accepted: set[tuple[str, int]] = set()
        self._hub: subprocess.Popen[bytes] | None = None
        self._board: Board | None = None
        self._boards: list[Board] = []

    def start_hub(self) -> None:
        """`outpost hub run` at the other end of the network."""
        words = [*self.net.hub.within, PROGRAM, "hub", "run"]
        words += ["--data", str(self.data), "--host", self.net.hub.address, "--port", str(PORT)]
        words += ["--rest-port", "0", "--sntp-port", str(SNTP_PORT), "--json"]
        path = self.folder / "hub.log"
        with path.open("ab") as log:
            self._hub = subprocess.Popen(words, stdout=log, stderr=log)
        told = path.stat().st_size
        assert eventually(lambda: b'"listening"' in path.read_bytes()[told:], 60), path.read_text()

    def kill_hub(self) -> None:
        assert self._hub is not None
        self._hub.kill()
        self._hub.wait(10)

    def image(self, count: int, period_s: float, **config) -> Path:
        base = Settings(
            hub=self.net.hub.address, port=PORT, sntp=[f"{self.net.hub.address}:{SNTP_PORT}"]
        )
        main = MAIN.replace(b"COUNT", b"%d" % count).replace(b"PERIOD", str(period_s).encode())
        raw = json.loads(base.to_json()) | {"backoff_s": [1, 30], "keepalive_s": 30} | config
        flash = self.folder / "flash.bin"
        flash.write_bytes(
            build_image(
                self.device,
                self.ca.roots_der(),
                settings=base,
                build_time_s=int(time.time()) - 3600,
                library="flash" if self.leg.startswith("stock") else "frozen",
                files={"/main.py": main, "/config.json": json.dumps(raw).encode()},
            )
        )
        return flash

    def start_board(self, flash: Path) -> Board:
        self._board = Board(
            flash,
            leg=self.leg,
            heapsize=LEGS[self.leg],
            speed=self.speed,
            within=self.net.device.within,
        )
        self._boards.append(self._board)
        return self._board.start()

    def cut_board(self) -> None:
        """The power goes, at whatever instant this is."""
        assert self._board is not None
        self._board.stop()
        self._note()

    def _note(self) -> None:
        for board in self._boards:
            for line in list(board.lines):
                found = re.fullmatch(r"accepted (\w+) (\d+)", line.text)
                if found:
                    self.accepted.add((found[1], int(found[2])))

    def arrived(self) -> list[tuple[str, int]]:
        """What the hub has stored, in its order, as another process reads it."""
        path = f"file:{self.data / 'telemetry.db'}?mode=ro"
        with contextlib.closing(sqlite3.connect(path, uri=True)) as db:
            rows = db.execute("SELECT body FROM telemetry ORDER BY number").fetchall()
        return [(m["start"], m["n"]) for m in (json.loads(body) for (body,) in rows)]

    def all_arrived(self, timeout_s: float) -> None:
        def missing() -> set[tuple[str, int]]:
            self._note()
            return self.accepted - set(self.arrived())

        assert eventually(lambda: not missing() and self.accepted, timeout_s), (
            f"missing {sorted(missing())[:20]} of {len(self.accepted)}; "
            f"{self.net.passed} packets passed, {self.net.lost} lost\n"
            + "\n".join(line.text for line in self._boards[-1].lines[-30:])
        )
        # Nothing was invented; and of one start the first arrivals are in the order of making.
        arrived = self.arrived()
        assert set(arrived) <= self.accepted | {(s, n + 1) for s, n in self.accepted}
        for start in {s for s, _ in arrived}:
            first = list(dict.fromkeys(n for s, n in arrived if s == start))
            assert first == sorted(first)

    def close(self) -> None:
        for board in self._boards:
            board.stop()
        if self._hub is not None:
            stop(self._hub)


@contextlib.contextmanager
def sky(folder: Path, what: Weather, leg: str, seed: int = 1, speed: int = 1) -> Iterator[Sky]:
    with weather.network(what, seed) as net:
        one = Sky(folder, net, leg, speed)
        try:
            one.start_hub()
            yield one
        finally:
            one.close()


@pytest.mark.parametrize(
    "what",
    [
        Weather(loss=0.05, delay_s=0.02),
        Weather(loss=0.25, delay_s=0.01),
        Weather(delay_s=0.05, jitter_s=0.05, late=0.3),
        Weather(twice=0.5, delay_s=0.01),
        Weather(bytes_s=3000),
        Weather(delay_s=0.6),
    ],
    ids=["5-percent-lost", "quarter-lost", "overtaken", "doubled", "3-kB-a-second", "satellite"],
)
def test_every_accepted_message_arrives_over(tmp_path: Path, leg: str, what: Weather) -> None:
    with sky(tmp_path, what, leg) as one:
        board = one.start_board(one.image(count=24, period_s=0.05))
        board.wait_for(r"accepted \w+ 24", 120)
        one.all_arrived(150)
        assert len(one.accepted) == 24
        # And the weather was what it says.
        net = one.net
        assert net.passed > 24
        assert bool(net.doubled) == bool(what.twice) and bool(net.overtaken) == bool(what.late)
        assert net.lost or not what.loss


def test_a_network_that_swallows_everything_is_noticed_within_1_5_keep_alives(
    tmp_path: Path, leg: str
) -> None:
    with sky(tmp_path, Weather(), leg) as one:
        board = one.start_board(one.image(count=100000, period_s=0.5, keepalive_s=10))
        board.wait_for(r"acked id=2", 60)
        start = len(board.lines)
        one.net.weather.dark = True
        dark_at = time.monotonic()
        found = board.wait_for(r"^ *(\d+\.\d+) error +\w+: (.*)", 60, start)
        assert time.monotonic() - dark_at < in_time(15), found.string
        one.net.weather.dark = False
        start = len(board.lines)
        board.wait_for(r"hub +connected", 60, start)
        one.all_arrived(60)


def test_nothing_is_lost_when_everything_breaks_at_once(tmp_path: Path) -> None:
    _bad_hour(tmp_path, minutes=6, seed=1)


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_nothing_is_lost_in_an_hour_when_everything_breaks(tmp_path: Path) -> None:
    _bad_hour(tmp_path, minutes=60, seed=2)


def _bad_hour(folder: Path, minutes: int, seed: int) -> None:
    """5 % of the packets lost, and about once a minute of the board's time a blow."""
    speed, choose = 20, random.Random(seed)
    # Each kind of them in any four minutes.
    blows = [
        blow
        for _ in range(0, minutes, 4)
        for blow in choose.sample(["hub", "board", "dark", "nothing"], 4)
    ]
    with sky(folder, Weather(loss=0.05, delay_s=0.002), "outpost32", seed, speed) as one:
        flash = one.image(count=100000, period_s=5, keepalive_s=30)
        one.start_board(flash)
        for blow in blows[:minutes]:
            time.sleep(60 / speed)
            if blow == "hub":
                one.kill_hub()
                time.sleep(choose.uniform(0, 60 / speed))
                one.start_hub()
            elif blow == "board":
                one.cut_board()
                one.start_board(flash)
            elif blow == "dark":
                one.net.weather.dark = True
                time.sleep(choose.uniform(0, 120 / speed))
                one.net.weather.dark = False
        one.cut_board()
        one.start_board(flash)
        one.all_arrived(180)
        assert one.net.lost > minutes and len({start for start, _ in one.accepted}) > 1
        # About one in 5 s of the board's time; those that were made while it was off are none.
        assert len(one.accepted) >= minutes * 4
