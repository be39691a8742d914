"""The whole walk, from a flash image to acknowledged messages, on every build."""

import hashlib
import json
import re

from legs import LEGS
from world import World, line_number


def test_device_boots_connects_verified_and_sends(world):
    hub = world.hub()
    flash = world.image(hub.port)
    board = world.board(flash)
    board.wait_for(r"send +acked id=3", 60)
    stages = [line.text.split()[1] for line in board.lines if re.match(r" +\d+\.\d{3} ", line.text)]
    order = ["boot", "config", "identity", "link", "clock", "tls", "hub", "send"]
    # The example reports too, as soon as the hub lets it.
    stages = [s for s in stages if s != "twin"]
    assert [s for i, s in enumerate(stages) if s not in stages[:i]] == order
    messages = [t for t in hub.telemetry if t.device_id == world.device.device_id]
    assert [json.loads(m.body)["n"] for m in messages[:3]] == [1, 2, 3]


def test_console_facts_are_those_of_the_connection(world):
    hub = world.hub()
    board = world.board(world.image(hub.port, record_size=512))
    board.wait_for(r"acked id=1", 60)
    line = board.wait_for(r"tls +connected .*").string
    facts = dict(part.split("=", 1) for part in line.split() if "=" in part)
    if world.leg.startswith("stock"):
        assert "stock MicroPython" in line
        return
    assert facts["version"] == "TLSv1.2"
    assert facts["cipher"] == "TLS-ECDHE-ECDSA-WITH-AES-128-GCM-SHA256"
    assert facts["mfl_asked"] == facts["mfl_granted"] == "512"
    assert facts["root"] in [hashlib.sha256(der).hexdigest() for der in world.ca.roots_der()]
    assert 0 < int(facts["tls_heap_steady"]) < int(facts["tls_heap_peak"])


def test_reset_keeps_the_clock_and_the_device_connects_again(world):
    hub = world.hub()
    sntp = world.sntp()
    main = (
        b"from outpost import Device\nimport machine\n"
        b"d = Device()\n"
        b"@d.every(seconds=1)\n"
        b"def beat():\n"
        b"    if d.acked >= 1 and machine.reset_cause() == machine.PWRON_RESET:\n"
        b"        machine.reset()\n"
        b"    d.send(b'beat')\n"
        b"d.run()\n"
    )
    board = world.board(world.image(hub.port, sntp, files={"/main.py": main}))
    board.wait_for(r"clock .*source=127\.0\.0\.1", 60)
    start = line_number(board, r"clock .*source=rtc")
    asked = sntp.requests
    board.wait_for(r"acked id=1", 60, start=start)
    assert board.reboots == 1 and sntp.requests == asked == 1


def test_messages_sent_while_the_hub_is_away_arrive_when_it_is_back(world):
    first = world.hub()
    port = first.port
    main = (
        b"from outpost import Device\n"
        b"d = Device()\nn = 0\n"
        b"@d.every(seconds=0.2)\n"
        b"def count():\n"
        b"    global n\n"
        b"    if n < 20:\n"
        b"        d.send(b'%d' % (n + 1))\n"
        b"        n += 1\n"
        b"d.run()\n"
    )
    board = world.board(world.image(port, files={"/main.py": main}))
    board.wait_for(r"acked id=2", 60)
    seen = [int(t.body) for t in first.telemetry]
    first.stop()
    board.wait_for(r"error .*next attempt", 30)
    second = world.hub(port=port)
    board.wait_for(r"acked id=20", 60)
    seen += [int(t.body) for t in second.telemetry]
    # Every message arrived, in order, and at most doubled.
    assert sorted(set(seen)) == list(range(1, 21))
    assert [n for i, n in enumerate(seen) if n not in seen[:i]] == list(range(1, 21))


def runs(tmp_path, library, heapsize):
    """The example, with everything that it uses, connects and sends, and never lacks memory."""
    world = World(tmp_path, "outpost32")
    try:
        hub = world.hub()
        board = world.board(world.image(hub.port, library=library), heapsize=heapsize)
        board.wait_for(rf"boot .*library={library}", 30)
        board.wait_for(r"acked id=3", 60)
        assert "out of memory" not in board.text
    finally:
        world.close()


def test_library_in_the_firmware_runs_in_48_kib(tmp_path):
    runs(tmp_path, "frozen", "48K")


def test_library_from_flash_runs_in_112_kib(tmp_path):
    runs(tmp_path, "flash", "112K")


def test_every_leg_has_the_heap_that_the_issue_names():
    assert LEGS["outpost32"] == "64K" and LEGS["stock32"] == "160K"


def test_queue_that_is_full_refuses_and_loses_nothing_it_took(world):
    sntp = world.sntp()
    main = (
        b"from outpost import Device, OutpostError\n"
        b"d = Device()\n"
        b"@d.every(seconds=0.1)\n"
        b"def fill():\n"
        b"    d.send(b'x', durable=False)\n"
        b"d.run()\n"
    )
    # No hub at this port: nothing leaves.
    board = world.board(world.image(1, sntp, config={"queue": 5}, files={"/main.py": main}))
    board.wait_for(r"error +outbox: 5 messages wait", 60)
    board.wait_for(r"error +tls: .*cannot be reached", 60)
