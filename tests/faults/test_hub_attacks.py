"""Devices that mean harm, and a disk that cannot keep up: the hub lives, holds little, says why."""

import asyncio
import contextlib
import json
import socket
import sqlite3
import ssl
import struct
import threading
import time

import pytest
from hubs import eventually
from outpost_tools.errors import OutpostError
from outpost_tools.hub import Hub, faults, news, session
from outpost_tools.hub import line as lines
from outpost_tools.hub import server as servers
from outpost_tools.hub.store import Telemetry, TelemetryStore
from outpost_tools.registry import Registry
from pahodevice import RawSession, World, end, packet, text

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


def publish(topic, body=b"", packet_id=None):
    middle = b"" if packet_id is None else struct.pack("!H", packet_id)
    return packet(0x30 if packet_id is None else 0x32, text(topic) + middle + body)


def reason_of(world, data):
    """Why the connection ends that sends this."""
    before = len(world.hub.events)
    with RawSession(world) as raw:
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


def test_acknowledgements_keep_the_order_of_what_they_acknowledge(world):
    with RawSession(world) as raw, HeldDisk(world.core):
        pass
    with RawSession(world) as raw:
        stored = world.core.telemetry._db
        with sqlite3.connect(world.core.telemetry.path) as other:
            other.execute("BEGIN IMMEDIATE")
            raw.send(publish(EVENTS, b"first", 1) + publish(REPORTED + b"1", b'{"b": 1}', 2))
            twin = eventually(
                lambda: world.call(world.core.twin_get("pump-7")).reported == {"b": 1}
            )
            assert twin
            other.rollback()
        assert [raw.read(), raw.read()] == [(0x40, b"\0\1"), (0x40, b"\0\2")]
        assert stored


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


def test_what_waits_for_the_disk_is_bounded_and_none_of_it_is_lost(world, monkeypatch):
    monkeypatch.setattr(session, "UNSTORED_MAX_BYTES", 300_000)
    with RawSession(world) as raw:
        with sqlite3.connect(world.core.telemetry.path) as other:
            other.execute("BEGIN IMMEDIATE")
            sending = threading.Thread(
                target=lambda: [raw.send(publish(EVENTS, b"x" * 100_000, n)) for n in range(1, 151)]
            )
            sending.start()
            (one,) = [s for s in world.core.presence.sessions.values()]
            assert eventually(lambda: one._unstored_bytes == 300_000)
            time.sleep(0.2)
            assert one._unstored_bytes == 300_000 and sending.is_alive()
            other.rollback()
        sending.join()
        assert [raw.read()[1] for _ in range(150)] == [struct.pack("!H", n) for n in range(1, 151)]
    numbers, after = [], 0
    while page := world.call(world.core.telemetry_since(after_number=after)):
        numbers += [e["number"] for e in page]
        after = numbers[-1]
    assert len(numbers) == 150


def test_the_memory_of_a_hub_that_runs_for_long_is_bounded_in_bytes(world, monkeypatch):
    monkeypatch.setattr(servers, "TELEMETRY_HELD_BYTES", 500_000)
    with RawSession(world) as raw:
        for number in range(1, 21):
            raw.send(publish(EVENTS, b"x" * 100_000, number))
            assert raw.read()[0] == 0x40
    assert len(world.hub.telemetry) == 5
    assert len(world.call(world.core.telemetry_since())) == 20


def test_a_full_disk_acknowledges_nothing_and_with_room_again_all_goes_on(world):
    db = world.core.telemetry._db
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count = {pages}")
    with RawSession(world) as raw:
        raw.send(publish(EVENTS, b"x" * 50_000, 1))
        assert raw.file.read(1) == b""
    assert world.event("closed")["reason"] == "its message could not be stored: is the disk full?"
    db.execute(f"PRAGMA max_page_count = {1 << 30}")
    with RawSession(world) as raw:
        raw.send(publish(EVENTS, b"x" * 50_000, 1))
        assert raw.read() == (0x40, b"\0\1")
    assert [len(m.body) for m in world.hub.telemetry] == [50_000]


def test_a_full_disk_is_answered_with_503_and_what_was_there_stays(world):
    world.call(world.core.twin_patch("pump-7", desired={"a": 1}))
    for part in (world.core.twins, world.core.commands):
        pages = part._db.execute("PRAGMA page_count").fetchone()[0]
        part._db.execute(f"PRAGMA max_page_count = {pages}")
    large = {f"k{n}": "x" * 4000 for n in range(7)}
    with RawSession(world) as raw:
        raw.subscribe("$iothub/twin/res/#")
        raw.send(publish(REPORTED + b"1", json.dumps(large).encode()))
        assert raw.next_publish().topic == "$iothub/twin/res/503/?$rid=1"
        raw.ping()
        with pytest.raises(faults.Unavailable, match="full"):
            world.call(world.core.twin_patch("pump-7", desired=large))
        with pytest.raises(faults.Unavailable, match="full"):
            for _ in range(9):
                world.call(world.core.send_command("pump-7", b"x" * 60000))
    twin = world.call(world.core.twin_get("pump-7"))
    assert (twin.desired, twin.reported) == ({"a": 1}, {})


def test_a_session_that_cannot_be_kept_is_answered_with_code_3(world):
    def fail(*_):
        raise sqlite3.OperationalError("database or disk is full")

    world.core.subscriptions.begin = fail
    client = world.client(clean=False, wait=False)
    assert eventually(lambda: client.codes) == [3]
    end(client)
    assert "cannot use its disk" in world.event("closed")["reason"]


def test_a_message_that_cannot_be_written_does_not_stop_the_writer(tmp_path):
    async def run():
        store = TelemetryStore(tmp_path)
        bad = store.add(Telemetry("pump-7", b"bad", {}, 1 << 70, False, 1))
        with pytest.raises(OverflowError):
            await asyncio.wait_for(bad, 10)
        await asyncio.wait_for(store.add(Telemetry("pump-7", b"good", {}, 1, False, 2)), 10)
        kept = store.read()
        store.close()
        return kept

    assert [e["body"] for e in asyncio.run(run())] == ["good"]


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


def test_a_second_hub_on_the_same_folder_is_refused_with_one_sentence(world):
    with pytest.raises(OutpostError, match="Another hub"):
        Hub(world.data).start()
    world.restart()  # and the first gives the folder back


def test_a_clock_that_goes_back_loses_no_command_and_no_telemetry(tmp_path):
    offset_s = [0.0]
    world = World(tmp_path / "data", now_s=lambda: time.time() + offset_s[0])
    try:
        world.call(world.core.send_command("pump-7", b"open"))
        with RawSession(world) as raw:
            raw.send(publish(EVENTS, b"before", 1))
            raw.read()
            offset_s[0] = -3600.0
            raw.send(publish(EVENTS, b"after", 2))
            raw.read()
            raw.subscribe(COMMANDS)
            assert raw.next_publish().body == b"open"
        kept = world.call(world.core.telemetry_since())
        assert [e["body"] for e in kept] == ["before", "after"]
        late = world.call(world.core.telemetry_since(since_s=time.time() - 1800))
        assert [e["body"] for e in late] == ["before"]
    finally:
        world.hub.stop()


def test_a_large_store_is_read_in_pieces_that_fit_into_memory(tmp_path, monkeypatch):
    from outpost_tools.hub import store as stores

    monkeypatch.setattr(stores, "READ_MAX_BYTES", 250_000)

    async def fill(store):
        for number in range(10):
            await store.add(Telemetry("pump-7", b"%d" % number * 100_000, {}, 1, False, None))

    store = TelemetryStore(tmp_path)
    asyncio.run(fill(store))
    pages, after = [], 0
    while page := store.read(after_number=after):
        pages.append(len(page))
        after = page[-1]["number"]
    store.close()
    assert pages == [3, 3, 3, 1]


def test_old_telemetry_goes_although_nothing_new_comes(tmp_path, monkeypatch):
    from outpost_tools.hub import store as stores

    now_s = [1000.0]
    store = TelemetryStore(tmp_path, lambda: now_s[0])

    async def fill():
        await store.add(Telemetry("pump-7", b"old", {}, 1, False, None, received_s=1000.0))

    asyncio.run(fill())
    store.close()
    monkeypatch.setattr(stores, "FORGET_EVERY_S", 0.05)
    store = TelemetryStore(tmp_path, lambda: now_s[0])
    time.sleep(0.2)
    assert len(store.read()) == 1
    now_s[0] += 8 * 86400
    assert eventually(lambda: store.read() == [])
    store.close()


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


def test_a_program_that_holds_the_registrys_file_does_not_stop_the_hub(world):
    with RawSession(world) as raw, sqlite3.connect(world.data / "registry.db") as other:
        other.execute("BEGIN IMMEDIATE")
        world.core.presence.heard(next(iter(world.core.presence.sessions.values())))
        saving = threading.Thread(target=lambda: world.core._disk.submit(world.core.presence.save))
        saving.start()
        removing = threading.Thread(target=lambda: world.core.registry.remove("pump-7"))
        removing.start()
        time.sleep(0.3)
        began = time.monotonic()
        assert world.core.statistics()["totalDeviceCount"] == 1
        stranger = world.client(password="SharedAccessSignature sr=a&sig=YQ%3D%3D&se=1", wait=False)
        assert eventually(lambda: stranger.codes) == [5]
        raw.ping()
        raw.send(publish(EVENTS, b"still", 1))
        assert raw.read() == (0x40, b"\0\1")
        assert time.monotonic() - began < 5
        end(stranger)
        other.rollback()
        removing.join()
        assert world.hub.wait_until(lambda: world.count("closed"), 2)
    assert world.event("closed")["reason"] == "the device was removed"
