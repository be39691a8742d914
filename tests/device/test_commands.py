"""Commands in, on the whole device and the real hub: direct methods, cloud-to-device messages."""

from __future__ import annotations

import json
import time

import pytest
from fromhub import Operator
from hubs import eventually
from legs import VIRTUAL
from world import line_number

METHODS = b"""
import time
from outpost import Device, OutpostError
d = Device()

@d.method("add")
def add(payload):
    return payload["a"] + payload["b"]

@d.method("teapot")
def teapot(payload):
    return 418, {"short": True}

@d.method("fail")
def fail(payload):
    raise ValueError("hunter2")

@d.method("refuse")
def refuse(payload):
    raise OutpostError("the valve is stuck: free it by hand")

@d.method("echo")
def echo(payload):
    return payload

@d.method("free")
def free(payload):
    import gc
    gc.collect()
    return gc.mem_free()

@d.method("odd")
def odd(payload):
    return {1: object()}

@d.method("greedy")
def greedy(payload):
    return "x" * (1 << 28)

@d.method("slow")
def slow(payload):
    end = time.ticks_add(time.ticks_ms(), payload)
    while time.ticks_diff(end, time.ticks_ms()) > 0:
        yield 50
    return "done"

@d.method("stuck", timeout_s=1)
def stuck(payload):
    while True:
        yield 50

@d.every(seconds=0.3)
def beat():
    if d.acked == d.sent:
        d.send(b"beat", durable=False)

d.run()
"""

MESSAGES = b"""
import machine
from outpost import Device
d = Device()

@d.message
def message(body, properties):
    print("GOT", bytes(body), sorted([(k, v) for k, v in properties.items() if k[0] != "$"]))
    if body == b"reset" and machine.reset_cause() == machine.PWRON_RESET:
        machine.reset()
    if body == b"bad":
        raise ValueError("hunter2")
    if body == b"slow":
        for _ in range(30):
            yield 100
        print("THROUGH")

d.run()
"""


def whole(board):
    assert "a fault in the software" not in board.text
    assert board.running and "error" not in board.text


def start(world, main, **options):
    hub = world.hub()
    board = world.board(world.image(hub.port, files={"/main.py": main}, **options))
    return hub, board, Operator(hub, world.device.device_id)


def test_methods_are_answered_with_results_statuses_and_sentences(world):
    _, board, operator = start(world, METHODS)
    assert operator.invoke("add", {"a": 2, "b": 40}) == (200, 42)
    assert operator.invoke("teapot") == (418, {"short": True})
    assert operator.invoke("echo") == (200, None)
    for value in ([], {}, "Grüße ☃", -1.5, [True, None], {"a": {"b": [1, 2]}}):
        assert operator.invoke("echo", value) == (200, value)
    assert operator.invoke("fail") == (500, {"error": "fail raised ValueError"})
    assert operator.invoke("refuse") == (500, {"error": "the valve is stuck: free it by hand"})
    assert operator.invoke("odd") == (500, {"error": "the method's result has no JSON"})
    assert operator.invoke("greedy") == (500, {"error": "there was no memory for greedy"})
    assert operator.invoke("missing")[0] == 404
    assert operator.invoke("add", 7)[1] == {"error": "add raised TypeError"}
    assert operator.invoke("stuck") == (
        504,
        {"error": "stuck was not through in its time and was ended"},
    )
    assert operator.invoke("add", {"a": 1, "b": 1}) == (200, 2)
    answers = [line.text for line in board.lines if "answered" in line.text]
    assert not any("hunter2" in text for text in answers)
    assert board.running and "next attempt" not in board.text


def test_payloads_that_are_bombs_are_refused_with_a_sentence_and_cost_nothing(world):
    _, board, operator = start(world, METHODS)
    assert operator.invoke("echo", 1) == (200, 1)
    deep = json.loads("[" * 100 + "]" * 100)
    status, answer = operator.invoke("echo", deep)
    assert status == 400 and "levels" in answer["error"]
    status, answer = operator.invoke("echo", [0] * 1500)
    assert status == 400 and "values" in answer["error"]
    status, answer = operator.invoke("echo", "x" * 100_000)
    assert status == 413 and "more than this device takes" in answer["error"]
    assert operator.invoke("echo", "x" * 2000) == (200, "x" * 2000)
    whole(board)


@pytest.mark.parametrize("leg", ["outpost32", "stock32"], indirect=True)
def test_slow_handler_keeps_the_connection_alive_and_telemetry_flowing(world):
    config = {"keepalive_s": 10}
    hub, board, operator = start(world, METHODS, config=config)
    before = len(hub.telemetry)
    assert operator.invoke("slow", 20_000, 60) == (200, "done")
    assert len(hub.telemetry) > before + 20
    whole(board)
    assert board.text.count("hub      connected") == 1


@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
def test_flood_of_slow_calls_is_answered_a_few_at_a_time_and_none_is_dropped(world):
    config = {"keepalive_s": 10}
    hub, board, operator = start(world, METHODS, config=config)
    core = operator.core

    async def flood():
        import asyncio

        calls = [
            core.invoke_method(world.device.device_id, "slow", 1500, 60, 100) for _ in range(40)
        ]
        return await asyncio.gather(*calls)

    assert core.wait(flood(), 120) == [(200, "done")] * 40
    whole(board)
    assert board.text.count("hub      connected") == 1


def test_message_reaches_its_handler_with_its_properties_and_is_acknowledged_after_it(world):
    _, board, operator = start(world, MESSAGES)
    operator.send(b"one", properties={"zone": "3", "odd&=%": "Gr\u00fc\u00dfe"})
    line = board.wait_for(r"GOT b'one' (.*)", 60)
    assert line[1].endswith(r"('odd&=%', 'Gr\xfc\xdfe'), ('zone', '3')]")
    assert operator.all_taken()
    operator.send(b"slow")
    board.wait_for(r"GOT b'slow'", 30)
    time.sleep(1)
    assert len(operator.waiting()) == 1, "acknowledged before its handler was through"
    board.wait_for("THROUGH", 30)
    assert operator.all_taken()
    whole(board)


def test_what_the_hub_held_is_received_after_reconnection(world):
    hub, board, operator = start(world, MESSAGES)
    operator.send(b"first")
    board.wait_for(r"GOT b'first'", 60)
    hub.stop()
    board.wait_for(r"error .*next attempt", 30)
    hub = world.hub(port=hub.port)
    operator = Operator(hub, world.device.device_id)
    for n in range(20):
        operator.send(b"held-%d" % n)
    board.wait_for(r"GOT b'held-19'", 60)
    assert operator.all_taken()
    got = [line.text.split()[1] for line in board.lines if line.text.startswith("GOT")]
    assert got == ["b'first'"] + [f"b'held-{n}'" for n in range(20)]


def test_message_whose_acknowledgement_was_lost_is_known_again_after_a_reset(world):
    main = MESSAGES.replace(
        b"d.run()",
        b"""
def no_acknowledgement(pid, life):
    print("RESETS")
    machine.reset()
if machine.reset_cause() == machine.PWRON_RESET:
    d.commands._acknowledge = no_acknowledgement
d.run()""",
    )
    _, board, operator = start(world, main)
    operator.send(b"once", message_id="m-1")
    at = line_number(board, r"RESETS")
    line_number(board, r"message +known already", at)
    assert operator.all_taken()
    assert board.text.count("GOT b'once'") == 1
    operator.send(b"once", message_id="m-2")
    line_number(board, r"GOT b'once'", at)


def test_handler_that_raises_leaves_the_message_with_the_hub_and_gives_up_at_last(world):
    hub, board, operator = start(world, MESSAGES)
    operator.send(b"bad")
    at = line_number(board, r"its handler failed: left with the hub")
    for _ in range(2):
        assert len(operator.waiting()) == 1
        hub.disconnect(world.device.device_id, "test")
        at = line_number(board, r"its handler failed|given up", at + 1)
    line_number(board, r"given up: its handler failed 3 times", at)
    assert operator.all_taken()
    operator.send(b"good")
    board.wait_for(r"GOT b'good'", 30)


# The release leg has the host's clock, which a test cannot set back.
@pytest.mark.parametrize("leg", VIRTUAL, indirect=True)
def test_message_that_expired_on_its_way_is_dropped_and_acknowledged(world):
    main = MESSAGES.replace(
        b"d.run()",
        b"""
from outpost import clock
leapt = False
@d.every(seconds=0.1)
def leap():
    global leapt
    if d.online and not leapt:
        leapt = True
        clock._set(clock.now() + 2000000)
        print("LEAPT")
d.run()""",
    )
    hub = world.hub()
    operator = Operator(hub, world.device.device_id)
    board = world.board(world.image(hub.port, files={"/main.py": main}))
    board.wait_for("LEAPT", 60)
    operator.send(b"late", expiry_s=time.time() + 3600)
    board.wait_for(r"message +dropped: it expired", 30)
    assert operator.all_taken()
    assert "GOT" not in board.text


def test_device_that_takes_no_messages_leaves_them_with_the_hub(world):
    hub, board, operator = start(world, METHODS)
    operator.send(b"for later")
    assert operator.invoke("add", {"a": 1, "b": 1}) == (200, 2)
    assert eventually(lambda: len(operator.waiting()) == 1)
