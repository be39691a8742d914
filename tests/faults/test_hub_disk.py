"""A disk that is full, slow or in others' hands: what was acknowledged stays, the hub goes on."""

import asyncio
import json
import sqlite3
import struct
import threading
import time

import pytest
from hubs import eventually
from outpost_tools.errors import OutpostError
from outpost_tools.hub import Hub, faults, session
from outpost_tools.hub import server as servers
from outpost_tools.hub.store import Telemetry, TelemetryStore
from pahodevice import RawSession, World, end, publish
from servers import in_time

EVENTS = b"devices/pump-7/messages/events/"
REPORTED = b"$iothub/twin/PATCH/properties/reported/?$rid="
COMMANDS = "devices/pump-7/messages/devicebound/#"


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "data")
    yield world
    world.hub.stop()


def test_acknowledgements_keep_the_order_of_what_they_acknowledge(world):
    with RawSession(world) as raw:
        with sqlite3.connect(world.core.telemetry.path) as other:
            other.execute("BEGIN IMMEDIATE")
            raw.send(publish(EVENTS, b"first", 1) + publish(REPORTED + b"1", b'{"b": 1}', 2))
            twin = eventually(
                lambda: world.call(world.core.twin_get("pump-7")).reported == {"b": 1}
            )
            assert twin
            other.rollback()
        assert [raw.read(), raw.read()] == [(0x40, b"\0\1"), (0x40, b"\0\2")]


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
        assert time.monotonic() - began < in_time(5)
        end(stranger)
        other.rollback()
        removing.join()
        assert world.hub.wait_until(lambda: world.count("closed"), 2)
    assert world.event("closed")["reason"] == "the device was removed"
