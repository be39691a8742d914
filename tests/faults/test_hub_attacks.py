"""Devices that mean harm, and a disk that cannot keep up: the hub lives, holds little, says why."""

import asyncio
import contextlib
import json
import socket
import ssl
import threading
import time

import pytest
from hubs import eventually
from outpost_tools.hub import line as lines
from outpost_tools.hub import news
from outpost_tools.hub import server as servers
from outpost_tools.registry import Registry
from pahodevice import RawSession, World, end, packet, publish, text

EVENTS = b"devices/pump-7/messages/events/"
REPORTED = b"$iothub/twin/PATCH/properties/reported/?$rid="
DESIRED = "$iothub/twin/PATCH/properties/desired/#"
COMMANDS = "devices/pump-7/messages/devicebound/#"


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "data")
    yield world
    world.hub.stop()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("attacks") / "data")
    yield world
    world.hub.stop()


def reason_of(world, data):
    """Why the connection ends that sends this."""
    before = len(world.hub.events)
    with RawSession(world) as raw:
        with contextlib.suppress(OSError):  # the hub hangs up before it has read all of it
            raw.send(data)
        found = world.hub.wait_until(
            lambda: [e for e in world.hub.events[before:] if e["event"] == "closed"]
        )
        assert found, "the connection stays"
    return found_reason(world, before)


def found_reason(world, before):
    (closed,) = [e["reason"] for e in world.hub.events[before:] if e["event"] == "closed"]
    return closed


class HeldDisk:
    """The hub's disk thread does nothing while the block runs."""

    def __init__(self, core):
        self._core, self._go = core, threading.Event()

    def __enter__(self):
        self._core._disk.submit(self._go.wait)
        return self

    def __exit__(self, *_):
        self._go.set()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(publish(b"$iothub/methods/res/--5/?$rid=1"), "without a status", id="--5"),
        pytest.param(publish(b"$iothub/methods/res/5-/?$rid=1"), "without a status", id="5-"),
        pytest.param(
            publish(b"$iothub/methods/res/200/?$rid=1", b"1e999"), "no JSON", id="beyond floats"
        ),
        pytest.param(
            publish(b"$iothub/twin/GET/?$rid=" + b"r" * 65500), "request id", id="long request id"
        ),
        pytest.param(
            publish(b"$iothub/twin/GET/?$rid=#"), "malformed", id="a wildcard as request id"
        ),
        pytest.param(publish(EVENTS + b"+/#"), "malformed", id="a wildcard among properties"),
        pytest.param(
            packet(0x82, b"\0\1" + 60000 * (text(b"a") + b"\0")), "over the limit", id="filters"
        ),
        pytest.param(
            packet(0xA2, b"\0\1" + 60000 * text(b"a")), "over the limit", id="filters to forget"
        ),
    ],
)
def test_what_only_an_attacker_sends_ends_the_connection_and_is_no_fault_of_the_hub(
    shared, data, reason
):
    assert reason in reason_of(shared, data)


def test_properties_count_towards_the_256_kb_of_a_message(shared):
    name = b"n" * 1000
    value = b"v" * 1000
    topic = EVENTS + name + b"=" + value + b"&%24.ct=" + value
    assert "over the limit" in reason_of(shared, publish(topic, b"x" * (262144 - 2999), 7))
    with RawSession(shared) as raw:
        raw.send(publish(topic, b"x" * (262144 - 3000), 7))
        assert raw.read() == (0x40, b"\0\7")


def test_a_time_that_no_calendar_has_is_no_time(world):
    from outpost_tools.cli.service import line_of

    with RawSession(world) as raw:
        for number, made in enumerate((b"0001-01-01T00:00:00%2B23:59", b"1969-01-01", b"x"), 1):
            raw.send(publish(EVENTS + b"%24.ctime=" + made, b"old", number))
            assert raw.read()[0] == 0x40
    kept = world.call(world.core.telemetry_since())
    assert [e["made_s"] == e["received_s"] for e in kept] == [True] * 3
    assert "old" in line_of(kept[0])


def test_numbers_beyond_all_floats_do_not_enter_a_twin(shared):
    with RawSession(shared) as raw:
        raw.subscribe("$iothub/twin/res/#")
        raw.send(publish(REPORTED + b"9", b'{"a": 1e999}'))
        assert raw.next_publish().topic.startswith("$iothub/twin/res/400/?$rid=9")
    assert "a" not in shared.call(shared.core.twin_get("pump-7")).reported


def test_a_device_disabled_between_connect_and_its_session_does_not_stay(world):
    context = ssl.create_default_context(cafile=str(world.roots))
    with HeldDisk(world.core):
        plain = socket.create_connection(("127.0.0.1", world.hub.port), 10)
        tls = context.wrap_socket(plain, server_hostname="localhost")
        body = text(b"MQTT") + b"\x04\xc2\0\x3c" + text(b"pump-7")
        body += text(b"localhost/pump-7/?api-version=2021-04-12") + text(world.token().encode())
        tls.sendall(packet(0x10, body))
        assert eventually(lambda: any(line.device_id for line in world.hub._lines))
        with Registry(world.data) as registry:
            registry.set_status("pump-7", "disabled")
        time.sleep(0.6)  # the hub has seen that change, and found no session to close
    with tls:
        assert world.hub.wait_until(lambda: world.count("closed"), 2)
    assert world.event("closed")["reason"] == "the device was disabled"
    assert world.hub.connected == []


def test_of_those_who_never_say_who_they_are_the_oldest_go_first(world, monkeypatch):
    monkeypatch.setattr(servers, "STRANGERS_MAX", 20)
    silent = [socket.create_connection(("127.0.0.1", world.hub.port), 10) for _ in range(60)]
    try:
        client = world.client()
        assert len(world.hub._strangers) <= 20
        silent[0].settimeout(5)
        assert silent[0].recv(1) == b""
        end(client)
    finally:
        for one in silent:
            one.close()
    reasons = [e["reason"] for e in world.hub.events if e["event"] == "tls-failed"]
    assert len([r for r in reasons if "too many" in r]) >= 40


def test_those_who_shook_hands_and_say_nothing_give_way_too(world, monkeypatch):
    monkeypatch.setattr(servers, "STRANGERS_MAX", 5)
    context = ssl.create_default_context(cafile=str(world.roots))
    silent = []
    for _ in range(12):
        plain = socket.create_connection(("127.0.0.1", world.hub.port), 10)
        silent.append(context.wrap_socket(plain, server_hostname="localhost"))
    with RawSession(world) as raw:
        raw.ping()
        for _ in range(6):
            plain = socket.create_connection(("127.0.0.1", world.hub.port), 10)
            silent.append(context.wrap_socket(plain, server_hostname="localhost"))
        raw.ping()  # who is known has nothing to fear from strangers
    for one in silent:
        one.close()
    assert len([e for e in world.hub.events if "too many" in e.get("reason", "")]) >= 12


def test_who_reads_nothing_of_what_it_is_sent_is_let_go(world, monkeypatch):
    monkeypatch.setattr(lines, "UNREAD_MAX_BYTES", 200_000)
    with RawSession(world) as raw:
        raw.subscribe(DESIRED)
        for number in range(500):
            patch = {f"k{n}": "x" * 4000 for n in range(7)} | {"n": number}
            world.call(world.core.twin_patch("pump-7", desired=patch))
            if world.count("closed"):
                break
        assert world.event("closed")["reason"] == "it does not read what it is sent"


def test_a_newer_connection_gets_the_older_ones_commands_first(world):
    for number in range(20):
        world.call(world.core.send_command("pump-7", b"%d" % number))
    with RawSession(world) as older:
        older.subscribe(COMMANDS)
        first = [older.next_publish().body for _ in range(16)]
        assert first == [b"%d" % n for n in range(16)]
        with RawSession(world) as newer:
            newer.subscribe(COMMANDS)
            came = []
            for _ in range(20):
                came.append(newer.next_publish())
                newer.acknowledge(came[-1])
    assert [c.body for c in came] == [b"%d" % n for n in range(20)]
    assert [c.dup for c in came] == [True] * 16 + [False] * 4
    assert eventually(lambda: world.core.commands.count("pump-7") == 0)


def test_two_that_take_each_others_place_for_ever_leave_nothing_behind(world):
    for number in range(3):
        world.call(world.core.send_command("pump-7", b"%d" % number))
    for _ in range(30):
        raw = RawSession(world)
        raw.send(packet(0x82, b"\0\1" + text(COMMANDS.encode()) + b"\1"))
    raw.__exit__()
    assert eventually(lambda: world.hub.connected == [] and not world.hub._lines)
    states = {c.state for c in world.call(world.core.commands_waiting("pump-7"))}
    dead = world.call(world.core.commands_dead("pump-7"))
    assert states <= {"queued"} and {c.state for c in dead} <= {"undeliverable"}


def test_twin_bombs_change_nothing_and_are_answered_400_or_413(shared):
    bombs = [
        b"[" * 100000,
        b'{"a":' * 52000,
        b'{"a":' * 12 + b"1" + b"}" * 12,
        json.dumps({f"k{n}": "x" * 4000 for n in range(9)}).encode(),
        json.dumps({"a": {str(n): n for n in range(20000)}}).encode(),
        b'{"$version": 9}',
        b'{"a.b": 1}',
        b'{"a": "\\ud800"}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b"\xff\xfe",
    ]
    before = shared.call(shared.core.twin_get("pump-7"))
    with RawSession(shared) as raw:
        raw.subscribe("$iothub/twin/res/#")
        for number, bomb in enumerate(bombs):
            raw.send(publish(REPORTED + b"%d" % number, bomb))
            status = raw.next_publish().topic.split("/")[3]
            assert status in ("400", "413"), (number, status)
    assert shared.call(shared.core.twin_get("pump-7")) == before


def test_who_watches_too_slowly_loses_the_oldest_and_the_hub_no_memory(world, monkeypatch):
    monkeypatch.setattr(news, "WAITING_MAX_BYTES", 300_000)

    async def watch():
        async with world.core.events() as reader:
            await asyncio.to_thread(send)
            found = []
            with contextlib.suppress(IndexError):
                while True:
                    found.append(reader.get_nowait())
            return found

    def send():
        with RawSession(world) as raw:
            for number in range(1, 11):
                raw.send(publish(EVENTS, b"x" * 100_000, number))
                assert raw.read()[0] == 0x40

    numbers = [e["number"] for e in world.call(watch()) if e["event"] == "telemetry"]
    assert numbers == [8, 9, 10]
