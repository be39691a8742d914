"""Against a bare umqtt.simple script on the same build, hub and network, in the same run.

Two questions: how long from power-on to the first acknowledged message, and how many QoS 1
messages a second get through when the network takes 50 ms there and back.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from bench.delay import DelayProxy
from bench.table import Table
from outpost_tools import sas
from world import World

LEG = "outpost32"
RUNS = 7
MESSAGES = 200
ROUND_TRIP_S = 0.050

# umqtt.simple 1.3.4 wraps its socket with the module ussl, which the board no longer has.
USSL = b"""
import tls
def wrap_socket(sock, server_hostname):
    ctx = tls.SSLContext(tls.PROTOCOL_TLS_CLIENT)
    with open("/root.der", "rb") as f:
        ctx.load_verify_locations(f.read())
    return ctx.wrap_socket(sock, server_hostname=server_hostname)
"""

BARE = """
import network, machine, time
from umqtt.simple import MQTTClient
w = network.WLAN(network.STA_IF)
w.active(True)
w.connect("Espressif")
while not w.isconnected():
    time.sleep_ms(10)
machine.RTC().datetime({now!r})
c = MQTTClient("press-7", "localhost", {port}, {user!r}, {token!r}, keepalive=240, ssl=True,
               ssl_params={{"server_hostname": "localhost"}})
c.connect(False)
for i in range({count}):
    c.publish("devices/press-7/messages/events/", b"x" * 100, qos=1)
print("finished")
"""

OURS = """
from outpost import Device, OutpostError
d = Device()
n = 0
while d.acked < {count}:
    while n < {count}:
        try:
            d.send(b"x" * 100)
            n += 1
        except OutpostError:
            break
    wait = d.step()
    if d._stream and d.acked < {count}:
        d._stream.wait(wait)
print("finished")
"""


def image(world: World, port: int, count: int, ours: bool) -> Path:
    if ours:
        files = {"/main.py": OURS.format(count=count).encode()}
    else:
        now = time.gmtime()
        token = sas.make(
            world.device.primary_key, "localhost/devices/press-7", int(time.time()) + 3600
        )
        main = BARE.format(
            now=(now.tm_year, now.tm_mon, now.tm_mday, 0, now.tm_hour, now.tm_min, now.tm_sec, 0),
            port=port,
            user="localhost/press-7/?api-version=2021-04-12",
            token=token,
            count=count,
        )
        files = {"/main.py": main.encode(), "/ussl.py": USSL, "/root.der": world.ca.roots_der()[1]}
    return world.image(port, files=files, name="ours.bin" if ours else "bare.bin")


def seconds_to_first(world: World, port: int, ours: bool) -> float:
    flash = image(world, port, 1, ours)
    board = world.board(flash)
    board.wait_for("finished", 60)
    at = next(line.at_s for line in board.lines if "finished" in line.text)
    board.stop()
    return at


def messages_a_second(world: World, hub, port: int, ours: bool) -> float:
    before = len(hub.telemetry)
    board = world.board(image(world, port, MESSAGES, ours))
    board.wait_for("finished", 120)
    board.stop()
    times = [t.received_s for t in hub.telemetry[before:]]
    return (len(times) - 1) / (times[-1] - times[0])


def measure() -> list[Table]:
    start = Table("Power-on to the first acknowledged message", ["program", "seconds", "ratio"])
    rate = Table(
        "QoS 1 messages of 100 bytes at 50 ms round trip", ["program", "messages a second", "ratio"]
    )
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), LEG)
        try:
            hub = world.hub(chain="ecdsa")
            samples: dict[bool, list[float]] = {True: [], False: []}
            for _ in range(RUNS):
                for ours in (False, True):
                    samples[ours].append(seconds_to_first(world, hub.port, ours))
            bare, full = (statistics.median(samples[ours]) for ours in (False, True))
            start.add("bare umqtt.simple", bare, 1.0)
            start.add("Outpost", full, full / bare)
            with DelayProxy(hub.port, ROUND_TRIP_S / 2) as proxy:
                slow = messages_a_second(world, hub, proxy.port, False)
                fast = messages_a_second(world, hub, proxy.port, True)
            rate.add("bare umqtt.simple", slow, 1.0)
            rate.add("Outpost (window of 8)", fast, fast / slow)
        finally:
            world.close()
    start.notes.append(
        "The bare script sets its clock from a constant and keeps no floor; Outpost asks SNTP. "
        "Both verify the server, which this build does not let them leave out. Budget: 1.25."
    )
    rate.notes.append("Budget: at least 5.")
    return [start, rate]
