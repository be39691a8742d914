"""A file that the hub names and the device fetches: only from hosts of its bundle, over one TLS
connection at a time, on from where it stood, and its handler gets what was announced or nothing."""

from __future__ import annotations

import random
from typing import Any

import bundles
import packages
import pytest
from deliveries import KIND, MAIN, Sender, sha
from fromhub import Operator
from hubs import eventually
from outpost_tools.bundleserver import BundleServer, development_context, of_mapping
from outpost_tools.delivery import push
from updates import KEPT
from world import line_number

FILE = random.Random(9).randbytes(9000)
# A stock board has no memory left for a fetch beside a twin (docs/delivery.md).
WITH_TWIN = ("outpost64", "outpost32", "stock-release")
PLAIN = MAIN.replace(b"d = Device()", b"delivery.retry_s = (1, 2)\nd = Device()")
QUICK = PLAIN.replace(
    b"d.run()",
    b"""
@d.desired("interval")
def interval(value):
    print("INTERVAL", value)

@d.every(seconds=0.2)
def beat():
    d.send({"beat": 1}, durable=False)

try:
    d.desired("outpost")
except ValueError as e:
    print("RESERVED", e)
d.run()""",
)


class Depot:
    """A server of files beside the hub, and a board whose bundle names it."""

    def __init__(
        self, world, files: dict[str, bytes], hosts=("localhost",), main=QUICK, hub=None, **bundle
    ) -> None:
        self.world = world
        self.hub = hub or world.hub()
        self.device_id = world.device.device_id
        self.operator = Operator(self.hub, self.device_id)
        self.files = files
        self.asked: list[Any] = []
        self.at_hub: list[bool] = []  # whether the device had its connection there meanwhile
        context = development_context(world.data, ["localhost", "127.0.0.1"])
        self.server = BundleServer(of_mapping(files), context, on_asked=self._asked).start()
        world._closing.append(self.server)
        factory = bundles.data(roots=world.ca.roots_der(), hosts=hosts, **bundle)
        self.flash = world.image(
            self.hub.port, files={"/main.py": main, "/trust/factory.bin": factory}
        )
        self.board = world.board(self.flash)
        self.board.wait_for("hub +connected", 60)

    def _asked(self, asked) -> None:
        self.asked.append(asked)
        self.at_hub.append(self.device_id in self.hub.core.connected)

    def url(self, path="/parcel.bin", host="localhost") -> str:
        return f"https://{host}:{self.server.port}{path}"

    def wish(self, data: bytes, **more: Any) -> None:
        order = {"version": 5, "url": self.url(), "size": len(data), "sha256": sha(data)}
        self.operator.desire({"outpost": {KIND: order | more}})

    def outcome(self, timeout_s: float = 60, **wanted: Any) -> dict[str, Any]:
        def reported() -> dict[str, Any]:
            found = self.operator.reported().get("outpost", {})
            return found.get("delivery", {}).get(KIND, {})

        eventually(lambda: wanted.items() <= reported().items(), timeout_s)
        return reported()


@pytest.mark.parametrize("leg", WITH_TWIN, indirect=True)
def test_file_is_fetched_without_a_second_connection_and_handed_over(world):
    depot = Depot(world, {"/parcel.bin": FILE})
    depot.operator.desire({"interval": 7})
    depot.operator.until_reported(interval={"value": 7, "ac": 200, "av": 2})
    depot.wish(FILE)
    assert depot.outcome(status=200) == {"version": 5, "status": 200}
    assert f"PARCEL 9000 {sha(FILE)}" in depot.board.text
    assert [(a.first, a.last, a.status) for a in depot.asked] == [
        (n, min(n + 2048, 9000) - 1, 206) for n in range(0, 9000, 2048)
    ]
    assert depot.server.connections == 1
    assert depot.at_hub == [False] * 5, "two TLS connections at once"
    text = depot.board.text
    assert text.index("connection ends for it") < text.index("fetching 9000") < text.index("PARCEL")
    # The application's own property is as ever, and ours is not to be had.
    assert "INTERVAL 7" in text and "RESERVED the desired property outpost" in text
    assert depot.operator.reported()["interval"] == {"value": 7, "ac": 200, "av": 2}
    assert text.count("hub      connected") == 2
    assert depot.operator.invoke("modules") == (200, [])
    assert depot.operator.invoke("files") == (200, [])
    assert "next attempt" not in text
    # Said once more it is not fetched once more; another one is.
    depot.wish(FILE, version=6)
    depot.files["/other.bin"] = b"other"
    depot.wish(b"other", url=depot.url("/other.bin"), version=7)
    assert depot.outcome(status=200, version=7)["version"] == 7
    assert len(depot.asked) == 6


@pytest.mark.parametrize("leg", ["outpost32", "stock32"], indirect=True)
def test_application_without_a_twin_needs_none_for_a_file(world):
    """What was wished before the device started, and what is wished while it is connected."""
    hub = world.hub()
    core = hub.core
    depot_files = {"/parcel.bin": FILE, "/next.bin": FILE[:100]}
    core.wait(core.twin_patch(world.device.device_id, desired={"other": 1}))
    depot = Depot(world, depot_files, main=PLAIN, hub=hub)
    depot.wish(FILE)
    assert depot.outcome(status=200) == {"version": 5, "status": 200}
    depot.board.stop()
    depot.wish(FILE[:100], url=depot.url("/next.bin"), version=6)
    depot.board = world.board(depot.flash)
    assert depot.outcome(status=200, version=6)["version"] == 6
    assert "PARCEL 100 " in depot.board.text
    depot.operator.desire({"outpost": None})
    loaded = depot.operator.invoke("modules")
    assert loaded == (200, [])
    assert "next attempt" not in depot.board.text


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ({"url": "https://elsewhere.example/parcel.bin"}, "does not name elsewhere.example"),
        ({"url": "https://127.0.0.1:1/parcel.bin"}, "does not name 127.0.0.1"),
        ({"url": "http://localhost/parcel.bin"}, "url is https://"),
        ({"url": 5}, "url is an https address"),
        ({"size": 20001}, "more than the 20000"),
        ({"size": -1}, "size is how many bytes"),
        ({"sha256": "00"}, "64 hexadecimal digits"),
    ],
)
@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
def test_order_that_makes_no_sense_does_not_end_the_connection(world, order, words):
    depot = Depot(world, {})
    depot.wish(FILE, **order)
    assert words in eventually(lambda: depot.outcome(0.1).get("why"), 60)
    assert depot.operator.invoke("files") == (200, [])
    assert depot.board.text.count("hub      connected") == 1
    assert depot.asked == []


@pytest.mark.parametrize("leg", ["outpost32", "stock32"], indirect=True)
def test_fetch_that_was_cut_off_by_a_power_cut_goes_on_where_it_stood(world):
    depot = Depot(world, {"/parcel.bin": FILE}, main=PLAIN)
    read = depot.server._files

    def stops(path):
        if len(depot.asked) == 3:
            depot.board.stop()
        return read(path)

    depot.server._files = stops
    depot.wish(FILE)
    assert eventually(lambda: not depot.board.running, 60)
    depot.board = world.board(depot.flash)
    assert depot.outcome(status=200)["status"] == 200
    firsts = [asked.first for asked in depot.asked]
    assert firsts[:3] == [0, 2048, 4096] and 0 not in firsts[3:]
    assert f"PARCEL 9000 {sha(FILE)}" in depot.board.text


@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
def test_server_that_is_wrong_or_away_is_tried_again_and_telemetry_goes_on(world):
    depot = Depot(world, {"/parcel.bin": FILE[:-1] + b"x"})
    depot.wish(FILE)
    assert "not what was announced" in eventually(lambda: depot.outcome(0.1).get("why"), 60)
    assert "PARCEL" not in depot.board.text
    del depot.files["/parcel.bin"]
    assert eventually(lambda: "answers 404" in str(depot.outcome(0.1).get("why")), 60)
    before = len(depot.hub.telemetry)
    assert eventually(lambda: len(depot.hub.telemetry) > before + 5, 30)
    depot.files["/parcel.bin"] = FILE
    assert depot.outcome(status=200).get("why") is None
    assert depot.board.text.count("PARCEL") == 1
    # And an order that is taken back is forgotten.
    depot.operator.desire({"outpost": None})
    assert depot.operator.invoke("files") == (200, [])


@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
def test_nothing_is_fetched_while_software_is_on_trial(world):
    """What decides a trial is a connection that lasts: no file is a reason to end it."""
    depot = Depot(world, {"/parcel.bin": FILE}, main=PLAIN, software=bundles.keys("s"))
    source = QUICK.replace(
        b"\nd.run()",
        b"""
well = []

@d.healthy
def healthy():
    print("ASKED")
    return bool(well)

@d.method("recover")
def recover(payload):
    well.append(1)

d.run()""",
    )
    package = packages.signed(packages.application(source), 7)
    assert push(Sender(depot.operator).invoke, "software", package).status == 202
    board = depot.board
    asked = line_number(board, "ASKED")
    order = {"version": 5, "url": depot.url(), "size": len(FILE), "sha256": sha(FILE)}
    depot.operator.desire({"outpost": {KIND: order}, "interval": 7})
    line = line_number(board, "INTERVAL 7", asked)  # and with it, it has the wish
    for _ in range(4):
        line = line_number(board, "ASKED", line + 1)
    assert not depot.asked and "connection ends for it" not in board.text
    depot.operator.invoke("recover")
    kept = line_number(board, KEPT % 7, line)
    line_number(board, "connection ends for it", kept)
    assert depot.outcome(status=200) == {"version": 5, "status": 200}
    assert board.text.count("hub      connected") == 3  # the image, the trial, after the file
